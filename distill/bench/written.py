"""Galleries of drawn features, written to disk and sealed as an index would be, for the bench of galleries.

The release that belongs to them is a stand-in: it knows the features of queries by number and encodes nothing.
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.bench.contenders import TEMPORAL, built
from distill.bench.retrieval import BEST
from distill.bench.rounds import timed
from distill.bench.synthetic import Sizes, Synthetic, World
from distill.data.frames import FrameSet
from distill.data.pictures import Fit
from distill.data.tokens import CONTEXT, TextTokenizer, Tokenizer
from distill.errors import ExpectedError
from distill.log import progress
from distill.manifest import Manifest
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.second_look import SecondLook
from distill.ranking.topk import best
from distill.retrieval import generation, places
from distill.retrieval.columns import ColumnWriter, row_bytes
from distill.retrieval.generation import SEGMENTS, VERSION
from distill.retrieval.segment import TOKENS, sealed_segment, write_segment
from distill.retrieval.stored import Tokens, arrays, stored

OF, WORLD = Sizes(), World()  # all galleries are of features of these sizes
QUERIES = 128  # the captions of as many videos
DRAWN = 4096  # videos drawn at once
SECONDS = 12.0  # of each video
NAME = "video"  # before its number
SEGMENT = f"{SEGMENTS}/00001"


@dataclass(kw_only=True)
class Release:
    """A release that gives the drawn features of queries by their numbers (distill/retrieval/encoder.py)."""

    path: Path
    manifest: Manifest
    num_frames: int
    model: RetrievalModel
    text: TextFeatures
    frames_config: dict[str, Any] = field(default_factory=dict)
    fit: Fit | None = None
    size: int = 0
    tokenizer: TextTokenizer = field(default_factory=partial(Tokenizer, CONTEXT))
    searchable: bool = True
    second_look: SecondLook | None = None

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Return the features of queries that are given as numbers."""
        return self.text[torch.tensor([int(text) for text in texts])]

    def encode_frames(self, *_: Any, **__: Any) -> VideoFeatures:
        """Raise `NotImplementedError`: the features of videos are drawn."""
        raise NotImplementedError

    def accept(self, frames: FrameSet) -> FrameSet:
        """Raise `NotImplementedError`, as above."""
        raise NotImplementedError

    encode_video = encode_frames


@dataclass(frozen=True, kw_only=True)
class Written:
    """The sources and costs of two galleries of the same videos, one without tokens and one with them."""

    release: Release
    vectors: Tensor
    full: Tensor  # [query, BEST]: the videos with the highest full scores
    seconds: tuple[float, float]  # for writing and hashing: without tokens, with tokens
    bytes: tuple[int, int]  # a video


def check_sizes_fit(folder: Path, sizes: Sequence[int]) -> None:
    """Raise `ExpectedError` if the largest gallery does not fit on the disk of `folder`."""
    numbers = 2 * OF.dim * (1 + 2 * OF.frames)  # float16: a vector, and frames twice
    needed = max(sizes) * (numbers + 2 * 4 * OF.dim + 2 * OF.dim)  # and float32 vectors twice, and an index
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExpectedError(
            f"{folder}: {free / 1e9:.0f} GB are free, galleries of {max(sizes):,} videos take {needed / 1e9:.0f}; "
            "choose another folder by --folder, or smaller --sizes"
        )


def write(one: Path, two: Path, videos: int) -> Written:
    """Write both galleries, and find the best videos by the full score."""
    drawn = Synthetic(OF, WORLD)
    plots = drawn.plots(videos)
    head = {"kind": "eercf", "frames": OF.frames, "patches": False, "temporal": TEMPORAL}
    model = built(head, OF, WORLD.seed)[1]
    release = Release(
        path=one.with_name("release"),
        manifest=Manifest(kind="release", version=1, config={}, counts={}, parents={}, files={}),
        num_frames=OF.frames,
        model=model,
        text=drawn.texts(plots[:QUERIES]),
    )
    parts, answers, writing, row = [], [], 0.0, {}
    (two / SEGMENT).mkdir(parents=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or threads)  # drawing is not timed
    with (two / SEGMENT / TOKENS).open("wb") as file:
        writer = ColumnWriter(file, videos)
        for start in progress(range(0, videos, DRAWN), f"draw {videos:,} videos (parts)"):
            video = drawn.videos(plots[start : start + DRAWN])
            parts.append(model.index_vectors(video))
            row = stored(video, model.rerank_fields)
            began = time.perf_counter()
            writer.append(arrays(row))
            writing += time.perf_counter() - began
            scores = model.similarity(release.text, Tokens(row)[:]).topk(min(BEST, len(parts[-1])))
            answers.append((start, (scores.values, scores.indices)))
    torch.set_num_threads(threads)
    vectors = torch.cat(parts)
    del parts
    took = [timed(lambda path=path: _seal(path, vectors, release, tokens=path == two)) for path in (one, two)]
    return Written(
        release=release,
        vectors=vectors,
        full=best(answers, BEST)[1],
        seconds=(took[0], writing + took[1]),
        bytes=(vectors[0].nbytes, vectors[0].nbytes + row_bytes(arrays(row))),
    )


def _seal(path: Path, vectors: Tensor, release: Release, *, tokens: bool) -> None:
    """Write all files but the tokens, and the manifest. A gallery without `tokens` has no second stage."""
    frames, (videos, dim) = release.num_frames, vectors.shape
    shown = {"timestamps": [SECONDS * (frame + 0.5) / frames for frame in range(frames)], "duration": SECONDS}
    about = [{"id": f"{NAME}{row}", "source": f"{NAME}{row}.mp4", **shown} for row in range(videos)]
    weights = torch.full((videos, frames), 1 / frames)
    write_segment(path / SEGMENT, about, arrays({"vectors": vectors, "frame_weights": weights}), None, None)
    config = {"release": places.stored(path, release.path), "vectors": "float32", "folders": []}
    manifest = Manifest(
        kind="gallery",
        version=VERSION,
        config=config | ({"tokens": ["vector", *release.model.rerank_fields]} if tokens else {}),
        counts={"videos": videos, "rows": videos, "dim": dim, "generation": 1},
        parents={"release": release.manifest.id},
        files={f"{SEGMENT}/{name}": file for name, file in sealed_segment(path / SEGMENT).items()},
    )
    generation.publish(path, manifest)
