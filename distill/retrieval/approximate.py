"""Approximate search with FAISS, which is imported here and nowhere else (extra [index]).

    approximate/00004.safetensors   `centres` [part, 16, number], `codes` [row, byte], `rows` [row]

The numbers of a vector are cut into parts, and of each part the nearest of 16 centres is kept: half a byte (a product
quantiser). Up to 1,024 dimensions a part is a single number. A query is estimated with the codes of every row, which a
processor adds up in its registers (FAISS's fast scan): an eighth of float32's bytes and about a twentieth of its time.
The best by estimate, `depth` times as many as are asked for, are scored anew from the stored vectors, so scores are
exact and only the choice is approximate. How much of the exact best ten is found, asked with noisy copies of stored
vectors, is measured when the index is built, and stored. Rows that came later are searched exactly. Codes are packed
for the processor when the first query comes; that copy is held in memory.
"""

import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from distill.errors import ExpectedError
from distill.publishing import publish
from distill.retrieval.columns import damaged, mapped_whole, write_columns
from distill.retrieval.vectors import Answer, ordered, undeleted

BITS = 4
PARTS = 1024  # at most: a scan adds up their estimates in 16 bits, and from 1,536 parts on some sums were wrong
TRAIN = 16384  # vectors that the centres are found from
ADD = 65536  # vectors encoded at once
SEED = 0
ASKED = 200  # queries that measure
NOISE = 1.0  # length of the noise that is added to a unit vector to ask for it
BEST = 10
WANTED = 0.99  # of the exact best ten: more are scored anew until it is reached
DEPTHS = (2, 4, 8, 16, 32, 64)  # times k are scored anew
MEND = "build it again with tools/gallery.py approximate"
READ = 2**25  # numbers of stored vectors held at once: 128 MiB

Read = Callable[[Int64[np.ndarray, " row"]], Float32[np.ndarray, "row dim"]]  # gives stored vectors


