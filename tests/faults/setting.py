"""A small corpus, a teacher, and undisturbed twins of all jobs."""

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from conftest import World, python

from faults.campaign import Clock, undisturbed
from faults.galleries import CHANGES, Change, Serve, Setting
from faults.jobs import HERE, Dump, Job, Pack, Train

KINDS = ("pack", "dump", "train", "train on 2", "train on 1-2", *CHANGES, "serve")


def prepare(folder: Path, world: World, kinds: Sequence[str], clips: int, teacher: Path | None = None):
    """Jobs of these kinds, each with the times of its twin; `world` gives videos and towers."""
    annotations, others = folder / "clips.csv", folder / "others.csv"
    known = sorted({row["video_id"] for row in _sentences(world)}, key=lambda name: int(name.removeprefix("video")))
    _write(annotations, world, known[:clips])
    _write(others, world, known[clips : clips + 6])
    videos, frames, val = world.corpus / "videos", folder / "frames", folder / "val"
    pack = Pack(frames, (1, 2, 4), annotations, videos)
    jobs: list[tuple[Job, Clock]] = [(pack, undisturbed(pack, frames, 1, folder / "log"))]
    python(HERE / "pack.py", others, videos, val, "1")
    data = {"train": str(frames), "val": str(val), "test": None}
    recipe = world.recipe("run", "xclip", folder, data=data, train={"epochs": 1})
    for name, counts in (("train", (1,)), ("train on 2", (2,)), ("train on 1-2", (1, 2))):
        if name in kinds or (name == "train" and "dump" in kinds and teacher is None):
            twin = folder / name.replace(" ", "-")
            job = Train(twin / "run", counts, recipe)
            job.name = name
            jobs.append((job, undisturbed(job, twin, counts[0], folder / "log")))
    if "dump" in kinds:
        teacher = teacher or folder / "train" / "run" / "release"
        dump = Dump(folder / "labels", (1, 2, 3, 4), annotations, teacher, frames)
        jobs.append((dump, undisturbed(dump, folder / "labels", 1, folder / "log")))
    jobs += galleries(folder, world, kinds)
    return [(job, clock) for job, clock in jobs if job.name in kinds]


def galleries(folder: Path, world: World, kinds: Sequence[str]) -> Iterator[tuple[Job, Clock]]:
    """Jobs on galleries, each with the times of its twin."""
    wanted = [kind for kind in (*CHANGES, "serve") if kind in kinds]
    if not wanted:
        return
    setting = Setting(folder / "galleries", world)
    for kind in wanted:
        twin = setting.folder / f"twin-{kind}"
        job = Serve(twin, setting) if kind == "serve" else Change(kind, twin, setting)
        if job.beginning is not None:
            shutil.copytree(job.beginning, twin)
        yield job, undisturbed(job, twin, 1 if kind != "serve" else 4, folder / "log")


def small_world(folder: Path) -> World:
    """Forty-odd videos and random towers."""
    from conftest import make_towers

    python("tools/make_demo.py", "--out", folder / "corpus", "--clips", "14", "--seed", "3")
    return World(
        folder, folder / "corpus", dict.fromkeys(("train", "val", "test"), folder), make_towers(folder / "towers")
    )


def _sentences(world: World) -> list[dict]:
    return json.loads((world.corpus / "MSRVTT_data.json").read_text())["sentences"]


def _write(path: Path, world: World, videos: Sequence[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption"])
        writer.writerows([row["video_id"], row["caption"]] for row in _sentences(world) if row["video_id"] in videos)
