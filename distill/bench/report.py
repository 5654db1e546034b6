"""The report of the search bench: a table of all searches, and what became of the papers' claims of speed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distill.bench.retrieval import AT_ONCE, ModelSearch
from distill.evaluation.report import aligned

FOUND = 0.99  # of the exhaustive ten best: a search that finds less is no fair comparison


@dataclass(frozen=True)
class Claim:
    """A paper's claim or a goal of ours, and the fastest search that finds enough, if there is one."""

    words: str
    model: str
    factor: int
    search: str = ""
    candidates: int | None = None
    shared: float | None = None
    operations: float | None = None  # times fewer than X-CLIP's
    time: dict[int, float] = field(default_factory=dict)  # times faster, by how many queries come at once


CLAIMS = (
    Claim("EERCF in two stages costs 1/50 of X-CLIP (abstract: nearly 50 times faster)", "EERCF", 50),
    Claim("GLSCL costs 1/220 of X-CLIP (abstract: nearly 220 times)", "GLSCL", 220),
    Claim("a second look costs 1/220 of X-CLIP (our goal: as GLSCL)", "TeachCLIP, second look", 220),
)


@dataclass(frozen=True)
class RetrievalReport:
    """The searches of one gallery."""

    gallery: str
    videos: int
    queries: int
    about: dict[str, Any]
    rows: list[ModelSearch]
    claims: list[Claim] = field(default_factory=list)


def claims(rows: Sequence[ModelSearch]) -> list[Claim]:
    """Judge every claim at the fastest two-stage search of the model that finds enough."""
    heavy = next(row for row in rows if row.model == "X-CLIP")
    judged = []
    for claim in CLAIMS:
        two_stage = [row for row in rows if row.model.startswith(claim.model) and row.candidates is not None]
        for name in dict.fromkeys(row.model for row in two_stage):
            enough = [row for row in two_stage if row.model == name and (row.shared or 0) >= FOUND]
            judged.append(_judged(replace(claim, model=name), heavy, enough))
    return judged


def _judged(claim: Claim, heavy: ModelSearch, enough: Sequence[ModelSearch]) -> Claim:
    if not enough:
        return claim
    row = min(enough, key=lambda row: row.milliseconds[1])
    return replace(
        claim,
        search=row.search,
        candidates=row.candidates,
        shared=row.shared,
        operations=heavy.operations / row.operations,
        time={number: heavy.milliseconds[number] / taken for number, taken in row.milliseconds.items()},
    )


def table(measured: RetrievalReport) -> str:
    """Return the rows as a table, and the claims as sentences."""
    heavy = next((row for row in measured.rows if row.model.startswith("X-CLIP")), None)
    together = [f"ms ({number} at once)" for number in AT_ONCE[1:]]
    head = ["", "MAC/pair", "of X-CLIP", "M MAC", "of X-CLIP", "ms", "of X-CLIP", *together, "bytes/video", "top 10"]
    lines = [[*head, "R@1", "lost", "GB/s", "a copy"], *(_line(row, heavy) for row in measured.rows)]
    title = f"{measured.gallery}: {measured.videos:,} videos, {measured.queries:,} queries"
    return "\n".join([title, "", aligned(lines), *(["", *map(_verdict, measured.claims)] if measured.claims else [])])


def _line(row: ModelSearch, heavy: ModelSearch | None) -> list[str]:
    pair, of_pair = row.published_pair, None if heavy is None else heavy.published_pair
    return [
        f"{row.model}, {row.search}" + (f" {row.candidates:,}" if row.candidates else ""),
        *(("", "") if pair is None else (f"{pair:,}", _part(pair, of_pair))),
        f"{row.operations / 1e6:,.1f}",
        _part(row.operations, None if heavy is None else heavy.operations),
        f"{row.milliseconds[1]:,.2f}",
        _part(row.milliseconds[1], None if heavy is None else heavy.milliseconds[1]),
        *(f"{row.milliseconds[number]:,.2f}" for number in AT_ONCE[1:]),
        f"{row.vector_bytes:,}" + (f" + {row.token_bytes:,}" if row.token_bytes else ""),
        "" if row.shared is None else f"{100 * row.shared:.1f} %",
        f"{row.r1:.1f}",
        "" if row.r1_lost is None else f"{row.r1_lost:+.1f}",
        *("" if speed is None else f"{speed / 1e9:.1f}" for speed in (row.read, row.copied)),
    ]


def _verdict(claim: Claim) -> str:
    """Return the claim and its outcome as a sentence."""
    if claim.candidates is None or claim.operations is None or claim.shared is None:
        enough = f"{100 * FOUND:.0f} % of the top ten"
        return f"{claim.words}: {claim.model}: not shown, no search in two stages finds {enough}"
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
