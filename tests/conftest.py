"""Small real things that several tests use: mp4 files, their frame sets, tiny towers, commands as processes."""

import fcntl
import io
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings
from processes import QUIET, ROOT, Ranks
from safetensors.torch import load_file, save_file

from distill.data.video import decode, probe

ARCHITECTURE = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}

# No test depends on the time that it takes: the machine may be busy
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

LONGEST = (
    "training convert demo_corpus bench_training faults label_jobs page page_search page_player server recipes loader "
    "odd_folder store arrow prompt_switch pig plan indexing glscl interruptions label_tiers export memory eercf parity "
    "bench wheel onnx backends steps"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: each stays with one process, which then makes once what its tests share."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--fixtures DIR`: more fixtures for tests/test_parity.py (pytest's own `--fixtures` remains as `--funcargs`)."""
    parser.optparser.conflict_handler = "resolve"
    parser.getgroup("parity").addoption(
        "--fixtures",
        action="append",
        default=[],
        metavar="DIR",
        dest="parity",
        help="compare with the fixtures of this folder too, and print a table of errors",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The largest error of every output of every fixture beside its tolerance, when `--fixtures` asked for it."""
    if not config.getoption("parity"):
        return
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    called = [report for report in reports if getattr(report, "when", None) == "call"]
    found = [value for report in called for name, value in report.user_properties if name == "parity"]
    rows: dict[tuple[str, str], list[str]] = {}
    for fixture, output, run, error, limit, kind in sorted(found, key=lambda row: row[0]):
        allowed = f"{limit:.0e}" if limit else "exact"
        allowed += "" if kind == "absolute" else f" {kind}"
        verdict = "" if error <= limit else "  TOO FAR"
        rows.setdefault((fixture, output), []).append(f"{run} {error:.1e} ({allowed}){verdict}")
    terminalreporter.section("parity: largest errors (and tolerances)")
    width = max((len(output) for _, output in rows), default=0)
    last = ""
    for (fixture, output), runs in rows.items():
        if fixture != last:
            terminalreporter.write_line(fixture)
        last = fixture
        terminalreporter.write_line(f"  {output:<{width}}  {'; '.join(runs)}")


@pytest.fixture(autouse=True, scope="session")
def offline():
    """No test may reach a hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)


def quick(values: Iterable, those: Collection) -> list:
    """Values of a parameter: `make test` takes those, and `make slow` the others."""
    return [value if value in those else pytest.param(value, marks=pytest.mark.slow) for value in values]


def command(*args: str | Path, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    """Runs a command of the project in its own process, as a user would, with a time limit."""
    result = subprocess.run(
        [str(arg) for arg in args],
        cwd=ROOT,
        env={**os.environ, **QUIET, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check and result.returncode:
        raise AssertionError(f"{args} ended with {result.returncode}:\n{result.stdout}\n{result.stderr[-3000:]}")
    return result


def python(*args: str | Path, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    """`python SCRIPT ...` in its own process, as a user would, with a time limit."""
    return launch(1, *args, check=check, **env)


def launch(processes: int, *args: str | Path, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    """`python SCRIPT ...` in so many processes that find each other, as a launcher would start them."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(args, processes, Path(folder) / "log", apart=True, **env)
        ranks.finish(600)
        code = next((code for code in ranks.codes if code), 0)
        out, errors = ("".join(path.read_text() for path in paths) for paths in (ranks.logs, ranks.errors))
    result = subprocess.CompletedProcess(args, code, out, errors)
    if check and result.returncode:
        raise AssertionError(f"{args} ended with {ranks.codes}:\n{result.stdout}\n{result.stderr[-3000:]}")
    return result


def frames_at(source: Path | io.BufferedReader, indices: Sequence[int]) -> tuple[list[np.ndarray], list[float]]:
    """The frames of a video at `indices`, in that order, and their seconds."""
    if not indices:
        return [], []
    timeline = probe(source)
    found = dict(decode(source, timeline, indices))
    return [found[index] for index in indices], [timeline.seconds(index) for index in indices]


@dataclass(frozen=True)
class World:
    """Everything a small run needs, made once."""

    folder: Path
    corpus: Path
    frames: dict[str, Path]
    towers: Path

    def recipe(self, name: str, kind: str, path: Path, **sections: dict) -> Path:
        """Writes a recipe for this corpus and returns its path; `sections` merge into it."""
        clip = {"model": str(self.towers), "freeze_vision": 2}
        model: dict = {"kind": kind, "clip": clip}
        if kind not in ("xpool", "prompt_switch", "pig"):
            model["temporal"] = {"layers": 1, "init": "normal"}
        model |= {"xclip": {"words": 24, "frames": 12}, "ts2net": {"frames": 12, "shift_layers": 1}}.get(kind, {})
        model |= {"generator": {"selected": 4}} if kind == "pig" else {}  # the text tower has few positions
        tree: dict = {
            "name": name,
            "out": str(path),
            "seed": 1,
            "model": model,
            "data": {
                "train": str(self.frames["train"]),
                "val": str(self.frames["val"]),
                "test": str(self.frames["test"]),
                "max_words": 24,
                "batch_size": 8,
            },
            "optim": {"lr": 1.0e-3, "clip_lr": 1.0e-4, "head_lr": 1.0e-2},
            "train": {"epochs": 1, "stem_cache_gb": 1.0, "log_every": 5},
        }
        for section, values in sections.items():
            tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
        path.mkdir(parents=True, exist_ok=True)
        file = path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree))
        return file


def diverged(world: World, folder: Path) -> str:
    """The path of towers whose numbers are finite, and so large that what they give is not."""
    shutil.copytree(world.towers, folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.ln_post.weight"].fill_(3e38)
    save_file(weights, folder / "open_clip_model.safetensors")
    return str(folder)


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process of a test run makes, while the others wait for it; none may change it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (finished := folder.with_suffix(".finished")).exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            make(folder)
            finished.touch()
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A corpus of 32 training clips, packed, and random towers."""
    folder = make_once(tmp_path_factory, "world", _make_world)
    frames = {split: folder / "frames" / split for split in ("train", "val", "test")}
    return World(folder, folder / "corpus", frames, folder / "towers")


def _make_world(folder: Path) -> None:
    corpus = folder / "corpus"
    python("tools/make_demo.py", "--out", corpus, "--clips", "32", "--seed", "3")
    for split in ("train", "val", "test"):
        python(
            *("tools/pack_frames.py", corpus / f"{split}.csv", corpus / "videos", "--layout", "msrvtt"),
            *("--size", "64", "--out", folder / "frames" / split),
        )
    make_towers(folder / "towers")


@pytest.fixture(scope="session")
def teacher_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An X-CLIP run of one epoch on one process: its matrices are not identities any more."""

    def make(out: Path) -> None:
        python("distill/run.py", world.recipe("xclip", "xclip", out))

    return make_once(tmp_path_factory, "teacher", make) / "xclip"


@pytest.fixture(scope="session")
def teacher(teacher_run: Path) -> Path:
    """The release of that run."""
    return teacher_run / "release"


def make_towers(folder: Path) -> Path:
    """A tower folder with random weights, in open_clip's layout."""
    import open_clip

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    clip = open_clip.CLIP(**ARCHITECTURE)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE}))
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def metrics(run: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl without the fields that time the machine."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "data_wait")} for row in rows]


def steps(run: Path) -> list[dict]:
    """The rows of optimisation steps alone."""
    return [row for row in metrics(run) if "total" in row]


def same(found: Path, expected: Path, least: int = 6) -> None:
    """The same batches in the same order, at least so many, all losses to 1e-5, and gradients of the same length."""
    assert len(steps(found)) == len(steps(expected)) >= least
    for a, b in zip(steps(found), steps(expected), strict=True):
        assert a["batch"] == b["batch"], f"step {a['step']}"
        for name in a.keys() - {"step", "epoch", "batch", "lr", "grad_norm"}:
            assert math.isclose(a[name], b[name], rel_tol=1e-5), f"step {a['step']}: {name} {a[name]}, not {b[name]}"
        assert math.isclose(a["grad_norm"], b["grad_norm"], rel_tol=1e-4), f"step {a['step']}"


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every published file of an artefact folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".work" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def one_line_error(result: subprocess.CompletedProcess, *words: str) -> None:
    """The command refused its input as promised: exit code 2, one line, no traceback, with these words in it."""
    assert result.returncode == 2, f"exit code {result.returncode}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
