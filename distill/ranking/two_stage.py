"""Two-stage search: inner products choose candidates, and the model's full score ranks those and no others.

    stage one   the candidates: the best inner products of `query_vectors` and `index_vectors`, exact (`topk`)
    stage two   `similarity` of each query with its own candidates, from their stored features (`executor`)

The score of stage two may be a sum of parts (`score_parts`). A search adds those that change little, and read much, for
the best of the candidates alone (`of_best`); evaluation scores all candidates in full (`ranking`), as published.
Scores are [query, candidate] whichever side asks, and among equal scores the lower candidate number wins. Queries and
candidates are handled in batches, so memory does not grow with the gallery.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from distill.ranking.executor import Pairs
from distill.ranking.topk import Answer, ordered, top_k

TOGETHER = 16  # queries that may be scored in one call
SHARED = 2  # ... if that scores at most so many times the pairs that are asked for
QUERIES = 1024  # ranked at once
ASKED = 10  # videos that count as asked for where it is fewer, so that the first hit is the first of ten hits

Parts = Sequence[tuple[Pairs, int]]  # of a score, and for how many of the best each is added, in times k


def search(
    parts: Parts, queries: Float[Tensor, "query dim"], vectors: Float[Tensor, "candidate dim"], k: int, candidates: int
) -> Answer:
    """Rank `candidates` (at least `k`) of every query by their full score; return the `k` best, best first."""
    return best_of(parts, top_k(queries, vectors, max(k, candidates))[1], k)


def best_of(parts: Parts, candidates: Int64[Tensor, "query candidate"], k: int) -> Answer:
    """Return the `k` best of the candidates, best first, by full score; among equals the lower number.

    The order of the first stage decides nothing. All candidates get the first part of the score, and each further part
    is added for the best so far.
    """
    (first, _), *others = parts
    candidates = candidates.sort(dim=1).values
    scores = rerank(first, candidates)
    for pairs, of_best in others:
        scores, candidates = ordered(scores, candidates, of_best * max(k, ASKED))
        candidates, places = candidates.sort(dim=1)  # they ascend, as before
        scores = scores.gather(1, places) + rerank(pairs, candidates)
    return ordered(scores, candidates, k)


def ranking(
    pairs: Pairs, queries: Float[Tensor, "query dim"], vectors: Float[Tensor, "candidate dim"], candidates: int
) -> Float64[Tensor, "query candidate"]:
    """Return scores that rank everything for every query, to evaluate: candidates have their full score.

    All others follow, in the order of their inner products: these are shifted, row by row, below every full score, so
    rows must not be compared with one another.
    """
    parts = []
    for start in range(0, len(queries), QUERIES):
        asking = queries[start : start + QUERIES]
        chosen = top_k(asking, vectors, candidates)[1]
        full = rerank(lambda rows, columns, start=start: pairs(rows + start, columns), chosen).double()
        coarse = (asking @ vectors.T).double()
        behind = full.amin(1, keepdim=True) - coarse.amax(1, keepdim=True) - 1
        parts.append((coarse + behind).scatter(1, chosen, full))
    return torch.cat(parts)


@torch.no_grad()
def rerank(pairs: Pairs, candidates: Int64[Tensor, "query k"]) -> Float[Tensor, "query k"]:
    """Return the full score of every query with its own candidates.

    Where some queries have nearly the same candidates, as in a small gallery, they are scored in one call: a score
    of all queries with all candidates is cheaper then than many small ones.
    """
    parts = []
    for start in range(0, len(candidates), TOGETHER):
        some = candidates[start : start + TOGETHER]
        queries = torch.arange(start, start + len(some), device=candidates.device)
        if len(queries) == 1:  # a search: it has nobody to share with, and its time counts
            parts.append(pairs(queries, some[0]))
            continue
        union, places = some.unique(return_inverse=True)
        if len(union) <= SHARED * candidates.shape[1]:
            parts.append(pairs(queries, union).gather(1, places))
        else:
            parts += [pairs(query, candidates[query].squeeze(0)) for query in queries.split(1)]
    return torch.cat(parts)
