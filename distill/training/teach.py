"""Runs a teacher over a frame set once and writes its soft labels.

Each video goes through the tower once, in batches that are a function of the shard alone; each distinct caption goes
through once too, in the batch of the shard where it first occurs, and its features are kept as long as a later shard
needs them. So labels do not depend on which process wrote them or on how often the job was interrupted.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.labels import INTERACTION, VERSION, Storage, Tier, label_sample
from distill.data.loader import VideoDataset, load_batches
from distill.data.shards import Sample, ShardContent, build, claim, finished, sealed_files
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError
from distill.log import progress
from distill.manifest import NAME, Manifest, open_sealed, published, seal, sealed_file
from distill.model.contract import Teacher
from distill.model.features import TextFeatures, VideoFeatures


class Teaching:
    """One label job: `label_shards` for any shards in any process, then `finish` once all are there."""

    def __init__(
        self,
        teacher: Teacher,
        teacher_id: str,
        kind: str,
        tokenizer: Tokenizer,
        frames: FrameSet,
        out: Path,
        *,
        tiers: list[Tier],
        storage: Storage,
        batch: int,
        workers: int,
        bf16: bool,
        device: torch.device,
    ):
        self.teacher, self.tokenizer, self.frames, self.out = teacher.eval().to(device), tokenizer, frames, out
        self.interaction, self.device = teacher.interaction, device
        self.tiers, self.storage, self.batch, self.bf16 = tiers, storage, batch, bf16
        self._workers = workers
        self.config: dict[str, Any] = {
            "teacher": teacher_id,
            "interaction": {"kind": kind, "config": self.interaction.config()},
            "tiers": list(tiers),
            "storage": storage,
            "batch": batch,
            "precision": "bf16" if bf16 else "fp32",
            "sampler": frames.manifest.config["sampler"],
        }
        self.shards = {tar.removesuffix(".tar"): rows for tar, rows in frames.shards().items()}
        self.encoded = {"videos": 0, "captions": 0}
        self._texts = _Texts(self)

    def already_sealed(self) -> Manifest | None:
        """The manifest of a finished set of exactly this job, or None; refuses a folder that holds another set."""
        if not (self.out / NAME).is_file():
            claim(self.out, {**self.config, "frames": self.frames.manifest.id}, command="tools/dump_soft_labels.py")
            return None
        manifest = open_sealed(self.out, "labels", VERSION)
        if manifest.config != self.config or manifest.parents["frames"] != self.frames.manifest.id:
            raise ArtefactError(f"{self.out}: already holds another label set; choose another folder for --out")
        return manifest

    def label_shards(self, names: list[str], *, quiet: bool = False) -> None:
        """Makes the given shards, skipping those that are whole."""
        for name in progress(names, f"label {self.frames.path} (shards)", quiet=quiet):
            build(self.out, name, lambda name=name: self._shard(name))

    def finish(self) -> Manifest:
        """Seals the set: interaction head, counts, hashes."""
        with published(self.out / INTERACTION) as file:
            file.write(save({name: value.cpu().contiguous() for name, value in self.interaction.state_dict().items()}))
        records = [finished(self.out, name) for name in self.shards]
        missing = [name for name, record in zip(self.shards, records, strict=True) if record is None]
        if missing:
            raise ArtefactError(f"{self.out}: shards {', '.join(missing[:5])} are not finished; run the command again")
        manifest = Manifest(
            kind="labels",
            version=VERSION,
            config=self.config,
            counts={
                "videos": len(self.frames),
                "captions": sum(len(video.captions) for video in self.frames.videos),
                "distinct_captions": len(self._texts.home),
            },
            parents={"frames": self.frames.manifest.id},
            files={**sealed_files(r for r in records if r), INTERACTION: sealed_file(self.out / INTERACTION)},
        )
        return seal(self.out, manifest)

    def _shard(self, name: str) -> ShardContent:
        rows = self.shards[name]
        batches = [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        samples: dict[str, Sample] = {}
        num_frames = self.frames.num_frames
        loaded = load_batches(VideoDataset(self.frames, num_frames), batches, self._workers)
        for videos, (pixels, real) in zip(batches, loaded, strict=True):
            order = torch.stack([_in_time(self.frames.videos[video].timestamps, num_frames) for video in videos])
            features = self._encode_videos(pixels[torch.arange(len(videos)).unsqueeze(1), order], real)
            for position, video in enumerate(videos):
                about = self.frames.videos[video]
                text = self._texts.features(name, [caption.text for caption in about.captions])
                labels = self._rows(text, features[slice(position, position + 1)], order[position])
                samples[about.key] = label_sample(about, labels, self.storage)
        return ShardContent(samples, {"videos": len(rows)})

    @torch.inference_mode()
    def _rows(self, text: TextFeatures, video: VideoFeatures, order: Tensor) -> dict[str, Tensor]:
        count = len(text)
        same = video[torch.zeros(count, dtype=torch.int64)]  # the one video beside each of its captions
        relevance = self.interaction.relevance(text.to(self.device), same.to(self.device)).cpu()
        rows = {"relevance": relevance[:, order.argsort()]}  # as the frames are packed
        if "features" in self.tiers:
            rows |= text.tensors()
            rows |= {name: value[0] for name, value in video.tensors().items() if name in self.interaction.video_fields}
        return rows

    @torch.inference_mode()
    def _encode_videos(self, pixels: Tensor, real: Tensor) -> VideoFeatures:
        self.encoded["videos"] += len(pixels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            video = self.teacher.encode_video(pixels.to(self.device), real.to(self.device))
        return VideoFeatures(**{k: v.float() if v.is_floating_point() else v for k, v in video.tensors().items()}).to(
            "cpu"
        )

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> TextFeatures:
        """Features of one batch of captions on the CPU, fp32."""
        self.encoded["captions"] += len(texts)
        ids = torch.from_numpy(self.tokenizer(texts)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            text = self.teacher.encode_text(ids)
        return TextFeatures(**{name: value.float() for name, value in text.tensors().items()}).to("cpu")


def _in_time(timestamps: tuple[float, ...], num_frames: int) -> Tensor:
    """Places of a video's frames in the order of time, padding last: so teachers see them, however they are packed."""
    places = sorted(range(len(timestamps)), key=timestamps.__getitem__)
    return torch.tensor([*places, *range(len(places), num_frames)])


