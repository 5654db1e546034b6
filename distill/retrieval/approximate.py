"""Approximate search with FAISS, which is imported here and nowhere else (extra [index]).

The index is an inverted file: vectors are grouped around centres and kept in a byte per number (SQ8); a query looks
into the `probe` groups whose centres are nearest. What it finds is scored anew from the stored vectors, so scores are
exact and only the choice is approximate. How much of the exact best ten it finds, asked with noisy copies of stored
vectors, is measured when it is built, and stored. Rows that came later are searched exactly.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from distill.errors import ArtefactError, ExpectedError, check_regular
from distill.manifest import published

CENTRES = 4  # times the square root of the rows
TRAIN = 40  # vectors per centre that the centres are found from
ADD = 65536  # vectors added at once
SEED = 0
ASKED = 200  # queries that measure
NOISE = 1.0  # length of the noise that is added to a unit vector to ask for it
BEST = 10
WANTED = 0.95  # of the exact best ten: groups are looked into until it is reached
SLACK = 4  # times k are taken from the index, to be scored exactly

Answer = tuple[Float[Tensor, "query k"], Int64[Tensor, "query k"]]


def check_installed() -> None:
    """Refuses to go on without the library."""
    if importlib.util.find_spec("faiss") is None:
        raise ExpectedError("approximate search: needs faiss-cpu; pip install 'retrieval-distill[index]'")


def build(
    path: Path,
    read: Callable[[Int64[Tensor, " row"]], Float[Tensor, "row dim"]],
    exact: Callable[[Float[Tensor, "query dim"], int], Answer],
    rows: Int64[Tensor, " row"],
) -> dict[str, Any]:
    """Builds an index of `rows` and measures it; returns its facts, for the manifest.

    `read` gives stored vectors, `exact` searches them all.
    """
    import faiss

    generator = torch.Generator().manual_seed(SEED)
    centres = max(1, min(round(CENTRES * math.sqrt(len(rows))), len(rows) // TRAIN))
    some = rows[torch.randperm(len(rows), generator=generator)[: centres * TRAIN].sort().values]
    sample = read(some)
    dim = sample.shape[1]
    quantizer = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dim, centres, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = SEED
    index.train(sample.numpy())
    for part in rows.split(ADD):
        index.add_with_ids(read(part).numpy(), part.numpy())
    asked = sample[torch.randperm(len(sample), generator=generator)[:ASKED]]
    noise = torch.randn(asked.shape, generator=generator) * NOISE / math.sqrt(dim)
    asked = torch.nn.functional.normalize(asked + noise, dim=1)
    best = exact(asked, BEST)[1]
    probe, recall = 1, 0.0
    while True:
        index.nprobe = probe
        found = _rescored(index, asked, BEST, read, int(rows[-1]) + 1)[1]
        recall = sum(len({*a} & {*b}) for a, b in zip(found.tolist(), best.tolist(), strict=True)) / best.numel()
        if recall >= WANTED or probe == centres:
            break
        probe = min(2 * probe, centres)
    with published(path) as file:
        file.write(faiss.serialize_index(index).tobytes())
    return {"centres": centres, "probe": probe, "recall@10": round(recall, 4), "queries": len(asked)}


class Approximate:
    """An index file, mapped into memory."""

    def __init__(self, path: Path, facts: dict[str, Any], dim: int):
        check_installed()
        import faiss

        self.path = path
        self.covers: int = facts["covers"]  # rows below this number were there when it was built
        check_regular(path)
        try:
            index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
            index.nprobe = facts["probe"]
        except (RuntimeError, MemoryError, TypeError, AttributeError) as error:
            raise self._damaged(str(error)) from None
        if index.d != dim or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise self._damaged(f"inner products of {dim} numbers expected")
        self.index = index

    def top(
        self,
        queries: Float[Tensor, "query dim"],
        k: int,
        read: Callable[[Int64[Tensor, " row"]], Float[Tensor, "row dim"]],
        deleted: Int64[Tensor, " row"],
    ) -> Answer:
        """Some of the best rows that are not `deleted`, by their exact scores; fewer than `k` count as -inf."""
        try:
            return _rescored(self.index, queries, k, read, self.covers, deleted)
        except (RuntimeError, IndexError) as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, found: str) -> ArtefactError:
        return ArtefactError(f"{self.path}: damaged ({found}); build it again with tools/gallery.py approximate")


def _rescored(
    index: Any,
    queries: Float[Tensor, "query dim"],
    k: int,
    read: Callable[[Int64[Tensor, " row"]], Float[Tensor, "row dim"]],
    covers: int,
    deleted: Int64[Tensor, " row"] | None = None,
) -> Answer:
    found = torch.from_numpy(index.search(queries.numpy(), SLACK * k)[1])
    if found.max() >= covers:
        raise IndexError(f"row {int(found.max())} of {covers}")
    missing = found < 0
    if deleted is not None and len(deleted):
        place = torch.searchsorted(deleted, found).clamp(max=len(deleted) - 1)
        missing |= deleted[place] == found
    found = found.masked_fill(missing, 0).sort(dim=1)
    missing = missing.gather(1, found.indices)
    rows = found.values
    vectors = read(rows.flatten()).reshape(*rows.shape, -1)
    scores = torch.einsum("qd,qkd->qk", queries, vectors).masked_fill(missing, -torch.inf)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), rows.gather(1, order)


def write_exact(path: Path, vectors: Iterator[Float32[np.ndarray, "_ dim"]], dim: int) -> None:
    """An exact inner-product index of vectors, in their order."""
    import faiss

    index = faiss.IndexFlatIP(dim)
    for some in vectors:
        index.add(some)
    with published(path) as file:
        file.write(faiss.serialize_index(index).tobytes())
