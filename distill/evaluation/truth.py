"""Graded truth: how well each caption fits each video of a gallery, beyond the pairs that were matched by hand.

A benchmark calls one video right for a caption, whatever else it is true of. A truth has a grade for every pair; a pair
is *right* if its grade is at least that of the caption's own video, and above 0. It comes from a file of judgements in
TREC's format (`read_qrels`) or from a teacher's stored scores (`by_teacher`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Int16
from torch import Tensor

from distill.catalogue import scoring_head
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.errors import ArtefactError, ExpectedError, check_regular, first_few
from distill.evaluation.evaluate import TEXT_BATCH, video_numbers
from distill.manifest import file_sha256
from distill.model.features import TextFeatures, VideoFeatures
from distill.remote import Place

UNJUDGED = -(1 << 15)
HIGHEST = (1 << 15) - 1
GRADE = re.compile(r"[+-]?\d{1,5}")
LINE = 4096  # bytes of a line of judgements, at most
SHARE = 0.95  # of the matched pair's score; the threshold of positive-aware mining (NV-Retriever, Moreira et al. 2024)


@dataclass(frozen=True)
class Truth:
    """Grades of all pairs, 0 where nothing was judged, and where they come from."""

    grades: Int16[Tensor, "text video"]
    video_of_text: Int[Tensor, " text"]
    kind: Literal["qrels", "labels"]
    source: str
    source_id: str  # sha256 of the file, or id of the label set
    share: float | None = None  # of the matched pair's score that makes a pair relevant to the teacher

    def right(self, rows: slice) -> Bool[Tensor, "text video"]:
        """Return which videos are right for some captions: their own, and all that fit them at least as well."""
        grades, own = self.grades[rows], self.video_of_text[rows].unsqueeze(1)
        return ((grades >= grades.gather(1, own)) & (grades > 0)).scatter(1, own, True)

    def several(self) -> int:
        """Count the captions for which another video than their own is right."""
        starts = range(0, len(self.grades), TEXT_BATCH)
        return sum(int((self.right(slice(at, at + TEXT_BATCH)).sum(1) > 1).sum()) for at in starts)


def read_qrels(path: Path, frames: FrameSet) -> Truth:
    """Read judgements: lines of caption id, a word that is ignored, video id and grade, between spaces or tabs.

    A caption's own video has the file's highest grade where the file does not judge that pair. Grades below 0 count as
    0, as in trec_eval. Raises `ArtefactError` for lines of another form, ids that `frames` does not have, and pairs
    with two grades.
    """
    texts, videos = _places(frames)
    grades = np.full((len(texts), len(videos)), UNJUDGED, np.int16)
    unknown: dict[str, dict[str, None]] = {"captions": {}, "videos": {}}
    for where, query, video, grade in _judgements(path):
        for name, known, kind in ((query, texts, "captions"), (video, videos, "videos")):
            if name not in known:
                unknown[kind][name] = None
        if query in texts and video in videos:
            at = texts[query], videos[video]
            if grades[at] not in (UNJUDGED, grade):
                raise ArtefactError(f"{where}: {query} and {video} have two grades; keep one of them")
            grades[at] = grade
    _check_known(path, unknown, frames)
    highest = int(grades.max(initial=0))
    if highest <= 0:
        raise ArtefactError(f"{path}: grades nothing above 0; give judgements of the captions of {frames.path}")
    own = video_numbers(frames)
    matched = grades[np.arange(len(own)), own.numpy()]
    grades[np.arange(len(own)), own.numpy()] = np.where(matched == UNJUDGED, highest, matched)
    np.maximum(grades, 0, out=grades)
    return Truth(torch.from_numpy(grades), own, "qrels", str(path), file_sha256(path))


def by_teacher(path: Place, frames: FrameSet, share: float) -> Truth:
    """Take as relevant every pair to which a teacher gives at least `share` of the matched pair's score.

    `path` is a label set of `frames` with the tier `features`, from which the teacher's own head gives the score of
    any pair, before the logit scale. Where a matched pair has a score of 0 or less, it alone is relevant. All grades
    are 0 or 1.
    """
    labels = LabelSet(path, frames)
    labels.require("features", "the truth by its scores")
    head = scoring_head(labels)
    video = _features(VideoFeatures, labels.videos(range(len(frames))))
    pairs = [(number, row) for number, about in enumerate(frames.videos) for row in range(len(about.captions))]
    own, parts = video_numbers(frames), []
    for start in range(0, len(pairs), TEXT_BATCH):
        text = _features(TextFeatures, labels.captions(pairs[start : start + TEXT_BATCH]))
        with torch.no_grad():
            scores = head(text, video, scaled=False)
        if not scores.isfinite().all():
            raise ArtefactError(f"{labels.path}: gives scores that are not finite; label again")
        matched = scores.gather(1, own[start : start + TEXT_BATCH].unsqueeze(1))
        near = ((scores >= share * matched) & (matched > 0)).scatter(1, own[start : start + TEXT_BATCH, None], True)
        parts.append(near.to(torch.int16))
    return Truth(torch.cat(parts), own, "labels", str(labels.path), labels.manifest.id, share)


def _features(kind, tensors: dict[str, Tensor]):
    found = {name: value.bool() if name == "real" else value for name, value in tensors.items()}
    return kind(**found)


def _places(frames: FrameSet) -> tuple[dict[str, int], dict[str, int]]:
    """Return the row of every caption id, and the column of every video id."""
    ids = [caption.id for video in frames.videos for caption in video.captions]
    texts = {name: row for row, name in enumerate(ids)}
    videos = {name: column for column, name in enumerate(frames.videos.ids)}
    if len(texts) < len(ids) or len(videos) < len(frames):
        raise ExpectedError(f"{frames.path}: ids occur twice, so judgements by id cannot be told apart; pack again")
    return texts, videos


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yield where a line is, and its caption id, video id and grade."""
    check_regular(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror}); give a file of judgements") from None
    with file:
        for number, line in enumerate(iter(lambda: file.readline(LINE), b""), 1):
            where = f"{path}: line {number}"
            if line.strip():
                yield where, *_judgement(line, where)


def _judgement(line: bytes, where: str) -> tuple[str, str, int]:
    """Return caption id, video id and grade of one line."""
    try:
        text = line.decode().strip("\r\n")
    except UnicodeDecodeError:
        raise ArtefactError(f"{where}: not UTF-8; give a text file of judgements") from None
    fields = text.split("\t") if "\t" in text else text.split()
    form = len(fields) == 4 and GRADE.fullmatch(fields[3]) is not None
    if not form or not -HIGHEST <= int(fields[3]) <= HIGHEST or (len(line) == LINE and not line.endswith(b"\n")):
        raise ArtefactError(
            f"{where}: {text[:80]!r}, expected a caption id, 0, a video id and a whole number up to {HIGHEST:,} "
            f"(ids with spaces: between tabs)"
        )
    return fields[0], fields[2], int(fields[3])


def _check_known(path: Path, unknown: dict[str, dict[str, None]], frames: FrameSet) -> None:
    odd = [f"{len(names):,} {kind} ({first_few(list(names), 3)})" for kind, names in unknown.items() if names]
    if odd:
        raise ArtefactError(
            f"{path}: judges {' and '.join(odd)} that {frames.path} does not have; keep the lines of this frame set"
        )
