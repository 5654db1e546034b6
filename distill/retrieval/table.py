"""A gallery's rows as one table: numbered over its segments in order, found by id, read, and searched by vector.

A deleted row keeps its number until the gallery is compacted; nothing here gives it out.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from distill.data.frames import StoredCaption
from distill.errors import ArtefactError
from distill.manifest import Manifest
from distill.model.features import VideoFeatures
from distill.ranking.topk import Answer, best
from distill.retrieval import generation, places
from distill.retrieval.approximate import Approximate
from distill.retrieval.calibration import Calibration
from distill.retrieval.frames import NONE, Frames
from distill.retrieval.segment import VECTORS, Segment, StoredVideo
from distill.retrieval.stored import Tokens, damaged
from distill.retrieval.vectors import among, nearest, nearest_of
from distill.retrieval.where import Where

NONE_YET = np.zeros(0, np.int64)  # a gallery without videos may have no segment
FEW = 3  # times as few rows are copied to be compared; where it is more, reading all of them takes less time
ROUNDED = 0.05  # by which the length of a stored vector may differ from 1; int8 takes some 0.001 at 512 numbers
SEEN = ("frames", "real")  # the fields, beside `vector`, that say which frames of a video answer a text


class Table:
    """The rows of one generation, mapped. Segments in `known` are not opened again."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        device: torch.device | str = "cpu",
        known: Mapping[str, Segment] | None = None,
        videos: Path | None = None,
    ):
        self.path, self.device, self.videos = path, device, videos
        old = known or {}
        names = generation.segments(manifest)
        self.segments = {name: old.get(name) or Segment(path / generation.SEGMENTS / name, device) for name in names}
        self.deleted: Int64[Tensor, " row"] = generation.deleted_rows(path, manifest)
        self.parts = list(self.segments.values())
        self.bases = torch.tensor([0, *(len(part) for part in self.parts)]).cumsum(0)  # first rows, and the end
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
            dim, tokens = part.vectors.stored.shape[1], set(part.tokens.tensors()) if part.tokens is not None else set()
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

    def rows(self) -> Int64[Tensor, " row"]:
        """All rows that are not deleted, ascending."""
        everything = torch.arange(len(self))
        return everything[~among(everything, self.deleted)]

    def live(self) -> Iterator[tuple[Segment, Int64[Tensor, " row"]]]:
        """Each segment, and its own numbers of the rows that are not deleted."""
        for base, part in self.based():
            own = torch.arange(len(part))
            yield part, own[~among(own + base, self.deleted)]

    def find(self, name: str) -> list[int]:
        """The rows of a video or, where a file was cut, of all its spans; by the id of the video or of the file."""
        found = torch.tensor([base + row for base, part in self.based() for row in part.find(name)], dtype=torch.int64)
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

    def vectors(self, rows: Int64[Tensor, " row"]) -> Float[Tensor, "row dim"]:
        """The stored vectors of some rows."""
        return self.gather(rows, lambda part, own: part.vectors[own])

    def sound_vectors(self, rows: Int64[Tensor, " row"]) -> Float[Tensor, "row dim"]:
        """The same for what is made of many: raises `ArtefactError` for one that is not of unit length, or not finite.

        A search looks at its best scores alone.
        """
        vectors = self.vectors(rows)
        lengths = vectors.norm(dim=1)
        odd = ~((lengths - 1).abs() <= ROUNDED)
        if odd.any():
            row, length = int(rows[odd][0]), float(lengths[odd][0])
            part, _ = self.place(row)
            raise damaged(
                part.folder / VECTORS, f"the vector of {self.about(row)['id']!r} has length {length:g}, not 1"
            )
        return vectors

    def frame_weights(self, rows: Int64[Tensor, " row"]) -> Float[Tensor, "row frame"]:
        """Return the frame weights of some rows; padding, at the end, weighs nothing."""
        return self.gather(rows, lambda part, own: part.frame_weights.index_select(0, own))

    def tokens(self, fields: tuple[str, ...]) -> "TableTokens":
        """`vector` and the other `fields` that a second stage scores, of all rows."""
        return TableTokens(self, fields)

    def frames(self) -> "TableFrames | TableTokens | None":
        """`vector`, `frames` and `real` of all rows; None where no frames are stored."""
        if self.config.tokens:
            return self.tokens(SEEN) if set(SEEN) <= set(self.config.tokens) else None
        return None if self.config.stored_frames == NONE else TableFrames(self)

    def fitting(self, where: Where) -> Int64[Tensor, " row"]:
        """The rows of the files that are meant, ascending, without those that are deleted."""
        rows = self._fits(where).nonzero()[:, 0]
        return rows[~among(rows, self.deleted)]

    def files(self, where: Where) -> Int64[Tensor, " file"]:
        """The first row of each of the files that are meant, ascending; a file that was cut has several rows."""
        return self._firsts[self._fits(where)[self._firsts]]

    @cached_property
    def folder_sizes(self) -> Counter[str]:
        """How many files each folder holds, in it or below it, by its path below the video folder."""
        found: Counter[str] = Counter()
        for base, part in self.based():
            own = self._firsts[(self._firsts >= base) & (self._firsts < base + len(part))] - base
            found.update(part.facts.counts(own.numpy()))
        return found

    @cached_property
    def _firsts(self) -> Int64[Tensor, " file"]:
        rows = self.rows()
        files = np.concatenate([NONE_YET, *(part.facts.files for part in self.parts)])[rows.numpy()]
        return rows[torch.from_numpy(np.sort(np.unique(files, return_index=True)[1]))]

    def _fits(self, where: Where) -> Bool[Tensor, " row"]:
        return torch.from_numpy(np.concatenate([NONE_YET > 0, *(part.facts.fit(where) for part in self.parts)]))

    def nearest(
        self,
        queries: Float[Tensor, "query dim"],
        k: int,
        *,
        exact: bool = False,
        candidates: bool = False,
        rows: Int64[Tensor, " row"] | None = None,
    ) -> Answer:
        """The `k` rows of highest inner product, best first; fewer if there are. Among equals the lower row.

        Through the approximate index where there is one, unless `exact`, or unless it finds fewer than `k`. If they
        are mere `candidates`, which something else will score, its estimates may do. Where only some `rows` are meant,
        all of them are compared.
        """
        if rows is not None:
            if FEW * len(rows) < len(self):
                return nearest_of(queries, self.vectors, rows, k)
            others = torch.ones(len(self), dtype=torch.bool).index_fill(0, rows, False).nonzero()[:, 0]
            return nearest(queries, [part.vectors for part in self.parts], k, others)
        if self.approximate is not None and not exact:
            covered = self.approximate.covers
            find = self.approximate.candidates if candidates else self.approximate.top
            scores, rows = find(queries, k, self.vectors, self.deleted)
            if scores.shape[1] == k and scores.isfinite().all():
                later = [part.vectors for base, part in self.based() if base >= covered]
                gone = self.deleted[self.deleted >= covered] - covered
                return best([(0, (scores, rows)), (covered, nearest(queries, later, k, gone))], k)
        return nearest(queries, [part.vectors for part in self.parts], k, self.deleted)

    def nearest_captions(self, queries: Float[Tensor, "query dim"], k: int) -> Answer:
        """The `k` captions of highest inner product, numbered over all segments, of videos that are not deleted."""
        stored = [part.captions.vectors for part in self.parts if part.captions is not None]
        return nearest(queries, stored, k, self._unsaid)

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
    def _unsaid(self) -> Int64[Tensor, " caption"]:
        """The numbers of captions whose videos are deleted."""
        rows = [part.captions.rows + base for base, part in self.based() if part.captions is not None]
        return among(torch.cat(rows), self.deleted).nonzero()[:, 0]

    def based(self) -> list[tuple[int, Segment]]:
        """Each segment, after the number of its first row."""
        return list(zip(self.bases.tolist(), self.parts, strict=False))

    def place(self, row: int) -> tuple[Segment, int]:
        """The segment of a row, and the row's number in it."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = int(torch.searchsorted(self.bases, row, right=True)) - 1
        return self.parts[number], row - int(self.bases[number])

    def gather(self, rows: Int64[Tensor, " row"], read: Callable[[Segment, Tensor], Any]) -> Any:
        """Call `read(segment, its rows)` for every segment; return the results in the order of `rows`."""
        owners = torch.searchsorted(self.bases, rows, right=True) - 1
        used = owners.unique().tolist()
        if len(used) == 1:
            return read(self.parts[used[0]], rows - self.bases[used[0]])
        places = [(owners == owner).nonzero()[:, 0] for owner in used]
        found = [read(self.parts[o], rows[p] - self.bases[o]) for o, p in zip(used, places, strict=True)]
        joined = VideoFeatures.cat(found) if isinstance(found[0], VideoFeatures) else torch.cat(found)
        return joined[torch.cat(places).argsort()]


class TableFrames:
    """Stored frames of all segments: indexing with row numbers reads those, as float32 on the model's device."""

    def __init__(self, table: Table):
        self.table = table

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the first segment, as they are stored."""
        return _frames(self.table.parts[0]).columns

    def scored(self, rows: Int64[Tensor, " row"], score: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> Tensor:
        """Scores of rows, where they are stored: `score` gets the tensors of a segment, and its own row numbers."""
        return self.table.gather(rows, lambda part, own: score(_frames(part).beside(part.vectors.columns), own))

    def __getitem__(self, rows: Int64[Tensor, " row"]) -> VideoFeatures:
        return self.table.gather(rows, lambda part, own: _frames(part).of(own, part.vectors[own])).to(self.table.device)


def _frames(part: Segment) -> Frames:
    assert part.frames is not None, "a gallery that stores frames has them in every segment"
    return part.frames


class TableTokens:
    """Stored tokens of all segments: indexing with row numbers reads those, as float32 on the model's device."""

    def __init__(self, table: Table, fields: tuple[str, ...]):
        self.table, self.fields = table, fields

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the first segment, as they are stored."""
        return self._of(self.table.parts[0]).tensors()

    def scored(self, rows: Int64[Tensor, " row"], score: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> Tensor:
        """Scores of rows, where they are stored: `score` gets the tensors of a segment, and its own row numbers."""
        return self.table.gather(rows, lambda part, own: self._of(part).scored(own, score))

    def __getitem__(self, rows: Int64[Tensor, " row"]) -> VideoFeatures:
        return self.table.gather(rows, lambda part, own: self._of(part)[own])

    def _of(self, part: Segment) -> Tokens:
        assert part.tokens is not None, "a gallery that reranks has tokens"
        return part.tokens.only(self.fields)
