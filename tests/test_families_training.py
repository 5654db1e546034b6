"""Models on towers of every family train alike in any number of processes and parts; their releases search."""

from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from conftest import World, launch, metrics, python, quick, same
from families import FAMILIES
from safetensors.torch import save_file

from distill.data.video import write_video
from distill.release.release import load
from distill.retrieval import Gallery
from distill.retrieval.indexing import build_gallery
from distill.training import checkpoint
from tools import pack_frames

FRAMES, WORDS, BATCH, STEPS = 2, 14, 4, 2  # the shortest context of a family is 14
COLOURS = ("red", "green", "blue", "white", "black", "grey", "pink", "brown")
KINDS = {
    "clip4clip": {},
    "teachclip": {},
    "glscl": {},
    "xclip": {"words": WORDS, "frames": FRAMES},
    "xpool": {},
}
UNLOCKED = {"pe": 1, "eva": 1}  # last groups of trunks that timm has in large only: steps of seconds otherwise
PARTS = "train.accumulate=2"
QUICK = "mobileclip"  # has statistics beside its weights; `make test` releases it too
RUNS = [f"{family}-{kind}" for family in FAMILIES for kind in KINDS]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """Frames kept whole, of which each family fits its own, and the towers of every family beside them."""
    folder = tmp_path_factory.mktemp("families")
    draw, frames = np.random.default_rng(0), {}
    for split, videos in {"train": COLOURS, "val": COLOURS[:BATCH]}.items():
        rows = []
        for number, colour in enumerate(videos):
            shots = draw.integers(0, 256, (FRAMES, 6, 8, 3), dtype=np.uint8)
            clip = shots.repeat(4, axis=0).repeat(8, axis=1).repeat(8, axis=2)
            write_video(folder / "videos" / split / f"{number}.mp4", clip, fps=4)
            rows.append(f"{number}.mp4,a {colour} square")
        (folder / f"{split}.csv").write_text("\n".join(["video,caption", *rows, ""]))
        options = ["--whole", "--size", "384", "--frames", str(FRAMES), "--out", str(folder / split)]
        pack_frames.main([str(folder / f"{split}.csv"), str(folder / "videos" / split), *options])
        frames[split] = folder / split
    frames["test"] = frames["val"]
    plain = World(folder, folder, frames, folder)
    return {name: replace(plain, towers=families.write(name, folder / "towers" / name)) for name in FAMILIES}


def recipe(world: World, family: str, kind: str) -> Path:
    """Writes the recipe of a model on the towers of a family, and returns its path."""
    model = {"clip": {"model": str(world.towers), "unlocked_vision": UNLOCKED.get(family)}, **KINDS[kind]}
    data = {"max_words": WORDS, "num_frames": FRAMES, "batch_size": BATCH}
    # Rates at which rounding stays rounding (test_training.py).
    rates = {"lr": 1.0e-4, "clip_lr": 1.0e-5, "head_lr": 1.0e-3}
    name, train = f"{family}-{kind}", {"stem_cache_gb": 0.0}
    return world.recipe(name, kind, world.folder / "runs", model=model, data=data, optim=rates, train=train)


@pytest.fixture(scope="module")
def runs(worlds: dict[str, World]) -> Path:
    """All models on all families, trained on one process, in parts, and on two processes."""
    paths = {f"{family}-{kind}": recipe(world, family, kind) for family, world in worlds.items() for kind in KINDS}
    alone = [f"{path},name={name}{way}" for name, path in paths.items() for way in ("", f"-parts,{PARTS}")]
    python("tests/trainings.py", *alone)
    launch(2, "tests/trainings.py", *(f"{path},name={name}-2" for name, path in paths.items()))
    return next(iter(worlds.values())).folder / "runs"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["2", "parts"])
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_and_two_parts_give_the_losses_of_one(runs: Path, run: str, way: str):
    same(runs / f"{run}-{way}", runs / run, least=STEPS)


@torch.inference_mode()
@pytest.mark.parametrize("family", quick(FAMILIES, [QUICK]))
def test_a_release_searches_and_is_loaded_to_the_same_scores(family: str, worlds: dict[str, World], tmp_path: Path):
    world = worlds[family]
    python("distill/run.py", recipe(world, family, "teachclip"), f"out={tmp_path}", "name=student")
    videos, queries = world.folder / "videos" / "train", [f"a {colour} square" for colour in COLOURS]
    student, again = (load(tmp_path / "student" / "release") for _ in range(2))
    build_gallery(student, videos, tmp_path / "gallery", workers=1)
    files = sorted(videos.iterdir())
    scores = [
        torch.cat([found.model.similarity(found.encode_text(queries), found.encode_video(file)) for file in files], 1)
        for found in (student, again)
    ]
    assert torch.equal(*scores)
    for hits, row in zip(Gallery.open(tmp_path / "gallery", again).search(queries, len(files)), scores[0], strict=True):
        assert {hit.video for hit in hits} == {file.stem for file in files}
        assert [hit.score for hit in hits] == pytest.approx([row[int(hit.video)].item() for hit in hits], abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.slow
def test_a_run_goes_on_with_its_statistics_and_not_without(worlds: dict[str, World], tmp_path: Path):
    path = recipe(worlds[QUICK], QUICK, "teachclip")
    options = ("tests/trainings.py", f"{path},name=student,out={tmp_path}")
    python(*options)
    before, run = metrics(tmp_path / "student"), tmp_path / "student"
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(rows[:-1]))  # as if it had been killed while it validated
    python(*options)
    assert "val" in before[-1] and metrics(run) == before
    weights = checkpoint.latest(run / "checkpoints")[0]
    mean = next(name for name in weights if name.endswith("running_mean"))
    kept = next((run / "checkpoints").glob("step*/model.safetensors"))
    for changed, words in (
        ({name: value for name, value in weights.items() if name != mean}, f"{mean} is missing, expected ["),
        (weights | {mean: weights[mean] + 1}, f"has other frozen weights than the recipe gives now ({mean})"),
    ):
        save_file(changed, kept)
        refused = python(*options, check=False)
        assert refused.returncode and words in refused.stderr
