"""Training is exact: any number of processes, any ZeRO stage, micro-batches, any kill: the same batches and losses."""

import hashlib
import itertools
import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, World, command, diverged, launch, metrics, python, same, steps
from labelling import change_videos, write_labels
from processes import Ranks
from safetensors.torch import load_file, save_file

from distill.config import read_recipe
from distill.data.datasets import PairDataset, TrainingDataset
from distill.data.frames import FrameSet
from distill.data.loader import load_batches
from distill.data.plan import VERSION, Plan
from distill.errors import ExpectedError
from distill.experiment import prepare
from distill.manifest import Manifest
from distill.model.logit_scale import LogitScale
from distill.model.towers import WEIGHTS_FILE
from distill.recipe import Recipe
from distill.release.release import load
from distill.training import batches, checkpoint
from distill.training.folder import choose_folder, kept_apart
from distill.training.loop import seed_of

# Rates at which rounding stays rounding. Adam divides a gradient by its own size, so what is 1e-7 of a gradient that is
# all but zero moves a weight by a share of the rate; at ten times these rates losses part by 2e-5 within an epoch.
SLOW = {"lr": 1.0e-4, "clip_lr": 1.0e-5, "head_lr": 1.0e-3}
MEET = {"same_video": "mask", "batch_size": 16}  # captions of one video meet, and are masked
# The student learns by all three losses, and from videos without captions and captions without videos too; TS2-Net's
# selection draws noise, X-Pool's head dropout.
RECIPES = {
    "student": ("teachclip", {"optim": SLOW}),
    "ts2net": ("ts2net", {"optim": SLOW, "data": MEET}),
    "xpool": ("xpool", {"optim": SLOW, "data": MEET}),
    "bertadam": ("clip4clip", {"optim": {**SLOW, "kind": "bertadam"}}),
    "looks": ("teachclip", {"optim": SLOW, "model": {"second": {}}}),  # labels teach its second look too
    # one vector of a generated query, that X-Pool's labels teach by all of their losses; a tower without a stem
    "pig": ("pig", {"optim": {**SLOW, "kind": "hf_adamw"}, "losses": {"sentence": {"weight": 1.0}}}),
    "plain": ("clip4clip", {"losses": {"contrastive": {"weight": 1.0}}}),
}
BF16 = ("train.precision=bf16", "train.epochs=2")
ALONE = {  # run -> recipe, and what is changed in it
    "student": ("student",),
    "student-micro": ("student", "train.accumulate=4"),
    "student-recomputed": ("student", "train.activation_checkpointing=true"),
    "ts2net": ("ts2net",),
    "bertadam": ("bertadam",),
    "further": ("further",),
    "looks": ("looks",),
    "pig": ("pig",),
}
TOGETHER = {  # by two processes
    "student-2": ("student",),
    "ts2net-2-zero3": ("ts2net", "train.zero=3", "train.accumulate=2"),
    "pig-2-zero3": ("pig", "train.zero=3", "train.accumulate=2", "train.activation_checkpointing=true"),
}
MORE_ALONE = {  # `make slow` has these too
    "student-pixels": ("student", "train.stem_cache_gb=0.0", "data.workers=1"),
    "xpool": ("xpool",),
    "pig-micro": ("pig", "train.accumulate=4", "train.activation_checkpointing=true"),
    "plain-meanP": ("plain", *BF16),
    "plain-seqTransf": ("plain", *BF16, "model.head=seqTransf"),
}
MORE_TOGETHER = {
    "student-2-zero1": ("student", "train.zero=1", "train.accumulate=2"),
    "student-2-zero3": ("student", "train.zero=3", "train.accumulate=2", "train.activation_checkpointing=true"),
    "xpool-2": ("xpool",),
    "bertadam-2-zero2": ("bertadam", "train.zero=2"),
    "looks-2-zero2": ("looks", "train.zero=2", "train.accumulate=2"),
}
EQUAL = ["student-micro", *TOGETHER]  # to the recipe's plain run
MORE_EQUAL = ["student-pixels", "pig-micro", *MORE_TOGETHER]


