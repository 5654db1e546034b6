"""The page of a study: several rows, each trained with several seeds, and the differences between pairs of rows."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import Field

from distill.publishing import publish
from distill.records import View, parsed
from distill.reporting.charts import Estimate, bounds, interval, spread
from distill.reporting.figures import NAMES
from distill.reporting.page import page

METRICS = ("R@1", "R@5", "R@10", "MnR")
OTHERS = {"mass": ("mass %", 1), "moment": ("moment %", 1), "ms": ("ms a query", 3), "train_seconds": ("train s", 0)}
WIDE = 160  # of the intervals of differences


class _Figures(View):
    title: str
    t2v: dict[str, float]
    v2t: dict[str, float]
    mass: float | None = None
    moment: float | None = None
    ms: float | None = None
    train_seconds: float | None = None


class _Summary(View):
    seeds: list[dict[str, _Figures]]
    gains: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = Field(default={})


@dataclass(frozen=True)
class Cell:
    """The mean of a figure over seeds, and its standard deviation where there are several."""

    mean: str
    spread: str


@dataclass(frozen=True)
class StudyRow:
    """A row of the study: by direction the cells of its table and a picture of R@1."""

    title: str
    cells: dict[str, list[Cell]]
    pictures: dict[str, Markup]


@dataclass(frozen=True)
class Pair:
    """A pair of rows: difference and picture, by direction."""

    title: str
    estimates: list[tuple[Estimate, Markup]]


def write_study(path: Path, summary: Mapping[str, Any], title: str = "Study") -> None:
    """Write the page of what a study's `summary.json` holds into a file.

    `seeds` has for every seed the figures of every row (`title`, `t2v`, `v2t`; perhaps `mass`, `moment`, `ms`,
    `train_seconds`), `gains` for "a - b" by direction and metric [difference, low, high]. Raises `ArtefactError` for
    anything else.
    """
    found = parsed(_Summary, json.dumps(dict(summary)).encode(), title, "give what the study's summary.json holds")
    publish(path, page("study.html", _content(found, title)))


def _content(found: _Summary, title: str) -> dict[str, Any]:
    others = {key: named for key, named in OTHERS.items() if any(getattr(row, key) is not None for row in _all(found))}
    columns = {"t2v": [*METRICS, *(name for name, _ in others.values())], "v2t": list(METRICS)}
    return {
        "title": title,
        "seeds": len(found.seeds),
        "sides": NAMES,
        "columns": columns,
        "rows": _rows(found, others),
        "forest": _forest(found),
    }


def _all(found: _Summary) -> list[_Figures]:
    return [row for seed in found.seeds for row in seed.values()]


def _rows(found: _Summary, others: Mapping[str, tuple[str, int]]) -> list[StudyRow]:
    ends = {}
    for side in NAMES:
        values = [getattr(row, side).get("R@1", 0.0) for row in _all(found)]
        ends[side] = min(values, default=0.0), max(values, default=0.0)
    rows = []
    for key in dict.fromkeys(key for seed in found.seeds for key in seed):
        of = [seed[key] for seed in found.seeds if key in seed]
        cells = {side: [_cell([getattr(row, side).get(name) for row in of], 1) for name in METRICS] for side in NAMES}
        cells["t2v"] += [_cell([getattr(row, name) for row in of], digits) for name, (_, digits) in others.items()]
        pictures = {
            side: spread([getattr(row, side)["R@1"] for row in of if "R@1" in getattr(row, side)], *ends[side])
            for side in NAMES
        }
        rows.append(StudyRow(of[0].title, cells, pictures))
    return rows


def _cell(values: Sequence[float | None], digits: int) -> Cell:
    there = [value for value in values if value is not None]
    if not there:
        return Cell("", "")
    many = len(there) > 1
    return Cell(f"{statistics.fmean(there):.{digits}f}", f"{statistics.stdev(there):.{digits}f}" if many else "")


def _forest(found: _Summary) -> dict[str, list[Pair]]:
    """Return the differences by metric, all of a metric on one scale."""
    titles = {key: row.title for seed in found.seeds for key, row in seed.items()}
    forest: dict[str, list[Pair]] = {}
    for metric in dict.fromkeys(name for sides in found.gains.values() for of in sides.values() for name in of):
        shown = {
            pair: [Estimate(metric, *sides[side][metric]) for side in NAMES]
            for pair, sides in found.gains.items()
            if all(metric in sides.get(side, {}) for side in NAMES)
        }
        ends = bounds([one for estimates in shown.values() for one in estimates])
        forest[metric] = [
            Pair(_named(pair, titles), [(one, interval(one, *ends, width=WIDE)) for one in estimates])
            for pair, estimates in shown.items()
        ]
    return forest


def _named(pair: str, titles: Mapping[str, str]) -> str:
    """Return the titles of a pair "a - b" in place of its keys."""
    first, _, second = pair.partition(" - ")
    return f"{titles.get(first, first)} − {titles.get(second, second)}"  # noqa: RUF001
