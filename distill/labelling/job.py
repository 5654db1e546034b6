"""Runs a teacher over a frame set once and writes its soft labels.

Each video goes through the tower once, in batches that are a function of the shard alone; so does each distinct
caption: with the captions of its shard, or, where several shards share it, in a batch of such captions, whose features
are kept on disk for every process. So labels depend neither on which process wrote them nor on interruptions.

Tier `topk` needs the features of all videos before the first label: they are kept, in fp32, under `.work/features`.

Any number of processes may share the folder, without locks, process group or leader. Each looks at what is missing and
makes its share of it; each shard is published atomically. What is still missing after a silence the others make too,
for a process may be lost, or may have seen the folder at another moment. A shard made twice is the same bytes. Whoever
finds all shards there after its work seals.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from distill.data.building import WORK, Sample, ShardContent, build, open_built_shards
from distill.data.frames import FrameSet
from distill.data.labels import VERSION, Storage, Tier, label_sample
from distill.data.loader import VideoDataset, load_batches
from distill.data.shards import Shards, open_sealed_shards
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError
from distill.labelling.sealing import begin_labels, recorded, seal_labels
from distill.labelling.shortlist import Shortlist
from distill.log import progress
from distill.manifest import NAME, Manifest
from distill.model.contract import Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.remote import Place

CAPTIONS_PER_VIDEO = 8  # a batch of captions is so many times a batch of videos
SCORED = 256  # captions that are scored against a shard of videos at once
LOOK = 0.5  # seconds between two looks at the folder
SILENCE = 10.0  # seconds, beside three times the slowest shard, after which nobody seems to make what is missing
Maker = Callable[[str], ShardContent]


class Teaching:
    """One label job: `begin`, then `label` or `label_part` in any number of processes."""

    def __init__(
        self,
        teacher: Teacher,
        teacher_id: str,
        kind: str,
        tokenizer: Tokenizer,
        frames: FrameSet,
        out: Place,
        *,
        tiers: Sequence[Tier],
        storage: Storage,
        batch: int,
        workers: int,
        bf16: bool,
        device: torch.device,
        top: int = 256,
    ):
        self.teacher, self.tokenizer, self.frames, self.out = teacher.eval().to(device), tokenizer, frames, out
        self.interaction, self.device = teacher.interaction, device
        self.tiers, self.storage, self.batch, self.bf16 = tiers, storage, batch, bf16
        self.top = min(top, len(frames)) if "topk" in tiers else 0
        self.workers = workers
        self.config: dict[str, Any] = {
            "teacher": teacher_id,
            "interaction": {"kind": kind, "config": self.interaction.config()},
            "tiers": list(tiers),
            "storage": storage,
            "batch": batch,
            "precision": "bf16" if bf16 else "fp32",
            "sampler": frames.manifest.config["sampler"],
            **({"top": self.top} if self.top else {}),
        }
        self.shards = {tar.removesuffix(".tar"): rows for tar, rows in frames.shards().items()}
        self.encoded = {"videos": 0, "captions": 0}
        self.kept = out / WORK / "features"
        self.texts = Texts(self)

    def begin(self, *, verify: bool = True) -> Manifest | None:
        """The manifest of a finished set of exactly this job, or None; refuses a folder that holds another one."""
        if not (self.out / NAME).is_file():
            head = {name: value.cpu().contiguous() for name, value in self.interaction.state_dict().items()}
            counts = {
                "videos": len(self.frames),
                "captions": sum(len(video.captions) for video in self.frames.videos),
                "distinct_captions": len(self.texts.home),
            }
            begin_labels(self.out, self.config, self.frames.manifest.id, list(self.shards), counts, save(head))
            return None
        manifest, _ = open_sealed_shards(self.out, "labels", VERSION, verify=verify)
        if manifest.config != self.config or manifest.parents["frames"] != self.frames.manifest.id:
            raise ArtefactError(f"{self.out}: already holds another label set; choose another folder for --out")
        self._tidy()
        return manifest

    def missing(self, folder: Place) -> list[str]:
        """The shards that `folder` (`out` or `kept`) has no record of."""
        return [name for name in self.shards if not recorded(folder, name)]

    def label(self, rank: int = 0, world: int = 1) -> Manifest | None:
        """Makes all that is missing, with `world - 1` other processes; the manifest in the one that sealed."""
        if self.top and self.missing(self.out):
            self._together(self.kept, self._keep, "encode", rank, world)
        if not self._together(self.out, self._labels, "label", rank, world):
            return None
        return self._seal() or self.label(rank, world)  # again, if sealing found damage

    def label_part(self, index: int, count: int) -> Manifest | None:
        """Makes part `index` (from 0) of `count` of all shards, whatever others do, and seals if all are there then.

        With the tier `topk` labels need the features of all parts: without them this part's features alone are made.
        """
        names = list(self.shards)[index::count]
        if self.top and self.missing(self.out):
            self._make(names, self.kept, self._keep, "encode", quiet=False)
            if self.missing(self.kept):
                return None
        self._make(names, self.out, self._labels, "label", quiet=False)
        return None if self.missing(self.out) else self._seal()

    def _together(self, folder: Place, make: Maker, what: str, rank: int, world: int) -> bool:
        """Until no shard is missing; whether this process saw that at work, not while it waited for others.

        What its fellows leave it takes up one by one, each process from another place on, as long as they are missing.
        """
        missing = self.missing(folder)
        slowest = self._make(missing[rank::world], folder, make, what, quiet=rank > 0)
        while missing := self.missing(folder):
            if self._came(folder, SILENCE + 3 * slowest):
                return False
            first = rank * len(missing) // world
            self._make([*missing[first:], *missing[:first]], folder, make, what, quiet=rank > 0)
        return True

    def _make(self, names: Sequence[str], folder: Place, make: Maker, what: str, *, quiet: bool) -> float:
        """Makes shards; returns the seconds of the slowest."""
        slowest = 0.0
        for name in progress(names, f"{what} {self.frames.path} (shards)", quiet=quiet):
            start = time.monotonic()
            build(folder, name, lambda name=name: make(name))
            slowest = max(slowest, time.monotonic() - start)
        return slowest

    def _came(self, folder: Place, silence: float) -> bool:
        """Waits for other processes as long as they make shards; whether all came."""
        missing, since = self.missing(folder), time.monotonic()
        while missing and time.monotonic() - since < silence:
            time.sleep(LOOK)
            now = self.missing(folder)
            since = time.monotonic() if len(now) < len(missing) else since
            missing = now
        return not missing

    def _seal(self) -> Manifest | None:
        manifest = seal_labels(self.out)
        if manifest is not None:
            self._tidy()
        return manifest

    def _tidy(self) -> None:
        """What only the job needed goes; buckets keep it, their rules of expiry are their owner's."""
        for folder in (self.kept, self.texts.kept):
            local = folder if isinstance(folder, Path) else folder.local
            if local is not None:
                shutil.rmtree(local, ignore_errors=True)

    @cached_property
    def _features(self) -> Shards:
        """All kept features, once all are there."""
        return open_built_shards(self.kept, self.shards)

    def _keep(self, name: str) -> ShardContent:
        video, text = self.encode_shard(name)
        sample = {"videos.safetensors": save(video.tensors()), "texts.safetensors": save(text.tensors())}
        return ShardContent({name: sample}, {"videos": len(video)})

    def _labels(self, name: str) -> ShardContent:
        if self.top:
            video = VideoFeatures(**load(self._features.read(name, "videos.safetensors")))
            text = TextFeatures(**load(self._features.read(name, "texts.safetensors")))
            lists = self._shortlists(name, text)
        else:
            (video, text), lists = self.encode_shard(name), {}
        samples: dict[str, Sample] = {}
        first = 0
        for place, number in enumerate(self.shards[name]):
            about = self.frames.videos[number]
            own = slice(first, first + len(about.captions))
            rows = self.rows(text[own], video[slice(place, place + 1)], self.order(number))
            if not all(value.isfinite().all() for value in rows.values()):
                raise ArtefactError(f"{self.frames.path}: labels of video {about.id} are not finite; check the teacher")
            samples[about.key] = label_sample(about, rows | {k: v[own] for k, v in lists.items()}, self.storage)
            first += len(about.captions)
        return ShardContent(samples, {"videos": len(samples)})

    def encode_shard(self, name: str) -> tuple[VideoFeatures, TextFeatures]:
        """Features of a shard's videos, frames in the order of time, and of their captions, video by video."""
        rows = self.shards[name]
        batches = [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        loaded = load_batches(VideoDataset(self.frames, self.frames.num_frames), batches, self.workers)
        videos = [
            self.encode_videos(pixels, real, numbers) for numbers, (pixels, real) in zip(batches, loaded, strict=True)
        ]
        texts = [caption.text for row in rows for caption in self.frames.videos[row].captions]
        return VideoFeatures.cat(videos), self.texts.features(name, texts)

    @torch.inference_mode()
    def encode_videos(self, pixels: Tensor, real: Tensor, numbers: Sequence[int]) -> VideoFeatures:
        """Features of one batch of videos on the CPU, fp32."""
        self.encoded["videos"] += len(pixels)
        order = torch.stack([self.order(number) for number in numbers])
        pixels = pixels[torch.arange(len(numbers)).unsqueeze(1), order]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            video = self.teacher.encode_video(pixels.to(self.device), real.to(self.device))
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in video.tensors().items()}
        return VideoFeatures(**{k: v for k, v in tensors.items() if k in self.interaction.video_fields}).to("cpu")

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> TextFeatures:
        """Features of one batch of captions on the CPU, fp32."""
        self.encoded["captions"] += len(texts)
        ids = torch.from_numpy(self.tokenizer(texts)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            text = self.teacher.encode_text(ids)
        return TextFeatures(**{name: value.float() for name, value in text.tensors().items()}).to("cpu")

    @torch.inference_mode()
    def rows(self, text: TextFeatures, video: VideoFeatures, order: Tensor) -> dict[str, Tensor]:
        """What is stored of one video and its captions, but for their shortlists."""
        same = video[torch.zeros(len(text), dtype=torch.int64)]  # the one video beside each of its captions
        relevance = self.interaction.relevance(text.to(self.device), same.to(self.device)).cpu()
        rows = {"relevance": relevance[:, order.argsort()]}  # as the frames are packed
        if "features" in self.tiers:
            rows |= text.tensors() | {name: value[0] for name, value in video.tensors().items()}
        return rows

    @torch.inference_mode()
    def _shortlists(self, name: str, text: TextFeatures) -> dict[str, Tensor]:
        """Of a shard's captions, against all videos of the frame set, shard by shard in their order."""
        counts = torch.tensor([len(self.frames.videos[number].captions) for number in self.shards[name]])
        matched = torch.tensor(self.shards[name]).repeat_interleave(counts)
        chunks = [slice(start, start + SCORED) for start in range(0, len(text), SCORED)]
        lists = [Shortlist(matched[chunk], min(self.top, len(self.frames) - 1)) for chunk in chunks]
        for other, numbers in self.shards.items():
            video = VideoFeatures(**load(self._features.read(other, "videos.safetensors"))).to(self.device)
            for chunk, shortlist in zip(chunks, lists, strict=True):
                shortlist.add(torch.tensor(numbers), self.interaction(text[chunk].to(self.device), video).cpu())
        tables = [shortlist.rows() for shortlist in lists]
        return {key: torch.cat([table[key] for table in tables]) for key in tables[0]}

    def order(self, number: int) -> Tensor:
        """Places of a video's frames in the order of time, padding last: so teachers see them, however packed."""
        timestamps = self.frames.videos[number].timestamps
        places = sorted(range(len(timestamps)), key=timestamps.__getitem__)
        return torch.tensor([*places, *range(len(places), self.frames.num_frames)])


class Texts:
    """Every distinct caption and the batch in which it is encoded: of its shard, or of captions that shards share."""

    def __init__(self, job: Teaching):
        self._job = job
        self.kept = job.out / WORK / "captions"
        self.home: dict[str, str] = {}  # text -> batch
        self._batches: dict[str, list[str]] = defaultdict(list)
        used_in: dict[str, set[str]] = defaultdict(set)
        for shard, rows in job.shards.items():
            for caption in (caption for row in rows for caption in job.frames.videos[row].captions):
                used_in[caption.text].add(shard)
        size, counted = job.batch * CAPTIONS_PER_VIDEO, defaultdict(int)
        for text, shards in used_in.items():
            group = "shared" if len(shards) > 1 else next(iter(shards))
            self.home[text] = f"{group}-{counted[group] // size:05d}"
            self._batches[self.home[text]].append(text)
            counted[group] += 1
        self._open: dict[str, TextFeatures] = {}  # captions in use by the current shard

    def features(self, shard: str, texts: list[str]) -> TextFeatures:
        """Features of captions of one shard, encoding their batches where nobody has."""
        self._open = {}
        for text in texts:
            if text not in self._open:
                self._fetch(self.home[text], set(texts))
        return TextFeatures.cat([self._open[text] for text in texts])

    def _fetch(self, batch: str, wanted: set[str]) -> None:
        """Opens the wanted captions of a batch. One that shards share is made once, and read by all that come later."""
        if not batch.startswith("shared"):
            features = self._job.encode_texts(self._batches[batch])
            self._open |= {text: features[slice(row, row + 1)] for row, text in enumerate(self._batches[batch])}
            return
        build(self.kept, batch, lambda: self._keep(batch))
        kept = open_built_shards(self.kept, [batch])
        for row, text in enumerate(self._batches[batch]):
            if text in wanted:
                self._open[text] = TextFeatures(**load(kept.read(f"{batch}-{row:05d}", "safetensors")))

    def _keep(self, batch: str) -> ShardContent:
        features = self._job.encode_texts(self._batches[batch])
        rows = [features[slice(row, row + 1)].tensors() for row in range(len(features))]
        return ShardContent(
            {
                f"{batch}-{row:05d}": {"safetensors": save({name: value.contiguous() for name, value in one.items()})}
                for row, one in enumerate(rows)
            },
            {"captions": len(rows)},
        )