@pytest.fixture(scope="module")
def folder(world: World, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes, and where their runs go."""
    folder = tmp_path_factory.mktemp("training")
    labels = write_labels(world, "xclip", folder / "labels")
    capped = _capped_towers(world, folder / "towers")
    beside = {
        split: write_labels(world, "xclip", folder / split, frames=world.frames[split]) for split in ("val", "test")
    }
    given: dict[str, list] = {"looks": [str(labels)]}
    given["pig"] = [str(write_labels(world, "xpool", folder / "xpool-labels"))]
    given["student"] = [{"path": str(labels), "unlabelled": str(beside["val"]), "texts": str(beside["test"])}]
    for name, (kind, sections) in RECIPES.items():
        taught = world if name not in ("ts2net", "pig") else replace(world, towers=capped)
        if name == "student":
            unpaired = {"unlabelled": str(world.frames["val"]), "unlabelled_size": 4}
            sections = sections | {"data": {**unpaired, "texts": str(world.frames["test"]), "texts_size": 8}}
        taught.recipe(name, kind, folder, labels=given.get(name, []), **sections)
    world.recipe("further", "xclip", folder, init=str(teacher), optim=SLOW)
    return folder


def _capped_towers(world: World, folder: Path) -> Path:
    """The towers with a logit scale beyond its limit, at which CLIP's own stands: the first step must bring it back."""
    shutil.copytree(world.towers, folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(tensors | {"logit_scale": torch.tensor(LogitScale.MAX_LOG + 0.01)}, folder / WEIGHTS_FILE)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """Runs of one process, without interruption."""
    python("tests/trainings.py", *_wanted(folder, ALONE))
    return folder


@pytest.fixture(scope="module")
def together(alone: Path) -> Path:
    """And of two."""
    launch(2, "tests/trainings.py", *_wanted(alone, TOGETHER))
    return alone


@pytest.fixture(scope="module")
def more(alone: Path) -> Path:
    """And those of `make slow`."""
    python("tests/trainings.py", *_wanted(alone, MORE_ALONE))
    launch(2, "tests/trainings.py", *_wanted(alone, MORE_TOGETHER))
    return alone


def _wanted(folder: Path, runs: dict[str, tuple[str, ...]]) -> list[str]:
    return [",".join([str(folder / f"{recipe}.yaml"), f"name={run}", *over]) for run, (recipe, *over) in runs.items()]


def test_a_run_leaves_its_recipe_metrics_and_release(teacher_run: Path):
    rows = metrics(teacher_run)
    assert [row["step"] for row in rows if "total" in row] == list(range(1, len(steps(teacher_run)) + 1))
    assert "R@1" in rows[-1]["val"]["t2v"]
    assert (teacher_run / "recipe.yaml").is_file()
    assert {path.name for path in (teacher_run / "release").iterdir()} >= {"model.safetensors", "config.json"}


@pytest.mark.parametrize("run", EQUAL)
def test_all_ways_of_one_recipe_give_the_same_losses(together: Path, run: str):
    same(together / run, together / run.split("-")[0])


@pytest.mark.slow
@pytest.mark.parametrize("run", MORE_EQUAL)
def test_more_ways_give_the_same_losses(more: Path, run: str):
    same(more / run, more / run.split("-")[0])


def test_every_loss_is_there_and_every_batch_another(alone: Path):
    rows = steps(alone / "student")
    assert rows[0].keys() >= {"total", "contrastive", "coarse", "fine", "grad_norm"}
    assert len({row["batch"] for row in rows}) == len(rows)
    same, others = ("looks", "bertadam"), ("ts2net", "student")  # larger batches, and what stands beside the pairs
    first = {name: steps(alone / name)[0]["batch"] for name in (*same, *others)}
    assert len({first[name] for name in same}) == 1 and len(set(first.values())) == 3


def test_recomputed_blocks_change_no_bit(alone: Path):
    assert metrics(alone / "student-recomputed") == metrics(alone / "student")


@pytest.mark.parametrize("run", ["ts2net", "ts2net-2-zero3"])
def test_the_logit_scale_is_capped(together: Path, run: str):
    log = load_file(together / run / "best.safetensors")["interaction.logit_scale.log"]
    assert LogitScale.MAX_LOG - 1e-3 < log.item() < LogitScale.MAX_LOG + 1e-7


@pytest.mark.parametrize("run", ["pig", "pig-2-zero3"])
def test_pigs_own_cap_is_above_clips(together: Path, run: str):
    """Its towers begin beyond CLIP's limit, and the authors' is the logarithm of 200."""
    log = load_file(together / run / "best.safetensors")["clip.logit_scale.log"]
    assert LogitScale.MAX_LOG + 1e-3 < log.item() < math.log(200)


def test_pig_is_taught_by_all_losses_at_its_own_schedule(alone: Path):
    rows = steps(alone / "pig")
    assert rows[0].keys() >= {"total", "contrastive", "generation", "coarse", "fine", "sentence"}
    assert rows[-1]["lr"] == pytest.approx(0, abs=1e-12)


def test_bertadam_begins_at_rate_0(alone: Path):
    rows = steps(alone / "bertadam")
    assert rows[0]["lr"] == 0 < rows[1]["lr"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["meanP", "seqTransf"])
def test_the_plain_baselines_train_in_bf16(more: Path, head: str):
    losses = [row["total"] for row in steps(more / f"plain-{head}")]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_killed_run_continues_to_the_same_bits_but_not_from_weights_of_another_model(alone: Path, tmp_path: Path):
    options = (alone / "student.yaml", f"out={tmp_path}", "train.checkpoint_every=3")
    run = tmp_path / "student"
    _kill(run, random.randint(4, 7), *options)
    weights = checkpoint.latest(run / "checkpoints")[0]
    kept = {path: path.read_bytes() for path in (run / "checkpoints").glob("step*/model.safetensors")}
    for path in kept:
        save_file({name: tensor for name, tensor in weights.items() if name != "clip.logit_scale.log"}, path)
    refused = python("distill/run.py", *options, check=False)
    assert refused.returncode == 2 and f"{run / 'checkpoints'}: step " in refused.stderr
    assert "is not of this model: clip.logit_scale.log is missing, expected [1]; delete the run" in refused.stderr
    for path, whole in kept.items():
        path.write_bytes(whole)
    python("distill/run.py", *options)
    assert metrics(run) == metrics(alone / "student")


@pytest.mark.slow
def test_a_killed_run_from_a_release_continues_at_its_checkpoint_and_not_on_other_frozen_weights(
    alone: Path, teacher: Path, tmp_path: Path
):
    options = (alone / "further.yaml", f"out={tmp_path}", "train.checkpoint_every=3")
    run = tmp_path / "further"
    _kill(run, random.randint(4, 7), *options)
    weights = checkpoint.latest(run / "checkpoints")[0]
    kept = {path: path.read_bytes() for path in (run / "checkpoints").glob("step*/model.safetensors")}
    frozen = "clip.visual.class_embedding"
    for path in kept:
        save_file(weights | {frozen: weights[frozen] + 1}, path)
    refused = python("distill/run.py", *options, check=False)
    assert (
        refused.returncode == 2 and f"has other frozen weights than the recipe gives now ({frozen})" in refused.stderr
    )
    for path, whole in kept.items():
        path.write_bytes(whole)
    python("distill/run.py", *options)
    assert metrics(run) == metrics(alone / "further")
    assert Manifest.model_validate_json((run / "release" / "manifest.json").read_bytes()).parents == {
        "frames": FrameSet(read_recipe(options[0], [], Recipe).data.train).manifest.id,
        "init": load(teacher).manifest.id,
    }


@pytest.mark.slow
def test_a_run_killed_twice_continues_on_one_process_then_on_two(alone: Path, tmp_path: Path):
    """And of other ZeRO stages, and in micro-batches: none of it makes another run of it."""
    options = (alone / "student.yaml", f"out={tmp_path}", "train.checkpoint_every=2")
    run = tmp_path / "student"
    killed = _kill(run, random.randint(3, 5), *options, "train.zero=3", processes=2)
    killed = _kill(run, killed + 2, *options, "train.zero=2", "train.accumulate=2")
    assert killed < len(steps(alone / "student"))
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    last = command(*launcher, "distill/run.py", *options, "train.zero=3")
    assert f"{run}: continued with another train.accumulate, train.zero\n" in last.stderr
    same(run, alone / "student")


@pytest.mark.slow
def test_a_run_under_zero_3_that_was_killed_while_it_validated_validates_before_its_next_step(
    together: Path, tmp_path: Path
):
    before = together / "ts2net-2-zero3"
    after = shutil.copytree(before, tmp_path / before.name)
    (after / "best.safetensors").unlink()
    rows = (after / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (after / "metrics.jsonl").write_bytes(b"".join(rows[:-1]))
    python("tests/trainings.py", f"{together / 'ts2net.yaml'},name={before.name},out={tmp_path},train.zero=3")
    assert "val" in metrics(before)[-1] and metrics(after) == metrics(before)


def test_an_unfinished_run_is_kept_apart_from_what_would_change_its_numbers(folder: Path):
    def tree(*changes: str) -> dict:
        return read_recipe(folder / "student.yaml", changes, Recipe).model_dump(mode="json")

    assert kept_apart(tree(), tree("train.accumulate=2", "data.workers=1")) == []
    assert kept_apart(tree(), tree("data.batch_size=16", "optim.lr=0.1")) == ["data.batch_size", "optim.lr"]
    assert kept_apart(tree(), tree("init=runs/before/release")) == ["init"]
    half = tree("train.precision=bf16", "train.zero=1", "data.workers=1")
    assert kept_apart(tree(), half) == ["train.precision", "train.zero"]  # bf16 shows in which order it was summed


def test_a_run_that_began_before_some_keys_were_added_is_continued(folder: Path, tmp_path: Path):
    recipe, run = read_recipe(folder / "student.yaml", [], Recipe), tmp_path / "student"
    tree = recipe.model_dump(mode="json")
    del tree["init"], tree["data"]["memory_gb"], tree["labels"][0]["weight"], tree["model"]["second"]
    run.mkdir()
    for seed, chosen in ((recipe.seed, run), (recipe.seed + 1, tmp_path / "student-2")):
        (run / "recipe.yaml").write_text(yaml.safe_dump(tree | {"seed": seed}))
        assert choose_folder(run, recipe) == chosen


def test_a_finished_run_is_left_alone(teacher_run: Path):
    before = (teacher_run / "metrics.jsonl").read_bytes()
    python("distill/run.py", teacher_run.parent / "xclip.yaml")  # the same command again
    assert (teacher_run / "metrics.jsonl").read_bytes() == before
    assert metrics(teacher_run.parent / "xclip-2") == metrics(teacher_run)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_part(world: World, tmp_path: Path):
    recipe = world.recipe("xclip", "xclip", tmp_path)
    towers = diverged(world, tmp_path / "towers")
    result = python("distill/run.py", recipe, f"model.clip.model={towers}", check=False)
    assert result.returncode == 2
    assert "loss part" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_deepspeed_launches_the_same_run(world: World, teacher_run: Path, tmp_path: Path):
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
    assert steps(tmp_path / "xclip") == steps(teacher_run)


def _kill(run: Path, step: int, *options: str | Path, processes: int = 1) -> int:
    """Starts a run, kills all of it without warning once it has written `step`, and returns the last step written."""
    ranks = Ranks(["distill/run.py", *options], processes, run.with_name("log"))
    path, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while not path.is_file() or path.read_bytes().count(b"\n") < step:
        assert ranks.running, ranks.said(0)
        assert time.monotonic() < deadline, "the run never got there"
        time.sleep(0.002)
    ranks.kill_all()
    assert ranks.ended(30)
    return path.read_bytes().count(b"\n")


def test_a_step_has_the_batch_of_the_plan_and_a_seed_of_its_own(alone: Path):
    """The record of a batch in metrics.jsonl is what the frame set alone gives, computed anew."""
    recipe = read_recipe(alone / "bertadam.yaml", [], Recipe)
    counts = [len(video.captions) for video in FrameSet(recipe.data.train).videos]
    apart = recipe.data.same_video == "apart"
    plan = Plan(counts, recipe.data.batch_size, recipe.train.epochs, recipe.seed, same_video_apart=apart)
    rows = steps(alone / "bertadam")
    assert len(rows) == plan.total_steps
    for step, row in enumerate(rows):
        pairs = [number for pair in plan.batch(step).tolist() for number in pair]
        assert row["batch"] == hashlib.sha256(struct.pack(f"<{len(pairs)}q", *pairs)).hexdigest()[:12]
        assert row["epoch"] == plan.epoch_of(step)
    assert [seed_of(0, 0), seed_of(0, 1), seed_of(7, 1000)] == [
        15793235383387715774,
        5836529245451711556,
        6140783112177352135,
    ]
    assert len({seed_of(seed, step) for seed in range(50) for step in range(50)}) == 2500


def test_a_loader_that_ends_before_the_plan_stops_the_run(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = read_recipe(alone / "plain.yaml", [f"out={tmp_path}"], Recipe)
    job, _ = prepare(recipe)
    monkeypatch.setattr(batches, "load_batches", lambda *args: itertools.islice(load_batches(*args), 3))
    plan = batches.plan_batches(job.train, job.data, job.config.epochs, job.seed)
    dataset = TrainingDataset(PairDataset(job.train, [], job.tokenizer, pixels=True), job.unpaired)
    cycles = batches.plan_unpaired(job.unpaired, job.data, job.seed)
    with pytest.raises(ExpectedError, match=rf"no batch came for step 6 of {plan.total_steps}; run the same"):
        list(batches.load_shares(dataset, plan, cycles, job.data, 2))


def test_captions_that_no_batch_takes_are_told(alone: Path, caplog: pytest.LogCaptureFixture):
    recipe = read_recipe(alone / "plain.yaml", [], Recipe)
    job, _ = prepare(recipe)
    batches.plan_batches(job.train, job.data, 2, job.seed)
    assert "left out" not in caplog.text
    first = job.train.videos[0]
    change_videos(job.train, {0: replace(first, captions=first.captions * 200)})
    most = max(batches.plan_batches(job.train, job.data, 2, job.seed).left_out)
    assert most > 100 and f"up to {most} captions are left out of an epoch" in caplog.text


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path):
    """Versions before plans had a number wrote none, and the step of the best weights, which nobody read."""
    tensors, progress = {"a": torch.zeros(1)}, checkpoint.Progress(step=3, metrics_bytes=10, best_score=2.0)
    checkpoint.save(tmp_path, tensors, tensors, progress)
    assert checkpoint.latest(tmp_path)[2] == progress.model_copy(update={"plan": VERSION})
    state = tmp_path / "step000003" / "state.json"
    state.write_text(json.dumps({"step": 3, "metrics_bytes": 10, "processes": 1, "best_step": 3, "best_score": 2.0}))
    with pytest.raises(
        ExpectedError, match=r"step000003: written by a version with another order of batches \(plan 1, here 2\).*anew"
    ):
        checkpoint.latest(tmp_path)
