"""Installations: what each part of the project needs, what it says where that is missing, and whether pins fit."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_release import make, release

from distill.data.sampler import Clip4ClipSampler
from distill.data.video import write_video
from distill.packing.packing import PackConfig, pack
from distill.release.release import load
from distill.retrieval.indexing import build_gallery

TRAINING = ("deepspeed", "webdataset", "accelerate")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ["", *PROJECT["optional-dependencies"]]

SEARCHED = """
import sys
from pathlib import Path
from distill.release.release import load
from distill.retrieval.gallery import Gallery
from distill.retrieval.indexing import build_gallery
from distill.serving.application import application

student, videos, frames = load(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
for source, out in ((videos, "files"), (frames, "shards")):
    build_gallery(student, source, Path(out), workers=1)
    gallery = Gallery.open(out, student)
    hits = gallery.search(["a red star"], 3)[0]
    assert len(hits) == 3 and application(gallery)
unneeded = {"sentence_transformers", "pyarrow", "lancedb", "faiss", "matplotlib", "pandas", "scipy", "sklearn"}
print(sorted({name.partition(".")[0] for name in sys.modules} & unneeded))
rooms = ("distill.training", "distill.labelling", "distill.packing", "distill.evaluation")
print(sorted(name for name in sys.modules if name.startswith(rooms)))
"""


def without(packages: tuple[str, ...], *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script where these packages are not installed."""
    line = [sys.executable, ROOT / "tests/without.py", ",".join(packages), *command]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small videos, their frame set, and a release that takes both."""
    folder = tmp_path_factory.mktemp("installation")
    draw = np.random.default_rng(0)
    for number in range(3):
        shots = draw.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
        clip = shots.repeat(4, axis=0).repeat(8, axis=1).repeat(8, axis=2)
        (folder / "videos").mkdir(exist_ok=True)
        write_video(folder / "videos" / f"{number}.mp4", clip, fps=4)
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=4), size=32)
    (folder / "all.csv").write_text("video,caption\n0,one\n1,two\n2,three\n")
    pack(folder / "all.csv", "csv", folder / "videos", folder / "frames", config, workers=1)
    release(folder / "release", *make())
    return folder


def test_a_student_is_used_without_what_training_needs(folder: Path, tmp_path: Path):
    (tmp_path / "script.py").write_text(SEARCHED)
    result = without(TRAINING, "script.py", *(folder / name for name in ("release", "videos", "frames")), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n") == ["[]", "[]", ""]


@pytest.mark.parametrize(
    "package, extra, command",
    [
        ("webdataset", "train", (ROOT / "tools/pack_frames.py", "videos", "--out", "frames")),
        ("uvicorn", "serve", (ROOT / "tools/serve.py", "gallery")),
        ("deepspeed", "train", (ROOT / "distill/run.py", ROOT / "recipes/teachclip.yaml", "out=frames")),
    ],
)
def test_a_command_says_which_extra_it_needs(package, extra, command, folder: Path, tmp_path: Path):
    (tmp_path / "videos").symlink_to(folder / "videos")
    result = without((package,), *command, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    expected = f"error: {package} is not installed, which this needs; run pip install 'retrieval-distill[{extra}]'"
    assert said == [expected] and "Traceback" not in result.stderr
    assert not (tmp_path / "frames").exists(), "nothing is begun"


@pytest.mark.parametrize(
    "command",
    [
        (ROOT / "tools/search.py", "gallery", "a red star"),
        (ROOT / "tools/index.py", "release", "videos", "--out", "new"),
        (ROOT / "tools/gallery.py", "gallery", "approximate"),
    ],
    ids=lambda line: line[0].stem,
)
def test_a_command_of_the_light_form_says_what_it_needs_or_works(command, folder: Path, tmp_path: Path):
    for name in ("release", "videos"):
        (tmp_path / name).symlink_to(folder / name)
    build_gallery(load(folder / "release"), folder / "videos", tmp_path / "gallery", workers=1)
    result = without(("torch", "open_clip", "timm", "torchvision", "av"), *command, cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        r"error: (torch|av) is not installed, which this needs; run pip install 'retrieval-distill'", last
    ) or ("3 videos, expected at least 400" in last)
    assert not (tmp_path / "new").exists()


def test_the_light_form_is_a_part_of_this_project():
    light = tomllib.loads((ROOT / "light/pyproject.toml").read_text())
    own, whole = light["project"], PROJECT
    assert set(own["dependencies"]) <= set(whole["dependencies"]) and own["version"] == whole["version"]
    for extra, asked in own["optional-dependencies"].items():
        assert set(asked) <= set(whole["optional-dependencies"][extra])
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(light["tool"]["setuptools"]["packages"]) <= set(packages["packages"])
    for package, files in light["tool"]["setuptools"]["package-data"].items():
        assert set(files) <= set(packages["package-data"][package])
    names = {Requirement(line).name for line in own["dependencies"]}
    assert not names & {"torch", "open_clip_torch", "timm", "av", "huggingface_hub", *TRAINING}


def pins() -> dict[str, Version]:
    """Return the versions in constraints.txt, by name."""
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    return {canonicalize_name(line.name): Version(str(line.specifier).removeprefix("==")) for line in lines}


def needs(requirements: list[str], extra: str) -> list[Requirement]:
    """Return those of some requirements that hold here, for an extra."""
    wanted = [Requirement(line) for line in requirements]
    return [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": extra})]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_pins_of_every_extra_fit_together(extra: str):
    """All that an extra asks for, and what that asks for as it is installed here, is pinned to a version that fits."""
    pinned, odd = pins(), []
    named = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    waiting, seen = [("this project", one) for one in needs(named, extra)], set()
    while waiting:
        by, wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name not in pinned:
            odd += [] if is_of_the_system(name) else [f"{by} needs {wanted}, which is not pinned"]
            continue
        if not wanted.specifier.contains(pinned[name], prereleases=True):
            odd.append(f"{by} needs {wanted}, but {pinned[name]} is pinned")
        for key in {"", *wanted.extras}:
            if (name, key) in seen:
                continue
            seen.add((name, key))
            try:
                installed = distribution(name)
            except PackageNotFoundError:  # an extra that `make` does not install: its own needs are not known here
                continue
            if Version(installed.version).public == pinned[name].public:
                waiting += [(f"{name} {pinned[name]}", one) for one in needs(installed.requires or [], key)]
    assert not odd, "\n".join(odd)
    assert seen, "something was looked at"


def is_of_the_system(name: str) -> bool:
    """Return whether torch chooses a package by the system it is built for: constraints.txt leaves those open."""
    return name.startswith(("nvidia-", "cuda-")) or name in ("triton", "setuptools")


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_pip_finds_versions_for_every_extra(extra: str, tmp_path: Path):
    """The same by pip itself, with the needs of all packages; only where an index of packages can be reached."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*pip, "download", "--no-deps", "-d", tmp_path, "tqdm"], capture_output=True).returncode:
        pytest.skip("no index of packages can be reached")
    named = f"{ROOT}[{extra}]" if extra else str(ROOT)
    line = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", tmp_path / "report.json"]
    line += ["--constraint", ROOT / "constraints.txt", named]
    result = subprocess.run([*pip, *line], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "report.json").read_text())["install"]
