"""Charts as SVG, by hand: lines, bars, intervals and dots that take their colours from the page, so that one drawing
suits light and dark.

Coordinates are those of a view box of 340 units' width: a phone shows it one to one. Every chart has a title that says
in words what it shows, for those who do not see it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 340, 42, 10, 12, 28
MOST = 300  # points of a line
COLOURS = 6


@dataclass(frozen=True)
class Line:
    """A line of points; `marked` is one that is pointed out."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    marked: tuple[float, float] | None = None


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its interval, and a title."""

    title: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Dot:
    """A named point of a scatter plot."""

    name: str
    x: float
    y: float


def lines(title: str, drawn: Sequence[Line], x_name: str, *, logarithmic: bool = False, height: int = 200) -> Markup:
    """Draw lines over a common x axis; `logarithmic` where values over several orders of magnitude matter."""
    shown = [line for line in drawn if line.points]
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points if not logarithmic or y > 0]
    if not xs or not ys:
        return Markup("")
    scale = _Scale(_span(xs), _span(ys), height, logarithmic)
    parts = [scale.axes(x_name)]
    for number, line in enumerate(shown):
        points = [point for point in thinned(line.points) if not logarithmic or point[1] > 0]
        parts.append(_polyline(points, scale, number, line.dots))
        if line.marked is not None:
            x, y = scale.x(line.marked[0]), scale.y(line.marked[1])
            parts.append(f'<circle class="best c{number % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    return _svg(title, height, "".join(parts))


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `MOST` points: means over equal spans, and the last point as it is."""
    if len(points) <= MOST:
        return list(points)
    edges = [number * len(points) // MOST for number in range(MOST + 1)]
    spans = [points[begin:end] for begin, end in itertools.pairwise(edges)]
    means = [(sum(x for x, _ in span) / len(span), sum(y for _, y in span) / len(span)) for span in spans]
    return [*means[:-1], points[-1]]


def bars(title: str, names: Sequence[str], values: Sequence[float], notes: Sequence[str]) -> Markup:
    """Draw one horizontal bar for each name, with a note behind it."""
    row, most = 24, max([*values, 1e-9])
    parts = []
    for number, (name, value, note) in enumerate(zip(names, values, notes, strict=True)):
        y, length = number * row, 150 * value / most
        parts.append(
            f'<text class="name" x="72" y="{y + 16}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="bar" x="80" y="{y + 4}" width="{max(length, 1):.1f}" height="16" rx="2"/>'
            f'<text x="{86 + max(length, 1):.1f}" y="{y + 16}">{escape(note)}</text>'
        )
    return _svg(title, row * len(names), "".join(parts))


def interval(estimate: Estimate, low: float, high: float, width: int = 140) -> Markup:
    """Draw a value and its interval between two bounds, for the cell of a table."""
    span = max(high - low, 1e-9)

    def place(value: float) -> float:
        return 4 + (width - 8) * (min(max(value, low), high) - low) / span

    zero = (
        f'<line class="zero" x1="{place(0.0):.1f}" x2="{place(0.0):.1f}" y1="1" y2="15"/>' if low <= 0 <= high else ""
    )
    sure = "" if estimate.low <= 0 <= estimate.high and low < 0 else " sure"
    words = f"{estimate.value:.1f}, interval {estimate.low:.1f} to {estimate.high:.1f}"
    return Markup(
        f'<svg class="interval{sure}" viewBox="0 0 {width} 16" style="width:{width}px" role="img" '
        f'aria-label="{escape(words)}">{zero}'
        f'<line class="whisker" x1="{place(estimate.low):.1f}" x2="{place(estimate.high):.1f}" y1="8" y2="8"/>'
        f'<circle cx="{place(estimate.value):.1f}" cy="8" r="4"/></svg>'
    )


def bounds(estimates: Sequence[Estimate], whole: bool = False) -> tuple[float, float]:
    """Return bounds that hold all intervals; of differences (`whole` is False) with 0 among them."""
    ends = [end for one in estimates for end in (one.low, one.high, one.value)] or [0.0]
    low, high = min(ends), max(ends)
    return (float(low), float(high)) if whole else (min(low, 0.0), max(high, 0.0))


def spread(values: Sequence[float], low: float, high: float, width: int = 110) -> Markup:
    """Draw single values as rings and their mean as a bar between two bounds, for the cell of a table."""
    if not values:
        return Markup("")
    places = [6 + (width - 12) * (value - low) / max(high - low, 1e-9) for value in values]
    mean = sum(places) / len(places)
    rings = "".join(f'<circle class="ring" cx="{place:.1f}" cy="8" r="3.5"/>' for place in places)
    words = ", ".join(f"{value:.1f}" for value in values)
    return Markup(
        f'<svg class="interval" viewBox="0 0 {width} 16" style="width:{width}px" role="img" '
        f'aria-label="{escape(words)}">'
        f'<rect class="bar" x="{mean - 1.5:.1f}" y="1" width="3" height="14"/>{rings}</svg>'
    )


def scatter(title: str, dots: Mapping[int, Dot], x_name: str, y_name: str, height: int = 240) -> Markup:
    """Draw named points over a logarithmic x axis, each with its number, which a table explains."""
    if not dots:
        return Markup("")
    decades = [math.log10(dot.x) for dot in dots.values()]
    xs = min(decades) - 0.4, max(decades) + 0.4
    ys = _span([dot.y for dot in dots.values()], 0.15)
    scale = _Scale(xs, ys, height)
    parts = [scale.axes(x_name, y_name, powers=True)]
    for number, dot in dots.items():
        x, y = scale.x(math.log10(dot.x)), scale.y(dot.y)
        parts.append(
            f"<g><title>{escape(dot.name)}: {_short(dot.x)}, {dot.y:.1f}</title>"
            f'<circle class="dot c{(number - 1) % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="8"/>'
            f'<text class="inside" x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle">{number}</text></g>'
        )
    return _svg(title, height, "".join(parts))


def weights(title: str, rows: Sequence[Sequence[float]], height: int = 44) -> Markup:
    """Draw the weights of frames as bars under the frames of a strip, a colour for each row of weights."""
    frames, most = len(rows[0]), max([value for row in rows for value in row] + [1e-9])
    slot, parts = 600 / frames, []
    for number, row in enumerate(rows):
        wide = slot * 0.8 / len(rows)
        for frame, value in enumerate(row):
            tall = height * value / most
            x, y = slot * (frame + 0.1) + number * wide, height - tall
            parts.append(
                f'<rect class="f{number % COLOURS}" x="{x:.1f}" y="{y:.1f}" width="{wide - 1:.1f}" '
                f'height="{tall:.1f}"/>'
            )
    return Markup(
        f'<svg class="weights" viewBox="0 0 600 {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


class _Scale:
    """Places of values in a chart, and its axes."""

    def __init__(
        self, xs: tuple[float, float], ys: tuple[float, float], height: int, logarithmic: bool = False
    ) -> None:
        self.xs, self.height, self.logarithmic = xs, height, logarithmic
        self.ys = (math.log10(ys[0]), math.log10(ys[1])) if logarithmic else ys

    def x(self, value: float) -> float:
        low, high = self.xs
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.ys
        value = math.log10(value) if self.logarithmic else value
        return self.height - BOTTOM - (self.height - TOP - BOTTOM) * (value - low) / (high - low)

    def axes(self, x_name: str, y_name: str = "", powers: bool = False) -> str:
        """Return the grid, the numbers beside it, and the names of the axes."""
        parts = []
        for real in powers_between(*self.ys) if self.logarithmic else ticks(*self.ys):
            y = self.y(real)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(real)}</text>')
        base = self.height - BOTTOM + 15
        shown = [(math.log10(value), value) for value in powers_between(*self.xs)] if powers else []
        for place, value in shown or [(value, value) for value in ticks(*self.xs, most=4)]:
            parts.append(f'<text x="{self.x(place):.1f}" y="{base}" text-anchor="middle">{_short(value)}</text>')
        parts.append(
            f'<text class="axis" x="{WIDTH - RIGHT}" y="{self.height - 1}" text-anchor="end">{escape(x_name)}</text>'
        )
        parts.append(f'<text class="axis" x="{LEFT}" y="9">{escape(y_name)}</text>' if y_name else "")
        return "".join(parts)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers between two bounds, at most about so many."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-12) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def powers_between(low: float, high: float) -> list[float]:
    """Return powers of ten between two logarithms, with their doubles and fivefolds where there are few."""
    found = [10.0**power for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    if len(found) > 2:
        return found[:: math.ceil(len(found) / 6)]
    every = (factor * 10.0**power for power in range(math.floor(low), math.floor(high) + 1) for factor in (1, 2, 5))
    return [value for value in every if low <= math.log10(value) <= high]


def _span(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - abs(low) / 10 - 1e-6 * (not low), high + abs(high) / 10 + 1e-6 * (not high)
    return low - margin * (high - low), high + margin * (high - low)


def _polyline(points: Sequence[tuple[float, float]], scale: _Scale, number: int, dots: bool) -> str:
    places = [(scale.x(x), scale.y(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    found = f'<polyline class="line c{number % COLOURS}" points="{path}"/>'
    if dots:
        found += "".join(
            f'<circle class="point c{number % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places
        )
    return found


def _short(value: float) -> str:
    """Return a number as an axis shows it."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def _svg(title: str, height: int, content: str) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>'
    )
