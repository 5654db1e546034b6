"""Stored vectors: one per row, mapped into memory, in one of three precisions; searched exactly as they are stored.

    float32   as the model gave them
    float16   half the bytes; a number changes by at most 1 part in 2048
    int8      a quarter: whole numbers from -127 to 127 and one float32 `scales` per vector. A number changes by at most
              half a scale (a 254th of the vector's largest), a score by at most that times the sum of |query|

Fewer bytes are turned to float32 a block at a time to be scored. A gallery with a model searches by PyTorch
(distill/retrieval/products.py), to which this takes no longer than scoring float32 vectors, of which more must be read;
one without, by numpy, which takes four times as long as PyTorch to turn float16 to float32.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from distill.retrieval.columns import read_rows

KINDS = ("float32", "float16", "int8")
BLOCK = 2048  # rows that are float32 at a time: 4 MiB at 512 dimensions, which a processor's cache holds
GATHERED = 16384  # rows that are copied at a time where only some are compared: 32 MiB at 512 dimensions
CHUNK = 131072  # float32 rows scored at once: 512 KiB of scores per query
QUERIES = 64  # searched at once: 32 MiB of scores for each chunk
SPARE, MORE = 16, 4  # rows asked for beyond k where some are deleted; times as many if that was too few
LEVELS = 127

Answer = tuple[Float32[np.ndarray, "query k"], Int64[np.ndarray, "query k"]]  # scores and numbers, best first
# The number of a part's first row, and its answer.
Part = tuple[int, tuple[Float32[np.ndarray, "query _"], Int64[np.ndarray, "query _"]]]


def encode(vectors: Float32[np.ndarray, "row dim"], kind: str) -> dict[str, np.ndarray]:
    """Return the columns that store these vectors."""
    if kind == "int8":
        scales = np.maximum(np.abs(vectors).max(1), np.finfo(np.float32).tiny) / np.float32(LEVELS)
        return {"vectors": np.round(vectors / scales[:, None]).astype(np.int8), "scales": scales}
    return {"vectors": vectors.astype({"float32": np.float32, "float16": np.float16}[kind])}


@runtime_checkable
class Searched(Protocol):
    """The vectors of a segment as they are searched, by numpy or by PyTorch."""

    def __len__(self) -> int: ...

    def top(
        self, queries: Float32[np.ndarray, "query dim"], k: int, rows: Int64[np.ndarray, " row"] | None = None
    ) -> Answer:
        """Return the `k` highest inner products of every query and their rows, best first; fewer if there are fewer.

        Among equals the lower row. Where only some `rows` are meant, which ascend, no others are read.
        """
        ...


class Vectors:
    """The vectors of one segment. Indexing gives float32."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self.columns = {name: columns[name] for name in ("vectors", "scales") if name in columns}
        self.stored = self.columns["vectors"]

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: slice | Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row dim"]:
        found = read_rows(self.columns, rows)
        floats = found["vectors"].astype(np.float32, copy=False)
        return floats * found["scales"][:, None] if "scales" in found else floats

    def top(
        self, queries: Float32[np.ndarray, "query dim"], k: int, rows: Int64[np.ndarray, " row"] | None = None
    ) -> Answer:
        """Search by numpy, as `Searched` says."""
        if rows is not None:
            pieces = (rows[start : start + GATHERED] for start in range(0, len(rows), GATHERED))
            found = [(piece, _best(queries @ self[piece].T, k)) for piece in pieces]
            return best([(0, nothing(len(queries))), *((0, (scores, piece[at])) for piece, (scores, at) in found)], k)
        size = CHUNK if self.stored.dtype == np.float32 else BLOCK
        starts = range(0, max(1, len(self)), size)
        return best([(start, _best(queries @ self[start : start + size].T, k)) for start in starts], k)


def nothing(queries: int) -> Answer:
    """Return the answer where there are no rows."""
    return np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64)


def best(parts: Sequence[Part], k: int) -> Answer:
    """Return the `k` best of several answers, each best first; among equals the earlier part, so the lower number."""
    if len(parts) == 1:
        first, (scores, numbers) = parts[0]
        return scores[:, :k], numbers[:, :k] + first
    scores = np.concatenate([scores for _, (scores, _) in parts], 1)
    return ordered(scores, np.concatenate([numbers + first for first, (_, numbers) in parts], 1), k)


def ordered(scores: Float[np.ndarray, "query row"], numbers: Int64[np.ndarray, "query row"], k: int) -> Answer:
    """Return the `k` highest scores, best first, and their numbers; among equals those that stand first."""
    order = descending(scores)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)


