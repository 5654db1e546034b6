"""Stored vectors: one per row, mapped into memory, in one of three precisions; searched exactly as they are stored.

    float32   as the model gave them
    float16   half the bytes; a number changes by at most 1 part in 2048
    int8      a quarter: whole numbers from -127 to 127 and one float32 `scales` per vector. A number changes by at most
              half a scale (a 254th of the vector's largest), a score by at most that times the sum of |query|

Fewer bytes are turned to float32 a block at a time to be scored, which takes no longer than scoring float32 vectors,
of which more must be read.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from distill.ranking.topk import Answer, best, top_k
from distill.retrieval.stored import read_rows

KINDS = ("float32", "float16", "int8")
BLOCK = 2048  # rows that are float32 at a time: 4 MiB at 512 dimensions, which a processor's cache holds
GATHERED = 16384  # rows that are copied at a time where only some are compared: 32 MiB at 512 dimensions
QUERIES = 64  # searched at once: 32 MiB of scores for each of `top_k`'s chunks
SPARE, MORE = 16, 4  # rows asked for beyond k where some are deleted; times as many if that was too few
LEVELS = 127


def encode(vectors: Float[Tensor, "row dim"], kind: str) -> dict[str, Tensor]:
    """Return the columns that store these vectors."""
    if kind == "int8":
        scales = vectors.float().abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
        return {"vectors": (vectors / scales[:, None]).round().to(torch.int8), "scales": scales}
    return {"vectors": vectors.to({"float32": torch.float32, "float16": torch.float16}[kind])}


class Vectors:
    """The vectors of one segment. Indexing gives float32."""

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = {name: columns[name] for name in ("vectors", "scales") if name in columns}
        self.stored = self.columns["vectors"]

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: slice | Tensor) -> Float[Tensor, "row dim"]:
        found = read_rows(self.columns, rows)
        return found["vectors"] * found["scales"][:, None] if "scales" in found else found["vectors"].float()

    def top(self, queries: Float[Tensor, "query dim"], k: int) -> Answer:
        """Return the `k` highest inner products of every query and their rows, best first, as `topk.top_k`."""
        if self.stored.dtype == torch.float32:
            return top_k(queries, self.stored, k)
        floats, parts = torch.empty(min(BLOCK, len(self)), self.stored.shape[1]), []
        for start in range(0, len(self), BLOCK):
            stored = self.stored[start : start + BLOCK]
            block = floats[: len(stored)].copy_(stored)  # one buffer for all blocks: allocating new ones took longer
            if "scales" in self.columns:
                block *= self.columns["scales"][start : start + BLOCK, None]
            parts.append((start, top_k(queries, block, k)))
        return best(parts, k)


def nearest(
    queries: Float[Tensor, "query dim"], segments: Sequence[Vectors], k: int, deleted: Int64[Tensor, " row"]
) -> Answer:
    """Return the `k` best rows over all segments, numbered through, without the `deleted` (which ascend)."""
    answers = []
    for asking in queries.split(QUERIES):
        parts, base = [], 0
        for vectors in segments:
            first, last = torch.searchsorted(deleted, torch.tensor([base, base + len(vectors)])).tolist()
            if last - first < len(vectors):
                gone = deleted[first:last] - base
                live = min(k, len(vectors) - len(gone))
                parts.append((base, undeleted(partial(vectors.top, asking), live, len(vectors), gone)))
            base += len(vectors)
        answers.append(
            best(parts, k) if parts else (asking.new_empty(len(asking), 0), deleted.new_empty(len(asking), 0))
        )
    return torch.cat([scores for scores, _ in answers]), torch.cat([rows for _, rows in answers])


def nearest_of(
    queries: Float[Tensor, "query dim"],
    read: Callable[[Int64[Tensor, " row"]], Float[Tensor, "row dim"]],
    rows: Int64[Tensor, " row"],
    k: int,
) -> Answer:
    """Return the `k` best of some rows, which ascend; `read` gives the vectors of a block of them."""
    answers = []
    for asking in queries.split(QUERIES):
        found = asking.new_empty(len(asking), 0), rows.new_empty(len(asking), 0)
        for start in range(0, len(rows), GATHERED):
            block = rows[start : start + GATHERED]
            scores, places = top_k(asking, read(block), k)
            found = best([(0, found), (0, (scores, block[places]))], k)
        answers.append(found)
    return torch.cat([scores for scores, _ in answers]), torch.cat([rows for _, rows in answers])


def undeleted(find: Callable[[int], Answer], k: int, most: int, deleted: Int64[Tensor, " row"]) -> Answer:
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
    order = gone.sort(dim=1, stable=True).indices[:, :k]  # the live first, as they were
    return scores.masked_fill(gone, -torch.inf).gather(1, order), rows.gather(1, order)


def among(rows: Int64[Tensor, "*shape"], some: Int64[Tensor, " row"]) -> Bool[Tensor, "*shape"]:
    """Return which of `rows` are in `some`, which ascends."""
    if not len(some):
        return torch.zeros_like(rows, dtype=torch.bool)
    return some[torch.searchsorted(some, rows.contiguous()).clamp(max=len(some) - 1)] == rows
