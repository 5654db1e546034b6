"""One page about several runs that answered the same queries: a table, and quality over cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from distill.errors import ExpectedError
from distill.publishing import publish
from distill.reporting import figures
from distill.reporting.charts import Dot, scatter
from distill.reporting.finished import SIDES, FinishedRun
from distill.reporting.page import page
from distill.training.folder import TEST_RANKS


@dataclass(frozen=True)
class Line:
    """The cost of a run and of its model, as words; "" where it is not known."""

    name: str
    kind: str
    folder: str
    release: str
    parameters: str
    bytes: str
    ms: str
    steps: str
    seconds: str


def write_comparison(folders: Sequence[Path], out: Path) -> None:
    """Write the page of several runs into the file `out`.

    Raises `ExpectedError` for a run without test, or with another one than the first.
    """
    runs = [FinishedRun.read(folder) for folder in folders]
    first = runs[0]
    for run in runs:
        if not run.ranks:
            raise ExpectedError(f"{run.folder}: has no {TEST_RANKS}, so no figures to compare; train with data.test")
        if not figures.same_test(first, run):
            raise ExpectedError(
                f"{run.folder}: was tested on other frames than {first.folder}, and numbers on other galleries or "
                f"queries do not belong in one table; name runs with the same data.test"
            )
    shown = [(run.provenance.name, run) for run in runs]
    content = {
        "runs": [_line(run) for run in runs],
        "videos": len(first.ranks["v2t"]),
        "texts": len(first.ranks["t2v"]),
        "metrics": {
            figures.NAMES[side]: figures.rows([(name, run, side) for name, run in shown], side) for side in SIDES
        },
        "plots": plots(runs),
    }
    publish(out, page("comparison.html", content))


def plots(runs: Sequence[FinishedRun]) -> dict[str, Markup]:
    """Return R@1 (text to video) over bytes a video and over milliseconds a query, for the runs that know them."""
    stored, timed = {}, {}
    for number, run in enumerate(runs, 1):
        quality = 100 * float((run.ranks["t2v"] == 0).double().mean())
        if run.provenance.bytes_per_video:
            stored[number] = Dot(run.provenance.name, float(sum(run.provenance.bytes_per_video)), quality)
        if (spent := _milliseconds(run)) is not None:
            timed[number] = Dot(run.provenance.name, spent, quality)
    return {
        "R@1 over bytes a video": scatter(_told("bytes a video", stored), stored, "bytes a video", "R@1"),
        "R@1 over milliseconds a query": scatter(_told("ms a query", timed), timed, "ms a query", "R@1"),
    }


def _milliseconds(run: FinishedRun) -> float | None:
    """Return what a query takes once it is encoded, against all videos of the test."""
    query = run.provenance.query
    return None if query is None or not query.score_ms else query.score_ms


def _told(unit: str, dots: dict[int, Dot]) -> str:
    return f"R@1 over {unit}: " + "; ".join(f"{dot.name} {dot.x:g}, {dot.y:.1f}" for dot in dots.values())


def _line(run: FinishedRun) -> Line:
    stored, spent = run.provenance.bytes_per_video, _milliseconds(run)
    return Line(
        name=run.provenance.name,
        kind=run.kind,
        folder=str(run.folder),
        release=run.release.id,
        parameters=f"{run.release.counts.get('parameters', 0):,}",
        bytes=" + ".join(f"{part:,}" for part in stored if part) if stored else "",
        ms="" if spent is None else f"{spent:.3g}",
        steps=f"{len(run.steps):,}",
        seconds=f"{run.provenance.seconds:,.0f}" if run.provenance.seconds else "",
    )
