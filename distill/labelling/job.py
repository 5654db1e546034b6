"""A label job: runs a teacher once over a frame set and writes its soft labels.

Each video goes through the tower once, in batches that are a function of the shard alone; so does each distinct caption
(teacher.py). So labels depend neither on which process wrote them nor on interruptions. The process that finds every
shard present after its work seals the set (sealing.py).

Any number of processes may share the folder, without locks, a process group or a leader. Each looks at which shards are
missing and makes its share of them. If no shard appears for a while, it makes the missing ones of the others too: a
process may have been lost, or may have looked at the folder at another moment. A shard made twice has the same bytes.

Tier `topk` needs the features of all videos before the first label: they are kept, in float32, under `.work/features`.
"""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import Field, field_validator
from safetensors.torch import load, save
from torch import Tensor

from distill.config import Config
from distill.data.building import WORK, ShardContent, build, open_built_shards
from distill.data.frames import FrameSet
from distill.data.labels import READ, Storage, Tier, label_sample
from distill.data.shards import Shards, open_sealed_shards
from distill.errors import ArtefactError, ExpectedError
from distill.labelling.labeller import Labeller
from distill.labelling.sealing import begin_labels, made_by, recorded, seal_labels
from distill.labelling.shortlist import shortlists
from distill.labelling.teacher import CaptionBatches, Encoder, Precision
from distill.log import progress
from distill.manifest import NAME, Manifest
from distill.model.features import TextFeatures, VideoFeatures
from distill.remote import Place

log = logging.getLogger(__name__)
CAPTIONS_PER_VIDEO = 8  # a batch of captions is so many times a batch of videos
LOOK = 0.5  # seconds between two looks at the folder
SILENCE = 10.0  # seconds, beside three times the slowest shard, after which nobody seems to make what is missing


class LabelJobConfig(Config):
    """The settings of a label job. All but `workers` are recorded in the manifest, `top` if the tier is written."""

    tiers: list[Tier]
    storage: Storage  # dtype of features and shortlist scores; relevance is float32 in any set
    batch: int = Field(ge=1)  # videos per forward pass
    precision: Precision  # of the towers
    workers: int = Field(default=0, ge=0)  # decoding processes
    top: int = Field(default=256, ge=1)  # videos per caption in tier topk

    @field_validator("tiers")
    @classmethod
    def _ordered(cls, tiers: list[Tier]) -> list[Tier]:
        """Add `relevance`, which every teacher with frame vectors gives, and bring the tiers into one order: it is part
        of the manifest's id."""
        return [tier for tier in get_args(Tier) if tier in {"relevance", *tiers}]


@dataclass(frozen=True)
class Stage:
    """The shards `names` of `folder`; `content` makes the samples of one."""

    folder: Place
    names: Sequence[str]
    content: Callable[[str], ShardContent]
    title: str  # of the progress bar

    def missing(self) -> list[str]:
        """Return the shards that the folder has no record of."""
        return [name for name in self.names if not recorded(self.folder, name)]

    def make(self, names: Sequence[str]) -> float:
        """Make those of these shards that are not there yet; returns the seconds of the slowest."""
        slowest = 0.0
        for name in progress(names, self.title):
            start = time.monotonic()
            build(self.folder, name, lambda name=name: self.content(name))
            slowest = max(slowest, time.monotonic() - start)
        return slowest

    def complete(self, rank: int, world: int) -> bool:
        """Return once no shard is missing. False if this process last waited for others instead of making shards.

        After a silence each process takes up the remaining shards from another place in the list on.
        """
        slowest = self.make(self.missing()[rank::world])
        while missing := self.missing():
            if self._wait(SILENCE + 3 * slowest):
                return False
            first = rank * len(missing) // world
            self.make([*missing[first:], *missing[:first]])
        return True

    def _wait(self, silence: float) -> bool:
        """Wait for other processes as long as they make shards; returns whether all shards came."""
        missing, since = self.missing(), time.monotonic()
        while missing and time.monotonic() - since < silence:
            time.sleep(LOOK)
            now = self.missing()
            since = time.monotonic() if len(now) < len(missing) else since
            missing = now
        return not missing


def _without_relevance(tiers: Sequence[Tier]) -> list[Tier]:
    """Return the tiers that a teacher without frame vectors can fill; `ExpectedError` where there is none."""
    left: list[Tier] = [tier for tier in tiers if tier != "relevance"]
    if not left:
        raise ExpectedError("--tiers: relevance alone, but the teacher has no vectors of frames; add features")
    log.warning("the teacher has no vectors of frames: its labels rank videos (losses.coarse), and hold no relevance")
    return left


