"""Draws the house from the code: rooms and their imports in docs/architecture.md, modules and their tests in
tests/README.md. Each stands between two markers; `make reference` writes them, tests/test_reference.py compares.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from test_floors import FILES, FLOORS, imported, room  # noqa: E402

ARCHITECTURE, TESTS = ROOT / "docs/architecture.md", ROOT / "tests/README.md"
SHOWN = 3  # tests of a module
WHOLE = ("test_floors",)  # looks at every file
CELLAR = {name for name, floor in FLOORS.items() if floor < FLOORS["distill.data"]}  # imported by every room: not drawn

MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES if path.stem != "__init__"}


@cache
def pages() -> dict[Path, str]:
    """Return the two pages as they should be."""
    architecture = _between(ARCHITECTURE.read_text(encoding="utf-8"), "picture", picture())
    return {
        ARCHITECTURE: _between(architecture, "rooms", rooms()),
        TESTS: _between(TESTS.read_text(encoding="utf-8"), "modules", modules()),
    }


def picture() -> str:
    """Return the rooms as a Mermaid graph: an arrow is an import that no longer path of arrows implies."""
    arrows: dict[str, set[str]] = {name: set() for name in FLOORS if name not in CELLAR}
    for path in FILES:
        own = room(_dotted(path))
        if own in arrows:
            arrows[own] |= {other for name in imported(path) if (other := room(name)) in arrows and other != own}

    def reached(start: str) -> set[str]:
        return {end for one in arrows[start] for end in (one, *reached(one))}

    lines = ["```mermaid", "graph TD"]
    for own in sorted(arrows, key=lambda name: -FLOORS[name]):
        lines.append(f'    {_node(own)}["{own.removeprefix("distill.")}"]')
        implied = {end for one in arrows[own] for end in reached(one)}
        lines += [f"    {_node(own)} --> {_node(other)}" for other in sorted(arrows[own] - implied)]
    return "\n".join([*lines, "```"])


def rooms() -> str:
    """Return a table for every room, from the roof down: its files, and the first sentence of each docstring."""
    found: dict[str, list[Path]] = {}
    for path in FILES:
        folder = path.parent.relative_to(ROOT)
        found.setdefault(f"{folder}/", []).append(path)
    heads = sorted(found, key=lambda name: -FLOORS.get(name.rstrip("/").replace("/", "."), -3))
    return "\n\n".join(_room(name, found[name]) for name in heads)


def _room(name: str, paths: list[Path]) -> str:
    about = next((_sentence(path) for path in paths if path.stem == "__init__"), "")
    rows = [f"| `{path.name}` | {_sentence(path)} |" for path in paths if path.stem != "__init__"]
    return "\n".join([f"### `{name}`", "", about, "", "| file | |", "|---|---|", *rows])


def modules() -> str:
    """Return the table of modules and the test files that say most of them: of its name, or with the fewest imports.

    A module that no test imports or runs is tested through the modules that import it.
    """
    tests = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if path.stem not in WHOLE]
    texts = {path: path.read_text(encoding="utf-8") for path in tests}
    used = {path: {name for module in imported(path) if (name := _module(module))} for path in tests}
    rows = ["| module | tests |", "|---|---|"]
    for path in FILES:
        if path.stem == "__init__":
            continue
        module, place = _dotted(path), path.relative_to(ROOT).as_posix()
        users = [test for test in tests if module in used[test] or place in texts[test]]
        users.sort(key=lambda test: (path.stem not in test.stem, len(used[test])))
        said = ", ".join(f"`{test.name}`" for test in users[:SHOWN])
        if not users:
            above = [other for other in FILES if module in {_module(name) for name in imported(other)}]
            said = "through " + ", ".join(f"`{other.relative_to(ROOT).as_posix()}`" for other in above[:SHOWN])
            said = said if above else "its help alone: `test_cli.py`"
        rows.append(f"| `{place}` | {said} |")
    return "\n".join(rows)


def _module(name: str) -> str | None:
    """Return the module of the project that an imported name is, or belongs to."""
    for found in (name, name.rpartition(".")[0]):
        if found in MODULES:
            return found
    return None


def _between(text: str, marker: str, content: str) -> str:
    begin, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    assert begin in text and end in text, f"the page has {begin} and {end}"
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL)


def _sentence(path: Path) -> str:
    """Return the first sentence of a file's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0].rstrip(":").replace("|", "\\|")


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _node(name: str) -> str:
    return name.replace(".", "_")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
