"""Teachers with random weights on a small corpus, and their label sets, made in this process."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from conftest import World

from distill import catalogue
from distill.data.datasets import PairDataset
from distill.data.frames import FrameSet
from distill.data.growing import GrowingRegister
from distill.data.labels import Storage, Tier
from distill.data.register import Register
from distill.data.sampler import Clip4ClipSampler
from distill.data.tokens import Tokenizer
from distill.data.videos import PackedVideo, VideoColumns, Videos
from distill.experiment import prepare
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.labelling.teacher import TeacherRelease
from distill.model.contract import Teacher
from distill.model.towers import ClipConfig, Towers
from distill.packing.clips import read_annotations
from distill.packing.packing import PackConfig, pack
from distill.provenance import QueryCost
from distill.recipe import Recipe
from distill.remote import Place
from distill.training.cost import Cost
from distill.training.loop import Trained
from distill.training.objective import Objective

TRAINED = Trained({}, None, Cost(steps=1, samples=8, flops=None, seconds=1.0, joules=None))
QUERY = QueryCost(encode_ms=1.0, score_ms=None, videos=None)
TEMPORAL = {"layers": 1, "init": "normal"}
TEACHERS = {
    "xclip": {"temporal": TEMPORAL, "words": 24, "frames": 12},
    "ts2net": {"temporal": TEMPORAL, "frames": 12, "shift_layers": 1},
    "xpool": {},
}


def random_teacher(world: World, kind: str) -> Teacher:
    """A teacher whose scoring head is not the one it starts from."""
    torch.manual_seed(3)
    clip = ClipConfig(model=str(world.towers))
    config = catalogue.parse_model_config({"kind": kind, "clip": clip.model_dump(), **TEACHERS[kind]}, kind)
    teacher = catalogue.build(config, Towers.from_config(clip))
    assert isinstance(teacher, Teacher)
    with torch.no_grad():
        for parameter in teacher.interaction.parameters():
            if parameter.numel() > 1:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return teacher.eval()


def teacher_release(world: World, kind: str) -> TeacherRelease:
    """A random teacher as if it had been released; its id is its kind."""
    return TeacherRelease(model=random_teacher(world, kind), tokenizer=Tokenizer(24), kind=kind, id=kind)


def pack_shards(world: World, out: Path, per_shard: int, num_frames: int = 12) -> Path:
    """The training videos in shards of so few, with so many frames; every other one has a caption that others share."""
    clips = read_annotations(world.corpus / "train.csv", "msrvtt", world.corpus / "videos")
    rows = [(clip.video, caption.text) for clip in clips for caption in clip.captions]
    rows += [(clip.video, f"something moves {number % 4}") for number, clip in enumerate(clips) if number % 2]
    csv = out.with_suffix(".csv")
    csv.write_text("video,caption\n" + "".join(f'{video},"{text}"\n' for video, text in rows))
    sampler = Clip4ClipSampler(kind="clip4clip", num_frames=num_frames)
    config = PackConfig(sampler=sampler, size=64, per_shard=per_shard)
    pack(csv, "csv", world.corpus / "videos", out, config, workers=1)
    return out


def change_videos(frames: FrameSet, changes: Mapping[int, PackedVideo]) -> None:
    """Let an opened frame set say something else of some videos, by number, than its files say."""
    videos = [changes.get(number, video) for number, video in enumerate(frames.videos)]
    register = frames._shards.register
    growing = GrowingRegister(VideoColumns.kinds)
    columns = VideoColumns(growing, "a test")
    for sample, video in zip(frames.videos.samples.tolist(), videos, strict=True):
        said = {**asdict(video), "video": video.id, "timestamps": list(video.timestamps)}
        captions = [{name: value for name, value in asdict(one).items() if value is not None} for one in video.captions]
        columns.add(sample, video.key, said | {"captions": captions})
    frames.videos = Videos(Register({**register._columns, **growing.held()._columns}))
    assert frames.videos == videos


def label_job(
    world: World,
    kind: str,
    folder: Place,
    storage: Storage = "float32",
    *,
    frames: Path | None = None,
    tiers: Sequence[Tier] = ("relevance", "features"),
    top: int = 256,
) -> LabelJob:
    """The label job of a random teacher, on the training frames or others."""
    config = LabelJobConfig(tiers=list(tiers), storage=storage, batch=8, precision="fp32", top=top)
    return LabelJob(teacher_release(world, kind), FrameSet(frames or world.frames["train"]), folder, config)


def write_labels(world: World, kind: str, folder: Path, storage: Storage = "float32", **options: Any) -> Path:
    """The label set of a random teacher; options as those of `label_job`."""
    job = label_job(world, kind, folder, storage, **options)
    assert job.begin() is None
    assert job.label() is not None
    return folder


def losses_while_learning(recipe: Recipe, steps: int = 8) -> list[dict[str, float]]:
    """The losses of a student before each of so many steps on one batch, as training computes them from label sets."""
    job, _ = prepare(recipe)
    objective = Objective(
        job.model,
        [(source.head, source.weight) for source in job.sources],
        job.losses,
        bf16=False,
        temperatures=[source.temperatures for source in job.sources],
    )
    optimizer = torch.optim.Adam([weight for weight in job.model.parameters() if weight.requires_grad], lr=3e-3)
    dataset = PairDataset(job.train, [source.labels for source in job.sources], job.tokenizer, pixels=True)
    batch, found = dataset.__getitems__([(video, 0) for video in range(12)]), []
    for _ in range(steps):
        parts = objective(batch)
        optimizer.zero_grad()
        parts["total"].backward()
        optimizer.step()
        found.append({name: value.item() for name, value in parts.items()})
    return found
