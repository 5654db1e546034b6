"""Backends: what encodes the queries of a gallery, and ranks and weighs what its vectors found.

ModelBackend    a release with its weights, by PyTorch (distill/retrieval/model_backend.py): all that galleries do
VectorBackend   the text side of a release alone, as `distill.onnx.session.TextSession`, by numpy: PyTorch is not
                imported. It searches galleries of one vector a video in words, by ids of their videos and among
                their captions, with filters, calibration and an approximate index, and says the seconds that answer
                a query for models whose frames answer by their cosine (`COSINE`). It refuses galleries that rerank,
                second looks, and files to search by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from distill.data.tokens import TextTokenizer
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest
from distill.records import View, read_json
from distill.retrieval.finding import Rerank
from distill.retrieval.segment import Segment
from distill.retrieval.table import Table
from distill.retrieval.vectors import Answer, Searched, Vectors

COSINE = ("clip4clip", "teachclip", "prompt_switch")  # kinds of one stage whose relevance is the contract's own
ANSWER_TEMPERATURE = 0.1  # of that relevance (distill/model/contract.py)
WITH_WEIGHTS = "open it with the release's weights (PyTorch; without --backend onnx)"


@dataclass(frozen=True)
class Asked:
    """Queries that are encoded: their vectors, and what else a model keeps of them."""

    vectors: Float32[np.ndarray, "query dim"]
    text: Any = None


@runtime_checkable
class Backend(Protocol):
    """The part that a gallery needs of a release, however it is opened."""

    path: Path  # of the release
    id: str
    reads_videos: bool  # whether files can be searched by

    def check(self, table: Table) -> None:
        """Raise `ExpectedError` for a gallery that this backend cannot search."""
        ...

    def searched(self, vectors: Vectors) -> Searched:
        """Return the vectors of a segment as they are searched."""
        ...

    def asked(self, queries: Sequence[str]) -> Asked:
        """Encode queries."""
        ...

    def no_second_look(self, table: Table) -> str:
        """Return why no second look can be taken in a gallery of one stage, as words; "" if it can."""
        ...

    def rerank(self, table: Table, asked: Asked, *, exact: bool, second_look: bool) -> Rerank | None:
        """Return the second stage; None where there is one stage."""
        ...

    def rerank_captions(
        self, table: Table, asking: Any, own: Sequence[int], found: Int64[np.ndarray, "1 candidate"], k: int
    ) -> Answer:
        """Return the best `k` captions of those found, by the full score with a video: features, or its row."""
        ...

    def weighs(self, table: Table) -> bool:
        """Return whether a query weighs the frames of a video."""
        ...

    def weights(
        self, table: Table, asked: Asked, query: int, rows: Int64[np.ndarray, " k"]
    ) -> Float32[np.ndarray, "k frame"] | None:
        """Return the weights of the frames of some rows by a query; None where none are weighed so."""
        ...

    def video(self, video: Any) -> tuple[Any, Float32[np.ndarray, "1 dim"]]:
        """Return the features of a file, or of features themselves, and the vector that they are searched by."""
        ...


@runtime_checkable
class TextVectors(Protocol):
    """The text side of a release."""

    path: Path
    id: str
    tokenizer: TextTokenizer

    def vectors(self, queries: Sequence[str]) -> Float32[np.ndarray, "query dim"]:
        """Return the vectors that search galleries."""
        ...


class _Kind(View):
    kind: str


class _Config(View):
    """The part of a release's `config.json` about its model."""

    model: _Kind


class VectorBackend:
    """Queries are vectors and nothing else."""

    reads_videos = False

    def __init__(self, side: TextVectors):
        self.side, self.path, self.id = side, side.path, side.id
        config = read_json(side.path / "config.json", _Config, "release again with this version")
        self._by_cosine = config.model.kind in COSINE

    def check(self, table: Table) -> None:
        """Refuse a gallery of two stages."""
        if table.config.tokens:
            raise ExpectedError(f"{table.path}: is searched in two stages, which takes the model; {WITH_WEIGHTS}")

    def searched(self, vectors: Vectors) -> Searched:
        """Return the vectors themselves, which numpy searches."""
        return vectors

    def asked(self, queries: Sequence[str]) -> Asked:
        """Encode queries."""
        return Asked(self.side.vectors(queries))

    def no_second_look(self, table: Table) -> str:
        """Return that there is none."""
        return f"{self.path} is opened without its weights, which it takes; {WITH_WEIGHTS}"

    def rerank(self, table: Table, asked: Asked, *, exact: bool, second_look: bool) -> Rerank | None:
        """Return None: there is one stage."""
        assert not second_look, "refused before"
        return None

    def rerank_captions(
        self, table: Table, asking: Any, own: Sequence[int], found: Int64[np.ndarray, "1 candidate"], k: int
    ) -> Answer:
        """Never called: there is one stage."""
        raise AssertionError("a gallery of two stages is refused")

    def weighs(self, table: Table) -> bool:
        """Return whether frames are stored, and the model's relevance is their cosine."""
        return self._by_cosine and table.has_frames

    def weights(
        self, table: Table, asked: Asked, query: int, rows: Int64[np.ndarray, " k"]
    ) -> Float32[np.ndarray, "k frame"] | None:
        """Return the softmax over the cosines of the query and the frames, if it weighs them."""
        if not self.weighs(table):
            return None
        vector = asked.vectors[query]
        return table.gather(rows, lambda part, own: _answering(part, own, vector))

    def video(self, video: Any) -> tuple[Any, Float32[np.ndarray, "1 dim"]]:
        """Refuse a file."""
        raise ExpectedError(f"{self.path}: encodes queries alone, and no files to search by; {WITH_WEIGHTS}")


def _answering(
    part: Segment, rows: Int64[np.ndarray, " row"], vector: Float32[np.ndarray, " dim"]
) -> Float32[np.ndarray, "row frame"]:
    assert part.frames is not None, "a gallery that stores frames has them in every segment"
    frames, real = part.frames.of(rows)
    lengths = np.maximum(np.linalg.norm(frames, axis=2), np.float32(1e-12))
    cosines = np.where(real, frames @ vector / lengths, -np.inf) / ANSWER_TEMPERATURE
    powers = np.exp(cosines - cosines.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


def backend_of(release: Any) -> Backend:
    """Return the backend of an open release, or of the text side of one."""
    if isinstance(release, TextVectors):
        return VectorBackend(release)
    from distill.retrieval.model_backend import ModelBackend  # imports PyTorch

    return ModelBackend(release)


def check_made_by(path: Path, manifest: Manifest, release: Path, id: str) -> None:
    """Raise `ArtefactError` unless a gallery was made by the release with this id."""
    expected = manifest.parents["release"]
    if id != expected:
        raise ArtefactError(
            f"{path}: made by release {expected[:12]}, but {release} is {id[:12]}; "
            "open it with its own release or run tools/index.py again"
        )