class _Texts:
    """Every distinct caption belongs to the shard where it first occurs and is encoded in that shard's batch."""

    def __init__(self, job: Teaching):
        self._job = job
        self.home: dict[str, tuple[str, int]] = {}  # text -> (shard, batch)
        self._batches: dict[tuple[str, int], list[str]] = defaultdict(list)
        used_in: dict[str, set[str]] = defaultdict(set)
        size = job.batch * 8
        for shard, rows in job.shards.items():
            new = 0
            for caption in (caption for row in rows for caption in job.frames.videos[row].captions):
                used_in[caption.text].add(shard)
                if caption.text not in self.home:
                    self.home[caption.text] = (shard, new // size)
                    self._batches[shard, new // size].append(caption.text)
                    new += 1
        self._shared = {text for text, shards in used_in.items() if len(shards) > 1}
        self._kept: dict[str, TextFeatures] = {}  # captions that several shards need
        self._open: dict[str, TextFeatures] = {}  # captions of the batches in use by the current shard
        self._current = ""

    def features(self, shard: str, texts: list[str]) -> TextFeatures:
        """Features of one video's captions, encoding their home batches where that has not been done."""
        if shard != self._current:
            self._open, self._current = {}, shard
        for text in texts:
            if text not in self._open and text not in self._kept:
                self._encode(self.home[text])
        return TextFeatures.cat([self._open.get(text) or self._kept[text] for text in texts])

    def _encode(self, home: tuple[str, int]) -> None:
        texts = self._batches[home]
        features = self._job.encode_texts(texts)
        for row, text in enumerate(texts):
            one = features[slice(row, row + 1)]
            self._open[text] = one
            if text in self._shared:
                self._kept[text] = one
