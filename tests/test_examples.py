"""The examples run: the notebook, the Slurm array without Slurm, the Ray map's function, the container's lines."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT, tree_bytes
from test_release import make, release

import distill.release
import tools.dump_soft_labels
from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.data.video import write_video
from distill.packing.packing import PackConfig, pack

EXAMPLES = ROOT / "examples"
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small videos, one of them in a sub-folder, and a file that is none."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "videos/more").mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for name in ("a", "b", "c", "d", "more/e"):
        shots = drawn.integers(0, 256, (4, 6, 8, 3), np.uint8)
        write_video(folder / f"videos/{name}.mp4", shots.repeat(4, 0).repeat(8, 1).repeat(8, 2), fps=4)
    (folder / "videos/broken.mp4").write_bytes(b"no video")
    release(folder / "release", *make())
    return folder


def notebook() -> list[dict]:
    return json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]


def test_the_notebook_is_one():
    """Format 4.5, without outputs: what each cell needs by its definition."""
    found = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5) and found.keys() >= {"metadata", "cells"}
    needed = {"cell_type", "id", "metadata", "source"}
    for cell in found["cells"]:
        code = cell["cell_type"] == "code"
        assert cell.keys() == (needed | {"outputs", "execution_count"} if code else needed)
        assert not code or (cell["outputs"], cell["execution_count"]) == ([], None)
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])


@pytest.mark.slow
def test_the_notebook_runs_from_videos_to_a_search(tmp_path: Path):
    code = "\n\n".join("".join(cell["source"]) for cell in notebook() if cell["cell_type"] == "code")
    (tmp_path / "cells.py").write_text(code)
    env = ENV | {"TMPDIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "cells.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = [line for line in ran.stdout.splitlines() if not line.startswith("{")]
    for colour in ("red", "blue"):
        start = next(number for number, line in enumerate(said) if line.startswith(f"a {colour} square"))
        assert re.fullmatch(rf"  \d\.\d{{3}}  library\d\d: a {colour} square .*, [\d.]+-[\d.]+ s", said[start + 1])


def test_the_slurm_script_is_a_shell_script_with_an_array():
    path = EXAMPLES / "labels.sbatch"
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    script = path.read_text()
    assert "#SBATCH --array=1-40\n" in script and "parts=40 " in script


@pytest.mark.slow
def test_the_slurm_array_makes_the_set_that_one_job_makes(folder: Path, tmp_path: Path):
    (tmp_path / "all.csv").write_text("video,caption\n" + "".join(f"{name}.mp4,some {name}\n" for name in "abcd"))
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=4), size=32, per_shard=2)
    pack(tmp_path / "all.csv", "csv", folder / "videos", tmp_path / "frames", config, workers=1)
    packed = FrameSet(tmp_path / "frames").manifest.config
    release(tmp_path / "teacher", *make("xclip"), frames_config=packed)
    for task in (40, 2, 1):  # two shards: the other tasks have none
        line = ["bash", EXAMPLES / "labels.sbatch", "teacher", "frames", "labels"]
        slurm = {"SLURM_ARRAY_TASK_ID": str(task)}
        ran = subprocess.run(line, cwd=tmp_path, env=ENV | slurm, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-2000:]
        sealed = (tmp_path / "labels/manifest.json").exists()
        assert sealed == (task == 1)
    tools.dump_soft_labels.main([str(tmp_path / name) for name in ("teacher", "frames")] + ["--out", f"{tmp_path}/one"])
    assert tree_bytes(tmp_path / "labels") == tree_bytes(tmp_path / "one")


def ray_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_vectors", EXAMPLES / "ray_vectors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_function_of_the_ray_map_gives_the_vectors_of_the_release(folder: Path):
    """Without Ray, which calls it with batches of columns as NumPy arrays."""
    example = ray_example()
    rows = example.videos_of(folder / "videos")
    assert [row["video"] for row in rows] == ["a.mp4", "b.mp4", "broken.mp4", "c.mp4", "d.mp4", "more/e.mp4"]
    encoder = example.Encoder(str(folder / "release"), str(folder / "videos"), "cpu")
    given = np.array([row["video"] for row in rows])
    batches = [encoder({"video": part}) for part in (given[:4], given[4:])]
    vectors = [vector for batch in batches for vector in batch["vector"]]
    reasons = [reason for batch in batches for reason in batch["reason"]]
    student = distill.release.load(folder / "release")
    for name, vector, reason in zip(given, vectors, reasons, strict=True):
        if name == "broken.mp4":
            assert vector is None and "broken.mp4" in reason
            continue
        ours = student.model.index_vectors(student.encode_video(folder / "videos" / name))
        np.testing.assert_array_equal(vector, ours[0].numpy(force=True))
        assert reason == ""


def test_the_lines_of_the_container_file():
    """Its instructions, its sources and its extras are there; what it runs by default runs here."""
    text = re.sub(r"^#.*\n", "", (EXAMPLES / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    assert [name for name, _ in lines] == ["FROM", "RUN", "COPY", "RUN", "WORKDIR", "EXPOSE", "ENTRYPOINT", "CMD"]
    told = dict((name, rest) for name, rest in lines if name != "RUN")
    source, target = told["COPY"].split()
    assert source == "." and told["FROM"].endswith("python:3.11-slim")
    shell = [rest for name, rest in lines if name == "RUN"]
    for line in shell:
        assert subprocess.run(["sh", "-n", "-c", line]).returncode == 0
    words = shlex.split(shell[1])
    assert (ROOT / Path(words[words.index("--constraint") + 1]).relative_to(target)).is_file()
    extras = re.fullmatch(rf"{re.escape(target)}\[(.*)\]", words[-1])
    assert extras is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras[1].split(",")) <= project["optional-dependencies"].keys()
    command = [*json.loads(told["ENTRYPOINT"]), *json.loads(told["CMD"])]
    ran = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert ran.returncode == 0 and "serve" in ran.stdout and "index" in ran.stdout
