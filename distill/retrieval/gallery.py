"""Galleries: the vectors of a set of videos, sealed with the release that made them, ready to be searched.

    vectors.safetensors   vectors [video, dim] (unit length) and frame_weights [video, frame], float32
    videos.jsonl          one line per row: id, source, timestamps and duration in seconds, number of captions
    manifest.json         parents: the release and the frame set; how frames were weighed

Frame weights say which seconds of a video to show. A model that pools its frames by learned relevance gives each its
weight in the vector (`pooling`). For any other model each frame is also encoded as a video of its own, which doubles
the work, and the weights are a softmax over its cosine with the whole video (`resemblance`). Padding weighs nothing.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.loader import VideoDataset, load_batches
from distill.errors import ArtefactError, ExpectedError
from distill.log import progress
from distill.manifest import NAME, Manifest, canonical_json, open_sealed, published, seal, sealed_file
from distill.model.features import VideoFeatures
from distill.model.similarity import unit
from distill.retrieval.topk import top_k

VERSION = 1
VECTORS, VIDEOS = "vectors.safetensors", "videos.jsonl"
RESEMBLANCE_TEMPERATURE = 0.1  # a frame whose cosine is 0.07 below the best counts half
STRETCH = 0.5  # of the peak's weight: neighbours above it belong to the stretch that is shown
LONE_FRAME = 1.0  # seconds that a video's only frame stands for


@runtime_checkable
class Encoder(Protocol):
    """What a gallery needs of a release."""

    path: Path
    manifest: Manifest
    frames_config: dict[str, Any]  # sampler and size
    num_frames: int
    by_cosine: bool  # whether the score of a pair is the cosine of its two vectors
    pool_temperature: float | None  # of the softmax over relevance that weighs frames

    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """Unit vectors of queries."""
        ...

    def encode_frames(
        self, pixels: UInt8[Tensor, "video frame 3 row column"], real: Bool[Tensor, "video frame"]
    ) -> VideoFeatures:
        """Features of padded videos."""
        ...


@dataclass(frozen=True)
class Hit:
    """One answer: a video, how well it matches (cosine), and the stretch of it that weighs most (seconds)."""

    video: str
    source: str  # the file, inside the video folder where the gallery knows it
    score: float
    seconds: tuple[float, float]
    duration: float


def build_gallery(
    release: Encoder,
    frames: FrameSet,
    out: Path,
    batch: int = 64,
    *,
    videos: Path | None = None,
    workers: int = 0,
) -> Manifest:
    """Encodes every video of `frames` into `out`; a gallery of the same parents that is there already is kept.

    `videos` is the folder of the video files, stored as given so that answers name files; `workers` processes decode.
    """
    parents = {"release": release.manifest.id, "frames": frames.manifest.id}
    config = _config(release, frames, videos)
    if (out / NAME).is_file():
        manifest = open_sealed(out, "gallery", VERSION)
        if (manifest.parents, manifest.config) != (parents, config):
            raise ArtefactError(f"{out}: already holds another gallery; choose another folder for tools/index.py")
        return manifest
    if out.is_dir() and any(not _ours(path) for path in out.iterdir()):
        raise ArtefactError(f"{out}: exists and was not begun by tools/index.py; choose an empty or new folder")
    vectors, weights = _encode(release, frames, batch, workers)
    with published(out / VECTORS) as file:
        file.write(save({"vectors": vectors, "frame_weights": weights}))
    with published(out / VIDEOS) as file:
        file.writelines(canonical_json(_about(video)) + b"\n" for video in frames.videos)
    manifest = Manifest(
        kind="gallery",
        version=VERSION,
        config=config,
        counts={"videos": len(frames), "dim": vectors.shape[1]},
        parents=parents,
        files={name: sealed_file(out / name, len(frames)) for name in (VECTORS, VIDEOS)},
    )
    return seal(out, manifest)


def _config(release: Encoder, frames: FrameSet, videos: Path | None) -> dict[str, Any]:
    if not release.by_cosine:
        raise ArtefactError(
            f"{release.path}: a teacher, which scores text and video together and has no vectors to search; "
            "train a student from its labels and index that"
        )
    frames.check_settings(release.frames_config, release.path)
    learned = release.pool_temperature is not None
    return {
        "release": str(release.path),
        "videos": None if videos is None else str(videos),
        "frame_weights": "pooling" if learned else "resemblance",
        "frame_temperature": release.pool_temperature if learned else RESEMBLANCE_TEMPERATURE,
    }


def _ours(path: Path) -> bool:
    """Whether a killed run of `build_gallery` may have left this file."""
    return path.name in (VECTORS, VIDEOS) or path.suffix == ".part"


def _about(video: Any) -> dict[str, Any]:
    return {
        "id": video.id,
        "source": video.source,
        "timestamps": list(video.timestamps),
        "duration": video.duration,
        "captions": len(video.captions),
    }


def _encode(
    release: Encoder, frames: FrameSet, batch: int, workers: int
) -> tuple[Float[Tensor, "video dim"], Float[Tensor, "video frame"]]:
    vectors, weights = [], []
    rows = [list(range(start, min(start + batch, len(frames)))) for start in range(0, len(frames), batch)]
    batches = load_batches(VideoDataset(frames, release.num_frames), rows, workers)
    for numbers, (pixels, real) in zip(
        rows, progress(batches, f"index {len(frames)} videos (batches)", len(rows)), strict=True
    ):
        video = release.encode_frames(pixels, real).to("cpu")
        broken = ~video.vector.isfinite().all(1)
        if broken.any():
            name = frames.videos[numbers[int(broken.nonzero()[0])]].id
            raise ArtefactError(f"{release.path}: its vector of video {name!r} is not finite; release a sound model")
        vectors.append(unit(video.vector))
        weights.append(_frame_weights(release, pixels, real, video))
    return torch.cat(vectors), torch.cat(weights)


def _frame_weights(
    release: Encoder,
    pixels: UInt8[Tensor, "video frame 3 row column"],
    real: Bool[Tensor, "video frame"],
    video: VideoFeatures,
) -> Float[Tensor, "video frame"]:
    if release.pool_temperature is not None:
        assert video.relevance is not None, "a model that pools by relevance gives its relevance"
        weights = (video.relevance.float() / release.pool_temperature).softmax(-1)
        return weights.masked_fill(~real, 0)  # the model may have pooled padding; nobody can watch it
    alone = release.encode_frames(pixels[real].unsqueeze(1), real[real].unsqueeze(1)).to("cpu")
    owner = real.nonzero()[:, 0]
    cosines = torch.full(real.shape, -torch.inf)
    cosines[real] = (unit(alone.vector) * unit(video.vector)[owner]).sum(-1)
    return (cosines / RESEMBLANCE_TEMPERATURE).softmax(-1)


def best_stretch(weights: Sequence[float], timestamps: Sequence[float], duration: float) -> tuple[float, float]:
    """The seconds around the heaviest frame whose frames weigh at least half as much, without a gap.

    A frame stands for the time up to half way to its neighbours.
    """
    peak = max(range(len(timestamps)), key=lambda frame: weights[frame])
    first = last = peak
    while first > 0 and weights[first - 1] >= STRETCH * weights[peak]:
        first -= 1
    while last + 1 < len(timestamps) and weights[last + 1] >= STRETCH * weights[peak]:
        last += 1
    gaps = [after - before for before, after in itertools.pairwise(timestamps)] or [LONE_FRAME]
    start = timestamps[first] - gaps[max(first - 1, 0)] / 2
    end = timestamps[last] + gaps[min(last, len(gaps) - 1)] / 2
    length = max(duration, timestamps[-1])  # some containers declare less than they hold
    return round(max(start, 0.0), 3), round(min(end, length), 3)


class Gallery:
    """An open gallery and the release that encodes its queries."""

    def __init__(self, path: Path, manifest: Manifest, release: Encoder):
        self.path, self.manifest, self.release = path, manifest, release
        with safe_open(path / VECTORS, "pt") as file:  # maps the file: only what is scored gets read
            self.vectors: Float[Tensor, "video dim"] = file.get_tensor("vectors")
            self.frame_weights: Float[Tensor, "video frame"] = file.get_tensor("frame_weights")
        self.videos = [json.loads(line) for line in (path / VIDEOS).read_text(encoding="utf-8").splitlines()]

    @classmethod
    def open(cls, path: str | Path, release: Encoder) -> "Gallery":
        """Opens a gallery; one that another release made is an `ArtefactError`."""
        manifest = open_sealed(Path(path), "gallery", VERSION)
        found, expected = release.manifest.id, manifest.parents["release"]
        if found != expected:
            raise ArtefactError(
                f"{path}: made by release {expected[:12]}, but {release.path} is {found[:12]}; "
                "open it with its own release or run tools/index.py again"
            )
        return cls(Path(path), manifest, release)

    def __len__(self) -> int:
        return len(self.videos)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The `k` best videos for each query, best first."""
        if k < 1:
            raise ExpectedError(f"k: {k}, expected the number of videos to show, at least 1")
        if not all(query.strip() for query in queries):
            raise ExpectedError("empty query; say in a few words what the video shows")
        if not queries:
            return []
        scores, rows = top_k(self.release.embed_text(queries), self.vectors, k)
        ranked = zip(scores.tolist(), rows.tolist(), strict=True)
        return [[self._hit(row, score) for score, row in zip(*answer, strict=True)] for answer in ranked]

    def _hit(self, row: int, score: float) -> Hit:
        about, folder = self.videos[row], self.manifest.config["videos"]
        return Hit(
            video=about["id"],
            source=about["source"] if folder is None else str(Path(folder) / about["source"]),
            score=score,
            seconds=best_stretch(self.frame_weights[row].tolist(), about["timestamps"], about["duration"]),
            duration=about["duration"],
        )


def release_path(gallery: str | Path) -> Path:
    """Where the release stood when the gallery was made, as it was given."""
    return Path(open_sealed(Path(gallery), "gallery", VERSION, verify=False).config["release"])