def check_installed() -> None:
    """Raise `ExpectedError` if FAISS is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise ExpectedError("approximate search: needs faiss-cpu; pip install 'retrieval-distill[index]'")


def build(
    path: Path,
    read: Read,
    exact: Callable[[Float32[np.ndarray, "query dim"], int], Answer],
    rows: Int64[np.ndarray, " row"],
) -> dict[str, Any]:
    """Build an index of `rows`, which ascend, and measure its recall; return its facts, for the manifest.

    `exact` searches all vectors.
    """
    draw = np.random.default_rng(SEED)
    some = np.sort(draw.permutation(rows)[:TRAIN])
    sample = read(some)
    dim = sample.shape[1]
    parts = next(parts for parts in range(min(dim, PARTS), 0, -1) if dim % parts == 0)
    quantizer = _quantizer(dim, parts)
    quantizer.pq.cp.seed = SEED
    quantizer.train(sample)
    import faiss

    centres = faiss.vector_to_array(quantizer.pq.centroids).reshape(parts, 2**BITS, dim // parts)
    pieces = (rows[start : start + ADD] for start in range(0, len(rows), ADD))
    codes = np.concatenate([quantizer.sa_encode(read(piece)) for piece in pieces])
    write_columns(path, {"centres": centres, "codes": codes, "rows": rows})
    asked = draw.permutation(sample)[:ASKED]
    asked = asked + draw.standard_normal(asked.shape, np.float32) * np.float32(NOISE / math.sqrt(dim))
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    best = exact(asked, BEST)[1].tolist()
    index, recall = Approximate(path, {"covers": int(rows[-1]) + 1, "depth": 1}, dim), 0.0
    for index.depth in DEPTHS:
        found = index.top(asked, BEST, read, rows[:0])[1].tolist()
        recall = sum(len({*a} & {*b}) for a, b in zip(found, best, strict=True)) / sum(map(len, best))
        if recall >= WANTED:
            break
    return {"depth": index.depth, "recall@10": round(recall, 4), "queries": len(asked)}


class Approximate:
    """An index file. Searching is safe from several threads at once."""

    def __init__(self, path: Path, facts: dict[str, Any], dim: int):
        check_installed()
        self.path, self.dim = path, dim
        self.covers: int = facts["covers"]  # rows below this number were there when it was built
        self.depth: int = facts["depth"]
        expected = {"centres": (3, np.float32), "codes": (2, np.uint8), "rows": (1, np.int64)}
        found = mapped_whole(path, MEND, **expected)
        self.centres, self.codes, self.rows = (found[name] for name in expected)
        parts, levels, numbers = self.centres.shape
        whole = (len(self.rows), (BITS * parts + 7) // 8)
        if parts * numbers != dim or levels != 2**BITS or self.codes.shape != whole or not len(self.rows):
            odd = f"{list(self.codes.shape)} codes of {parts} parts of {numbers}, expected {dim} numbers"
            raise damaged(path, odd, MEND)

    def top(
        self, queries: Float32[np.ndarray, "query dim"], k: int, read: Read, deleted: Int64[np.ndarray, " row"]
    ) -> Answer:
        """Return the best rows found that are not `deleted`, with exact scores; where fewer than `k`, -inf fills up."""
        estimates, rows = self.estimated(queries, self.depth * k, deleted)
        order = np.argsort(rows, axis=1, kind="stable")
        rows, gone = np.take_along_axis(rows, order, 1), np.isneginf(np.take_along_axis(estimates, order, 1))
        at_once = max(1, READ // (rows.shape[1] * self.dim))
        pieces = [slice(start, start + at_once) for start in range(0, len(rows), at_once)]
        stored = (read(rows[some].ravel()).reshape(*rows[some].shape, -1) for some in pieces)
        scores = [(own @ queries[some, :, None])[:, :, 0] for some, own in zip(pieces, stored, strict=True)]
        scores = np.where(gone, np.float32(-np.inf), np.concatenate(scores))
        return ordered(scores, rows, k)  # among equals the lower row

    def candidates(
        self, queries: Float32[np.ndarray, "query dim"], k: int, read: Read, deleted: Int64[np.ndarray, " row"]
    ) -> Answer:
        """Return candidates for another score: the best by estimate, or `top` where several numbers share half a byte.

        Single numbers are estimated so well that 200 candidates hold as many of the best ten as 200 exact ones do.
        """
        if self.centres.shape[2] > 1:
            return self.top(queries, k, read, deleted)
        return self.estimated(queries, k, deleted)

    def estimated(
        self, queries: Float32[np.ndarray, "query dim"], k: int, deleted: Int64[np.ndarray, " row"]
    ) -> Answer:
        """Return the best rows by estimate that are not `deleted`, best first; where fewer than `k`, -inf fills up."""
        import faiss

        if "torch" in sys.modules:  # where PyTorch computes too, both take as many threads
            faiss.omp_set_num_threads(sys.modules["torch"].get_num_threads())

        def find(asked: int) -> Answer:
            values, places = self._scan.search(queries, asked)
            return values, self.rows[places.clip(min=0)]

        return undeleted(find, k, len(self.rows), deleted)

    @cached_property
    def _scan(self) -> Any:
        """The codes packed for FAISS's fast scan."""
        import faiss

        ordered = bool((np.diff(self.rows) > 0).all()) and 0 <= int(self.rows[0]) <= int(self.rows[-1]) < self.covers
        if not ordered or not np.isfinite(self.centres).all():
            raise damaged(self.path, f"centres are not finite, or rows do not ascend below {self.covers}", MEND)
        quantizer = _quantizer(self.dim, len(self.centres))
        faiss.copy_array_to_vector(self.centres.ravel(), quantizer.pq.centroids)
        quantizer.is_trained = True
        quantizer.add_sa_codes(self.codes)
        return faiss.IndexPQFastScan(quantizer)


def _quantizer(dim: int, parts: int) -> Any:
    """Return FAISS's product quantiser, not trained yet."""
    import faiss

    quantizer = faiss.IndexPQ(dim, parts, BITS, faiss.METRIC_INNER_PRODUCT)
    quantizer.pq.cp.min_points_per_centroid = 1  # FAISS would warn about small galleries
    return quantizer


def write_exact(path: Path, vectors: Iterator[Float32[np.ndarray, "_ dim"]], dim: int) -> None:
    """Write an exact inner-product index of vectors, in their order."""
    import faiss

    index = faiss.IndexFlatIP(dim)
    for some in vectors:
        index.add(some)
    publish(path, faiss.serialize_index(index).tobytes())
