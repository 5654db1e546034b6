"""The searches of a contender: by one vector, by the full score of every video, and in two stages."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from distill.bench.contenders import Contender
from distill.bench.rounds import timed
from distill.log import progress
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.ranking import executor, two_stage
from distill.ranking.topk import top_k
from distill.retrieval.approximate import Approximate
from distill.retrieval.stored import Tokens

BEST = 10  # answers of a search
CALLS = (32, 64, 128, 256)  # videos in a call of an exhaustive search; the fastest of these is taken
TRIALS, TRIED = 4, 1024  # trials of each number, of which the fastest counts, on so many videos
ALL = 128  # videos that are scored with all queries in one call, to know what an exhaustive search finds

NONE = torch.empty(0, dtype=torch.int64)  # no video is deleted

Search = Callable[[TextFeatures], tuple[Tensor, Tensor]]  # queries -> scores and numbers of the best videos


@dataclass(frozen=True)
class TwoStage:
    """A search in two stages, as galleries run it."""

    contender: Contender
    candidates: int
    index: Approximate | None  # chooses the candidates; None: exact inner products do

    def __call__(self, text: TextFeatures) -> tuple[Tensor, Tensor]:
        """Return the scores and the numbers of the best videos of every query."""
        contender, model = self.contender, self.contender.model
        assert contender.tokens is not None and contender.vectors is not None
        parts, vectors = executor.of_parts(model, text, contender.tokens.only), model.query_vectors(text)
        if self.index is None:
            return two_stage.search(parts, vectors, contender.vectors, BEST, self.candidates)
        chosen = self.index.candidates(vectors, self.candidates, contender.vectors.__getitem__, NONE)[1]
        return two_stage.best_of(parts, chosen, BEST)

    @property
    def operations(self) -> int:
        """The multiply-accumulates of a query.

        An index counts as the product that it estimates, because it adds no more numbers a video than a vector has, and
        as the products of the query with its centres.
        """
        contender, parts = self.contender, self.contender.model.score_parts()
        assert contender.tokens is not None
        first = contender.tokens.only(parts[0].fields if parts else contender.model.rerank_fields)
        in_place = parts != () and executor.reads_in_place(parts[0], first)
        calls = 1 if in_place else -(-self.candidates // executor.in_one_call(first))
        of_best = BEST * (parts[-1].of_best if parts else 1)
        count = contender.operations.two_stage(contender.videos, self.candidates, of_best, calls)
        return count if self.index is None else count + self.index.centres.numel()


def one_stage(contender: Contender, at_once: int) -> Search:
    """Return the search of every video, by its vector or the full score, for `at_once` queries together."""
    if contender.exact is not None:
        return _fastest(contender, at_once)
    vectors = contender.vectors
    assert vectors is not None
    return lambda text: top_k(contender.model.query_vectors(text), vectors, BEST)


def _fastest(contender: Contender, at_once: int) -> Search:
    """Return the exhaustive search in calls of the number of videos that is fastest for so many queries."""
    exact = contender.exact
    assert exact is not None
    best = executor.in_one_call(exact)
    if not isinstance(exact, Tokens):
        took = dict.fromkeys(CALLS, float("inf"))
        for _, size in itertools.product(range(TRIALS), CALLS):
            search = _exhaustive(contender.model, exact, min(TRIED, contender.videos), size)
            took[size] = min(took[size], timed(partial(search, contender.text[:at_once])))
        best = min(CALLS, key=lambda size: took[size])
    return _exhaustive(contender.model, exact, contender.videos, best)


def _exhaustive(model: RetrievalModel, exact: VideoFeatures | Tokens, videos: int, size: int) -> Search:
    def search(text: TextFeatures) -> tuple[Tensor, Tensor]:
        scores = [model.similarity(text, exact[start : start + size]) for start in range(0, videos, size)]
        best = torch.cat(scores, 1).topk(min(BEST, videos))
        return best.values, best.indices

    return search


def all_scores(contender: Contender) -> Float[Tensor, "text video"]:
    """Return the full score of every query with every video."""
    exact = contender.exact
    assert exact is not None
    what = f"{contender.name}: score {len(contender.text)} x {contender.videos} pairs"
    starts = progress(range(0, contender.videos, ALL), what)
    return torch.cat([contender.model.similarity(contender.text, exact[start : start + ALL]) for start in starts], 1)
