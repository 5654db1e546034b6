"""Compares what models pay to search a gallery, and what their shortcuts miss, side by side in one process.

A *contender* is a model with the features of a gallery and of queries. Its searches:

    one vector    inner products with one vector a video
    exhaustive    the full score of the query with every video, in calls of as many videos as turn out fastest
    two stages    the `candidates` best inner products, and the full score of these, from float16 tokens; what changes
                  the score little is added for the best of them alone (`score_parts`)
    by index      the same, the candidates chosen by the estimates of an approximate index

Time is the median over queries that come one by one, and per query where some come at once (`AT_ONCE`), searches taking
turns. Encoding a query is left out, as it is in the counted operations (`operations`). What a search finds is compared
with the model's own exhaustive search in float32 (with patches: float16), over all queries.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.bench.operations import FORMULAS, Operations
from distill.bench.rounds import timed
from distill.bench.synthetic import Sizes
from distill.evaluation.metrics import ranks_t2v, summarise
from distill.evaluation.report import aligned
from distill.log import progress
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.ranking import executor, two_stage
from distill.ranking.topk import top_k
from distill.retrieval.approximate import Approximate
from distill.retrieval.stored import Tokens

BEST = 10  # answers of a search
AT_ONCE = (1, 16, 64)  # queries that come together
CALLS = (32, 64, 128, 256)  # videos in a call of an exhaustive search, of which the fastest is taken
TRIALS, TRIED = 4, 1024  # of each, of which the better counts, on so many videos
ROUNDS = 8  # through all searches: what else the machine does meanwhile then slows all of them alike
TURN, IN_A_TURN = 1.0, 64  # seconds of a search in each round and calls, at most: caches take some to get warm
ENOUGH = 12.0  # seconds of a search after which it sits out further rounds
ALL = 128  # videos scored with all queries at once, for what an exhaustive search finds

NONE = torch.empty(0, dtype=torch.int64)  # no video is deleted

Search = Callable[[TextFeatures], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model, the features of a gallery, and those of queries. `exact` is None where there is one vector."""

    name: str
    kind: str
    config: Any
    model: RetrievalModel
    text: TextFeatures
    vectors: (
        Float[Tensor, "video dim"] | None
    )  # the vectors of the first stage, or the only one; None: a teacher has none
    exact: VideoFeatures | Tokens | None  # what an exhaustive search reads
    tokens: Tokens | None  # what a second stage reads
    index: Approximate | None  # that may choose its candidates
    stored: tuple[int, int]  # bytes a video: vectors (a teacher's: all its features), tokens
    sizes: Sizes
    videos: int

    @property
    def operations(self) -> Operations:
        """By the formula of its kind."""
        return FORMULAS[self.kind](self.sizes, self.config)


