"""Indexing: encodes the videos of a source into a gallery, adds those that it lacks, or takes over all that changed.

When all parts (distill/retrieval/parts.py) are made, they become one segment of the gallery's next generation. In the
same generation the rows of files that have changed or are gone are deleted, so a searcher sees all of it or nothing.

A video has the same pixels in a frame set and from its file, whose frames pass through the JPEG that packing writes.
Encoded in the same batches, both give the same row bit for bit; in batches of other videos, to float32's rounding.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from distill.data.tokens import warn_of_cuts
from distill.errors import ArtefactError, ExpectedError, first_few
from distill.log import progress
from distill.manifest import NAME, Manifest, SealedFile
from distill.records import canonical_json, json_sha256
from distill.remote import Place
from distill.retrieval import difference, generation, ledger, places
from distill.retrieval.columns import row_bytes
from distill.retrieval.difference import Difference
from distill.retrieval.encoder import Encoder, check_release, weighing
from distill.retrieval.kept import Kept, kept
from distill.retrieval.ledger import KnownFile, Ledger, StoredNote
from distill.retrieval.parts import PartMaker, finished
from distill.retrieval.segment import Segment
from distill.retrieval.sources import Cut, FileSource, Item, Note, VideoSource, open_source
from distill.retrieval.table import Table

BATCH = 64  # videos encoded at once
log = logging.getLogger(__name__)


def build_gallery(
    release: Encoder,
    path: Place,
    out: Path,
    *,
    videos: Path | None = None,
    vectors: str | None = None,
    frames: str | None = None,
    cut: Cut | None = None,
    captions: bool = False,
    posters: bool = True,
    append: bool = False,
    sync: bool = False,
    batch: int = BATCH,
    workers: int | None = None,
) -> Manifest:
    """Indexes `path` (a frame set, a folder of video files, or a text file that lists some) into the gallery `out`.

    A gallery that was made of the same videos is kept, and any other refused, unless `append` adds the files that it
    lacks, or `sync` also replaces the rows of files that have changed and deletes those of files that are gone. Both
    cut files as the source was before, and a sync stores captions and posters as then, unless told otherwise. Without
    anything to do the generation stays. What was deleted by hand is never added again.

    Videos that cannot be read are left out and listed in the gallery's notes, with the reason. `videos` is the folder
    of the video files, so that answers name files; `vectors` one of `vectors.KINDS` (float32, or what the gallery has);
    `frames` one of `frames.KINDS` (int8, or what the gallery has), for models of one stage alone;
    `captions` stores those of a frame set, `posters` a small picture of every row; `workers` (one per core) decode.
    """
    if not release.searchable:
        raise ArtefactError(
            f"{release.path}: a teacher, which scores text and video together and has no vectors to search; "
            "train a student from its labels and index that"
        )
    made = _made_before(out, path) if append or sync else {}
    cut = cut or (Cut(made["seconds"], made["overlap"]) if "seconds" in made else None)
    if sync:
        captions, posters = captions or made.get("captions", False), posters and made.get("posters", True)
    with open_source(path, videos, release, cut, workers) as source:
        if captions:
            _check_captions(source, path, release)
        with generation.changing(out) as before:
            config = None if before is None else places.present_config(out, before)
            wanted = {"vectors_as": vectors, "frames_as": frames, "captions": captions, "posters": posters}
            keep = kept(release, out, config, **wanted)
            return _Index(release, source, path, out, before, config or {}, keep, cut, batch).run(append, sync)


def _check_captions(source: VideoSource, path: Place, release: Encoder) -> None:
    texts = [text for item in source.items for _, text in source.captions(item)]
    if not texts:
        raise ExpectedError(f"{path}: has no captions to store; only a frame set has them")
    warn_of_cuts(texts, release.tokenizer, str(path), "they are found by their beginnings")


def _made_before(out: Path, path: Place) -> dict[str, Any]:
    """Return how a source was indexed before; nothing if it was not."""
    if not (out / NAME).is_file():
        return {}
    made_of = places.present_config(out, generation.read(out)).get("made_of", [])
    return next((made for made in made_of if made["source"] == places.stored(out, path)), {})


@dataclass
class _Index:
    """One run, while it holds the gallery's lock."""

    release: Encoder
    source: VideoSource
    path: Place
    out: Path
    before: Manifest | None
    config: Mapping[str, Any]  # of the gallery, as it is from here
    kept: Kept
    cut: Cut | None
    batch: int

    def __post_init__(self):
        if self.before is not None:
            check_release(self.out, self.before, self.release)
        self.made_of: list[dict[str, Any]] = list(self.config.get("made_of", []))
        self.made = self._made()
        sources = [made["source"] for made in self.made_of]
        self.of = sources.index(self.made["source"]) if self.made["source"] in sources else len(sources)
        self.folders: list[str] = list(self.config.get("folders", []))
        self.folder: dict[str, int] = {}
        if self.source.folder is not None:
            folder = places.stored(self.out, self.source.folder)
            self.folders += [] if folder in self.folders else [folder]
            self.folder = {"folder": self.folders.index(folder)}
        self.maker = PartMaker(self.release, self.source, self.kept, self.batch, self.folder)

    def run(self, append: bool, sync: bool) -> Manifest:
        """Makes the parts that are missing, joins them, and publishes the manifest."""
        if self.before is None and (append or sync):
            raise ArtefactError(
                f"{self.out}: no gallery to {'sync' if sync else 'append to'}; make one without --"
                f"{'sync' if sync else 'append'}"
            )
        if self.before is not None and not (append or sync):
            entries = [{key: value for key, value in made.items() if key != "source"} for made in self.made_of]
            if {key: value for key, value in self.made.items() if key != "source"} in entries:
                return self._finished(self.before)
            raise ArtefactError(
                f"{self.out}: already holds another gallery; choose another folder, add to it by --append, or take "
                "over what changed by --sync"
            )
        change = self._compare(sync)
        parts = list(self.maker.plan(self.out, change.items))
        missing = [part for part in parts if finished(part[0], verify=True) is None]
        total = sum(len(items) for _, items in missing)
        for _ in progress(self.maker.make(missing), f"index {total} videos", total):
            pass
        return self._join([folder for folder, _ in parts], change, sync)

    def _made(self) -> dict[str, Any]:
        """Return what the config says of this source."""
        marks = [[item.id, *item.mark] for item in self.source.items]
        made = {"source": places.stored(self.out, self.path), "items_sha256": json_sha256(marks)}
        if self.cut is not None:
            made |= {"seconds": self.cut.seconds, "overlap": self.cut.overlap}
        return (
            made
            | ({"captions": True} if self.kept.captions else {})
            | ({} if self.kept.posters else {"posters": False})
        )

    def _compare(self, sync: bool) -> Difference:
        """Return what is to be done, and say so."""
        table = None if self.before is None else Table(self.out, self.before)
        self.ledger = Ledger()
        if self.before is not None and table is not None:
            sources = [made["source"] for made in self.made_of]
            self.ledger = difference.known(self.out, self.before, table).joined(self.folders, sources)
        hidden = difference.hiding(self.source.root if isinstance(self.source, FileSource) else None)
        items = self.source.items
        change = difference.compare(items, self._now, self._covers(), hidden, table, self.ledger, sync)
        for line in difference.told(change, sync) if self.before is not None else ():
            log.info("%s: %s", self.out, line)
        return change

    def _now(self, item: Item) -> KnownFile:
        source, seen = self.source.seen(item)
        found = KnownFile(file=item.file, of=self.of, source=source, seen=seen)
        if "folder" in self.folder:
            found["folder"] = self.folder["folder"]
        if self.cut is not None:
            found["cut"] = [self.cut.seconds, self.cut.overlap]
        return found

    def _covers(self) -> Callable[[KnownFile], bool]:
        """Return which files this source would have if they were still there: its own, and all below its folder."""
        path, below = self.path, None
        if isinstance(path, Path) and path.is_dir() and not (path / NAME).is_file():
            below = os.path.relpath(path, self.source.folder)
        return lambda known: (
            known["of"] == self.of
            or (
                below is not None
                and known.get("folder") == self.folder["folder"]
                and PurePosixPath(known["source"]).is_relative_to(below)
            )
        )

    def _join(self, parts: Sequence[Path], change: Difference, sync: bool) -> Manifest:
        """One segment of all parts, and the generation that has it."""
        found = [part for folder in parts if (part := finished(folder, verify=False)) is not None]
        assert len(found) == len(parts), "all parts were just made"
        segments = [segment for segment, _ in found if segment is not None]
        left_out = self.source.broken + change.clashes + [note for _, broken in found for note in broken]
        if self.before is None and not segments:
            reasons = sorted({note["reason"] for note in left_out})
            raise ArtefactError(
                f"{self.source.name}: none of {len(left_out)} videos could be used ({first_few(reasons, 3, '; ')})"
            )
        after = Ledger(change.files, self._notes(left_out, change), self.ledger.excluded)
        if self.before is not None and not segments and not change.rows:
            same_files = after.files == self.ledger.files or not sync
            if same_files and {*map(canonical_json, after.notes)} == {*map(canonical_json, self.ledger.notes)}:
                return self._finished(self.before)
        number = 1 if self.before is None else self.before.counts["generation"] + 1
        rows = [(segment, np.arange(len(segment))) for segment in segments]
        segment, files = generation.write_merged(self.out, number, rows) if rows else (None, {})
        files |= after.write(self.out, number)
        replaced = [*ledger.KINDS]
        if change.rows:
            assert self.before is not None, "only a gallery has rows to delete"
            gone = {*change.rows, *generation.deleted_rows(self.out, self.before).tolist()}
            files |= generation.write_deleted(self.out, number, np.array(sorted(gone), np.int64))
            replaced.append(generation.DELETED)
        if self.before is not None:
            files = generation.without(self.before.files, *replaced) | files
        manifest = self._manifest(number, files, change, segment, complete=sync or not change.changed + change.gone)
        return self._finished(generation.publish(self.out, manifest))

    def _notes(self, left_out: Sequence[Note], change: Difference) -> list[StoredNote]:
        """Return what is left out: of before what was not tried again and was not looked at again, and of now."""

        def stays(note: StoredNote) -> bool:
            file = note.get("file", note["video"])
            known = change.files.get(file)
            own = known is not None and known["source"] == note["source"]
            return file not in change.tried and (own or note["of"] != self.of)

        notes = [note for note in self.ledger.notes if stays(note)]
        notes += [cast(StoredNote, {"of": self.of} | note) for note in left_out]
        return list({canonical_json(note): note for note in notes}.values())

    def _finished(self, manifest: Manifest) -> Manifest:
        """Without what was kept for a killed run to continue with."""
        shutil.rmtree(self.out / generation.WORK, ignore_errors=True)
        return manifest

    def _manifest(
        self,
        number: int,
        files: dict[str, SealedFile],
        change: Difference,
        segment: Segment | None,
        *,
        complete: bool,
    ) -> Manifest:
        old: dict[str, int] = {} if self.before is None else dict(self.before.counts)
        new = 0 if segment is None else len(segment)
        counts = old | {"videos": old.get("videos", 0) + new - len(change.rows), "rows": old.get("rows", 0) + new}
        counts["generation"] = number
        if segment is not None:
            counts |= {"dim": segment.vectors.stored.shape[1], "vector_bytes": row_bytes(segment.vectors.columns)}
            counts |= {} if segment.tokens is None else {"token_bytes": row_bytes(segment.tokens)}
            counts |= {} if segment.frames is None else {"frame_bytes": row_bytes(segment.frames.columns)}
            said = old.get("captions", 0) + (0 if segment.captions is None else len(segment.captions))
            counts |= {"captions": said} if said else {}
        made = self.made if complete else {key: self.made[key] for key in self.made if key != "items_sha256"}
        fields = self.release.model.rerank_fields
        config = {
            "release": places.stored(self.out, self.release.path),
            "frames": self.release.frames_config,
            "vectors": self.kept.vectors,
            "folders": self.folders,
            "made_of": [*self.made_of[: self.of], made, *self.made_of[self.of + 1 :]],
            **weighing(self.release),
        } | ({"tokens": ["vector", *fields]} if fields else {"stored_frames": self.kept.frames})
        derived = {kind: self.config[kind] for kind in generation.DERIVED if kind in self.config}
        return Manifest(
            kind="gallery",
            version=generation.VERSION,
            config=config | derived,
            counts=counts,
            parents=_parents(self.before, self.release, self.source),
            files=files,
        )


def _parents(before: Manifest | None, release: Encoder, source: VideoSource) -> dict[str, str]:
    """The release, `frames`, and, where other frame sets were added, `frames 2` and so on."""
    parents = {"release": release.manifest.id} if before is None else dict(before.parents)
    for found in source.parents.values():
        if found not in parents.values():
            parents["frames" if len(parents) == 1 else f"frames {len(parents)}"] = found
    return parents
