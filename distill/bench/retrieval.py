"""The bench of searches: the time, operations and answers of every model's searches, side by side in one process.

A contender is a model with the features of a gallery and of queries. Its searches are

    one vector    inner products with one vector a video
    exhaustive    the full score of the query with every video, in calls of the fastest number of videos
    two stages    the `candidates` best inner products, ranked by the full score from float16 tokens; parts of the score
                  that change it little are added for the best of them only (`score_parts`)
    by index      the same with candidates chosen by the estimates of an approximate index

A second look (distill/model/second_look.py) is a search in two stages from stored frames.

A second stage waits for memory. Where it reads tokens in place, the bytes a second that it gets stand beside those of a
plain copy of such rows: each gets the candidates of other queries, so that neither finds them in a cache.

Time is the median over queries that come one by one, or per query where some come at once (`AT_ONCE`); searches take
turns. It leaves out encoding the query, as the counted operations do (`operations`). The answers of a search are
compared with the model's own exhaustive search in float32 (with patches: float16), over all queries.
"""

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from distill.bench.contenders import Contender
from distill.bench.rounds import timed
from distill.evaluation.metrics import ranks_t2v, summarise
from distill.log import progress
from distill.model.features import TextFeatures
from distill.ranking import executor, two_stage
from distill.ranking.topk import top_k
from distill.retrieval.approximate import Approximate
from distill.retrieval.stored import Tokens

AT_ONCE = (1, 16, 64)  # queries that come together
BEST = 10  # answers of a search
ROUNDS = 8  # through all searches, so that other load on the machine slows all of them alike
TURN, IN_A_TURN = 1.0, 64  # limits of a search in each round: seconds, and calls, of which the first warm the caches
ENOUGH = 12.0  # seconds of a search after which it is left out of further rounds
CALLS = (32, 64, 128, 256)  # videos in a call of an exhaustive search; the fastest of these is taken
TRIALS, TRIED = 4, 1024  # trials of each number, of which the fastest counts, on so many videos
ALL = 128  # videos that are scored with all queries in one call, to know what an exhaustive search finds
NONE = np.empty(0, np.int64)  # no video is deleted

Search = Callable[[TextFeatures], tuple[Tensor, Tensor]]  # queries -> scores and numbers of the best videos


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
    read: float | None = None  # bytes a second of the second stage's first part; None: it does not read in place
    copied: float | None = None  # bytes a second of a plain copy of such rows


