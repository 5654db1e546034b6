"""Whether a frame set really holds the gallery and the queries of a protocol.

A gallery that lost videos (files that could not be had or read) is easier than the whole one, and captions that were
cut, joined or chosen otherwise make another task. So the fingerprint is a hash of all video ids and of all (video,
caption) pairs, whatever their order and their captions' ids, and two results may be compared only if their fingerprints
agree.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distill.data.frames import FrameSet
from distill.errors import first_few
from distill.evaluation.protocol import PROTOCOLS, Protocol
from distill.records import json_sha256

SHOWN = 12  # digits of a fingerprint that people see


def fingerprint(captions: Iterable[tuple[str, Sequence[str]]]) -> str:
    """sha256 of a gallery, given as video ids with their captions; the order of neither matters."""
    held = [(video, list(texts)) for video, texts in captions]
    content = {
        "gallery": sorted(video for video, _ in held),
        "queries": sorted([video, text] for video, texts in held for text in texts),
    }
    return json_sha256(content)


def captions_of(frames: FrameSet) -> list[tuple[str, list[str]]]:
    """The video ids of a frame set with their captions."""
    return [(video.id, [caption.text for caption in video.captions]) for video in frames.videos]


@dataclass(frozen=True)
class Standing:
    """How a frame set stands to a protocol. `complete` is None where the official gallery is not known here."""

    fingerprint: str
    videos: int
    captions: int
    complete: bool | None
    missing: int  # expected minus present, at least 0
    unusable: tuple[str, ...]  # videos that packing had to leave out
    words: str


def standing(name: str, frames: FrameSet) -> Standing:
    """Whether `frames` is the whole gallery of the protocol `name`, and if not, what is wrong with it."""
    found, videos = fingerprint(captions_of(frames)), len(frames)
    captions = sum(len(video.captions) for video in frames.videos)
    unusable = tuple(note["video"] for note in frames.manifest.notes)
    complete, words = _compare(PROTOCOLS[name], found, videos, captions, unusable)
    missing = max(0, (PROTOCOLS[name].videos or 0) - videos)
    return Standing(found, videos, captions, complete, missing, unusable, words)


def _compare(
    protocol: Protocol, found: str, videos: int, captions: int, unusable: Sequence[str]
) -> tuple[bool | None, str]:
    lost = f"{_count(len(unusable), 'video')} could not be packed ({first_few(unusable)})" if unusable else ""
    if protocol.fingerprint == found:
        return True, "complete: the videos and captions are exactly those of the official files"
    if protocol.videos is None:
        return not unusable, f"incomplete: {lost}" if unusable else "complete: every video of its file was packed"
    if videos < protocol.videos:
        known = lost or "the annotation file that was packed did not name them"
        return False, f"incomplete: {protocol.videos - videos:,} of {protocol.videos:,} videos are missing; {known}"
    if videos > protocol.videos:
        return False, f"another gallery: {videos:,} videos, where the protocol has {protocol.videos:,}"
    same = protocol.captions in (None, captions)
    queries = "" if same else f", but {captions:,} captions, where the protocol has {protocol.captions:,}"
    if protocol.fingerprint is None:
        return None, f"{videos:,} videos as in the protocol{queries}; whether they are the right ones is not known here"
    other = queries or ", but other ids or other captions"
    return False, f"differs from the official files: {videos:,} videos as there{other}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
