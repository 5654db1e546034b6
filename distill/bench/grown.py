"""Frame sets and label sets of any number of videos, written in seconds, for the bench of growth.

One shard is packed and labelled as any other; the tars of all others are hard links to its own, and their indexes are
its index under other names. So a set of ten million videos takes the disk space of its indexes alone, and every member
can be read: it is the first shard's.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill.data.building import ShardContent, ShardRecord, build, claim, sealed_files
from distill.data.indexes import index_of
from distill.data.labels import label_sample
from distill.data.pictures import encode_jpeg
from distill.data.sampler import Clip4ClipSampler
from distill.data.sampling import SampledVideo
from distill.data.videos import Caption, PackedVideo
from distill.log import progress
from distill.manifest import Manifest, SealedFile, seal
from distill.packing.clips import Clip
from distill.packing.packing import frame_sample, seal_frames

PER_SHARD, CAPTIONS, FRAMES, SIZE = 1000, 2, 4, 32  # videos of a shard; captions, frames and pixels of a video
COMMON = 20  # one of so many videos has a caption that stands in every shard
FIRST = "s00000"  # the first shard, with which its keys and ids begin; as long as the name of any other


@dataclass(frozen=True)
class Grown:
    """A frame set, its label set, and the number of its videos."""

    frames: Path
    labels: Path
    videos: int


def grow(folder: Path, shards: int) -> Grown:
    """Write a frame set of so many shards into `folder`, and labels of it (relevance alone)."""
    found = Grown(folder / "frames", folder / "labels", shards * PER_SHARD)
    sampler = Clip4ClipSampler(kind="clip4clip", num_frames=FRAMES).model_dump(mode="json")
    settings = {"sampler": sampler, "size": SIZE, "drawn": found.videos}
    clips = [_clip(row) for row in range(PER_SHARD)]
    frames = seal_frames(found.frames, settings, list(_shards(found.frames, settings, _frames(clips), shards)))
    config = {"teacher": "drawn", "tiers": ["relevance"], "interaction": {"kind": "cosine", "config": {}}}
    seal(
        found.labels,
        Manifest(
            kind="labels",
            version=2,
            config=config | {"sampler": sampler},
            counts={"videos": found.videos},
            parents={"frames": frames.id},
            files=sealed_files(_shards(found.labels, config, _labels(clips), shards)),
        ),
    )
    return found


def _clip(row: int) -> Clip:
    said = [f"a man in {FIRST} throws the red ball number {row} over the fence", f"two people of {FIRST} talk of {row}"]
    said[0] = f"somebody throws the red ball number {row} over the fence" if row % COMMON == 0 else said[0]
    texts = tuple(Caption(f"{FIRST}-{row}#{number}", text) for number, text in enumerate(said))
    return Clip(video=f"{FIRST}-{row}", captions=texts, source=f"{FIRST}-{row}.mp4")


def _frames(clips: list[Clip]) -> ShardContent:
    rng, samples = np.random.default_rng(0), {}
    times = [*map(float, range(FRAMES))]
    for row, clip in enumerate(clips):
        jpegs = [encode_jpeg(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8), SIZE) for _ in times]
        samples[f"{FIRST}{row:05d}"] = frame_sample(clip, SampledVideo(jpegs, times, float(FRAMES)))
    counts = {"captions": CAPTIONS * len(clips), "frames": FRAMES * len(clips)}
    return ShardContent(samples, {"skipped": [], **counts})


def _labels(clips: list[Clip]) -> ShardContent:
    times, samples = tuple(map(float, range(FRAMES))), {}
    for row, clip in enumerate(clips):
        key = f"{FIRST}{row:05d}"
        video = PackedVideo(clip.video, key, clip.source, clip.captions, times, float(FRAMES), "")
        samples[key] = label_sample(video, {"relevance": torch.rand(CAPTIONS, FRAMES)}, "float32")
    return ShardContent(samples, {})


def _shards(folder: Path, settings: dict, content: ShardContent, count: int) -> Iterator[ShardRecord]:
    """Write the first shard, and yield its record and those of its copies under other names."""
    claim(folder, settings, command="tools/bench.py")
    first = build(folder, FIRST, lambda: content)
    index = (folder / index_of(f"{FIRST}.tar")).read_bytes()
    yield first
    for number in progress(range(1, count), f"write {folder} (shards)", count - 1):
        name = f"s{number:05d}"
        os.link(folder / f"{FIRST}.tar", folder / f"{name}.tar")
        own = index.replace(FIRST.encode(), name.encode())
        (folder / index_of(f"{name}.tar")).write_bytes(own)
        sealed = SealedFile(sha256=hashlib.sha256(own).hexdigest(), bytes=len(own))
        yield ShardRecord(name=name, tar=first.tar, index=sealed, report=first.report)
