"""The result file of an evaluation: its schema and reader, the comparison of its gallery with the protocol's, and the
check that two results may stand in one table.

A gallery that lost videos (files that could not be fetched or decoded) is easier than the whole one, and captions that
were cut, joined or chosen differently make another task. So the fingerprint is a hash of all video ids and all (video,
caption) pairs, in any order and without the captions' ids, and two results may be compared only if their fingerprints
agree. Recalls are in percent, ranks count from 1. A direction is `t2v` (text to video) or `v2t` (video to text).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, FiniteFloat, model_validator

from distill.config import Config
from distill.data.frames import FrameSet
from distill.errors import ExpectedError, first_few
from distill.evaluation.protocol import PROTOCOLS, Protocol
from distill.records import json_sha256, read_json

RECALLS = (1, 5, 10)
COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")
SHOWN = 12  # digits of a fingerprint in reports and errors


class Metrics(Config):
    """Metrics by direction: R@1, R@5, R@10, MdR, MnR, and the 95 % intervals of the recalls."""

    metrics: dict[str, dict[str, FiniteFloat]]
    intervals: dict[str, dict[str, tuple[FiniteFloat, FiniteFloat]]]

    @model_validator(mode="after")
    def _whole(self) -> "Metrics":
        if not {"t2v"} <= self.metrics.keys() <= self.intervals.keys():
            raise ValueError("needs t2v, and intervals of every direction")
        if not all(set(COLUMNS) <= row.keys() for row in self.metrics.values()):
            raise ValueError(f"every direction needs {', '.join(COLUMNS)}")
        if not all({f"R@{k}" for k in RECALLS} <= bounds.keys() for bounds in self.intervals.values()):
            raise ValueError("every recall needs its interval")
        return self


class BankMetrics(Config):
    """Metrics by QB-Norm, text to video only, and the frame set whose captions are the query bank."""

    measured: Metrics
    bank: str  # frame set
    bank_id: str
    queries: int


class Reranked(Config):
    """Metrics of a search in two stages that scores `candidates` of every query in full, in both directions.

    `shared`: how many of the exhaustive ten best answers are among the ten best of this search, in percent.
    """

    candidates: int = Field(validation_alias=AliasChoices("candidates", "recall"))  # version 0.1 wrote `recall`
    measured: Metrics
    shared: dict[str, float]


class Subject(Config):
    """A release and the frame set on which it was evaluated."""

    release: str
    release_id: str
    model: str  # its kind
    frames: str
    frames_id: str


class GalleryState(Config):
    """A frame set's gallery beside a protocol's. `complete` is None where the protocol has no fingerprint."""

    videos: int
    captions: int
    complete: bool | None
    missing: int  # expected minus present, at least 0
    unusable: tuple[str, ...]  # videos that packing had to leave out
    words: str  # the comparison as a sentence


class Result(Config):
    """A result file: protocol and gallery, release and frame set, and the metrics by every score that was asked for."""

    format: Literal[1] = 1
    toolkit: str
    protocol: str
    fingerprint: str
    gallery: GalleryState
    subject: Subject
    scores: Metrics
    dsl: Metrics | None  # None: not asked for
    qbnorm: BankMetrics | None
    two_stage: tuple[Reranked, ...] = ()  # missing in results of the first versions

    @model_validator(mode="after")
    def _both_directions(self) -> "Result":
        both = [self.scores, *([self.dsl] if self.dsl else []), *(stage.measured for stage in self.two_stage)]
        if not all("v2t" in measured.metrics for measured in both):
            raise ValueError("all scores but qbnorm need v2t too")
        return self


def read_result(path: Path) -> Result:
    """Read a result file; raise `ArtefactError` for a file that tools/evaluate.py did not write so."""
    return read_json(path, Result, "expected a result of tools/evaluate.py")


def check_comparable(path: Path, earlier: Result, protocol: str, fingerprint: str) -> None:
    """Raise `ExpectedError` for an earlier result with other queries or another gallery."""
    if (earlier.protocol, earlier.fingerprint) != (protocol, fingerprint):
        raise ExpectedError(
            f"{path}: a result of {earlier.protocol} {earlier.fingerprint[:SHOWN]}, expected {protocol} "
            f"{fingerprint[:SHOWN]}; numbers on other galleries or queries do not belong in one table: evaluate "
            f"{earlier.subject.release} on these frames"
        )


def fingerprint(captions: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return the sha256 of a gallery, given as video ids with their captions; the order of neither matters."""
    videos = [(video, list(texts)) for video, texts in captions]
    content = {  # sorted, because packing with other shards or workers changes the order
        "gallery": sorted(video for video, _ in videos),
        "queries": sorted([video, text] for video, texts in videos for text in texts),
    }
    return json_sha256(content)


def captions_of(frames: FrameSet) -> list[tuple[str, list[str]]]:
    """Return the video ids of a frame set with their captions."""
    return [(video.id, [caption.text for caption in video.captions]) for video in frames.videos]


def gallery_state(name: str, frames: FrameSet) -> GalleryState:
    """Compare `frames` with the gallery of the protocol `name`: whether it is whole, and if not, what differs."""
    protocol, videos = PROTOCOLS[name], len(frames)
    captions = sum(len(video.captions) for video in frames.videos)
    unusable = tuple(note["video"] for note in frames.manifest.notes)
    complete, words = _compare(protocol, fingerprint(captions_of(frames)), videos, captions, unusable)
    missing = max(0, protocol.size[0] - videos) if protocol.size else 0
    return GalleryState(
        videos=videos, captions=captions, complete=complete, missing=missing, unusable=unusable, words=words
    )


def _compare(
    protocol: Protocol, digest: str, videos: int, captions: int, unusable: Sequence[str]
) -> tuple[bool | None, str]:
    plural = "" if len(unusable) == 1 else "s"
    lost = f"{len(unusable):,} video{plural} could not be packed ({first_few(unusable)})" if unusable else ""
    if protocol.fingerprint == digest:
        return True, "complete: the videos and captions are exactly those of the official files"
    if protocol.size is None:  # the demo, whose size the user chooses
        return not unusable, f"incomplete: {lost}" if unusable else "complete: every video of its file was packed"
    all_videos, all_captions = protocol.size
    if videos < all_videos:
        known = lost or "the annotation file that was packed did not name them"
        return False, f"incomplete: {all_videos - videos:,} of {all_videos:,} videos are missing; {known}"
    if videos > all_videos:
        return False, f"another gallery: {videos:,} videos, where the protocol has {all_videos:,}"
    same = captions == all_captions
    queries = "" if same else f", but {captions:,} captions, where the protocol has {all_captions:,}"
    if protocol.fingerprint is None:
        return None, f"{videos:,} videos as in the protocol{queries}; whether they are the right ones is not known here"
    other = queries or ", but other ids or other captions"
    return False, f"differs from the official files: {videos:,} videos as there{other}"