@dataclass(frozen=True)
class TwoStage:
    """A search in two stages, as galleries run it."""

    contender: Contender
    candidates: int
    index: Approximate | None  # chooses the candidates; None: exact inner products do

    def __call__(self, text: TextFeatures) -> tuple[Tensor, Tensor]:
        """Return the scores and the numbers of the best videos of every query."""
        contender = self.contender
        assert contender.vectors is not None
        parts, vectors = contender.parts(text), contender.model.query_vectors(text)
        if self.index is None:
            return two_stage.search(parts, vectors, contender.vectors, BEST, self.candidates)
        return two_stage.best_of(parts, self._estimated(vectors), BEST)

    def chosen(self, text: TextFeatures) -> Int64[Tensor, "query candidate"]:
        """Return the candidates of every query, ascending."""
        vectors, stored = self.contender.model.query_vectors(text), self.contender.vectors
        assert stored is not None
        found = top_k(vectors, stored, self.candidates)[1] if self.index is None else self._estimated(vectors)
        return found.sort(dim=1).values

    def _estimated(self, vectors: Float[Tensor, "query dim"]) -> Int64[Tensor, "query candidate"]:
        assert self.index is not None and self.contender.vectors is not None
        stored = self.contender.vectors.numpy()
        return torch.from_numpy(self.index.candidates(vectors.numpy(), self.candidates, stored.__getitem__, NONE)[1])

    @property
    def operations(self) -> int:
        """The multiply-accumulates of a query.

        An index counts as the product that it estimates, because it adds no more numbers a video than a vector has, and
        as the products of the query with its centres.
        """
        contender, parts = self.contender, self.contender.score_parts
        assert contender.tokens is not None
        first: executor.Stored = contender.tokens
        if isinstance(first, Tokens):
            first = first.only(parts[0].fields if parts else contender.model.rerank_fields)
        in_place = parts != () and executor.reads_in_place(first, parts[0], contender.text)
        calls = 1 if in_place else -(-self.candidates // executor.in_one_call(first))
        of_best = BEST * (parts[-1].of_best if parts else 1)
        count = contender.operations.two_stage(contender.videos, self.candidates, of_best, calls)
        return count if self.index is None else count + self.index.centres.size


@torch.inference_mode()
def measure_searches(
    contenders: Sequence[Contender], video_of_text: Int[Tensor, " text"], candidates: Sequence[int]
) -> list[ModelSearch]:
    """Run and time all searches of all contenders; the right answer to query i is video `video_of_text[i]`."""
    rows: list[ModelSearch] = []
    searches: list[tuple[Contender, TwoStage | None]] = []
    for contender in progress(contenders, "search (models)"):
        expected = None
        if contender.exact is not None:
            what = f"{contender.name}: score {len(contender.text)} x {contender.videos} pairs"
            expected = _scores(contender, contender.text, progress(range(0, contender.videos, ALL), what), ALL)
        sizes = [k for k in candidates if k < contender.videos and contender.tokens is not None]
        ways = [TwoStage(contender, k, index) for k in sizes for index in dict.fromkeys((None, contender.index))]
        for way in (None, *ways):
            rows.append(_row(contender, way, video_of_text, expected))
            searches.append((contender, way))
    took = {at_once: _milliseconds(searches, at_once) for at_once in AT_ONCE}
    speeds = [_speeds(way) for _, way in searches]
    return [
        replace(row, milliseconds={at_once: times[number] for at_once, times in took.items()}, read=read, copied=copied)
        for number, (row, (read, copied)) in enumerate(zip(rows, speeds, strict=True))
    ]


def _speeds(way: TwoStage | None) -> tuple[float | None, float | None]:
    """Return the bytes a second that the first part of a second stage reads, and those of a plain copy of such rows."""
    if way is None or not way.contender.score_parts:
        return None, None
    contender, part, tokens = way.contender, way.contender.score_parts[0], way.contender.tokens
    assert tokens is not None
    if not executor.reads_in_place(tokens, part, contender.text[:1]):
        return None, None
    fields = {name for field in part.fields for name in (field, executor.scales(field))}
    columns = [column.flatten(1) for name, column in tokens.tensors().items() if name in fields]
    rows, reading, copying = way.chosen(contender.text), [], []
    for query, own in enumerate(rows):
        pairs, _ = contender.parts(contender.text[query : query + 1])[0]
        if query % 2:
            copying.append(timed(partial(_copy, columns, own)))
        else:
            reading.append(timed(partial(two_stage.rerank, pairs, own[None])))
    size = sum(column[0].nbytes for column in columns) * rows.shape[1]
    return size / statistics.median(reading), size / statistics.median(copying) if copying else None


def _copy(columns: Sequence[Tensor], rows: Int64[Tensor, " row"]) -> None:
    for column in columns:
        column.index_select(0, rows)


def _row(
    contender: Contender,
    way: TwoStage | None,
    video_of_text: Int[Tensor, " text"],
    expected: Float[Tensor, "text video"] | None,
) -> ModelSearch:
    """Return the row of a search without its time; `expected` are the full scores, where there are any.

    Without `way` it is the search of every video, by these scores or else by the vectors.
    """
    operations, shared, lost = contender.operations, None, None
    if expected is None:
        assert contender.vectors is not None
        expected, name = contender.model.query_vectors(contender.text) @ contender.vectors.T, "one vector"
        count = operations.inner * contender.videos
    else:
        name, count = "exhaustive", operations.exhaustive(contender.videos)
    r1 = summarise(ranks_t2v(expected.double(), video_of_text))["R@1"]
    if way is not None:
        name, count = "two stages" if way.index is None else "two stages by index", way.operations
        scores, answers = way(contender.text)
        best = expected.topk(answers.shape[1]).indices
        shared = float((answers.unsqueeze(2) == best.unsqueeze(1)).any(2).double().mean())
        right = (answers[:, 0] == video_of_text) & (scores[:, :1] > scores[:, 1:]).all(1)  # ties count against it
        of_all, r1 = r1, 100 * float(right.double().mean())
        lost = of_all - r1
    return ModelSearch(
        model=contender.name,
        search=name,
        candidates=None if way is None else way.candidates,
        operations=count,
        published_pair=operations.published() if way is None else None,
        milliseconds={},
        vector_bytes=contender.stored[0],
        token_bytes=contender.stored[1],
        shared=shared,
        r1=r1,
        r1_lost=lost,
    )


def _milliseconds(ways: Sequence[tuple[Contender, TwoStage | None]], at_once: int) -> list[float]:
    """Return for every search the median time of a query where `at_once` come together."""
    searches = [(way or _one_stage(contender, at_once), contender.text) for contender, way in ways]
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


def _one_stage(contender: Contender, at_once: int) -> Search:
    """Return the search of every video, by its vector or the full score, for `at_once` queries together.

    Exhaustive searches score as many videos in a call as is fastest.
    """
    vectors, model = contender.vectors, contender.model
    if contender.exact is None:
        assert vectors is not None
        return lambda text: top_k(model.query_vectors(text), vectors, BEST)

    def search(text: TextFeatures, videos: int, size: int) -> tuple[Tensor, Tensor]:
        best = _scores(contender, text, range(0, videos, size), size).topk(min(BEST, videos))
        return best.values, best.indices

    fastest = executor.in_one_call(contender.exact)
    if not isinstance(contender.exact, Tokens):
        took = dict.fromkeys(CALLS, float("inf"))
        for _, size in itertools.product(range(TRIALS), CALLS):
            trial = partial(search, contender.text[:at_once], min(TRIED, contender.videos), size)
            took[size] = min(took[size], timed(trial))
        fastest = min(CALLS, key=lambda size: took[size])
    return partial(search, videos=contender.videos, size=fastest)


def _scores(contender: Contender, text: TextFeatures, starts: Iterable[int], size: int) -> Float[Tensor, "text video"]:
    """Return full scores, in calls of `size` videos that begin at `starts`."""
    exact = contender.exact
    assert exact is not None
    return torch.cat([contender.similarity(text, exact[start : start + size]) for start in starts], 1)
