"""Searches as the server does them: in the newest generation of the gallery, and with words that clients may read."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.errors import ExpectedError
from distill.retrieval.gallery import Gallery
from distill.retrieval.hits import Hit
from distill.retrieval.where import Where
from distill.serving import limits
from distill.serving.guard import Refused
from distill.serving.messages import About, Answer, Browse, Folder, Found, Listed, Listing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manner:
    """How to search. Requests that differ in it are not searched together."""

    k: int
    where: Where
    spans: bool = False  # rank spans one by one, not under their file
    like: bool = False  # ids of videos ask, not words
    candidates: int | None = None
    second_look: bool | None = None  # None: as the server was started


def _narrowed(where: Where) -> Where | None:
    """Return filters for a search, which takes less time without any."""
    return None if where == Where() else where


def _among(gallery: Gallery, manner: Manner) -> int:
    """Return how many files, or spans, fit the filters."""
    return len(gallery.table.fitting(manner.where) if manner.spans else gallery.table.files(manner.where))


def _why_not(gallery: Gallery) -> str:
    """Return why no second look can be taken, without the paths of this machine."""
    reason = gallery.no_second_look
    for path, name in ((gallery.path, "this gallery"), (gallery.release.path, "its release")):
        if reason.startswith(f"{path} "):
            return name + reason.removeprefix(str(path))
    return reason


def _looks_again(gallery: Gallery, manner: Manner, by_default: bool) -> bool:
    """Return whether a search takes a second look; raise `Refused` for what this gallery cannot do."""
    asked = manner.second_look
    if manner.like and (asked or manner.candidates is not None):
        field = "second_look" if asked else "candidates"
        raise Refused(409, f"{field}: videos like a video are found by one vector; leave it out")
    if asked and (reason := _why_not(gallery)):
        raise Refused(409, f"second_look: {reason}")
    looks = not manner.like and not gallery.no_second_look and (by_default if asked is None else asked)
    if manner.candidates is not None and not gallery.reranks and not looks:
        if not gallery.no_second_look:
            raise Refused(409, "candidates: they are what a second look reranks; ask for second_look too")
        raise Refused(409, "candidates: this gallery keeps one vector per video and nothing to rerank by; leave it out")
    return looks


def _like(gallery: Gallery, asking: Any, manner: Manner, among: int, name: str) -> Answer:
    hits = gallery.like(asking, manner.k, by_file=not manner.spans, where=_narrowed(manner.where))
    return _answer(gallery, name, hits, among, cut=False)


def _answer(gallery: Gallery, query: str, hits: Sequence[Hit], among: int, *, cut: bool) -> Answer:
    fits = hits[0].fits if hits else None
    return Answer(query=query, cut=cut, among=among, fits=fits, hits=[Found.of_hit(hit, gallery) for hit in hits])


class Newest:
    """The newest generation of the gallery, or the former one where that cannot be read. Any thread may call it."""

    def __init__(self, gallery: Gallery):
        self._gallery, self._lock, self._complaint = gallery, threading.Lock(), ""

    def __call__(self) -> Gallery:
        with self._lock:
            try:
                self._gallery, self._complaint = self._gallery.refreshed(), ""
            except (ExpectedError, OSError) as error:
                if str(error) != self._complaint:  # log once, not with every request
                    log.error("the gallery changed and cannot be read, so its former state is served: %s", error)
                self._complaint = str(error)
            return self._gallery


class Searches:
    """The searches of a server. Any thread may ask."""

    def __init__(self, newest: Newest, second_look: bool):
        """With `second_look`, searches take one unless they say otherwise, where the gallery allows it."""
        self._newest, self._second_look = newest, second_look
        newest().table.files(Where())  # reads what filters need, so that no request waits for it

    def __call__(self, asked: Sequence[str], manner: Manner) -> list[Answer | Refused]:
        """Return the answer to each query, or to each id; an unknown id is refused alone.

        Raises `Refused` for what this gallery cannot do.
        """
        gallery = self._newest()
        look, among = _looks_again(gallery, manner, self._second_look), _among(gallery, manner)
        if manner.like:
            return [
                _like(gallery, video, manner, among, video)
                if video in gallery
                else Refused(404, "like: this gallery has no such video")
                for video in asked
            ]
        options = {"second_look": look, "by_file": not manner.spans, "where": _narrowed(manner.where)}
        found = gallery.search(asked, manner.k, manner.candidates, **options)
        pairs, tokenizer = zip(asked, found, strict=True), gallery.release.tokenizer
        return [_answer(gallery, query, hits, among, cut=tokenizer.is_cut(query)) for query, hits in pairs]

    @property
    def release(self) -> Any:
        """The release that encodes the files that clients ask by; raises `Refused` where none can be encoded."""
        gallery = self._newest()
        if not gallery.backend.reads_videos:
            raise Refused(
                409, "this server encodes words alone, and no files to search by; ask in words, or by a video"
            )
        return gallery.release

    def by_pixels(self, pixels: np.ndarray, manner: Manner) -> Answer:
        """Return the videos most like a picture or a clip, which `uploads.decoded` has decoded."""
        gallery = self._newest()
        asking = gallery.release.encode_video(pixels)
        return _like(gallery, asking, manner, _among(gallery, manner), "")

    def browse(self, page: Browse, where: Where) -> Listing:
        """Return a page of the list of videos; places stay as they are until the gallery is compacted."""
        gallery = self._newest()
        files = gallery.table.files(where)
        left = files[files > page.after]
        rows = left[: page.k].tolist()
        videos = [Listed.of(row, gallery) for row in rows]
        return Listing(videos=videos, total=len(files), after=rows[-1] if len(rows) < len(left) else None)

    def about(self, examples: Sequence[str]) -> About:
        """Return what the page shows before the first search."""
        gallery = self._newest()
        largest = gallery.table.folder_sizes.most_common(limits.MAX_FOLDERS)
        return About(
            videos=len(gallery),
            files=len(gallery.table.files(Where())),
            folders=[Folder(path=path, videos=videos) for path, videos in sorted(largest)],
            examples=list(examples),
            weighed_by="query" if gallery.answers_in_frames else "video",
            second_look=not gallery.no_second_look,
            no_second_look=_why_not(gallery),
            max_file=limits.MAX_FILE if gallery.backend.reads_videos else 0,
        )