def descending(scores: Float[np.ndarray, "*query row"]) -> Int64[np.ndarray, "*query row"]:
    """Return the order of scores from the highest, equals as they stand. What is no number comes first, to be seen."""
    return np.argsort(np.where(np.isnan(scores), -np.inf, -scores), axis=-1, kind="stable")


def _best(scores: Float32[np.ndarray, "query row"], k: int) -> Answer:
    """Return the `k` highest of each query, with lower rows first among equals."""
    rows = [_best_of_one(own, min(k, scores.shape[1])) for own in scores]
    found = np.stack(rows) if rows else np.empty((0, min(k, scores.shape[1])), np.int64)
    return np.take_along_axis(scores, found, 1), found


def _best_of_one(scores: Float32[np.ndarray, " row"], k: int) -> Int64[np.ndarray, " k"]:
    least = np.partition(scores, len(scores) - k)[len(scores) - k] if k else np.float32(np.inf)
    enough = np.flatnonzero(~(scores < least)) if k else np.empty(0, np.int64)  # more where several equal the least
    return enough[descending(scores[enough])[:k]]


def nearest(
    queries: Float32[np.ndarray, "query dim"],
    segments: Sequence[Searched],
    k: int,
    deleted: Int64[np.ndarray, " row"],
) -> Answer:
    """Return the `k` best rows over all segments, numbered through, without the `deleted` (which ascend)."""
    answers = []
    for asking in _split(queries):
        parts: list[Part] = []
        for base, vectors, gone in _divided(segments, deleted):
            if len(gone) < len(vectors):
                live = min(k, len(vectors) - len(gone))
                parts.append((base, undeleted(partial(vectors.top, asking), live, len(vectors), gone)))
        answers.append(best(parts, k) if parts else nothing(len(asking)))
    return _together(answers)


def nearest_of(
    queries: Float32[np.ndarray, "query dim"], segments: Sequence[Searched], k: int, rows: Int64[np.ndarray, " row"]
) -> Answer:
    """Return the `k` best of some rows, which ascend, numbered over all segments."""
    answers = []
    for asking in _split(queries):
        parts = [(base, vectors.top(asking, k, own)) for base, vectors, own in _divided(segments, rows) if len(own)]
        answers.append(best(parts, k) if parts else nothing(len(asking)))
    return _together(answers)


def _split(queries: Float32[np.ndarray, "query dim"]) -> Iterator[Float32[np.ndarray, "_ dim"]]:
    return (queries[start : start + QUERIES] for start in range(0, max(1, len(queries)), QUERIES))


def _together(answers: Sequence[tuple[Float32[np.ndarray, "_ k"], Int64[np.ndarray, "_ k"]]]) -> Answer:
    return np.concatenate([scores for scores, _ in answers]), np.concatenate([rows for _, rows in answers])


def _divided(
    segments: Sequence[Searched], rows: Int64[np.ndarray, " row"]
) -> Iterator[tuple[int, Searched, Int64[np.ndarray, " _"]]]:
    """Yield each segment after the number of its first row, and its own numbers of those of `rows` that it has."""
    base = 0
    for vectors in segments:
        first, last = np.searchsorted(rows, [base, base + len(vectors)])
        yield base, vectors, rows[first:last] - base
        base += len(vectors)


def undeleted(find: Callable[[int], Answer], k: int, most: int, deleted: Int64[np.ndarray, " row"]) -> Answer:
    """Return the `k` best rows of `find` that are not deleted; where there are fewer among `most`, -inf fills up.

    Asks for more than `k`, and for more again, until so many are left.
    """
    if not len(deleted):
        return find(min(k, most))
    asked = min(k + min(SPARE, len(deleted)), most)
    while True:
        scores, rows = find(asked)
        gone = among(rows, deleted)
        if asked == most or int((~gone).sum(1).min()) >= k:
            break
        asked = min(MORE * asked, most)
    order = np.argsort(gone, axis=1, kind="stable")[:, :k]  # the live first, as they were
    scores = np.where(gone, np.float32(-np.inf), scores)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def among(rows: Int64[np.ndarray, "*shape"], some: Int64[np.ndarray, " row"]) -> Bool[np.ndarray, "*shape"]:
    """Return which of `rows` are in `some`, which ascends."""
    if not len(some):
        return np.zeros(rows.shape, np.bool_)
    return some[np.searchsorted(some, rows).clip(max=len(some) - 1)] == rows