@dataclass(frozen=True, kw_only=True)
class ModelSearch:
    """One search of one model."""

    model: str
    search: str  # one vector, exhaustive, two stages, two stages by index
    candidates: int | None  # videos that are ranked, in two stages
    operations: int  # multiply-accumulates a query
    published_pair: int | None  # multiply-accumulates a pair by the published formula, of the full score
    milliseconds: dict[int, float]  # a query, by how many come at once
    vector_bytes: int  # a video
    token_bytes: int
    shared: float | None  # of the exhaustive ten best, how many are found, from 0 to 1
    r1: float  # R@1 in percent
    r1_lost: float | None  # against the exhaustive search, in percentage points


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper claims, and the fastest search that finds enough, if any does."""

    words: str
    model: str
    factor: int
    search: str = ""
    candidates: int | None = None
    shared: float | None = None
    operations: float | None = None  # times fewer than X-CLIP's
    time: dict[int, float] = field(default_factory=dict)  # times faster, by how many queries come at once


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """All rows of one gallery."""

    gallery: str
    videos: int
    queries: int
    about: dict[str, Any] = field(default_factory=dict)
    rows: list[ModelSearch]
    claims: list[Claim] = field(default_factory=list)

    def tree(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


CLAIMS = (
    Claim(
        words="EERCF in two stages costs 1/50 of X-CLIP (abstract: nearly 50 times faster)", model="EERCF", factor=50
    ),
    Claim(words="GLSCL costs 1/220 of X-CLIP (abstract: nearly 220 times)", model="GLSCL", factor=220),
)
FOUND = 0.99  # of the exhaustive ten best: a search that finds less is no fair comparison


@torch.inference_mode()
def measure_searches(
    contenders: Sequence[Contender], own: Int[Tensor, " text"], candidates: Sequence[int]
) -> list[ModelSearch]:
    """All searches of all contenders; query i is answered rightly by video `own[i]`."""
    rows: list[ModelSearch] = []
    searches: list[tuple[Contender, TwoStage | None]] = []
    for contender in progress(contenders, "what is found (models)"):
        expected = None if contender.exact is None else _all_scores(contender)
        sizes = [k for k in candidates if k < contender.videos and contender.tokens is not None]
        ways = [TwoStage(contender, k, index) for k in sizes for index in dict.fromkeys((None, contender.index))]
        for way in (None, *ways):
            rows.append(_one_stage_row(contender, own, expected) if way is None else _two_stage_row(way, own, expected))
            searches.append((contender, way))
    took = {at_once: _milliseconds(searches, at_once) for at_once in AT_ONCE}
    return [
        replace(row, milliseconds={at_once: times[number] for at_once, times in took.items()})
        for number, row in enumerate(rows)
    ]


@dataclass(frozen=True)
class TwoStage:
    """A search in two stages, as galleries do it."""

    contender: Contender
    candidates: int
    index: Approximate | None  # chooses candidates in place of exact inner products

    def __call__(self, text: TextFeatures) -> tuple[Tensor, Tensor]:
        """The best videos of every query, and their scores."""
        contender, model = self.contender, self.contender.model
        assert contender.tokens is not None and contender.vectors is not None
        parts, vectors = executor.of_parts(model, text, contender.tokens.only), model.query_vectors(text)
        if self.index is None:
            return two_stage.search(parts, vectors, contender.vectors, BEST, self.candidates)
        chosen = self.index.candidates(vectors, self.candidates, contender.vectors.__getitem__, NONE)[1]
        return two_stage.best_of(parts, chosen, BEST)

    @property
    def operations(self) -> int:
        """Multiply-accumulates a query. An index counts as the product that it estimates, since it adds up no more
        numbers a video than a vector has, and as the products of the query with its centres.
        """
        contender, parts = self.contender, self.contender.model.score_parts()
        assert contender.tokens is not None
        first = contender.tokens.only(parts[0].fields if parts else contender.model.rerank_fields)
        in_place = parts != () and executor.reads_in_place(parts[0], first)
        calls = 1 if in_place else -(-self.candidates // executor.in_one_call(first))
        of_best = BEST * (parts[-1].of_best if parts else 1)
        count = contender.operations.two_stage(contender.videos, self.candidates, of_best, calls)
        return count if self.index is None else count + self.index.centres.numel()


def _two_stage_row(
    search: TwoStage, own: Int[Tensor, " text"], expected: Float[Tensor, "text video"] | None
) -> ModelSearch:
    """What is found, not yet timed; `expected` are all full scores."""
    assert expected is not None
    contender = search.contender
    scores, found = search(contender.text)
    best = expected.topk(found.shape[1]).indices
    shared = (found.unsqueeze(2) == best.unsqueeze(1)).any(2).double().mean()
    first = (found[:, 0] == own) & (scores[:, :1] > scores[:, 1:]).all(1)  # ties count against the model
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
        r1_lost=summarise(ranks_t2v(expected.double(), own))["R@1"] - r1,
    )


def _one_stage_row(
    contender: Contender, own: Int[Tensor, " text"], expected: Float[Tensor, "text video"] | None
) -> ModelSearch:
    """A search of every video, not yet timed: by its vector, or by its full score."""
    operations, model = contender.operations, contender.model
    if expected is not None:
        found, name, count = expected.double(), "exhaustive", operations.exhaustive(contender.videos)
    else:
        assert contender.vectors is not None
        found = (model.query_vectors(contender.text) @ contender.vectors.T).double()
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
        r1=summarise(ranks_t2v(found, own))["R@1"],
        r1_lost=None,
    )


def _milliseconds(asked: Sequence[tuple[Contender, TwoStage | None]], at_once: int) -> list[float]:
    """Median time of a query where `at_once` come together, for every search, in rounds through all of them."""
    searches = [(way or _one_stage(contender, at_once), contender.text) for contender, way in asked]
    took: list[list[float]] = [[] for _ in searches]
    for _ in progress(range(ROUNDS), f"time, {at_once} at once (rounds)"):
        for (search, text), times in zip(searches, took, strict=True):
            if sum(times) < ENOUGH:
                times += _turn(search, text, at_once, len(times))
    queries = [min(at_once, len(text)) for _, text in searches]
    return [1000 * statistics.median(times) / number for times, number in zip(took, queries, strict=True)]


def _turn(search: Search, text: TextFeatures, at_once: int, done: int) -> list[float]:
    """Seconds of some calls in a row, after `done` in earlier rounds. The first only warms the caches, unless it takes
    a turn by itself."""
    took: list[float] = []
    for call in range(IN_A_TURN):
        first = (done + call) * at_once % max(1, len(text) - at_once + 1)
        took.append(timed(partial(search, text[first : first + at_once])))
        if sum(took) > TURN:
            break
    return took[1:] or took


def _one_stage(contender: Contender, at_once: int) -> Search:
    if contender.exact is not None:
        return _fastest(contender, at_once)
    vectors = contender.vectors
    assert vectors is not None
    return lambda text: top_k(contender.model.query_vectors(text), vectors, BEST)


def _fastest(contender: Contender, at_once: int) -> Search:
    """An exhaustive search in calls of the number of videos at which so many queries are answered soonest."""
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


def _all_scores(contender: Contender) -> Float[Tensor, "text video"]:
    exact = contender.exact
    assert exact is not None
    what = f"{contender.name}: score {len(contender.text)} x {contender.videos} pairs"
    starts = progress(range(0, contender.videos, ALL), what)
    return torch.cat([contender.model.similarity(contender.text, exact[start : start + ALL]) for start in starts], 1)


def claims(rows: Sequence[ModelSearch]) -> list[Claim]:
    """Whether the papers' factors are reached, by the cheapest search of the model that finds enough."""
    heavy = [row for row in rows if row.model == "X-CLIP"]
    found = []
    for claim in CLAIMS:
        mine = [row for row in rows if row.model.startswith(claim.model) and row.candidates is not None]
        for name in dict.fromkeys(row.model for row in mine):
            enough = [row for row in mine if row.model == name and row.shared is not None and row.shared >= FOUND]
            if not heavy or not enough:
                found.append(Claim(words=claim.words, model=name, factor=claim.factor))
                continue
            row = min(enough, key=lambda row: row.milliseconds[1])
            operations = heavy[0].operations / row.operations
            faster = {number: heavy[0].milliseconds[number] / row.milliseconds[number] for number in row.milliseconds}
            found.append(
                Claim(
                    words=claim.words,
                    model=name,
                    factor=claim.factor,
                    search=row.search,
                    candidates=row.candidates,
                    shared=row.shared,
                    operations=operations,
                    time=faster,
                )
            )
    return found


