"""Pack the videos that an annotation file names into a frame set: sample each and write its frames and captions.

Shards are built in parallel, each once and as a whole (distill/data/building.py). A video that cannot be used is listed
in the manifest with the reason. distill/data/frames.py describes the format and reads it.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from distill.config import Config
from distill.data.building import Sample, ShardContent, ShardRecord, build, claim, sealed_files, split
from distill.data.frames import LARGEST, VERSION
from distill.data.pictures import JPEG_QUALITY
from distill.data.sampler import Sampler
from distill.data.sampling import SampledVideo, sample_one
from distill.data.shards import open_sealed_shards
from distill.data.tokens import CONTEXT, Tokenizer, warn_of_cuts
from distill.data.videos import Caption, StoredCaption
from distill.errors import ArtefactError, VideoError, first_few
from distill.log import progress
from distill.manifest import NAME, Manifest, file_sha256, seal
from distill.packing.clips import FOLDER, Clip, folder_clips, read_annotations
from distill.packing.downloads import open_video, tars
from distill.records import canonical_json, json_sha256
from distill.workers import worker_pool


class PackConfig(Config):
    """The settings that decide the bytes of a frame set."""

    sampler: Sampler
    size: int = Field(default=224, ge=1, le=LARGEST)  # pixels, height = width; of the shorter side, if frames are whole
    whole: bool = False  # frames keep their shape, for towers of several sizes
    per_shard: int = Field(default=100, ge=1)  # videos


def pack(
    annotations: Path, layout: str, videos: Path, out: Path, config: PackConfig, workers: int | None = None
) -> Manifest:
    """Pack every video that `annotations` names into `out` and return the manifest, which lists the unusable ones.

    With the layout FOLDER `annotations` is a folder, whose videos are packed without captions.

    A finished set with the same settings is kept. Raises `ArtefactError` for a set with other settings, for faulty
    annotations, and if no video can be used.
    """
    clips = folder_clips(annotations) if layout == FOLDER else read_annotations(annotations, layout, videos)
    # The clips are hashed as they were read, because captions may come from a second file (MSR-VTT).
    read = [[c.video, c.source, *(c.span or (None, None)), [_told(k) for k in c.captions]] for c in clips]
    settings = config.model_dump(mode="json") | {"jpeg_quality": JPEG_QUALITY, "layout": layout}
    if not config.whole:
        del settings["whole"]  # sets of former versions do not say it
    hashed = {} if layout == FOLDER else {"annotations_sha256": _hash_annotations(annotations)}
    settings |= {**hashed, "clips_sha256": json_sha256(read)}
    if (out / NAME).is_file():
        manifest, _ = open_sealed_shards(out, "frames", VERSION)
        if manifest.config != settings:
            raise ArtefactError(
                f"{out}: already holds another frame set; choose another folder for tools/pack_frames.py"
            )
        return manifest
    texts = [caption.text for clip in clips for caption in clip.captions]
    warn_of_cuts(
        texts, Tokenizer(CONTEXT), str(annotations), "no CLIP reads more, and a recipe may take fewer (data.max_words)"
    )
    claim(out, settings, command="tools/pack_frames.py")
    jobs = [
        (out, name, partial(_shard, name, [clips[i] for i in rows], videos, config))
        for name, rows in split(len(clips), config.per_shard)
    ]
    records = _run(jobs, workers or len(os.sched_getaffinity(0)), len(clips))
    return seal_frames(out, settings, records)


def _run(jobs: Sequence[tuple[Any, ...]], workers: int, videos: int) -> list[ShardRecord]:
    if workers == 1 or len(jobs) == 1:
        return [build(*job) for job in progress(jobs, f"pack {videos} videos (shards)")]
    with worker_pool(min(workers, len(jobs))) as pool:
        running = [pool.submit(build, *job) for job in jobs]
        return [future.result() for future in progress(running, f"pack {videos} videos (shards)")]


def seal_frames(out: Path, settings: dict[str, Any], records: list[ShardRecord]) -> Manifest:
    """Seal a frame set whose shards are all built; `settings` are recorded as what decided their bytes."""
    skipped = [note for record in records for note in record.report["skipped"]]
    counts = {
        "videos": sum(record.tar.rows for record in records),
        "captions": sum(record.report["captions"] for record in records),
        "frames": sum(record.report["frames"] for record in records),
        "skipped": len(skipped),
    }
    if counts["videos"] == 0:
        reasons = sorted({note["reason"] for note in skipped})
        raise ArtefactError(f"{out}: none of {len(skipped)} videos could be used ({first_few(reasons, 3, '; ')})")
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


def _shard(name: str, clips: list[Clip], videos: Path, config: PackConfig) -> ShardContent:
    samples: dict[str, Sample] = {}
    skipped = []
    captions = frames = 0
    for number, clip in enumerate(clips):
        try:
            sampled = _sample(clip, videos, config)
        except VideoError as reason:
            skipped.append({"video": clip.video, "source": clip.source, "reason": str(reason)})
            continue
        samples[f"{name}{number:05d}"] = frame_sample(clip, sampled)
        captions += len(clip.captions)
        frames += len(sampled.jpegs)
    return ShardContent(samples, {"skipped": skipped, "captions": captions, "frames": frames})


def _sample(clip: Clip, videos: Path, config: PackConfig) -> SampledVideo:
    if clip.unusable is not None:
        raise VideoError(clip.unusable)
    tar = videos / clip.source.partition("/")[0]
    downloaded = tar.suffix == ".tar" and tar.is_file()  # then the video is a member of it, else a file of the folder
    with open_video(videos, clip.source) if downloaded else nullcontext(videos / clip.source) as source:
        return sample_one(source, clip.span, config.sampler, config.size, config.whole, clip.published)


def frame_sample(clip: Clip, sampled: SampledVideo) -> Sample:
    """Return the members of one video's sample: its description as JSON, and its frames as JPEG."""
    about = {
        "video": clip.video,
        "source": clip.source,
        "duration": sampled.duration,
        "timestamps": sampled.timestamps,
        "frames_sha256": hashlib.sha256(b"".join(sampled.jpegs)).hexdigest(),
        "captions": [_stored(caption) for caption in clip.captions],
    }
    return {"json": canonical_json(about)} | {f"{i:03d}.jpg": jpeg for i, jpeg in enumerate(sampled.jpegs)}


def _stored(caption: Caption) -> StoredCaption:
    stored: StoredCaption = {"id": caption.id, "text": caption.text}
    return stored if caption.source is None else {**stored, "source": caption.source}


def _told(caption: Caption) -> list[str]:
    """Return what an annotation file says of a caption, for the hash of all."""
    return [caption.id, caption.text, *([] if caption.source is None else [caption.source])]


def _hash_annotations(path: Path) -> str:
    """Hash an annotation file; of downloaded shards, maybe terabytes, names and sizes (clips hold their captions)."""
    if not path.is_dir():
        return file_sha256(path)
    return json_sha256([[tar.name, tar.stat().st_size] for tar in tars(path)])
