"""What a label job will write and how long it will take, before it runs.

Sizes are exact: they follow from the captions of every video and the shapes that the teacher gives in the trial. The
time is that of one batch of videos and one of captions, measured here, times what is left.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors.torch import load, save
from torch import Tensor

from distill.data.frames import PackedVideo
from distill.data.labels import PER_VIDEO, SHORTLIST, Tier, label_sample, tier_of
from distill.data.loader import VideoDataset, load_batches
from distill.errors import ArtefactError
from distill.labelling.job import CAPTIONS_PER_VIDEO, SCORED, Teaching
from distill.manifest import canonical_json
from distill.model.features import TextFeatures, VideoFeatures

BLOCK, RECORD = 512, 10240  # of a tar: headers and members are padded to the one, the file to the other


@dataclass(frozen=True)
class Forecast:
    """Bytes by tier; `frame` is all around the numbers: names, hashes, tar headers, indexes. Seconds of one process."""

    videos: int
    captions: int
    distinct: int
    shards: int
    left: int
    bytes: dict[str, int]
    kept: int  # bytes under .work while the job runs
    seconds: float
    videos_per_second: float
    captions_per_second: float


def forecast(job: Teaching) -> Forecast:
    """Runs the trial and adds up; writes nothing."""
    left = job.missing(job.out)
    trial = _Trial(job, (left or list(job.shards))[0])
    shapes = trial.shapes
    frames = job.frames
    captions = [len(video.captions) for video in frames.videos]
    tiers = {tier: sum(_tier_bytes(shapes, tier, count) for count in captions) for tier in job.tiers}
    shards = sum(_shard_bytes([frames.videos[n] for n in rows], shapes, job) for rows in job.shards.values())
    head = len(save({name: value.cpu().contiguous() for name, value in job.interaction.state_dict().items()}))
    encoded = job.missing(job.kept) if job.top and left else left
    videos = sum(len(job.shards[name]) for name in encoded)
    texts = sum(home.rsplit("-", 1)[0] in {*encoded, "shared"} for home in job.texts.home.values()) if encoded else 0
    scored = sum(captions[number] for name in left for number in job.shards[name]) if job.top else 0
    seconds = videos * trial.per_video + texts * trial.per_caption + scored * len(frames) * trial.per_pair
    return Forecast(
        videos=len(frames),
        captions=sum(captions),
        distinct=len(job.texts.home),
        shards=len(job.shards),
        left=len(left),
        bytes={**tiers, "frame": shards + head - sum(tiers.values())},
        kept=sum(captions) * trial.text_bytes + len(frames) * trial.video_bytes if job.top else 0,
        seconds=seconds,
        videos_per_second=1 / trial.per_video,
        captions_per_second=1 / trial.per_caption,
    )


class _Trial:
    """One batch of videos and one of captions: seconds of each, and the shapes of what is stored."""

    def __init__(self, job: Teaching, shard: str):
        numbers = job.shards[shard][: job.batch]
        videos = [job.frames.videos[number] for number in numbers]
        texts = [caption.text for video in videos for caption in video.captions][: job.batch * CAPTIONS_PER_VIDEO]
        if not texts:
            raise ArtefactError(f"{job.frames.path}: shard {shard} has no captions to label")
        decoding, (pixels, real) = _timed(
            lambda: next(load_batches(VideoDataset(job.frames, job.frames.num_frames), [numbers], 0))
        )
        looking, video = _timed(lambda: job.encode_videos(pixels, real, numbers), warm=True)
        reading, text = _timed(lambda: job.encode_texts(texts), warm=True)
        busy = max(looking, decoding / job.workers) if job.workers else looking + decoding
        self.per_video, self.per_caption = busy / len(numbers), reading / len(texts)
        self.per_pair = self._scoring(job, text, video) if job.top else 0.0
        rows = job.rows(text[slice(0, 1)], video[slice(0, 1)], torch.arange(job.frames.num_frames))
        self.shapes = {name: value for name, value in rows.items()}
        self.text_bytes, self.video_bytes = (_nbytes(part.tensors()) // len(part) for part in (text, video))
        if job.top:
            listed = torch.zeros(1, 1 + min(job.top, len(job.frames) - 1))
            tables = (listed.int(), listed, torch.zeros(1), torch.zeros(1))
            self.shapes |= dict(zip(SHORTLIST, tables, strict=True))
        stored = label_sample(videos[0], self.shapes, job.storage)["labels.safetensors"]
        self.shapes = load(stored)  # in the dtypes in which they are stored

    @staticmethod
    def _scoring(job: Teaching, text: TextFeatures, video: VideoFeatures) -> float:
        text, video = text[slice(0, SCORED)].to(job.device), video.to(job.device)

        @torch.inference_mode()
        def score() -> Tensor:
            return job.interaction(text, video).sort(dim=1, descending=True, stable=True).values.cpu()

        return _timed(score, warm=True)[0] / (len(text) * len(video))


def _timed(run: Callable, warm: bool = False):
    """Seconds of a call and its result; `warm` calls it once before, since first calls also build and allocate."""
    if warm:
        run()
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def _nbytes(tensors: dict[str, Tensor]) -> int:
    return sum(value.nbytes for value in tensors.values())


def _tier_bytes(shapes: dict[str, Tensor], tier: Tier, captions: int) -> int:
    of_tier = {name: value for name, value in shapes.items() if tier_of(name) == tier}
    return sum(value.nbytes * (1 if name in PER_VIDEO else captions) for name, value in of_tier.items())


def _shard_bytes(videos: list[PackedVideo], shapes: dict[str, Tensor], job: Teaching) -> int:
    """A tar and its index, as `build` writes them."""

    @lru_cache
    def tensors(captions: int) -> int:
        """Of the safetensors member: the header's length depends on the digits in it."""
        empty = {
            name: value if name in PER_VIDEO else value[:1].expand(captions, *value.shape[1:]).contiguous()
            for name, value in shapes.items()
        }
        return len(save(empty))

    offset, index = 0, {}
    for video in videos:
        about = len(label_sample(video, {}, job.storage)["labels.json"])
        places = {}
        for extension, size in (("labels.json", about), ("labels.safetensors", tensors(len(video.captions)))):
            places[extension] = [offset + BLOCK, size]
            offset += BLOCK + math.ceil(size / BLOCK) * BLOCK
        index[video.key] = places
    tar = math.ceil((offset + 2 * BLOCK) / RECORD) * RECORD
    return tar + len(canonical_json(index))