class LabelJob:
    """One label job: `begin`, then `label` or `label_part` in any number of processes."""

    def __init__(self, labeller: Labeller, frames: FrameSet, out: Place, config: LabelJobConfig):
        if not labeller.frame_vectors:
            config = config.model_copy(update={"tiers": _without_relevance(config.tiers)})
        self.labeller, self.frames, self.out, self.config = labeller, frames, out, config
        self.encoder = Encoder(labeller, frames, config.precision)
        self.top = min(config.top, len(frames)) if "topk" in config.tiers else 0
        self.listed = min(self.top, len(frames) - 1)  # videos of a shortlist beside the matched one
        self.shards = {tar.removesuffix(".tar"): videos for tar, videos in frames.shards().items()}
        size = config.batch * CAPTIONS_PER_VIDEO
        self.captions = CaptionBatches(self.encoder, self.shards, out / WORK / "captions", size)
        names, title = list(self.shards), f"{frames.path} (shards)"
        self.features = Stage(out / WORK / "features", names, self._encode, f"encode {title}")
        self.labels = Stage(out, names, self._label, f"label {title}")

    @property
    def counts(self) -> dict[str, int]:
        """The counts that the manifest records."""
        captions = len(self.frames.videos.texts)
        return {"videos": len(self.frames), "captions": captions, "distinct_captions": len(self.captions)}

    def begin(self, *, verify: bool = True) -> Manifest | None:
        """Claim the folder and return None, or return the manifest of a finished set of exactly this job.

        Raises `ArtefactError` for a folder that holds another set. With `verify` a finished set's files are hashed.
        """
        config: dict[str, Any] = {
            "teacher": self.labeller.id,
            "interaction": {"kind": self.labeller.kind, "config": self.encoder.interaction.config()},
            **self.config.model_dump(include={"tiers", "storage", "batch", "precision"}),
            "sampler": self.frames.manifest.config["sampler"],
            **({"top": self.top} if self.top else {}),
        }
        frames = self.frames.manifest.id
        if not (self.out / NAME).is_file():
            job = {**config, "frames": frames, "shards": list(self.shards), "counts": self.counts}
            begin_labels(self.out, job, self.labeller.head(), self.labeller.about())
            self.warn_of_cuts()
            return None
        manifest, _ = open_sealed_shards(self.out, "labels", *READ, verify=verify)
        if made_by(manifest) != config or manifest.parents["frames"] != frames:
            raise ArtefactError(f"{self.out}: already holds another label set; choose another folder for --out")
        self._tidy()
        return manifest

    def warn_of_cuts(self) -> None:
        """Log one line if captions are longer than the teacher reads."""
        self.labeller.warn_of_cuts(self.frames.videos.texts, str(self.frames.path))

    def label(self, rank: int = 0, world: int = 1) -> Manifest | None:
        """Make all missing shards together with `world - 1` other processes.

        Returns the manifest in a process that sealed the set, None in one that waited for another's shards to the end.
        """
        if self.top and self.labels.missing():
            self.features.complete(rank, world)
        if not self.labels.complete(rank, world):
            return None
        return self._seal() or self.label(rank, world)  # again, if sealing found damage

    def label_part(self, index: int, count: int) -> Manifest | None:
        """Make part `index` (from 0) of `count` of all shards, and seal the set if none is missing then.

        The tier `topk` needs the features of all parts: while some are missing, only this part's features are made.
        """
        names = list(self.shards)[index::count]
        if self.top and self.labels.missing():
            self.features.make(names)
            if self.features.missing():
                return None
        self.labels.make(names)
        return None if self.labels.missing() else self._seal()

    def _seal(self) -> Manifest | None:
        manifest = seal_labels(self.out)
        if manifest is not None:
            self._tidy()
        return manifest

    def _tidy(self) -> None:
        """Delete what only the job needed. In a bucket it stays: when objects expire is the owner's rule."""
        for folder in (self.features.folder, self.captions.folder):
            local = folder if isinstance(folder, Path) else folder.local
            if local is not None:
                shutil.rmtree(local, ignore_errors=True)

    def features_of(self, name: str) -> tuple[VideoFeatures, TextFeatures | None]:
        """Return features of a shard's videos and of their captions, video by video; None if there are no captions."""
        numbers, size = self.shards[name], self.config.batch
        batches = [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]
        video = self.encoder.videos(batches, self.config.workers)
        return video, self.captions.features(name)

    def _encode(self, name: str) -> ShardContent:
        video, text = self.features_of(name)
        sample = {
            "videos.safetensors": save(video.tensors()),
            "texts.safetensors": save(text.tensors() if text else {}),
        }
        return ShardContent({name: sample}, {"videos": len(video)})

    @cached_property
    def _kept(self) -> Shards:
        """The kept features, once all are there."""
        return open_built_shards(self.features.folder, self.shards)

    def _kept_videos(self, name: str) -> VideoFeatures:
        return VideoFeatures(**load(self._kept.read(name, "videos.safetensors")))

    def _label(self, name: str) -> ShardContent:
        if self.top:
            tensors = load(self._kept.read(name, "texts.safetensors"))
            video, text = self._kept_videos(name), TextFeatures(**tensors) if tensors else None
            lists = self._shortlists(name, text) if text else {}
        else:
            (video, text), lists = self.features_of(name), {}
        samples, first = {}, 0
        for place, number in enumerate(self.shards[name]):
            about = self.frames.videos[number]
            own = slice(first, first + len(about.captions))
            rows = self.rows(number, text[own] if text and about.captions else None, video[slice(place, place + 1)])
            if not all(value.isfinite().all() for value in rows.values()):
                raise ArtefactError(f"{self.frames.path}: labels of video {about.id} are not finite; check the teacher")
            rows |= {name: value[own] for name, value in lists.items() if about.captions}
            samples[about.key] = label_sample(about, rows, self.config.storage)
            first = own.stop
        return ShardContent(samples, {"videos": len(samples)})

    def rows(self, number: int, text: TextFeatures | None, video: VideoFeatures) -> dict[str, Tensor]:
        """Return the stored tensors of one video and its captions, if it has any, without their shortlists."""
        rows = {}
        if text is not None and "relevance" in self.config.tiers:
            rows["relevance"] = self.encoder.relevance(number, text, video)
        if "features" in self.config.tiers:
            rows |= {name: value[0] for name, value in video.tensors().items()}
            rows |= {} if text is None else text.tensors()
        return rows

    def _shortlists(self, name: str, text: TextFeatures) -> dict[str, Tensor]:
        numbers = self.shards[name]
        counts = torch.from_numpy(self.frames.videos.caption_counts(numbers))
        matched = torch.tensor(numbers).repeat_interleave(counts)
        blocks = ((list(videos), self._kept_videos(other)) for other, videos in self.shards.items())
        return shortlists(self.encoder, text, matched, blocks, self.listed)
