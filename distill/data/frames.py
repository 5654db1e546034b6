"""Frame sets: what packing writes and everything after it reads.

One sample per video, key `<shard><number>`: `<key>.json` (video id, source file, captions, timestamps) and
`<key>.000.jpg`, `<key>.001.jpg` ... (the sampled frames, shorter side resized to `size` bicubically, centre-cropped).
A frame set holds one split; its manifest lists the videos that could not be used, each with the reason.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from distill.cache import Cache
from distill.config import Config
from distill.data.ahead import Source
from distill.data.building import Sample, ShardContent, ShardRecord, build, claim, sealed_files, split
from distill.data.captions import Caption, Clip, read_annotations
from distill.data.downloads import Section, open_video, tars
from distill.data.pictures import JPEG_QUALITY, decode_jpeg, encode_jpeg
from distill.data.sampler import Sampler
from distill.data.shards import open_sealed_shards
from distill.data.video import decode, probe
from distill.errors import ArtefactError, VideoError
from distill.log import progress
from distill.manifest import NAME, Manifest, canonical_json, file_sha256, seal
from distill.remote import Place, locate
from distill.workers import worker_pool

LARGEST = 1 << 14  # pixels of a side, and frames of a video: beyond any model
VERSION = 2  # 1: an index did not hold what is known of the videos


class PackConfig(Config):
    """What decides the bytes of a frame set."""

    sampler: Sampler
    size: int = 224  # pixels, height = width
    per_shard: int = 100  # videos


@dataclass(frozen=True, slots=True)
class Video:
    """One packed video and its captions."""

    id: str
    key: str
    source: str  # file name relative to the video folder
    captions: tuple[Caption, ...]
    timestamps: tuple[float, ...]  # seconds, one per packed frame
    duration: float  # seconds
    frames_sha256: str


def pack(
    annotations: Path, layout: str, videos: Path, out: Path, config: PackConfig, workers: int | None = None
) -> Manifest:
    """Packs every video that `annotations` names into `out`; unusable ones are listed in the manifest, with reasons."""
    clips = read_annotations(annotations, layout, videos)
    source = {
        "annotations_sha256": _hash_annotations(annotations),
        "layout": layout,
        "clips_sha256": _hash_clips(clips),
    }
    settings = {**config.model_dump(mode="json"), "jpeg_quality": JPEG_QUALITY, **source}
    if (out / NAME).is_file():
        manifest, _ = open_sealed_shards(out, "frames", VERSION)
        if manifest.config != settings:
            raise ArtefactError(
                f"{out}: already holds another frame set; choose another folder for tools/pack_frames.py"
            )
        return manifest
    claim(out, settings, command="tools/pack_frames.py")
    jobs = [(out, name, [clips[i] for i in rows], videos, config) for name, rows in split(len(clips), config.per_shard)]
    records = _run(jobs, workers or len(os.sched_getaffinity(0)), len(clips))
    return seal_frames(out, settings, records)


def _run(jobs: Sequence[tuple[Any, ...]], workers: int, videos: int) -> list[ShardRecord]:
    if workers == 1 or len(jobs) == 1:
        return [_pack_shard(*job) for job in progress(jobs, f"pack {videos} videos (shards)")]
    with worker_pool(min(workers, len(jobs))) as pool:
        running = [pool.submit(_pack_shard, *job) for job in jobs]
        return [future.result() for future in progress(running, f"pack {videos} videos (shards)")]


def seal_frames(out: Path, settings: dict[str, Any], records: list[ShardRecord]) -> Manifest:
    """Seals a frame set whose shards are all made; `settings` is what decided their bytes."""
    skipped = [note for record in records for note in record.report["skipped"]]
    counts = {
        "videos": sum(record.tar.rows for record in records),
        "captions": sum(record.report["captions"] for record in records),
        "frames": sum(record.report["frames"] for record in records),
        "skipped": len(skipped),
    }
    if counts["videos"] == 0:
        reasons = sorted({note["reason"] for note in skipped})
        raise ArtefactError(f"{out}: none of {len(skipped)} videos could be used ({'; '.join(reasons[:3])})")
    manifest = Manifest(
        kind="frames",
        version=VERSION,
        config=settings,
        counts=counts,
        parents={},
        files=sealed_files(records),
        notes=skipped,
    )
    return seal(out, manifest)


def _pack_shard(out: Path, name: str, clips: list[Clip], videos: Path, config: PackConfig) -> ShardRecord:
    return build(out, name, lambda: _shard(name, clips, videos, config))


def _shard(name: str, clips: list[Clip], videos: Path, config: PackConfig) -> ShardContent:
    samples: dict[str, Sample] = {}
    skipped = []
    captions = frames = 0
    for number, clip in enumerate(clips):
        try:
            sample, count = _sample(clip, videos, config)
        except VideoError as reason:
            skipped.append({"video": clip.video, "source": clip.source, "reason": str(reason)})
            continue
        samples[f"{name}{number:05d}"] = sample
        captions += len(clip.captions)
        frames += count
    return ShardContent(samples, {"skipped": skipped, "captions": captions, "frames": frames})


def _sample(clip: Clip, videos: Path, config: PackConfig) -> tuple[Sample, int]:
    if clip.unusable is not None:
        raise VideoError(clip.unusable)
    with _opened(videos, clip.source) as source:
        info = probe(source)
        wanted = config.sampler.indices(info.num_frames, info.fps, clip.start, clip.end)
        pictures, timestamps = decode(source, wanted)
    return frame_sample(clip, pictures, timestamps, info.duration, config.size), len(pictures)


def _opened(videos: Path, source: str) -> AbstractContextManager[Path | Section]:
    """A video file, or one that lies in a downloaded shard of the folder."""
    tar = videos / source.partition("/")[0]
    return open_video(videos, source) if tar.suffix == ".tar" and tar.is_file() else nullcontext(videos / source)


def frame_sample(
    clip: Clip, pictures: Sequence[np.ndarray], timestamps: Sequence[float], duration: float, size: int
) -> Sample:
    """The members of one video: what is known of it, and its frames as JPEG."""
    jpegs = [encode_jpeg(picture, size) for picture in pictures]
    about = {
        "video": clip.video,
        "source": clip.source,
        "duration": duration,
        "timestamps": [round(seconds, 6) for seconds in timestamps],
        "frames_sha256": hashlib.sha256(b"".join(jpegs)).hexdigest(),
        "captions": [{"id": caption.id, "text": caption.text} for caption in clip.captions],
    }
    return {"json": canonical_json(about)} | {f"{i:03d}.jpg": jpeg for i, jpeg in enumerate(jpegs)}


def _hash_annotations(path: Path) -> str:
    """Of downloaded shards, which may be terabytes, names and sizes count; what they say is hashed with the clips."""
    if not path.is_dir():
        return file_sha256(path)
    return hashlib.sha256(canonical_json([[tar.name, tar.stat().st_size] for tar in tars(path)])).hexdigest()


def _hash_clips(clips: list[Clip]) -> str:
    """Captions may live in a second file (MSR-VTT), so what was read is hashed too."""
    rows = [[c.video, c.source, c.start, c.end, [[k.id, k.text] for k in c.captions]] for c in clips]
    return hashlib.sha256(canonical_json(rows)).hexdigest()


class FrameSet:
    """A sealed frame set: its videos in shard order, and their pixels."""

    def __init__(self, path: str | Place, *, verify: bool = True, cache: Cache | None = None):
        self.path = locate(path)
        self.videos: list[Video] = []
        self.manifest, self._shards = open_sealed_shards(
            self.path, "frames", VERSION, verify=verify, cache=cache, told=self._add
        )
        self.cache = self._shards.cache
        self.size, self.num_frames = self._geometry()

    def _geometry(self) -> tuple[int, int]:
        """Pixels of a side, and frames of a video, as the manifest says."""
        sampler = self.manifest.config.get("sampler")
        size = self.manifest.config.get("size")
        frames = sampler.get("num_frames") if isinstance(sampler, dict) else None
        most = max((len(video.timestamps) for video in self.videos), default=0)
        if type(size) is not int or type(frames) is not int or not 0 < size <= LARGEST or not most <= frames <= LARGEST:
            raise ArtefactError(
                f"{self.path / NAME}: {frames!r} frames of {size!r} pixels, expected whole numbers from 1 to {LARGEST} "
                f"and at least {most} frames; make the set again"
            )
        return size, frames

    def __len__(self) -> int:
        return len(self.videos)

    def pixels(self, video: int) -> UInt8[np.ndarray, "frame 3 height width"]:
        """The real frames of one video (no padding), RGB."""
        found = np.empty((len(self.videos[video].timestamps), self.size, self.size, 3), np.uint8)
        self.decode(video, found)
        return found.transpose(0, 3, 1, 2)

    def decode(self, video: int, into: UInt8[np.ndarray, "padded height width 3"]) -> None:
        """Puts the real frames of one video into the first places of `into`, with no copy between."""
        key = self.videos[video].key
        try:
            for number in range(len(self.videos[video].timestamps)):
                picture = decode_jpeg(self._shards.read(key, f"{number:03d}.jpg")).transpose(1, 2, 0)
                if picture.shape != into.shape[1:]:
                    raise ValueError(f"{picture.shape[1]} x {picture.shape[0]} pixels, not {self.size} x {self.size}")
                into[number] = picture
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow's own
            where = self.path / self._shards.shard_of(key)
            raise ArtefactError(f"{where}: frames of {key} cannot be decoded ({error}); make the set again") from None

    def check_settings(self, expected: dict[str, Any], model: Path) -> None:
        """Refuses to feed `model` with frames that were sampled or cut by other settings than it was trained with."""
        packed = {key: self.manifest.config[key] for key in expected}
        if packed != expected:
            raise ArtefactError(
                f"{self.path}: packed with {json.dumps(packed)}, but {model} was trained with {json.dumps(expected)}; "
                f"pack the videos again with those settings"
            )

    def shards(self) -> dict[str, list[int]]:
        """Which videos (by number) stand in which tar."""
        rows: dict[str, list[int]] = {}
        for number, video in enumerate(self.videos):
            rows.setdefault(self._shards.shard_of(video.key), []).append(number)
        return rows

    def source(self) -> Source:
        """Where the frames of every video come from."""
        return Source(self._shards, [video.key for video in self.videos])

    def _add(self, key: str, about: Any) -> None:
        try:
            video = Video(
                id=about["video"],
                key=key,
                source=about["source"],
                captions=tuple(Caption(caption["id"], caption["text"]) for caption in about["captions"]),
                timestamps=tuple(about["timestamps"]),
                duration=about["duration"],
                frames_sha256=about["frames_sha256"],
            )
            texts = [video.id, video.source, video.frames_sha256, *(t for c in video.captions for t in (c.id, c.text))]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a text is none")
            if not video.timestamps or not all(math.isfinite(second) for second in (video.duration, *video.timestamps)):
                raise TypeError("a time is none")
        except (KeyError, TypeError, OverflowError) as error:
            raise ArtefactError(
                f"{self.path}: sample {key} is wrongly described ({error}); make the set again"
            ) from None
        self.videos.append(video)
