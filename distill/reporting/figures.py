"""The figures of a run's report: metrics with intervals, kinds of captions, ranks, differences from another run.

Recalls are in percent, ranks count from 1. Intervals are those of evaluation: 95 %, by a bootstrap over videos.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.labels import READ as LABELS_READ
from distill.data.labels import LabelsConfig, short_id
from distill.errors import ExpectedError
from distill.evaluation.duplicates import words
from distill.evaluation.evaluate import texts_of
from distill.evaluation.metrics import paired_bootstrap, recall_interval, summarise
from distill.manifest import read_manifest
from distill.records import changed
from distill.release.release import READ
from distill.remote import locate
from distill.reporting.charts import Estimate, bars, bounds, interval
from distill.reporting.finished import SIDES, FinishedRun
from distill.reporting.kinds import Kind, kinds
from distill.training.folder import RELEASE

SEED = 0  # of the bootstrap, as in evaluation
NAMES = {"t2v": "text → video", "v2t": "video → text"}
BINS = ((1, 1), (2, 5), (6, 10), (11, 50), (51, 100), (101, None))
COMPARED = ("R@1", "R@5", "R@10", "MnR")
RUNS = 200  # folders beside a run in which its teacher is looked for
GROUPS = {
    "length": "Length",
    "events": "Events",
    "ambiguity": "Captions of several videos",
    "words": "Words",
    "moment": "Moment, where the model sees it",
}


@dataclass(frozen=True)
class Row:
    """A line of the table of metrics."""

    title: str
    recalls: list[Estimate]  # R@1, R@5, R@10
    picture: Markup  # the interval of R@1
    median: float
    mean: float


@dataclass(frozen=True)
class KindRow:
    """A kind of captions, how many there are, and their R@1."""

    name: str
    count: int
    recall: Estimate
    picture: Markup


@dataclass(frozen=True)
class Differences:
    """The gains of one run on another: metric by metric, by direction."""

    side: str
    rows: list[tuple[Estimate, Markup]]


def metrics(run: FinishedRun, teacher: FinishedRun | None) -> dict[str, list[Row]]:
    """Return the table of metrics of each direction: the run, its second look, and its teacher."""
    shown: list[tuple[str, FinishedRun, str]] = [(run.provenance.name, run, "")]
    if "second_t2v" in run.ranks and "second_v2t" in run.ranks:
        shown.append(("… with a second look", run, "second_"))
    if teacher is not None:
        shown.append((f"{teacher.provenance.name} (teacher)", teacher, ""))
    return {NAMES[side]: rows([(title, one, prefix + side) for title, one, prefix in shown], side) for side in SIDES}


def rows(shown: Sequence[tuple[str, FinishedRun, str]], side: str) -> list[Row]:
    """Return lines whose intervals of R@1 are drawn on one scale."""
    found = []
    for title, run, name in shown:
        ranks, groups = run.ranks[name], run.texts(side)
        summary = summarise(ranks)
        recalls = [recall(ranks, groups, k) for k in (1, 5, 10)]
        found.append((title, recalls, summary["MdR"], summary["MnR"]))
    ends = bounds([recalls[0] for _, recalls, _, _ in found], whole=True)
    return [Row(title, recalls, interval(recalls[0], *ends), *rest) for title, recalls, *rest in found]


def recall(ranks: Tensor, groups: Tensor, k: int) -> Estimate:
    """Return R@k with its interval."""
    value = 100 * float((ranks < k).double().mean())
    return Estimate(f"R@{k}", value, *recall_interval(ranks, groups, k, SEED))


def teacher_of(run: FinishedRun) -> tuple[FinishedRun | None, str]:
    """Return the run of the teacher whose labels a run was trained on, if it is beside it; and words about it."""
    if not run.label_sets:
        return None, ""
    place = locate(run.label_sets[0])
    try:
        known = read_manifest(place, "labels", *LABELS_READ).view(LabelsConfig, place)
    except (ExpectedError, OSError):
        return None, f"Its label set cannot be read at {place}, so its teacher is not known here."
    beside = sorted(run.folder.resolve().parent.glob(f"*/{RELEASE}/manifest.json"))[:RUNS]
    for path in beside:
        try:
            if read_manifest(path.parent, "release", *READ).id == known.teacher:
                found = FinishedRun.read(path.parent.parent)
                return (found, "") if same_test(run, found) else (None, "Its teacher was tested on other videos.")
        except ExpectedError:
            continue  # another run's folder, which this report does not need
    return None, f"Results of its teacher ({short_id(known.teacher)}) are not in a folder beside this run."


def same_test(run: FinishedRun, other: FinishedRun) -> bool:
    """Return whether two runs answered the same queries of the same frame set."""
    if not run.ranks or not other.ranks:
        return False
    if run.test_frames and other.test_frames:
        return run.test_frames == other.test_frames
    alike = torch.equal(run.ranks["video_of_text"], other.ranks["video_of_text"])
    return alike and run.provenance.evaluated_on == other.provenance.evaluated_on


def differences(run: FinishedRun, other: FinishedRun) -> list[Differences]:
    """Return the paired differences from another run; raise `ExpectedError` where the tests are not the same."""
    if not same_test(run, other):
        raise ExpectedError(
            f"{other.folder}: was not tested on the frames of {run.folder}, so that no query can be compared; name a "
            f"run with the same data.test"
        )
    found = []
    for side in SIDES:
        groups, ranks = run.texts(side), (run.ranks[side], other.ranks[side])
        gains = [Estimate(metric, *paired_bootstrap(*ranks, groups, SEED, metric)) for metric in COMPARED]
        found.append(Differences(NAMES[side], [(gain, interval(gain, *bounds([gain]))) for gain in gains]))
    return found


def settings_apart(run: FinishedRun, other: FinishedRun) -> list[tuple[str, str, str]]:
    """Return the keys in which two recipes differ, with both values."""
    one, two = run.provenance.recipe, other.provenance.recipe
    keys = [key for key in changed(one, two) if key not in ("name", "out")]
    return [(key, _value(run, key), _value(other, key)) for key in keys]


def _value(run: FinishedRun, key: str) -> str:
    found = run.setting(*key.split("."))
    return "none" if found is None else str(found)


def of_kinds(run: FinishedRun, test: FrameSet | None, train: FrameSet | None) -> dict[str, list[KindRow]]:
    """Return R@1 (text to video) of every kind of captions, by group."""
    if test is None:
        return {}
    captions, videos = texts_of(test), run.ranks["video_of_text"].tolist()
    known = None if train is None else {word for said in texts_of(train) for word in words(said)}
    parts = [(kind, *_of_kind(run, kind)) for kind in kinds(captions, videos, known, moments(run, test))]
    ends, found = bounds([one for _, _, one in parts], whole=True), {}
    for kind, count, one in parts:
        row = KindRow(kind.name, count, one, interval(one, *ends))
        found.setdefault(GROUPS[kind.group], []).append(row)
    return found


def moments(run: FinishedRun, test: FrameSet) -> np.ndarray | None:
    """Return where in its video the frame stands that answers each caption best, from 0 to 1, as the model sees it."""
    relevance = run.answers.get("relevance")
    if relevance is None:
        return None
    best, videos = relevance.argmax(1).tolist(), run.ranks["video_of_text"].tolist()
    found = []
    for frame, number in zip(best, videos, strict=True):
        video = test.videos[number]
        at = video.timestamps[min(frame, len(video.timestamps) - 1)]
        found.append(at / video.duration if video.duration > 0 else 0.0)
    return np.clip(np.array(found), 0.0, 1.0)


def _of_kind(run: FinishedRun, kind: Kind) -> tuple[int, Estimate]:
    members = torch.from_numpy(kind.members)
    ranks, groups = run.ranks["t2v"][members], run.ranks["video_of_text"][members]
    return len(ranks), recall(ranks, groups, 1)


def histogram(run: FinishedRun) -> dict[str, Markup]:
    """Return the shares of ranks by bins, of each direction."""
    found = {}
    for side in SIDES:
        ranks = run.ranks[side] + 1
        counts = [int(_within(ranks, low, high).sum()) for low, high in BINS]
        shares = [100 * count / len(ranks) for count in counts]
        names = [str(low) if low == high else f"{low} to {high}" if high else f"{low} +" for low, high in BINS]
        notes = [f"{share:.1f} % ({count:,})" for share, count in zip(shares, counts, strict=True)]
        said = "; ".join(f"rank {name}: {note}" for name, note in zip(names, notes, strict=True))
        found[NAMES[side]] = bars(f"Ranks, {NAMES[side]}: {said}", names, shares, notes)
    return found


def _within(ranks: Tensor, low: int, high: int | None) -> Tensor:
    return (ranks >= low) & (ranks <= (high or ranks.max()))


def largest_changes(run: FinishedRun, other: FinishedRun, count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return the queries (text to video) that gain most in 1 / rank over another run, and those that lose most."""
    gain = 1 / (run.ranks["t2v"].double() + 1) - 1 / (other.ranks["t2v"].double() + 1)
    order = gain.argsort(descending=True, stable=True)
    gains = [query for query in order[:count].tolist() if gain[query] > 0]
    losses = [query for query in order.flip(0)[:count].tolist() if gain[query] < 0]
    return gains, losses
