"""The bench of searches: the time, operations and answers of every model's searches, side by side in one process.

A contender is a model with the features of a gallery and of queries. Its searches are

    one vector    inner products with one vector a video
    exhaustive    the full score of the query with every video, in calls of the fastest number of videos
    two stages    the `candidates` best inner products, ranked by the full score from float16 tokens; parts of the score
                  that change it little are added for the best of them only (`score_parts`)
    by index      the same with candidates chosen by the estimates of an approximate index

Time is the median over queries that come one by one, or per query where some come at once (`AT_ONCE`); searches take
turns. It leaves out encoding the query, as the counted operations do (`operations`). The answers of a search are
compared with the model's own exhaustive search in float32 (with patches: float16), over all queries.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.bench.contenders import Contender
from distill.bench.rounds import timed
from distill.bench.searches import Search, TwoStage, all_scores, one_stage
from distill.evaluation.metrics import ranks_t2v, summarise
from distill.log import progress
from distill.model.features import TextFeatures

AT_ONCE = (1, 16, 64)  # queries that come together
ROUNDS = 8  # through all searches, so that other load on the machine slows all of them alike
TURN, IN_A_TURN = 1.0, 64  # limits of a search in each round: seconds, and calls, of which the first warm the caches
ENOUGH = 12.0  # seconds of a search after which it is left out of further rounds


@dataclass(frozen=True, kw_only=True)
class ModelSearch:
    """One search of one model."""

    model: str
    search: str  # one vector, exhaustive, two stages, two stages by index
    candidates: int | None  # videos that the second stage ranks
    operations: int  # multiply-accumulates a query
    published_pair: int | None  # multiply-accumulates a pair by the published formula of the full score
    milliseconds: dict[int, float]  # a query, by how many come at once
    vector_bytes: int  # a video
    token_bytes: int
    shared: float | None  # part of the exhaustive ten best that is found, from 0 to 1
    r1: float  # R@1 in percent
    r1_lost: float | None  # against the exhaustive search, in percentage points


@torch.inference_mode()
def measure_searches(
    contenders: Sequence[Contender], video_of_text: Int[Tensor, " text"], candidates: Sequence[int]
) -> list[ModelSearch]:
    """Run and time all searches of all contenders; the right answer to query i is video `video_of_text[i]`."""
    rows: list[ModelSearch] = []
    searches: list[tuple[Contender, TwoStage | None]] = []
    for contender in progress(contenders, "search (models)"):
        expected = None if contender.exact is None else all_scores(contender)
        sizes = [k for k in candidates if k < contender.videos and contender.tokens is not None]
        ways = [TwoStage(contender, k, index) for k in sizes for index in dict.fromkeys((None, contender.index))]
        for way in (None, *ways):
            rows.append(
                _one_stage_row(contender, video_of_text, expected)
                if way is None
                else _two_stage_row(way, video_of_text, expected)
            )
            searches.append((contender, way))
    took = {at_once: _milliseconds(searches, at_once) for at_once in AT_ONCE}
    return [
        replace(row, milliseconds={at_once: times[number] for at_once, times in took.items()})
        for number, row in enumerate(rows)
    ]


def _two_stage_row(
    search: TwoStage, video_of_text: Int[Tensor, " text"], expected: Float[Tensor, "text video"] | None
) -> ModelSearch:
    """Return the row of a two-stage search without its time; `expected` are the full scores."""
    assert expected is not None
    contender = search.contender
    scores, answers = search(contender.text)
    best = expected.topk(answers.shape[1]).indices
    shared = (answers.unsqueeze(2) == best.unsqueeze(1)).any(2).double().mean()
    first = (answers[:, 0] == video_of_text) & (scores[:, :1] > scores[:, 1:]).all(1)  # ties count against the model
    r1 = 100 * float(first.double().mean())
    return ModelSearch(
        model=contender.name,
        search="two stages" if search.index is None else "two stages by index",
        candidates=search.candidates,
        operations=search.operations,
        published_pair=None,
        milliseconds={},
        vector_bytes=contender.stored[0],
        token_bytes=contender.stored[1],
        shared=float(shared),
        r1=r1,
        r1_lost=summarise(ranks_t2v(expected.double(), video_of_text))["R@1"] - r1,
    )


def _one_stage_row(
    contender: Contender, video_of_text: Int[Tensor, " text"], expected: Float[Tensor, "text video"] | None
) -> ModelSearch:
    """Return the row of a search of every video, by its vector or by the full score, without its time."""
    operations, model = contender.operations, contender.model
    if expected is not None:
        scores, name, count = expected.double(), "exhaustive", operations.exhaustive(contender.videos)
    else:
        assert contender.vectors is not None
        scores = (model.query_vectors(contender.text) @ contender.vectors.T).double()
        name, count = "one vector", operations.inner * contender.videos
    return ModelSearch(
        model=contender.name,
        search=name,
        candidates=None,
        operations=count,
        published_pair=operations.published(),
        milliseconds={},
        vector_bytes=contender.stored[0],
        token_bytes=contender.stored[1],
        shared=None,
        r1=summarise(ranks_t2v(scores, video_of_text))["R@1"],
        r1_lost=None,
    )


def _milliseconds(ways: Sequence[tuple[Contender, TwoStage | None]], at_once: int) -> list[float]:
    """Return for every search the median time of a query where `at_once` come together."""
    searches = [(way or one_stage(contender, at_once), contender.text) for contender, way in ways]
    took: list[list[float]] = [[] for _ in searches]
    for _ in progress(range(ROUNDS), f"time, {at_once} at once (rounds)"):
        for (search, text), times in zip(searches, took, strict=True):
            if sum(times) < ENOUGH:
                times += _turn(search, text, at_once, len(times))
    queries = [min(at_once, len(text)) for _, text in searches]
    return [1000 * statistics.median(times) / number for times, number in zip(took, queries, strict=True)]


def _turn(search: Search, text: TextFeatures, at_once: int, done: int) -> list[float]:
    """Return the seconds of some calls in a row, after `done` calls in earlier rounds.

    The first call only warms the caches, unless it takes the whole turn.
    """
    took: list[float] = []
    for call in range(IN_A_TURN):
        first = (done + call) * at_once % max(1, len(text) - at_once + 1)
        took.append(timed(partial(search, text[first : first + at_once])))
        if sum(took) > TURN:
            break
    return took[1:] or took
