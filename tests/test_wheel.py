"""The wheel, in an environment of its own and away from the sources: commands, packaged recipes, training, serving."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, World, steps

import distill
from distill.data.frames import FrameSet

TOP = ("distill", "recipes", "students", "teachers", "tools")
FILES = ("LICENSE", "README.md", "pyproject.toml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, with the setuptools that is installed."""
    source = tmp_path_factory.mktemp("source")
    for folder in TOP:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for file in FILES:
        shutil.copy(ROOT / file, source)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", source, "-w", source / "dist")
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *build], check=True)
    return next((source / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a fresh environment with the wheel, which finds its dependencies in this one."""
    fresh = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", fresh / "bin/python"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    packages = next((fresh / "lib").glob("python*/site-packages"))
    # A path in a .pth file is searched last, and .pth files there, as of an editable install, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return fresh / "bin"


def run(command: Path, *args: str | Path, cwd: Path) -> str:
    """The standard output of a command in a folder that is not the project's."""
    result = subprocess.run(
        [str(part) for part in (command, *args)],
        cwd=cwd,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"{args}: {result.stderr[-3000:]}"
    return result.stdout


def _environment() -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return given | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_the_wheel_holds_every_module_recipe_and_other_file(wheel: Path):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.split("/")[0] in TOP}
    listed = subprocess.run(["git", "ls-files", *TOP], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = {name for name in listed.splitlines() if (ROOT / name).exists()}
    assert expected <= held
    assert {name for name in held - expected if not name.endswith(".so")} == set()
    assert {f"{folder}/py.typed" for folder in TOP if folder != "recipes"} <= held


@pytest.mark.slow
def test_the_wheel_trains_a_packaged_recipe_in_another_folder_and_serves(commands: Path, world: World, tmp_path: Path):
    found = run(
        commands / "python", "-c", "import distill, tools; print(distill.__file__, tools.__file__)", cwd=tmp_path
    )
    assert all(str(commands.parent) in path for path in found.split())
    assert run(commands / "distill", "demo", "--help", cwd=tmp_path).startswith("usage: distill demo ")
    captions = sum(len(video.captions) for video in FrameSet(world.frames["train"]).videos)
    changes = [f"data.{split}={world.frames[split]}" for split in ("train", "val")]
    changes += [f"data.batch_size={captions // 2}", "data.same_video=mask", "data.test=null", "train.epochs=1"]
    run(commands / "distill", "train", "recipes/clip4clip.yaml", *changes, cwd=tmp_path)
    assert len(steps(tmp_path / "runs/clip4clip")) == 2
    (tmp_path / "videos").mkdir()
    for path in sorted((world.corpus / "videos").glob("*.mp4"))[:5]:
        (tmp_path / "videos" / path.name).symlink_to(path)
    run(commands / "distill", "index", "runs/clip4clip/release", "videos", "--out", "gallery", cwd=tmp_path)
    serve = [commands / "distill", "serve", "gallery", "--port", "0"]
    with subprocess.Popen(serve, cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split(" at ")[1].split()[0]
            with urllib.request.urlopen(f"{url}about", timeout=60) as answer:
                assert json.load(answer)["videos"] == 5
        finally:
            server.terminate()


def test_the_version_is_the_same_wherever_it_stands(wheel: Path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.findall(r"^## \[([0-9][^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    built = wheel.name.split("-")[1]
    assert distill.__version__ == project["version"] == citation["version"] == newest == built
