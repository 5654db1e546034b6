"""Galleries: what a set of videos is searched by, sealed with the release that made it.

    vectors.safetensors   vectors [video, dim] (`recall_video`) and frame_weights [video, frame], float32
    tokens.safetensors    what a second stage scores (`tokens`); only for models that rerank
    videos.jsonl          one line per row: id, source, timestamps and duration in seconds, number of captions
    manifest.json         parents: the release and the frame set; how frames were weighed; bytes per video of tokens

A model of one stage is searched by the inner products of its vectors. One that reranks (`rerank_fields`) takes the best
of these and orders them anew by its full score, from their tokens.

Frame weights say which seconds of a video to show. A model that pools its frames by learned relevance gives each its
weight in the vector (`pooling`). For any other model they are a softmax over the cosine of a frame with the whole
video: of the frame as the tokens hold it (`tokens`), or, in one stage, as the model gives it; one that gives none
encodes each frame as a video of its own, which doubles the work (`resemblance`). Padding weighs nothing.
"""

import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack
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
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import unit
from distill.retrieval.tokens import Tokens, TokenWriter, row_bytes, stored
from distill.retrieval.topk import top_k
from distill.retrieval.two_stage import of_texts
from distill.retrieval.two_stage import search as search_two_stage

VERSION = 1
VECTORS, TOKENS, VIDEOS = "vectors.safetensors", "tokens.safetensors", "videos.jsonl"
RECALL = 200  # videos that are reranked: 99 % of the best ten in 10,000 are among them (tools/bench_retrieval.py)
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
    searchable: bool  # whether inner products find its videos; a teacher's do not
    model: RetrievalModel

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Features of queries."""
        ...

    def encode_frames(
        self, pixels: UInt8[Tensor, "video frame 3 row column"], real: Bool[Tensor, "video frame"]
    ) -> VideoFeatures:
        """Features of padded videos."""
        ...


@dataclass(frozen=True)
class Hit:
    """One answer: a video, how well it matches (the model's score), and its stretch that weighs most (seconds)."""

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
    with ExitStack() as stack:
        tokens = None
        if release.model.rerank_fields:
            tokens = TokenWriter(stack.enter_context(published(out / TOKENS)), len(frames))
        vectors, weights, token_bytes = _encode(release, frames, batch, workers, tokens)
    with published(out / VECTORS) as file:
        file.write(save({"vectors": vectors, "frame_weights": weights}))
    with published(out / VIDEOS) as file:
        file.writelines(canonical_json(_about(video)) + b"\n" for video in frames.videos)
    manifest = Manifest(
        kind="gallery",
        version=VERSION,
        config=config,
        counts={"videos": len(frames), "dim": vectors.shape[1]} | ({"token_bytes": token_bytes} if tokens else {}),
        parents=parents,
        files={name: sealed_file(out / name, len(frames)) for name in (VECTORS, *([TOKENS] if tokens else []), VIDEOS)},
    )
    return seal(out, manifest)


def _config(release: Encoder, frames: FrameSet, videos: Path | None) -> dict[str, Any]:
    if not release.searchable:
        raise ArtefactError(
            f"{release.path}: a teacher, which scores text and video together and has no vectors to search; "
            "train a student from its labels and index that"
        )
    frames.check_settings(release.frames_config, release.path)
    model = release.model
    learned = model.pool_temperature is not None
    by_cosine = "tokens" if model.rerank_fields else "resemblance"
    return {
        "release": str(release.path),
        "videos": None if videos is None else str(videos),
        "frame_weights": "pooling" if learned else by_cosine,
        "frame_temperature": model.pool_temperature if learned else RESEMBLANCE_TEMPERATURE,
    } | ({"tokens": ["vector", *model.rerank_fields]} if model.rerank_fields else {})


def _ours(path: Path) -> bool:
    """Whether a killed run of `build_gallery` may have left this file."""
    return path.name in (VECTORS, TOKENS, VIDEOS) or path.suffix == ".part"


def _about(video: Any) -> dict[str, Any]:
    return {
        "id": video.id,
        "source": video.source,
        "timestamps": list(video.timestamps),
        "duration": video.duration,
        "captions": len(video.captions),
    }


@torch.inference_mode()
def _encode(
    release: Encoder, frames: FrameSet, batch: int, workers: int, tokens: TokenWriter | None
) -> tuple[Float[Tensor, "video dim"], Float[Tensor, "video frame"], int]:
    """Vectors, frame weights, and the bytes of a video's tokens, which go into their file."""
    vectors, weights, token_bytes = [], [], 0
    rows = [list(range(start, min(start + batch, len(frames)))) for start in range(0, len(frames), batch)]
    batches = load_batches(VideoDataset(frames, release.num_frames), rows, workers)
    for numbers, (pixels, real) in zip(
        rows, progress(batches, f"index {len(frames)} videos (batches)", len(rows)), strict=True
    ):
        names = [frames.videos[number].id for number in numbers]
        video = release.encode_frames(pixels, real)
        found = release.model.recall_video(video).cpu()
        _check_finite(release, "vector", names, found)
        vectors.append(found)
        weights.append(_frame_weights(release, pixels, real, video.to("cpu")))
        if tokens is not None:
            kept = stored(video, release.model.rerank_fields)
            for name, value in kept.items():
                _check_finite(release, f"{name} in float16", names, value)
            tokens.append(kept)
            token_bytes = row_bytes(kept)
    return torch.cat(vectors), torch.cat(weights), token_bytes


def _check_finite(release: Encoder, what: str, names: Sequence[str], rows: Tensor) -> None:
    broken = ~rows.isfinite().flatten(1).all(1)
    if broken.any():
        name = names[int(broken.nonzero()[0])]
        raise ArtefactError(f"{release.path}: its {what} of video {name!r} is not finite; release a sound model")


def _frame_weights(
    release: Encoder,
    pixels: UInt8[Tensor, "video frame 3 row column"],
    real: Bool[Tensor, "video frame"],
    video: VideoFeatures,
) -> Float[Tensor, "video frame"]:
    if release.model.pool_temperature is not None:
        assert video.relevance is not None, "a model that pools by relevance gives its relevance"
        weights = (video.relevance.float() / release.model.pool_temperature).softmax(-1)
        return weights.masked_fill(~real, 0)  # the model may have pooled padding; nobody can watch it
    cosines = torch.full(real.shape, -torch.inf)
    owner = real.nonzero()[:, 0]
    cosines[real] = (unit(_alone(release, pixels, real, video)) * unit(video.vector)[owner]).sum(-1)
    return (cosines / RESEMBLANCE_TEMPERATURE).softmax(-1)


def _alone(
    release: Encoder,
    pixels: UInt8[Tensor, "video frame 3 row column"],
    real: Bool[Tensor, "video frame"],
    video: VideoFeatures,
) -> Float[Tensor, "real dim"]:
    """A vector for every real frame."""
    frames = video.contextual if video.contextual is not None else video.frames
    if frames is None:
        return release.encode_frames(pixels[real].unsqueeze(1), real[real].unsqueeze(1)).to("cpu").vector
    return frames[real].float()


def best_stretch(weights: Sequence[float], timestamps: Sequence[float], duration: float) -> tuple[float, float]:
    """The seconds around the heaviest frame whose frames weigh at least half as much, without a gap.

    A frame stands for the time up to half way to its neighbours. Frames come in any order, and may come twice.
    """
    heaviest: dict[float, float] = {}
    for second, weight in zip(timestamps, weights, strict=False):  # padded frames have weights, but no time
        heaviest[second] = max(weight, heaviest.get(second, 0.0))
    timestamps = sorted(heaviest)
    weights = [heaviest[second] for second in timestamps]
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
        device = next(release.model.parameters(), torch.empty(0)).device
        self.tokens = Tokens.open(path / TOKENS, device) if TOKENS in manifest.files else None
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

    @torch.inference_mode()
    def search(self, queries: Sequence[str], k: int, recall: int | None = None) -> list[list[Hit]]:
        """The `k` best videos for each query, best first.

        Where tokens are stored, `recall` videos (default `RECALL`, and at least `k`) are ordered by the full score.
        """
        if k < 1:
            raise ExpectedError(f"k: {k}, expected the number of videos to show, at least 1")
        if recall is not None and self.tokens is None:
            raise ExpectedError(f"recall: {self.path} holds one vector per video and nothing to rerank; leave it out")
        if recall is not None and recall < 1:
            raise ExpectedError(f"recall: {recall}, expected the number of videos to rerank, at least 1")
        if not all(query.strip() for query in queries):
            raise ExpectedError("empty query; say in a few words what the video shows")
        if not queries:
            return []
        text, model = self.release.encode_text(queries), self.release.model
        vectors = model.recall_text(text).cpu()
        if self.tokens is None:
            scores, rows = top_k(vectors, self.vectors, k)
        else:
            pairs = of_texts(model.similarity, text, self.tokens)
            scores, rows = search_two_stage(pairs, vectors, self.vectors, k, recall or RECALL)
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