def table(measured: RetrievalReport) -> str:
    """The rows, and what became of the claims."""
    heavy = next((row for row in measured.rows if row.model.startswith("X-CLIP")), None)
    head = (
        "",
        "MAC/pair",
        "of X-CLIP",
        "M MAC",
        "of X-CLIP",
        "ms",
        "of X-CLIP",
        *(f"ms ({number} at once)" for number in AT_ONCE[1:]),
        "bytes/video",
        "top 10",
        "R@1",
        "lost",
    )
    lines: list[tuple[str, ...]] = [head]
    for row in measured.rows:
        title = f"{row.model}, {row.search}" + (f" {row.candidates:,}" if row.candidates else "")
        lines.append(
            (
                title,
                "" if row.published_pair is None else f"{row.published_pair:,}",
                ""
                if row.published_pair is None
                else _part(row.published_pair, None if heavy is None else heavy.published_pair),
                f"{row.operations / 1e6:,.1f}",
                _part(row.operations, None if heavy is None else heavy.operations),
                f"{row.milliseconds[1]:,.2f}",
                _part(row.milliseconds[1], None if heavy is None else heavy.milliseconds[1]),
                *(f"{row.milliseconds[number]:,.2f}" for number in AT_ONCE[1:]),
                f"{row.vector_bytes:,}" + (f" + {row.token_bytes:,}" if row.token_bytes else ""),
                "" if row.shared is None else f"{100 * row.shared:.1f} %",
                f"{row.r1:.1f}",
                "" if row.r1_lost is None else f"{row.r1_lost:+.1f}",
            )
        )
    head = f"{measured.gallery}: {measured.videos:,} videos, {measured.queries:,} queries"
    return "\n".join([head, "", aligned(lines), *(["", *map(_verdict, measured.claims)] if measured.claims else [])])


def _verdict(claim: Claim) -> str:
    """The claim in a sentence."""
    if claim.candidates is None or claim.operations is None or claim.shared is None:
        return (
            f"{claim.words}: {claim.model}: not shown, no search in two stages finds {100 * FOUND:.0f} % of the top ten"
        )
    times = [f"1/{times:,.0f} ({_held(times >= claim.factor)})" for times in claim.time.values()]
    return (
        f"{claim.words}: {claim.model}, {claim.search} {claim.candidates:,}, finds {100 * claim.shared:.1f} % of the "
        f"top ten for 1/{claim.operations:,.0f} of the operations ({_held(claim.operations >= claim.factor)}); of the "
        f"time, with {', '.join(map(str, claim.time))} queries at once, in {', '.join(times)}"
    )


def _held(reached: bool) -> str:
    return "holds" if reached else "does not hold"


def _part(cost: float | int, of: float | int | None) -> str:
    if of is None:
        return ""
    return f"1/{of / cost:,.1f}" if cost <= of else f"{cost / of:,.1f} x"
