"""The size of a label set and the time its job will take, before the job runs.

Sizes are exact: they follow from the captions of every video and the shapes that the teacher gives in a trial. The time
is that of one batch of videos and one of captions, measured here, times what is left to do.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from distill.data.labels import PER_VIDEO, SHORTLIST, Tier, label_sample, tier_of
from distill.data.videos import PackedVideo
from distill.labelling.job import LabelJob
from distill.labelling.shortlist import SCORED, shortlists
from distill.model.features import TextFeatures, VideoFeatures
from distill.records import canonical_json, indented_json

BLOCK, RECORD = 512, 10240  # bytes of a tar: headers and members are padded to BLOCK, the file to RECORD


@dataclass(frozen=True)
class Forecast:
    """Sizes in bytes, and seconds of one process."""

    videos: int
    captions: int
    distinct: int  # captions
    shards: int
    left: int  # shards that are not labelled yet
    bytes: dict[str, int]  # by tier; `frame` is all around the numbers: names, hashes, tar headers, indexes
    kept: int  # bytes of features under .work while the job runs
    seconds: float
    videos_per_second: float
    captions_per_second: float


def forecast(job: LabelJob) -> Forecast:
    """Run the trial and add up; writes nothing."""
    left = job.labels.missing()
    trial = _Trial(job, (left or list(job.shards))[0])
    counts, of_video = job.counts, job.frames.videos.caption_counts()
    alike = list(zip(*(each.tolist() for each in np.unique(of_video, return_counts=True)), strict=True))
    tiers = {tier: sum(n * _tier_bytes(trial.shapes, tier, count) for count, n in alike) for tier in job.config.tiers}
    shards = sum(
        _shard_bytes(job.frames.videos[rows.start : rows.stop], trial.shapes, job) for rows in job.shards.values()
    )
    teacher = len(job.labeller.head()) + len(indented_json(job.labeller.about().model_dump()))
    encoded = job.features.missing() if job.top and left else left
    videos = sum(len(job.shards[name]) for name in encoded)
    texts = job.captions.count(encoded) if encoded else 0
    scored = (
        sum(int(of_video[rows.start : rows.stop].sum()) for rows in (job.shards[name] for name in left))
        if job.top
        else 0
    )
    return Forecast(
        videos=counts["videos"],
        captions=counts["captions"],
        distinct=counts["distinct_captions"],
        shards=len(job.shards),
        left=len(left),
        bytes={**tiers, "frame": shards + teacher - sum(tiers.values())},
        kept=counts["captions"] * trial.text_bytes + counts["videos"] * trial.video_bytes if job.top else 0,
        seconds=videos * trial.per_video + texts * trial.per_caption + scored * counts["videos"] * trial.per_pair,
        videos_per_second=1 / trial.per_video,
        captions_per_second=1 / trial.per_caption if trial.per_caption else 0.0,  # without captions
    )


class _Trial:
    """One batch of videos and one of captions: the seconds of each, and the shapes of what is stored."""

    def __init__(self, job: LabelJob, shard: str):
        encoder, numbers, workers = job.encoder, list(job.shards[shard][: job.config.batch]), job.config.workers
        videos = job.frames.videos
        texts = (videos.texts_of(job.shards[shard][: job.config.batch]) or videos.texts)[: job.captions.size]
        decoding, (pixels, real) = _timed(lambda: next(encoder.decoded([numbers])))
        looking, video = _timed(lambda: encoder.encode_videos(numbers, pixels, real), warm=True)
        reading, text = _timed(lambda: encoder.encode_texts(texts), warm=True) if texts else (0.0, None)
        busy = max(looking, decoding / workers) if workers else looking + decoding
        self.per_video, self.per_caption = busy / len(numbers), reading / max(1, len(texts))
        self.per_pair = _scoring(job, text, video) if job.top and text is not None else 0.0
        self.text_bytes, self.video_bytes = (
            0 if part is None else sum(value.nbytes for value in part.tensors().values()) // len(part)
            for part in (text, video)
        )
        rows = job.rows(numbers[0], None if text is None else text[slice(0, 1)], video[slice(0, 1)])
        if job.top:
            listed = torch.zeros(1, 1 + job.listed)
            tables = (listed.int(), listed, torch.zeros(1), torch.zeros(1))
            rows |= dict(zip(SHORTLIST, tables, strict=True))
        stored = label_sample(job.frames.videos[numbers[0]], rows, job.config.storage)
        self.shapes = load(stored["labels.safetensors"])  # in the dtypes in which they are stored


def _scoring(job: LabelJob, text: TextFeatures, video: VideoFeatures) -> float:
    """Return the seconds of ranking one video for one caption's shortlist."""
    text, matched = text[slice(0, SCORED)], torch.zeros(min(SCORED, len(text)), dtype=torch.int64)
    blocks, top = [(list(range(len(video))), video)], min(job.listed, len(video) - 1)
    seconds, _ = _timed(lambda: shortlists(job.encoder, text, matched, blocks, top), warm=True)
    return seconds / (len(text) * len(video))


def _timed(run: Callable, warm: bool = False):
    """Return the seconds of a call and its result; `warm` calls it once before, as a first call also allocates."""
    if warm:
        run()
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def _tier_bytes(shapes: dict[str, Tensor], tier: Tier, captions: int) -> int:
    of_tier = {name: value for name, value in shapes.items() if tier_of(name) == tier}
    return sum(value.nbytes * (1 if name in PER_VIDEO else captions) for name, value in of_tier.items())


def _shard_bytes(videos: list[PackedVideo], shapes: dict[str, Tensor], job: LabelJob) -> int:
    """Return the bytes of a tar and its index, as `build` writes them."""

    @lru_cache
    def tensors(captions: int) -> int:
        """Return the bytes of the safetensors member; its header grows with the digits of the shapes in it."""
        empty = {
            name: value if name in PER_VIDEO else value[:1].expand(captions, *value.shape[1:]).contiguous()
            for name, value in shapes.items()
            if captions or name in PER_VIDEO
        }
        return len(save(empty))

    offset, index = 0, {}
    for video in videos:
        about = len(label_sample(video, {}, job.config.storage)["labels.json"])
        places = {}
        for extension, size in (("labels.json", about), ("labels.safetensors", tensors(len(video.captions)))):
            places[extension] = [offset + BLOCK, size]
            offset += BLOCK + math.ceil(size / BLOCK) * BLOCK
        index[video.key] = places
    tar = math.ceil((offset + 2 * BLOCK) / RECORD) * RECORD
    return tar + len(canonical_json(index))
