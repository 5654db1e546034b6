"""Protocols: what exactly is searched for in what, under a name, with a fingerprint that says whether it really was.

A frame set stands for one split: its videos are the gallery, its captions are the queries. In every protocol here

* text-to-video (T2V): every caption is a query, and its own video alone is a hit;
* video-to-text (V2T): every video is a query, its captions are one group that scores by its best member, and the group
  of the video itself alone is a hit.

A gallery that lost videos (files that could not be had or read) is easier than the whole one, and captions that were
cut, joined or chosen otherwise make another task. So the fingerprint is a hash of all video ids and of all (video,
caption) pairs, whatever their order and their captions' ids, and two results may be compared only if their fingerprints
agree. Those in the table were computed from the files that each data set is published with, as `distill/data` reads
them: captions and sentences stripped of white space at both ends, repeated captions kept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distill.data.frames import FrameSet
from distill.errors import first_few
from distill.records import json_sha256

SHOWN = 12  # digits of a fingerprint that people see


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One test: data set and split, its gallery and its queries. None is what is not fixed or not known here."""

    split: str  # data set and split
    gallery: str  # where the ids of the videos come from
    queries: str  # what a caption is
    videos: int | None  # in the gallery
    captions: int | None  # queries of T2V
    fingerprint: str | None  # of the official files


PROTOCOLS: dict[str, Protocol] = {
    "msrvtt-1ka": Protocol(
        split="MSR-VTT, 1k-A test (JSFusion)",
        gallery="video_id in MSRVTT_JSFUSION_test.csv",
        queries="one sentence a video, from the same file",
        videos=1000,
        captions=1000,
        fingerprint="cf616601531ffdcd399195b70596c5eaab19cee655a0f5e391f5def2a8bc4d2b",
    ),
    "msrvtt-full": Protocol(
        split="MSR-VTT, official test",
        gallery="the 2,990 ids of split test in MSRVTT_data.json",
        queries="the twenty sentences of each video there",
        videos=2990,
        captions=59800,
        fingerprint=None,
    ),
    "msvd": Protocol(
        split="MSVD, test",
        gallery="ids in test_list.txt",
        queries="all captions of each video in captions_msvd.json, repeats too",
        videos=670,
        captions=27763,
        fingerprint="734d9ffb2389e6ccd6df05b908d9bcb54263259026b9b8b735feeef6bae95e5d",
    ),
    "vatex-hgr": Protocol(
        split="VATEX, test as split by HGR",
        gallery="the 1,500 ids of HGR's test list, which are of the official validation set",
        queries="the ten English captions of each video",
        videos=1500,
        captions=15000,
        fingerprint=None,
    ),
    "lsmdc-1k": Protocol(
        split="LSMDC, public test of the 2016 challenge",
        gallery="clips in LSMDC16_challenge_1000_publictect.csv",
        queries="one sentence a clip, from the same file",
        videos=1000,
        captions=1000,
        fingerprint="23fc32f167903348a68dca67541a5e655a3c2a2e83333931462395c490fa2f2f",
    ),
    "activitynet-val1": Protocol(
        split="ActivityNet Captions, val_1",
        gallery="all ids in val_1.json",
        queries="one paragraph a video: its sentences, joined by one space",
        videos=4917,
        captions=4917,
        fingerprint="bf604697010363cfb9f06126c8f664bde9273b5053f15051b1aba0e38d845a4c",
    ),
    "didemo-para": Protocol(
        split="DiDeMo, test",
        gallery="videos in test_data.json, by file name without extension (1,037 names with it)",
        queries="one paragraph a video: its descriptions in the order of the file, joined by one space",
        videos=1004,
        captions=1004,
        fingerprint="0ec1f283ce310bacb4d0e7430910a05c473d1285766bd8d055ec5051c4a6391b",
    ),
    "demo": Protocol(
        split="emoji in motion, test",
        gallery="videos in the test.csv that tools/make_demo.py writes, as many as it was asked for",
        queries="all captions of each video in MSRVTT_data.json beside it",
        videos=None,
        captions=None,
        fingerprint=None,
    ),
}


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
