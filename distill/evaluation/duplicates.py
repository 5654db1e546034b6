"""Captions that are true of several videos: by their words, and by graded truth where there is one."""

import re
from collections.abc import Sequence

from distill.data.frames import FrameSet
from distill.evaluation.evaluate import texts_of, video_numbers
from distill.evaluation.result import NearDuplicates
from distill.evaluation.truth import Truth

ARTICLES = ("a", "an", "the")


def words(caption: str) -> list[str]:
    """Return the words of a caption in lower case: runs of letters and digits."""
    return re.findall(r"\w+", caption.lower())


def plain(caption: str) -> str:
    """Return what makes two captions the same sentence: their words in order, without case, articles and signs."""
    return " ".join(word for word in words(caption) if word not in ARTICLES)


def of_several(captions: Sequence[str], videos: Sequence[int]) -> list[bool]:
    """Return for every caption whether a caption of another video is the same sentence."""
    of: dict[str, set[int]] = {}
    said = [plain(caption) for caption in captions]
    for text, video in zip(said, videos, strict=True):
        of.setdefault(text, set()).add(video)
    return [len(of[text]) > 1 for text in said]


def near_duplicates(frames: FrameSet, truth: Truth | None) -> NearDuplicates:
    """Count the captions of a frame set that are true of several of its videos."""
    captions, videos = texts_of(frames), video_numbers(frames).tolist()
    return NearDuplicates(
        captions=len(captions),
        same_words=sum(of_several(captions, videos)),
        by_truth=None if truth is None else truth.several(),
    )
