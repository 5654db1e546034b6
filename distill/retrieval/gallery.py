"""A gallery: vectors and tokens of a set of videos, sealed with the release that made them, ready to be searched.

It is a folder (distill/retrieval/generation.py) of segments (distill/retrieval/segment.py), whose rows are one table
(distill/retrieval/table.py). It is opened with its release, which encodes the queries, or with the text side of its
release alone, which needs no PyTorch (distill/retrieval/backend.py). A deleted row keeps its number until the gallery
is compacted.

One-stage models rank by the inner products of their vectors. Two-stage models (`rerank_fields`) retrieve candidates by
inner product, then rerank them with the full score, from their tokens.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest
from distill.retrieval import generation
from distill.retrieval.backend import Asked, backend_of, check_made_by
from distill.retrieval.columns import damaged
from distill.retrieval.finding import CANDIDATES, Finding
from distill.retrieval.hits import CaptionHit, Hit, enough_files, fitted, grouped, hits_of
from distill.retrieval.segment import Segment, StoredVideo, file_of
from distill.retrieval.table import Table
from distill.retrieval.vectors import Answer
from distill.retrieval.where import Where

Find = Callable[[int], Answer]  # so many best rows of every query
Asking = Any  # an id of a gallery (str), a file (Path), or features of the release (`VideoFeatures`)


class Gallery:
    """An open gallery and the release that encodes its queries.

    It keeps the generation that it was opened with, whatever others add or delete; `refreshed` returns the newest.
    Searching is safe from several threads at once.

        gallery = distill.retrieval.Gallery.open("gallery", distill.release.load("runs/student/release"))
        for hit in gallery.search(["a red star falls"], k=5)[0]:
            print(hit.score, hit.source, hit.seconds)
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        release: Any,
        known: Mapping[str, Segment] | None = None,
        videos: Path | None = None,
    ):
        self.path, self.manifest, self.release, self.backend = path, manifest, release, backend_of(release)
        check_made_by(path, manifest, self.backend.path, self.backend.id)
        self._stamp: tuple[int, ...] | None = None  # of the manifest's file, when it was last found to be current
        self.table = Table(path, manifest, known, videos, self.backend.searched)
        self.backend.check(self.table)

    @classmethod
    def open(cls, path: str | Path, release: Any, videos: Path | None = None) -> "Gallery":
        """Opens the current generation. Files are mapped, not read: a million videos open in milliseconds.

        `release` is a `Release`, or another `Encoder`; or a `TextSession` of an exported release, which answers queries
        without PyTorch and refuses what distill/retrieval/backend.py says.
        `videos` is the folder of the video files, if they are not where the gallery remembers them.
        Raises `ArtefactError` for a folder that is no gallery, is damaged, or was made by another release,
        `ExpectedError` if `videos` is no folder.
        """
        if videos is not None and not videos.is_dir():
            raise ExpectedError(f"--videos {videos}: no such folder; give the one that holds the video files")
        return cls._open(Path(path), release, {}, videos)

    @classmethod
    def _open(cls, path: Path, release: Any, known: Mapping[str, Segment], videos: Path | None) -> "Gallery":
        stamp = generation.stamp(path)  # before the manifest is read: a newer one then has another stamp
        try:
            gallery = generation.opened(path, lambda manifest: cls(path, manifest, release, known, videos))
        except OSError as error:
            raise ArtefactError(f"{path}: cannot be opened: {error}; restore it or index again") from None
        gallery._stamp = stamp
        return gallery

    def refreshed(self) -> "Gallery":
        """Return the newest generation: this object if nothing changed; unchanged segments are not opened again."""
        stamp = generation.stamp(self.path)
        if stamp is not None and stamp == self._stamp:
            return self
        if generation.current(self.path, self.manifest):
            self._stamp = stamp
            return self
        return self._open(self.path, self.release, self.table.segments, self.table.videos)

    def __len__(self) -> int:
        return self.manifest.counts["videos"]

    def __contains__(self, video: str) -> bool:
        return self.row(video) is not None

    def row(self, video: str) -> int | None:
        """Return the row of a video by its id; None if it is not here or was deleted."""
        return next((row for row in self.table.find(video) if self.about(row)["id"] == video), None)

    def about(self, row: int) -> StoredVideo:
        """Return a row's `id`, `source`, `timestamps`, `duration` (seconds); for a span also `file` and `span`."""
        return self.table.about(row)

    def file(self, video: str) -> Path | None:
        """Return the file of a video, by its id or its file's; None where the gallery knows neither video nor folder.

        Never returns a file outside that folder, wherever a link or a damaged gallery points.
        """
        rows = self.table.find(video)
        folder = self.table.folder(self.about(rows[0])) if rows else None
        if folder is None:
            return None
        path = folder / self.about(rows[0])["source"]
        real = Path(os.path.realpath(path))  # of a link that leads back to itself, where `Path.resolve` raises
        return path if real.is_relative_to(os.path.realpath(folder)) else None

    def poster(self, video: str) -> bytes | None:
        """Return the small picture of a video, a JPEG of the frame that weighs most; None where there is none."""
        row = self.row(video)
        return None if row is None else self.table.poster(row) or None

    def search(
        self,
        queries: Sequence[str],
        k: int,
        candidates: int | None = None,
        *,
        exact: bool = False,
        calibrated: bool = True,
        second_look: bool = False,
        by_file: bool = False,
        where: Where | None = None,
    ) -> list[list[Hit]]:
        """Return the `k` best videos for each query, best first; among equal scores the lower row.

        Where tokens are stored, `candidates` videos (default `CANDIDATES`, at least `k`) are reranked by full score.
        With `second_look` they are reranked by their frames (distill/model/second_look.py), whose score is then the
        hits'. Otherwise a gallery with a calibration answers in its order, unless `calibrated` is False; scores stay
        similarities. `exact` compares with every vector even where there is an approximate index, and scores candidates
        in full. With `by_file` the spans of a cut file are one hit. Videos that do not fit `where` count as deleted.
        Raises `ExpectedError` for an empty query, `k` or `candidates` below 1, `candidates` where nothing reranks, and
        `second_look` where the release has none or the gallery no frames.
        """
        self._check_asked(k, candidates, second_look)
        if not all(query.strip() for query in queries):
            raise ExpectedError("empty query; say in a few words what the video shows")
        rows = None if where is None else self.table.fitting(where)
        if not queries or not len(self) or (rows is not None and not len(rows)):
            return [[] for _ in queries]
        asked = self.backend.asked(queries)
        nearest = partial(self.table.nearest, exact=exact, rows=rows)
        rerank = self.backend.rerank(self.table, asked, exact=exact, second_look=second_look)
        find = Finding(asked.vectors, nearest, self.table.calibration, rerank, candidates, in_its_order=calibrated)
        return fitted(self._answers(asked, find, k, by_file), find.fits())

    def _answers(self, asked: Asked | None, find: Find, k: int, by_file: bool) -> list[list[Hit]]:
        """Return hits for the `k` best rows, or `by_file` for the `k` best files, each with its best spans."""
        if not (by_file and self.table.has_spans):
            return self._hits(asked, *find(k))
        found, files = enough_files(self.table, find, k)
        return [grouped(zip(*pair, strict=True), k) for pair in zip(files, self._hits(asked, *found), strict=True)]

    def like(self, video: Asking, k: int, *, by_file: bool = False, where: Where | None = None) -> list[Hit]:
        """Return the `k` videos most like a video: an id of this gallery, a file, or features (one row) of the release.

        Scores are inner products of vectors, for two-stage models too, whose full score needs a text. A video given by
        id is left out of its own answer, and so are other spans of its file; `by_file` and `where` as in `search`.
        Raises `ExpectedError` for an unknown id, `VideoError` for a file that cannot be read.
        """
        self._check_asked(k, None)
        _, vector, own = self._asking(video)
        meant = None if where is None else self.table.fitting(where)

        def find(asked: int) -> Answer:
            scores, rows = self.table.nearest(vector, asked + len(own), rows=meant)
            others = [place for place, row in enumerate(rows[0].tolist()) if row not in own][:asked]
            return scores[:, others], rows[:, others]

        return self._answers(None, find, k, by_file)[0]

    def search_captions(self, video: Asking, k: int, candidates: int | None = None) -> list[CaptionHit]:
        """Return the `k` stored captions that match a video best; `video` as in `like`.

        Where the model reranks, `candidates` captions are reranked by its full score. Their texts are encoded again for
        that, because only their vectors are stored; on a CPU this is the slow part.
        Raises `ExpectedError` where no captions are stored.
        """
        self._check_asked(k, candidates)
        if not any(part.captions for part in self.table.parts):
            raise ExpectedError(f"{self.path}: has no captions; index a frame set with --captions to search them")
        features, vector, own = self._asking(video)
        scores, found = self.table.nearest_captions(vector, max(k, candidates or CANDIDATES) if self.reranks else k)
        if self.reranks:
            scores, found = self.backend.rerank_captions(self.table, features, own, found, k)
        self._check_scores(scores)
        hits = []
        for score, number in zip(scores[0].tolist(), found[0].tolist(), strict=True):
            said, row = self.table.caption(number)
            hits.append(CaptionHit(said["id"], said["text"], self.about(row)["id"], score))
        return hits

    @property
    def reranks(self) -> bool:
        """Whether searching has a second stage."""
        return bool(self.table.config.tokens)

    @property
    def no_second_look(self) -> str:
        """Why no second look can be taken, as words; "" if it can."""
        if self.reranks:
            return f"{self.release.path} searches in two stages already; leave it out"
        return self.backend.no_second_look(self.table)

    @property
    def answers_in_frames(self) -> bool:
        """Whether the frames of a hit are weighed by the query."""
        return self.backend.weighs(self.table)

    def _hits(
        self, asked: Asked | None, scores: Float32[np.ndarray, "query k"], rows: Int64[np.ndarray, "query k"]
    ) -> list[list[Hit]]:
        self._check_scores(scores)

        def weigh(query: int, found: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k frame"] | None:
            return None if asked is None else self.backend.weights(self.table, asked, query, found)

        return hits_of(self.table, weigh, scores, rows)

    def _check_scores(self, scores: Float32[np.ndarray, "query k"]) -> None:
        """Refuse scores that are not finite: opening a gallery reads no vectors, so damage may show only here."""
        if not np.isfinite(scores).all():
            raise damaged(self.path, "a score is not finite: tools/gallery.py verify finds the file")

    def _asking(self, video: Asking) -> tuple[Any, Float32[np.ndarray, "1 dim"], list[int]]:
        """Return a video's features (None for an id), its vector, and the rows of the same file, its own row first."""
        if not isinstance(video, str):
            return *self.backend.video(video), []
        row = self.row(video)
        if row is None:
            raise ExpectedError(f"{self.path}: has no video {video!r}; give an id that it has, or the path of a file")
        about = self.about(row)
        others = set(self.table.find(file_of(about))) - {row}
        return None, self.table.vectors(np.array([row])), [row, *others]

    def _check_asked(self, k: int, candidates: int | None, second_look: bool = False) -> None:
        if k < 1:
            raise ExpectedError(f"k: {k}, expected the number of videos to show, at least 1")
        if second_look and (reason := self.no_second_look):
            raise ExpectedError(f"second look: {reason}")
        if candidates is not None and not (self.reranks or second_look):
            if not self.no_second_look:
                raise ExpectedError("candidates: they are what a second look reranks; take one too, or leave them out")
            raise ExpectedError(
                f"candidates: {self.path} holds one vector per video and nothing to rerank; leave it out"
            )
        if candidates is not None and candidates < 1:
            raise ExpectedError(f"candidates: {candidates}, expected the number of videos to rerank, at least 1")
