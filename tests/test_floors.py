"""The house stands: imports go down only, and each heavy library is imported in the one file that may."""

import ast
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

# A file may import from its own room and from floors with a smaller number.
FLOORS = {
    "distill.signals": -2,
    "distill.terminal": -2,
    "distill.errors": -1,
    "distill.deprecation": 0,
    "distill.hub": 0,
    "distill.locks": 0,
    "distill.config": 1,
    "distill.log": 1,
    "distill.workers": 1,
    "distill.comm": 1,
    "distill.remote": 1,
    "distill.publishing": 2,
    "distill.records": 3,
    "distill.manifest": 4,
    "distill.fetching": 5,
    "distill.licence": 4,
    "distill.cache": 2,
    "distill.data": 5,
    "distill.packing": 6,
    "distill.model": 6,
    "distill.onnx": 6,
    "distill.losses": 6,
    "distill.ranking": 7,
    "students": 7,
    "teachers": 7,
    "distill.catalogue": 8,
    "distill.retrieval": 8,
    "distill.evaluation": 9,
    "distill.serving": 9,
    "distill.training": 10,
    "distill.release": 10,
    "distill.labelling": 11,
    "distill.conversion": 11,
    "distill.bench": 12,
    "distill.demo": 13,
    "distill.recipe": 12,
    "distill.exporting": 13,
    "distill.reporting": 12,
    "distill.provenance": 13,
    "distill.experiment": 14,
    "distill.verification": 14,
    "distill.run": 15,
    "tools": 15,
    "distill.cli": 16,
}
ONLY_IN = {
    "deepspeed": {"distill/training/engine.py"},
    "av": {"distill/data/video.py"},
    "webdataset": {"distill/data/building.py"},
    "fsspec": {"distill/remote.py"},
    "aiohttp": {"distill/remote.py"},
    "uvicorn": {"distill/serving/server.py", "distill/serving/connection.py"},
    "h11": {"distill/serving/connection.py"},
    **{key: {"distill/serving/application.py", "distill/serving/videos.py"} for key in ("fastapi", "starlette")},
    "faiss": {"distill/retrieval/approximate.py"},
    "onnxruntime": {"distill/onnx/session.py", "distill/exporting/graphs.py"},
    **{key: {"distill/retrieval/export.py"} for key in ("lancedb", "qdrant_client")},
    "pyarrow": {"distill/retrieval/export.py", "distill/data/vectorfiles.py"},
    "sentence_transformers": {"distill/labelling/embedder.py", "distill/release/sentencemodule.py"},
    "trackio": {"distill/training/trackers.py"},
    "jinja2": {"distill/reporting/page.py"},
    "students": {"distill/catalogue.py"},
    "teachers": {"distill/catalogue.py"},
    "pickle": set(),
}
FILES = [
    path for folder in ("distill", "teachers", "students", "tools") for path in sorted((ROOT / folder).rglob("*.py"))
]


@cache
def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(dotted: str) -> str | None:
    """The room a dotted name belongs to, or None outside the house."""
    parts = dotted.split(".")
    for length in (2, 1):
        if ".".join(parts[:length]) in FLOORS:
            return ".".join(parts[:length])
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path):
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:
        assert path.name == "__init__.py"
        return
    for name in imported(path):
        other = room(name)
        if other is not None and other != own:
            assert FLOORS[other] < FLOORS[own], f"{path.relative_to(ROOT)} is on floor {own} and imports {name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_where_it_belongs(library: str):
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name.split(".")[0] == library for name in imported(path)) and path.parent.name != library
    }
    assert users == ONLY_IN[library]


def test_no_file_is_named_after_a_module_that_scripts_would_shadow():
    import sys

    for path in FILES:
        if path.parent in (ROOT / "distill", ROOT / "tools") and path.stem != "__init__":
            assert path.stem not in sys.stdlib_module_names, path


RIDDLES = ("What ", "Of ", "From now on", "Whoever ")  # a docstring begins with a verb or a noun phrase


def test_no_docstring_begins_with_a_riddle():
    for path in [*FILES, *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                assert not text.startswith(RIDDLES), f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
