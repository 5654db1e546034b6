"""Training is exact: two processes equal one, a killed run equals a whole one, ZeRO stages equal each other."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, World, metrics, python, steps, torchrun


@pytest.fixture
def single(teacher_run: Path) -> Path:
    """An uninterrupted run on one process."""
    return teacher_run


def test_a_run_leaves_its_recipe_metrics_and_release(single: Path):
    rows = metrics(single)
    assert [row["step"] for row in rows if "total" in row] == list(range(1, len(steps(single)) + 1))
    assert "R@1" in rows[-1]["val"]["t2v"]
    assert (single / "recipe.yaml").is_file()
    assert {path.name for path in (single / "release").iterdir()} >= {"model.safetensors", "config.json", "README.md"}


def test_two_processes_equal_one(world: World, single: Path, tmp_path: Path):
    torchrun(2, "distill/run.py", world.recipe("xclip", "xclip", tmp_path))
    one, two = steps(single), steps(tmp_path / "xclip")
    assert len(one) == len(two)
    for name in ("total", "grad_norm"):
        assert math.isclose(one[0][name], two[0][name], rel_tol=1e-5)
    for a, b in zip(one, two, strict=True):
        assert math.isclose(a["total"], b["total"], rel_tol=1e-4), f"step {a['step']}"


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_stages_give_the_same_losses(world: World, single: Path, tmp_path: Path, zero: int):
    torchrun(2, "distill/run.py", world.recipe("xclip", "xclip", tmp_path), f"train.zero={zero}")
    for a, b in zip(steps(single), steps(tmp_path / "xclip"), strict=True):
        assert math.isclose(a["total"], b["total"], rel_tol=1e-4), f"step {a['step']}"
        assert math.isclose(a["grad_norm"], b["grad_norm"], rel_tol=1e-3), f"step {a['step']}"


@pytest.mark.parametrize(("kind", "zero"), [("ts2net", 3), ("xpool", 0)])
def test_two_processes_equal_one_where_models_draw(world: World, tmp_path: Path, kind: str, zero: int):
    """TS2-Net's selection draws noise, X-Pool's head dropout; captions of one video meet, and are masked."""
    recipe = world.recipe("one", kind, tmp_path, data={"same_video": "mask", "batch_size": 16})
    python("distill/run.py", recipe)
    torchrun(2, "distill/run.py", recipe, "name=two", f"train.zero={zero}")
    for a, b in zip(steps(tmp_path / "one"), steps(tmp_path / "two"), strict=True):
        assert math.isclose(a["total"], b["total"], rel_tol=1e-4), f"step {a['step']}"
        assert math.isclose(a["grad_norm"], b["grad_norm"], rel_tol=1e-3), f"step {a['step']}"


def test_bertadam_gives_the_same_losses_in_shards(world: World, tmp_path: Path):
    recipe = world.recipe("one", "clip4clip", tmp_path, optim={"kind": "bertadam"})
    python("distill/run.py", recipe)
    torchrun(2, "distill/run.py", recipe, "name=two", "train.zero=2")
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert one[0]["lr"] == 0 and one[-1]["total"] < one[0]["total"]
    for a, b in zip(one, two, strict=True):
        assert math.isclose(a["total"], b["total"], rel_tol=1e-4), f"step {a['step']}"


@pytest.mark.parametrize("zero", [0, 2])
def test_a_killed_run_continues_to_the_same_losses(world: World, single: Path, tmp_path: Path, zero: int):
    recipe = world.recipe("xclip", "xclip", tmp_path, train={"zero": zero, "checkpoint_every": 3})
    killed_at = _kill_after(recipe, tmp_path / "xclip", step=5)
    python("distill/run.py", recipe)
    resumed = metrics(tmp_path / "xclip")
    assert killed_at < len(steps(single))
    if zero == 0:
        assert resumed == metrics(single)
    else:
        python("distill/run.py", world.recipe("whole", "xclip", tmp_path, train={"zero": zero, "checkpoint_every": 3}))
        assert resumed == metrics(tmp_path / "whole")


def test_a_run_continues_on_another_number_of_processes(world: World, single: Path, tmp_path: Path):
    recipe = world.recipe("xclip", "xclip", tmp_path, train={"checkpoint_every": 3})
    _kill_after(recipe, tmp_path / "xclip", step=5)
    torchrun(2, "distill/run.py", recipe)
    for a, b in zip(steps(single), steps(tmp_path / "xclip"), strict=True):
        assert math.isclose(a["total"], b["total"], rel_tol=1e-4), f"step {a['step']}"


def test_a_finished_run_is_left_alone(world: World, single: Path):
    before = (single / "metrics.jsonl").read_bytes()
    python("distill/run.py", single.parent / "xclip.yaml")  # the same command again
    assert (single / "metrics.jsonl").read_bytes() == before
    assert metrics(single.parent / "xclip-2") == metrics(single)


def test_cached_stems_change_nothing(world: World, single: Path, tmp_path: Path):
    python("distill/run.py", world.recipe("xclip", "xclip", tmp_path), "train.stem_cache_gb=0.0", "data.workers=1")
    for a, b in zip(steps(single), steps(tmp_path / "xclip"), strict=True):
        assert math.isclose(a["total"], b["total"], rel_tol=1e-5), f"step {a['step']}"


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_part(world: World, tmp_path: Path):
    recipe = world.recipe("xclip", "xclip", tmp_path)
    result = python("distill/run.py", recipe, "optim.clip_lr=1.0e+30", "optim.lr=1.0e+30", check=False)
    assert result.returncode == 2
    assert "loss part" in result.stderr and "Traceback" not in result.stderr


def test_deepspeed_launches_the_same_run(world: World, single: Path, tmp_path: Path):
    recipe = world.recipe("xclip", "xclip", tmp_path)
    launcher = (sys.executable, "-m", "deepspeed.launcher.runner", "--master_port", "0", "--num_accelerators", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*launcher, "distill/run.py", str(recipe)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert steps(tmp_path / "xclip") == steps(single)


def _kill_after(recipe: Path, run: Path, step: int) -> int:
    """Starts a run and kills it without warning once it has written `step`; returns the last step written."""
    process = subprocess.Popen(
        [sys.executable, "distill/run.py", str(recipe)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    path, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while not path.is_file() or path.read_bytes().count(b"\n") < step:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run never got there"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return path.read_bytes().count(b"\n")


@pytest.mark.parametrize("head", ["meanP", "seqTransf"])
def test_the_plain_baselines_train_in_bf16(world: World, tmp_path: Path, head: str):
    recipe = world.recipe("plain", "clip4clip", tmp_path, losses={"contrastive": {"weight": 1.0}})
    python("distill/run.py", recipe, f"model.head={head}", "train.precision=bf16", "train.epochs=2")
    losses = [row["total"] for row in steps(tmp_path / "plain")]
    assert sum(losses[-3:]) < sum(losses[:3])
