"""A gallery's rows as one table: numbered over its segments in order, found by id, read, and searched by vector.

A deleted row keeps its number until the gallery is compacted; nothing here gives it out.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from distill.data.videos import StoredCaption
from distill.errors import ArtefactError
from distill.manifest import Manifest
from distill.retrieval import generation, places
from distill.retrieval.approximate import Approximate
from distill.retrieval.calibration import Calibration
from distill.retrieval.columns import damaged
from distill.retrieval.frames import NONE
from distill.retrieval.segment import VECTORS, Segment, StoredVideo
from distill.retrieval.vectors import Answer, Searched, Vectors, among, best, nearest, nearest_of
from distill.retrieval.where import Where

NONE_YET = np.zeros(0, np.int64)  # a gallery without videos may have no segment
FEW = 3  # times as few rows are copied to be compared; where it is more, reading all of them takes less time
ROUNDED = 0.05  # by which the length of a stored vector may differ from 1; int8 takes some 0.001 at 512 numbers


class Table:
    """The rows of one generation, mapped. Segments in `known` are not opened again.

    Vectors are searched as `searched` has them: by numpy, or by PyTorch (distill/retrieval/products.py).
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        known: Mapping[str, Segment] | None = None,
        videos: Path | None = None,
        searched: Callable[[Vectors], Searched] = lambda vectors: vectors,
    ):
        self.path, self.videos = path, videos
        old = known or {}
        names = generation.segments(manifest)
        self.segments = {name: old.get(name) or Segment(path / generation.SEGMENTS / name) for name in names}
        self.deleted: Int64[np.ndarray, " row"] = generation.deleted_rows(path, manifest)
        self.parts = list(self.segments.values())
        self.bases = np.cumsum([0, *(len(part) for part in self.parts)])  # first rows, and the end
        self.searched = [searched(part.vectors) for part in self.parts]
        self.said = [searched(part.captions.vectors) for part in self.parts if part.captions is not None]
        self.config = generation.known(manifest)
        self.folders = [places.found(path, manifest, folder) for folder in self.config.folders]
        self._check(path, manifest, names)
        facts = manifest.config.get(generation.APPROXIMATE)
        self.approximate = None if facts is None else Approximate(path / facts["file"], facts, manifest.counts["dim"])
        facts = manifest.config.get(generation.CALIBRATION)
        self.calibration = None if facts is None else Calibration(path / facts["file"], facts)

    def _check(self, path: Path, manifest: Manifest, names: Mapping[str, int]) -> None:
        """Whether the segments fit the manifest and one another."""
        for name, part in self.segments.items():
            dim, tokens = part.vectors.stored.shape[1], set(part.tokens or ())
            if (len(part), dim) != (names[name], manifest.counts["dim"]):
                expected = f"{names[name]} rows of {manifest.counts['dim']}"
                raise damaged(part.folder, f"{len(part)} rows of {dim} numbers, expected {expected}")
            if tokens != set(self.config.tokens):
                raise damaged(part.folder, f"tokens {sorted(tokens)}")
            if (part.frames is None) != (self.config.stored_frames == NONE):
                raise damaged(part.folder, f"frames {'are missing' if part.frames is None else 'are not expected'}")
        if len(self.deleted) and not 0 <= self.deleted[0] <= self.deleted[-1] < len(self):
            raise damaged(path, f"row {int(self.deleted[-1])} of {len(self)} is deleted")
        if len(self) - len(self.deleted) != manifest.counts["videos"]:
            raise damaged(path, f"{len(self)} rows, {len(self.deleted)} deleted, {manifest.counts['videos']} videos")

    def __len__(self) -> int:
        return int(self.bases[-1])

    def rows(self) -> Int64[np.ndarray, " row"]:
        """All rows that are not deleted, ascending."""
        everything = np.arange(len(self))
        return everything[~among(everything, self.deleted)]

    def live(self) -> Iterator[tuple[Segment, Int64[np.ndarray, " row"]]]:
        """Each segment, and its own numbers of the rows that are not deleted."""
        for base, part in self.based():
            own = np.arange(len(part))
            yield part, own[~among(own + base, self.deleted)]

    def find(self, name: str) -> list[int]:
        """The rows of a video or, where a file was cut, of all its spans; by the id of the video or of the file."""
        found = np.array([base + row for base, part in self.based() for row in part.find(name)], np.int64)
        return found[~among(found, self.deleted)].tolist()

    def about(self, row: int) -> StoredVideo:
        """Return what is stored of a row."""
        part, own = self.place(row)
        return part.about[own]

    @property
    def has_spans(self) -> bool:
        """Whether files were cut, so that one may have several rows."""
        return any("seconds" in made for made in self.config.made_of)

    @property
    def has_posters(self) -> bool:
        """Whether a poster is kept of any row."""
        return any(part.posters is not None for part in self.parts)

    def poster(self, row: int) -> bytes:
        """Return the JPEG that is kept of a row; nothing if there is none."""
        part, own = self.place(row)
        return part.poster(own)

    def folder(self, about: StoredVideo) -> Path | None:
        """Return the folder of the file of a row, if it is known.

        It is `videos`, unless the file is not there but where the gallery remembers it.
        """
        number = about.get("folder")
        if number is None:
            return self.videos
        if not 0 <= number < len(self.folders):
            raise ArtefactError(f"{self.path}: row {about['id']!r} names no video folder of it; index again")
        remembered, source = self.folders[number], about["source"]
        if self.videos is None or (not (self.videos / source).exists() and (remembered / source).exists()):
            return remembered
        return self.videos

    def vectors(self, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row dim"]:
        """The stored vectors of some rows."""
        return self.gather(rows, lambda part, own: part.vectors[own])

    def sound_vectors(self, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row dim"]:
        """The same for what is made of many: raises `ArtefactError` for one that is not of unit length, or not finite.

        A search looks at its best scores alone.
        """
        vectors = self.vectors(rows)
        lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(1))  # which no number overflows
        odd = ~(np.abs(lengths - 1) <= ROUNDED)
        if odd.any():
            row, length = int(rows[odd][0]), float(lengths[odd][0])
            part, _ = self.place(row)
            raise damaged(
                part.folder / VECTORS, f"the vector of {self.about(row)['id']!r} has length {length:g}, not 1"
            )
        return vectors

    def frame_weights(self, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row frame"]:
        """Return the frame weights of some rows; padding, at the end, weighs nothing."""
        return self.gather(rows, lambda part, own: part.frame_weights[own])

    @property
    def has_frames(self) -> bool:
        """Whether frames are stored, among tokens or beside vectors, that say which of them answer a text."""
        if self.config.tokens:
            return {"frames", "real"} <= set(self.config.tokens)
        return self.config.stored_frames != NONE

    def fitting(self, where: Where) -> Int64[np.ndarray, " row"]:
        """The rows of the files that are meant, ascending, without those that are deleted."""
        rows = np.flatnonzero(self._fits(where))
        return rows[~among(rows, self.deleted)]

    def files(self, where: Where) -> Int64[np.ndarray, " file"]:
        """The first row of each of the files that are meant, ascending; a file that was cut has several rows."""
        return self._firsts[self._fits(where)[self._firsts]]

    @cached_property
    def folder_sizes(self) -> Counter[str]:
        """How many files each folder holds, in it or below it, by its path below the video folder."""
        found: Counter[str] = Counter()
        for base, part in self.based():
            own = self._firsts[(self._firsts >= base) & (self._firsts < base + len(part))] - base
            found.update(part.facts.counts(own))
        return found

    @cached_property
    def _firsts(self) -> Int64[np.ndarray, " file"]:
        rows = self.rows()
        files = np.concatenate([NONE_YET, *(part.facts.files for part in self.parts)])[rows]
        return rows[np.sort(np.unique(files, return_index=True)[1])]

    def _fits(self, where: Where) -> Bool[np.ndarray, " row"]:
        return np.concatenate([NONE_YET > 0, *(part.facts.fit(where) for part in self.parts)])

    def nearest(
        self,
        queries: Float32[np.ndarray, "query dim"],
        k: int,
        *,
        exact: bool = False,
        candidates: bool = False,
        rows: Int64[np.ndarray, " row"] | None = None,
    ) -> Answer:
        """The `k` rows of highest inner product, best first; fewer if there are. Among equals the lower row.

        Through the approximate index where there is one, unless `exact`, or unless it finds fewer than `k`. If they
        are mere `candidates`, which something else will score, its estimates may do. Where only some `rows` are meant,
        all of them are compared.
        """
        if rows is not None:
            if FEW * len(rows) < len(self):
                return nearest_of(queries, self.searched, k, rows)
            others = np.ones(len(self), np.bool_)
            others[rows] = False
            return nearest(queries, self.searched, k, np.flatnonzero(others))
        if self.approximate is not None and not exact:
            covered = self.approximate.covers
            find = self.approximate.candidates if candidates else self.approximate.top
            scores, rows = find(queries, k, self.vectors, self.deleted)
            if scores.shape[1] == k and np.isfinite(scores).all():
                later = [own for base, own in zip(self.bases.tolist(), self.searched, strict=False) if base >= covered]
                gone = self.deleted[self.deleted >= covered] - covered
                return best([(0, (scores, rows)), (covered, nearest(queries, later, k, gone))], k)
        return nearest(queries, self.searched, k, self.deleted)

    def nearest_captions(self, queries: Float32[np.ndarray, "query dim"], k: int) -> Answer:
        """The `k` captions of highest inner product, numbered over all segments, of videos that are not deleted."""
        return nearest(queries, self.said, k, self._unsaid)

    def caption(self, number: int) -> tuple[StoredCaption, int]:
        """A caption by number: its `id` and `text`, and the row of its video."""
        for base, part in self.based():
            if part.captions is not None:
                if number < len(part.captions):
                    row = int(part.captions.rows[number])
                    if not 0 <= row < len(part):
                        raise damaged(part.folder, f"caption {number} is of row {row} of {len(part)}")
                    return part.captions.lines[number], base + row
                number -= len(part.captions)
        raise IndexError("no such caption")

    @cached_property
    def _unsaid(self) -> Int64[np.ndarray, " caption"]:
        """The numbers of captions whose videos are deleted."""
        rows = [part.captions.rows + base for base, part in self.based() if part.captions is not None]
        return np.flatnonzero(among(np.concatenate(rows), self.deleted))

    def based(self) -> list[tuple[int, Segment]]:
        """Each segment, after the number of its first row."""
        return list(zip(self.bases.tolist(), self.parts, strict=False))

    def place(self, row: int) -> tuple[Segment, int]:
        """The segment of a row, and the row's number in it."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = int(np.searchsorted(self.bases, row, "right")) - 1
        return self.parts[number], row - int(self.bases[number])

    def divided(
        self, rows: Int64[np.ndarray, " row"]
    ) -> Iterator[tuple[Segment, Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]]:
        """Yield each segment that has some of the rows, its own numbers of these, and where they stand in `rows`."""
        if len(self.parts) == 1:
            yield self.parts[0], rows, np.arange(len(rows))
            return
        owners = np.searchsorted(self.bases, rows, "right") - 1
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            yield self.parts[owner], rows[places] - self.bases[owner], places

    def gather(
        self, rows: Int64[np.ndarray, " row"], read: Callable[[Segment, Int64[np.ndarray, " _"]], np.ndarray]
    ) -> np.ndarray:
        """Call `read(segment, its rows)` for every segment; return the results in the order of `rows`."""
        found, places = zip(*((read(part, own), places) for part, own, places in self.divided(rows)), strict=True)
        return found[0] if len(found) == 1 else np.concatenate(found)[np.argsort(np.concatenate(places))]
