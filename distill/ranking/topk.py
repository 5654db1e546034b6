"""Exact search: the k best columns of a matrix product that is never held whole.

Among equal scores the lower number wins, in whatever chunks. The last bits of a score may depend on the shape of its
chunk: a processor adds up products of other shapes in other orders.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

CHUNK = 131072  # videos scored at once: 512 KiB of float32 scores per query

Answer = tuple[Float[Tensor, "query k"], Int64[Tensor, "query k"]]  # scores and numbers, best first
# The number of a part's first column, and its answer.
Part = tuple[int, tuple[Float[Tensor, "query _"], Int64[Tensor, "query _"]]]


def top_k(
    queries: Float[Tensor, "query dim"], vectors: Float[Tensor, "video dim"], k: int, chunk: int = CHUNK
) -> Answer:
    """Return the `k` highest inner products of every query, and their videos; fewer where there are fewer videos."""
    starts = range(0, max(1, len(vectors)), chunk)
    answers = [(start, _best(queries @ vectors[start : start + chunk].T, k)) for start in starts]
    return best(answers, k)


def best(parts: Sequence[Part], k: int) -> Answer:
    """Return the `k` best of several answers, each best first; among equals the earlier part, so the lower number."""
    if len(parts) == 1:
        first, (scores, numbers) = parts[0]
        return scores[:, :k], numbers[:, :k] + first
    scores = torch.cat([scores for _, (scores, _) in parts], 1)
    return ordered(scores, torch.cat([numbers + first for first, (_, numbers) in parts], 1), k)


def ordered(scores: Float[Tensor, "query column"], numbers: Int64[Tensor, "query column"], k: int) -> Answer:
    """Return the `k` highest scores, best first, and their numbers; among equals those that stand first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), numbers.gather(1, order)


def _best(scores: Float[Tensor, "query column"], k: int) -> Answer:
    """Return `torch.topk` with lower columns first among equals, which torch leaves open."""
    num_columns = scores.shape[1]
    k = min(k, num_columns)
    values, columns = scores.topk(min(k + 1, num_columns))  # one more tells whether torch had to choose among equals
    equal = values[:, 1:] == values[:, :-1]
    choice = equal[:, k - 1 :].any()
    values, columns = values[:, :k], columns[:, :k]
    if not equal.any():
        return values, columns
    if choice:  # take the lowest columns of the last score instead
        last, numbers = values[:, -1:], torch.arange(num_columns, device=scores.device)
        tied = torch.where(scores == last, numbers, num_columns).topk(k, largest=False).values
        columns = torch.cat([columns.masked_fill(values <= last, num_columns), tied], 1)
    columns = columns.sort(dim=1).values  # none twice but `num_columns`, which stands for no column
    values = scores.gather(1, columns.clamp(max=num_columns - 1)).masked_fill(columns == num_columns, -torch.inf)
    return ordered(values, columns, k)
