"""The result file of an evaluation: its schema, its reader, and the check that two results may stand in one table.

Recalls are in percent, ranks count from 1. A direction is `t2v` (text to video) or `v2t` (video to text).
"""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, FiniteFloat, model_validator

from distill.config import Config
from distill.errors import ExpectedError
from distill.evaluation.standing import SHOWN, GalleryState
from distill.model.second_look import SecondLook
from distill.records import read_json

RECALLS = (1, 5, 10)
COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")


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


class LookedAgain(Config):
    """Metrics of a second look at the frames of everything, with the temperature and weights of the release."""

    look: SecondLook
    measured: Metrics


class Graded(Config):
    """Metrics against graded truth, by direction: nDCG@10, and R@1 where every answer that is right counts.

    An answer is right if it fits the caption at least as well as the caption's own video. Not the papers' metrics.
    """

    kind: Literal["qrels", "labels"]
    source: str  # file of judgements, or label set
    source_id: str
    share: float | None  # of the matched pair's score that makes a pair relevant to a teacher
    relevant: int  # pairs with a grade above 0
    several: int  # captions for which another video is right too
    metrics: dict[str, dict[str, FiniteFloat]]
    intervals: dict[str, dict[str, tuple[FiniteFloat, FiniteFloat]]]


class NearDuplicates(Config):
    """How many captions are true of several videos."""

    captions: int  # in all
    same_words: int  # have the words of a caption of another video, without case, articles and signs
    by_truth: int | None  # another video is right for them by the graded truth; None: there is none


class Subject(Config):
    """A release and the frame set on which it was evaluated."""

    release: str
    release_id: str
    model: str  # its kind
    frames: str
    frames_id: str


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
    second_look: LookedAgain | None = None  # None: the release carries none
    graded: Graded | None = None  # None: not asked for
    near_duplicates: NearDuplicates | None = None

    @model_validator(mode="after")
    def _both_directions(self) -> "Result":
        both = [self.scores, *([self.dsl] if self.dsl else []), *(stage.measured for stage in self.two_stage)]
        both += [self.second_look.measured] if self.second_look else []
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
