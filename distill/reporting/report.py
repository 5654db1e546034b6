"""The report of a finished run: `report.html` in its folder, made of what it holds and of the frames it names."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from distill.data.frames import FrameSet
from distill.errors import ExpectedError
from distill.evaluation.evaluate import video_numbers
from distill.publishing import publish
from distill.records import read_small
from distill.release.release import PROVENANCE
from distill.reporting import examples, figures
from distill.reporting.charts import Line, lines
from distill.reporting.finished import AGAIN, FinishedRun
from distill.reporting.page import REPORT, page
from distill.reporting.strips import for_looking
from distill.terminal import printable
from distill.training.folder import RECIPE, RELEASE

CHANGES = 4  # queries that gain most, and that lose most
NO_LOSS = ("step", "epoch", "lr", "grad_norm", "seconds", "data_wait")  # of a row of metrics.jsonl
FILE = 20_000  # characters of a file that is shown
SECTIONS = {
    "test": ("Test", "metrics"),
    "against": ("Comparison", "against"),
    "training": ("Training", "charts"),
    "kinds": ("Kinds of captions", "kinds"),
    "worst": ("Worst queries", "worst"),
    "frames": ("Frame weights", "taught"),
    "cost": ("Cost", "cost"),
    "provenance": ("Provenance", "provenance"),
}


@dataclass(frozen=True)
class Chart:
    """A chart, the names of its lines in order, and a note below it."""

    title: str
    picture: Markup
    names: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class Head:
    """A figure at the head of the page."""

    title: str
    value: str
    note: str


def write_report(folder: Path, against: Path | None = None, opened: Mapping[str, FrameSet] | None = None) -> Path:
    """Write the report of a run into its folder, and return its path.

    `against` is another run to compare with; `opened` has frame sets that are open already, by the recipe's keys of
    `data`. Raises `ArtefactError` for a folder that is no finished run, or that is damaged, and `ExpectedError` for
    another run that answered other queries. Frames that are not there any more are named on the page.
    """
    run = FinishedRun.read(folder)
    other = None if against is None else FinishedRun.read(against)
    notes: list[str] = []
    frames = {key: _frames(run, key, (opened or {}).get(key), notes) for key in ("train", "test")}
    content = _content(run, other, frames["train"], _tested(run, frames["test"], notes), notes)
    publish(folder / REPORT, page("run.html", content))
    return folder / REPORT


def _frames(run: FinishedRun, key: str, opened: FrameSet | None, notes: list[str]) -> FrameSet | None:
    """Return a frame set of the recipe for looking; None, with a note, where it is not there as it was."""
    path = run.setting("data", key)
    if not path:
        return None
    try:
        found = opened or FrameSet(str(path), verify=False)
        if key == "train" and run.provenance.parents.get("frames") != found.manifest.id:
            notes.append(f"data.train: {path} does not hold the frames of this run, so none are shown.")
            return None
        return for_looking(found)
    except ExpectedError as error:
        notes.append(f"data.{key}: frames are not shown, {error}")
        return None


def _tested(run: FinishedRun, test: FrameSet | None, notes: list[str]) -> FrameSet | None:
    """Return the test frames if they are those that were ranked."""
    if test is None or not run.ranks:
        return None
    same = not run.test_frames or run.test_frames == test.manifest.id
    if not same or not torch.equal(video_numbers(test), run.ranks["video_of_text"].long()):
        notes.append(f"data.test: {test.path} does not hold the frames of this run, so none are shown.")
        return None
    return test


def _content(
    run: FinishedRun, other: FinishedRun | None, train: FrameSet | None, test: FrameSet | None, notes: list[str]
) -> dict[str, Any]:
    teacher, teacher_words = figures.teacher_of(run) if run.ranks else (None, "")
    taught = [] if train is None else examples.taught(run, train)
    metrics = figures.metrics(run, teacher) if run.ranks else {}
    if run.ranks and not run.answers:
        notes.append("This run was tested by a version that kept ranks alone: what ranked first is not known here.")
    found: dict[str, Any] = {
        "run": run,
        "parameters": run.release.counts.get("parameters", 0),
        "heads": _heads(run, metrics),
        "metrics": metrics,
        "histogram": figures.histogram(run) if run.ranks else {},
        "teacher_words": teacher_words,
        "against": None if other is None else _against(run, other, test),
        "charts": charts(run),
        "training_words": _training_words(run),
        "kinds": figures.of_kinds(run, test, train) if run.ranks else {},
        "worst": [] if test is None else examples.queries(run, test, examples.worst(run)),
        "taught": taught,
        "teachers": _teachers(run) if taught else [],
        "cost": costs(run),
        "provenance": _provenance(run),
        "files": _files(run),
        "notes": notes,
    }
    found["sections"] = [(key, title) for key, (title, part) in SECTIONS.items() if found[part]]
    return found


def _heads(run: FinishedRun, metrics: Mapping[str, Sequence[figures.Row]]) -> list[Head]:
    found = []
    for name, (row, *_) in metrics.items():
        first, _, tenth = row.recalls
        found.append(Head(f"R@1, {name}", f"{first.value:.1f}", f"{first.low:.1f} to {first.high:.1f}"))
        found.append(Head(f"R@10, {name}", f"{tenth.value:.1f}", f"mean rank {row.mean:.1f}"))
    query = run.provenance.query
    if found and query is not None and query.score_ms is not None:
        found.append(Head("a query, encoded", f"{query.score_ms:.2g} ms", f"against {query.videos or 0:,} videos"))
    return found


def _against(run: FinishedRun, other: FinishedRun, test: FrameSet | None) -> dict[str, Any]:
    found = {
        "name": other.provenance.name,
        "differences": figures.differences(run, other),
        "settings": figures.settings_apart(run, other),
    }
    gains, losses = figures.largest_changes(run, other, CHANGES)
    shown = {"gains": gains, "losses": losses}
    return found | {
        name: [] if test is None else examples.queries(run, test, numbers, other) for name, numbers in shown.items()
    }


def charts(run: FinishedRun) -> list[Chart]:
    """Return the curves of a training: losses, validations in both directions, length of the gradient."""
    found = []
    parts = [name for name in (run.steps[0] if run.steps else {}) if name not in NO_LOSS]
    if parts:
        drawn = [Line(name, [(row["step"], row[name]) for row in run.steps if name in row]) for name in parts]
        title = f"Losses over {len(run.steps):,} steps: " + ", ".join(parts)
        found.append(Chart("Losses", lines(title, drawn, "step", logarithmic=True), parts, "logarithmic"))
    for side, name in figures.NAMES.items():
        if chart := _validation(run, side, name):
            found.append(chart)
    if run.steps and "grad_norm" in run.steps[0]:
        drawn = [Line("gradient", [(row["step"], row["grad_norm"]) for row in run.steps if "grad_norm" in row])]
        picture = lines("Length of the gradient before clipping", drawn, "step", logarithmic=True)
        found.append(Chart("Gradient", picture, ["length, before clipping"], "logarithmic"))
    return [chart for chart in found if chart.picture]


def _validation(run: FinishedRun, side: str, name: str) -> Chart | None:
    names = [f"R@{k}" for k in (1, 5, 10)]
    points = {
        metric: [(float(step), found[side][metric]) for step, found in run.validations if metric in found.get(side, {})]
        for metric in names
    }
    if not points["R@1"]:
        return None
    best = next((point for point in points["R@1"] if point[0] == run.best), None) if side == "t2v" else None
    drawn = [Line(metric, points[metric], dots=True, marked=best if metric == "R@1" else None) for metric in names]
    said = ", ".join(f"{value:.1f} after step {step:.0f}" for step, value in points["R@1"][-5:])
    note = f"ringed: the weights that were kept, after step {best[0]:,.0f}" if best else ""
    picture = lines(f"Recall on validation, {name}; R@1 {said}", drawn, "step")
    return Chart(f"Validation, {name}", picture, names, note)


def _training_words(run: FinishedRun) -> str:
    last = int(run.steps[-1]["step"]) if run.steps else 0
    best = "" if run.best is None else f"; the best weights on validation are those after step {run.best:,}"
    return f"{last:,} steps, {len(run.validations):,} validations{best}."


def costs(run: FinishedRun) -> list[tuple[str, str]]:
    """Return what a run cost and what its model costs, as names and words."""
    known, rows = run.provenance, []
    if known.cost is not None:
        rows.append(("training", f"{known.cost.steps:,} steps, {known.cost.samples:,} pairs"))
        if known.cost.flops is not None:
            rows.append(("operations", f"{known.cost.flops:.3g} floating-point operations of the steps"))
        joules = "" if known.cost.joules is None else f", {known.cost.joules / 3.6e6:.3g} kWh"
        rows.append(("time and energy", f"{known.cost.seconds:,.0f} s{joules}"))
    elif known.seconds:
        rows.append(("training", f"{len(run.steps):,} steps in {known.seconds:,.0f} s"))
    seconds = [row["seconds"] for row in run.steps if "seconds" in row]
    if seconds:
        waited = sum(row.get("data_wait", 0.0) for row in run.steps)
        share = 100 * waited / max(sum(seconds), 1e-9)
        rows.append(("a step", f"{statistics.median(seconds):.3f} s (median), {share:.0f} % of it waiting for data"))
    size = run.release.files.get("model.safetensors")
    weights = f", {size.bytes / 1e6:,.1f} MB" if size else ""
    rows.append(("model", f"{run.release.counts.get('parameters', 0):,} parameters{weights}"))
    if known.bytes_per_video:
        vector, tokens = known.bytes_per_video
        rows.append(("a video in a gallery", f"{vector:,} bytes" + (f" + {tokens:,} of tokens" if tokens else "")))
    if (query := known.query) is not None:
        scored = "" if query.score_ms is None else f", {query.score_ms:.3g} ms to score {query.videos or 0:,} videos"
        rows.append(("a query", f"{query.encode_ms:.3g} ms to encode{scored}"))
    if known.hardware:
        machine = known.hardware.model_dump()
        rows.append(("measured on", ", ".join(f"{name} {value}" for name, value in machine.items() if value)))
    return rows


def _provenance(run: FinishedRun) -> list[tuple[str, str]]:
    known = run.provenance
    rows = [("release", run.release.id), *known.parents.items()]
    if known.captions:
        rows.append(("captions by source", ", ".join(f"{name} {count:,}" for name, count in known.captions.items())))
    rows += [("seed", str(run.setting("seed"))), *known.versions.items()]
    return rows


def _teachers(run: FinishedRun) -> list[str]:
    return [f"teacher ({Path(path).name})" for path in run.label_sets] or ["teacher"]


def _files(run: FinishedRun) -> list[tuple[str, str]]:
    """Return the recipe, and the whole of provenance.json but the recipe, as they are shown."""
    found = []
    if (run.folder / RECIPE).is_file():
        found.append((RECIPE, read_small(run.folder / RECIPE, AGAIN).decode(errors="replace")))
    whole = json.loads(read_small(run.folder / RELEASE / PROVENANCE, AGAIN))
    rest = {name: value for name, value in whole.items() if name != "recipe"}
    found.append((PROVENANCE, json.dumps(rest, indent=1, ensure_ascii=False)))
    return [(name, _shown(text)) for name, text in found]


def _shown(text: str) -> str:
    return "\n".join(printable(line) for line in text[:FILE].splitlines()) + ("\n…" if len(text) > FILE else "")
