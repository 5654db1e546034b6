"""A gallery: vectors and tokens of a set of videos, sealed with the release that made them, ready to be searched.

It is a folder (distill/retrieval/generation.py) of segments (distill/retrieval/segment.py), whose rows are one table
(distill/retrieval/table.py). It is opened with its release, which encodes the queries. A deleted row keeps its number
until the gallery is compacted.

One-stage models rank by the inner products of their vectors. Two-stage models (`rerank_fields`) retrieve candidates by
inner product, then rerank them with the full score, from their tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest
from distill.model.features import VideoFeatures
from distill.ranking.executor import of_parts, of_texts
from distill.ranking.two_stage import best_of
from distill.retrieval import generation
from distill.retrieval.calibration import AMONG, SPARE
from distill.retrieval.encoder import Encoder
from distill.retrieval.moment import best_moment
from distill.retrieval.segment import Segment, StoredVideo
from distill.retrieval.stored import damaged
from distill.retrieval.table import Table

CANDIDATES = 200  # videos to rerank: 99 % of the best ten in 10,000 are among them (tools/bench_retrieval.py)


@dataclass(frozen=True)
class Hit:
    """One answer: a video, how well it matches, and when. Seconds are those of the file."""

    video: str  # id
    source: str  # the file, inside the video folder where the gallery knows it
    score: float  # the model's
    seconds: tuple[float, float]  # the moment with the highest frame weights
    duration: float  # of the file
    timestamps: tuple[float, ...]  # of the frames that the model saw
    weights: tuple[float, ...]  # of these frames; padding, if the model pools it too, has the rest of 1
    span: tuple[float, float] | None  # seconds of the file that this row stands for; None: the whole file


@dataclass(frozen=True)
class CaptionHit:
    """One answer of `search_captions`: a stored caption, the video that it was said of, and how well it matches."""

    caption: str  # id
    text: str
    video: str  # id
    score: float


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
        release: Encoder,
        known: Mapping[str, Segment] | None = None,
        videos: Path | None = None,
    ):
        check_release(path, manifest, release)
        self.path, self.manifest, self.release = path, manifest, release
        self._stamp: tuple[int, ...] | None = None  # of the manifest's file, when it was last found to be current
        device = next(release.model.parameters(), torch.empty(0)).device
        self.table = Table(path, manifest, device, known, videos)

    @classmethod
    def open(cls, path: str | Path, release: Encoder, videos: Path | None = None) -> "Gallery":
        """Opens the current generation. Files are mapped, not read: a million videos open in milliseconds.

        `videos` is the folder of the video files, if they are not where the gallery remembers them.
        Raises `ArtefactError` for a folder that is no gallery, is damaged, or was made by another release,
        `ExpectedError` if `videos` is no folder.
        """
        if videos is not None and not videos.is_dir():
            raise ExpectedError(f"--videos {videos}: no such folder; give the one that holds the video files")
        return cls._open(Path(path), release, {}, videos)

    @classmethod
    def _open(cls, path: Path, release: Encoder, known: Mapping[str, Segment], videos: Path | None) -> "Gallery":
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
        return path if path.resolve().is_relative_to(folder.resolve()) else None

    def poster(self, video: str) -> bytes | None:
        """Return the small picture of a video, a JPEG of the frame that weighs most; None where there is none."""
        row = self.row(video)
        return None if row is None else self.table.poster(row) or None

    @torch.inference_mode()
    def search(
        self,
        queries: Sequence[str],
        k: int,
        candidates: int | None = None,
        *,
        exact: bool = False,
        calibrated: bool = True,
    ) -> list[list[Hit]]:
        """Return the `k` best videos for each query, best first; among equal scores the lower row.

        Where tokens are stored, `candidates` videos (default `CANDIDATES`, at least `k`) are reranked by full score.
        A gallery with a calibration answers in its order, unless `calibrated` is False; scores stay similarities.
        `exact` compares with every vector even where there is an approximate index, and scores candidates in full.
        Raises `ExpectedError` for an empty query, `k` or `candidates` below 1, and `candidates` where nothing reranks.
        """
        self._check_asked(k, candidates)
        if not all(query.strip() for query in queries):
            raise ExpectedError("empty query; say in a few words what the video shows")
        if not queries or not len(self):
            return [[] for _ in queries]
        text = self.release.encode_text(queries)
        vectors = self.release.model.query_vectors(text).cpu()
        calibration = self.table.calibration if calibrated else None
        if calibration is not None:
            among = max(AMONG, SPARE * k)
            return self._hits(*calibration.best(*self.table.nearest(vectors, among, exact=exact), k))
        if not self.reranks:
            return self._hits(*self.table.nearest(vectors, k, exact=exact))
        model = self.release.model
        parts = of_parts(model, text, self.table.tokens)
        if exact:
            parts = [(of_texts(model.similarity, text, self.table.tokens(model.rerank_fields)), 1)]
        chosen = self.table.nearest(vectors, max(k, candidates or CANDIDATES), exact=exact, candidates=True)[1]
        return self._hits(*best_of(parts, chosen, k))

    @torch.inference_mode()
    def like(self, video: str | Path | VideoFeatures, k: int) -> list[Hit]:
        """Return the `k` videos most like a video: an id of this gallery, a file, or features (one row) of the release.

        Scores are inner products of vectors, for two-stage models too, whose full score needs a text. A video given by
        id is left out of its own answer, and so are other spans of its file.
        Raises `ExpectedError` for an unknown id, `VideoError` for a file that cannot be read.
        """
        self._check_asked(k, None)
        _, vector, own = self._asking(video)
        scores, rows = self.table.nearest(vector, k + len(own))
        others = [place for place, row in enumerate(rows[0].tolist()) if row not in own][:k]
        return self._hits(scores[:, others], rows[:, others])[0]

    @torch.inference_mode()
    def search_captions(
        self, video: str | Path | VideoFeatures, k: int, candidates: int | None = None
    ) -> list[CaptionHit]:
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
            model = self.release.model
            stored = self.table.tokens(model.rerank_fields)
            asking = stored[torch.tensor(own[:1])] if features is None else features

            def pairs(videos: Tensor, captions: Tensor) -> Tensor:
                said = [self.table.caption(number)[0]["text"] for number in captions.tolist()]
                some = (said[start : start + CANDIDATES] for start in range(0, len(said), CANDIDATES))
                return torch.cat([model.similarity(self.release.encode_text(text), asking[videos]) for text in some]).T

            scores, found = best_of([(pairs, 1)], found, k)
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

    def _hits(self, scores: Float[Tensor, "query k"], rows: Int64[Tensor, "query k"]) -> list[list[Hit]]:
        self._check_scores(scores)
        answers = zip(scores.tolist(), rows.tolist(), strict=True)
        return [[self._hit(row, score) for score, row in zip(*answer, strict=True)] for answer in answers]

    def _hit(self, row: int, score: float) -> Hit:
        part, own = self.table.place(row)
        about, weights = part.about[own], part.frame_weights[own].tolist()
        if not 0 < len(about["timestamps"]) <= len(weights) or not all(math.isfinite(weight) for weight in weights):
            raise damaged(part.folder, f"frame weights of {about['id']!r} are missing or not finite")
        timestamps, duration, span = about["timestamps"], about["duration"], about.get("span")
        folder = self.table.folder(about)
        begin, end = span or (0.0, duration)
        return Hit(
            video=about["id"],
            source=about["source"] if folder is None else str(folder / about["source"]),
            score=score,
            seconds=best_moment(weights, timestamps, end, begin),
            duration=duration,
            timestamps=tuple(timestamps),
            weights=tuple(weights[: len(timestamps)]),
            span=None if span is None else (begin, end),
        )

    def _check_scores(self, scores: Float[Tensor, "query k"]) -> None:
        """Refuse scores that are not finite: opening a gallery reads no vectors, so damage may show only here."""
        if not scores.isfinite().all():
            raise damaged(self.path, "a score is not finite: tools/gallery.py verify finds the file")

    def _asking(
        self, video: str | Path | VideoFeatures
    ) -> tuple[VideoFeatures | None, Float[Tensor, "1 dim"], list[int]]:
        """Return a video's features (None for an id), its vector, and the rows of the same file, its own row first."""
        if not isinstance(video, str):
            features = self.release.encode_video(video) if isinstance(video, Path) else video
            return features, self.release.model.index_vectors(features).cpu(), []
        row = self.row(video)
        if row is None:
            raise ExpectedError(f"{self.path}: has no video {video!r}; give an id that it has, or the path of a file")
        about = self.about(row)
        others = set(self.table.find(about.get("file", about["id"]))) - {row}
        return None, self.table.vectors(torch.tensor([row])), [row, *others]

    def _check_asked(self, k: int, candidates: int | None) -> None:
        if k < 1:
            raise ExpectedError(f"k: {k}, expected the number of videos to show, at least 1")
        if candidates is not None and not self.reranks:
            raise ExpectedError(
                f"candidates: {self.path} holds one vector per video and nothing to rerank; leave it out"
            )
        if candidates is not None and candidates < 1:
            raise ExpectedError(f"candidates: {candidates}, expected the number of videos to rerank, at least 1")


def check_release(path: Path, manifest: Manifest, release: Encoder) -> None:
    """Raise `ArtefactError` for a release that did not make the gallery."""
    found, expected = release.manifest.id, manifest.parents["release"]
    if found != expected:
        raise ArtefactError(
            f"{path}: made by release {expected[:12]}, but {release.path} is {found[:12]}; "
            "open it with its own release or run tools/index.py again"
        )
