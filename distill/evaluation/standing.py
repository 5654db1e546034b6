"""The comparison of a frame set with a protocol: whether its gallery and queries are exactly the official ones.

A gallery that lost videos (files that could not be fetched or decoded) is easier than the whole one, and captions that
were cut, joined or chosen differently make another task. So the fingerprint is a hash of all video ids and all (video,
caption) pairs, in any order and without the captions' ids, and two results may be compared only if their fingerprints
agree.
"""

import re
from collections.abc import Iterable, Sequence

from distill.config import Config
from distill.data.frames import FrameSet
from distill.errors import first_few
from distill.evaluation.protocol import OWN, PROTOCOLS, Protocol
from distill.records import json_sha256

SHOWN = 12  # digits of a fingerprint in reports and errors
ADVICE = f"to evaluate on videos of your own use --protocol {OWN}"


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


class GalleryState(Config):
    """A frame set's gallery beside a protocol's. `complete` is None where the protocol has no fingerprint."""

    videos: int
    captions: int
    complete: bool | None
    missing: int  # expected minus present, at least 0
    unusable: tuple[str, ...]  # videos that packing had to leave out
    words: str  # the comparison as a sentence


def gallery_state(name: str, frames: FrameSet) -> GalleryState:
    """Compare `frames` with the gallery of the protocol `name`: whether it is whole, and if not, what differs."""
    protocol, videos = PROTOCOLS[name], len(frames)
    captions = len(frames.videos.texts)
    unusable = tuple(note["video"] for note in frames.manifest.notes)
    odd = _of_another_form(protocol, frames)
    if odd:
        complete, words = False, f"another gallery: {odd}; {ADVICE}"
    else:
        complete, words = _compare(protocol, fingerprint(captions_of(frames)), videos, captions, unusable)
    missing = max(0, protocol.size[0] - videos) if protocol.size else 0
    return GalleryState(
        videos=videos, captions=captions, complete=complete, missing=missing, unusable=unusable, words=words
    )


def _of_another_form(protocol: Protocol, frames: FrameSet) -> str:
    """Return the first video id or caption that the protocol cannot have, as words; "" if there is none."""
    for video in frames.videos:
        if not re.search(protocol.video_form, video.id):
            return f"its first other video id is {video.id!r}, expected {protocol.gallery}"
        for caption in video.captions:
            if not re.search(protocol.caption_form, caption.text):
                return f"its first other caption is {caption.text!r} (video {video.id}), expected {protocol.queries}"
    return ""


def _compare(
    protocol: Protocol, digest: str, videos: int, captions: int, unusable: Sequence[str]
) -> tuple[bool | None, str]:
    plural = "" if len(unusable) == 1 else "s"
    lost = f"{len(unusable):,} video{plural} could not be packed ({first_few(unusable)})" if unusable else ""
    if protocol.fingerprint == digest:
        return True, "complete: the videos and captions are exactly those of the official files"
    if protocol.size is None:  # the user's own set, or the demo, whose size the user chooses
        return not unusable, f"incomplete: {lost}" if unusable else "complete: every video of its file was packed"
    all_videos, all_captions = protocol.size
    if videos < all_videos:
        missing = all_videos - videos
        known = lost or "the annotation file that was packed did not name them"
        advice = f"; {ADVICE}" if missing > len(unusable) else ""  # else it is the official file
        return False, f"incomplete: {missing:,} of {all_videos:,} videos are missing; {known}{advice}"
    if videos > all_videos:
        return False, f"another gallery: {videos:,} videos, where the protocol has {all_videos:,}; {ADVICE}"
    same = captions == all_captions
    queries = "" if same else f", but {captions:,} captions, where the protocol has {all_captions:,}"
    if protocol.fingerprint is None:
        unknown = "whether they are the right ones is not known here"
        return None, f"{videos:,} videos as in the protocol{queries}; {unknown}; {ADVICE}"
    other = queries or ", but other ids or other captions"
    return False, f"differs from the official files: {videos:,} videos as there{other}; {ADVICE}"
