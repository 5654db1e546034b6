"""Upkeep of galleries: deleting videos, compacting, an approximate index, calibration, verifying.

Each change is a new generation, whole or not at all.
"""

import hashlib
import itertools
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from distill.errors import ExpectedError, first_few
from distill.log import progress
from distill.manifest import Manifest, SealedFile, check_files, sealed_file
from distill.records import canonical_json
from distill.retrieval import calibration, difference, generation, ledger, places
from distill.retrieval.approximate import build, check_installed
from distill.retrieval.backend import backend_of, check_made_by
from distill.retrieval.generation import APPROXIMATE, CALIBRATION, DELETED, DERIVED, WORK
from distill.retrieval.ledger import Ledger
from distill.retrieval.segment import file_of
from distill.retrieval.table import Table
from distill.retrieval.vectors import among

LEAST = 400  # videos that an approximate index takes
TOGETHER = 256  # queries encoded at once


def delete(path: Path, names: Sequence[str]) -> Manifest:
    """Deletes videos by id; the id of a file that was cut deletes all its spans. An unknown id is an error.

    Rows are only marked, and take their bytes until the gallery is compacted. No index takes what was deleted again,
    even from a file that has changed, until it is restored. What is deleted already stays so.
    """
    if not names:
        raise ExpectedError(f"{path}: no ids to delete; give some, or a file of them")
    with _existing(path) as before:
        table = Table(path, before)
        excluded = Ledger.read(path, before).excluded
        found = {video: table.find(video) for video in names}
        unknown = [video for video, rows in found.items() if not rows and video not in excluded]
        if unknown:
            raise ExpectedError(f"{path}: has no video {first_few([*map(repr, unknown)])}; nothing was deleted")
        found = {video: rows for video, rows in found.items() if rows}
        if not found:
            return before
        number = before.counts["generation"] + 1
        rows = np.array(sorted({*table.deleted.tolist(), *itertools.chain(*found.values())}), np.int64)
        files, replaced = generation.write_deleted(path, number, rows), [DELETED]
        if before.version > places.AS_GIVEN:  # an earlier version remembers by the deleted rows alone
            abouts = {video: table.about(rows[0]) for video, rows in found.items()}
            gone = {name: ledger.Excluded(id=name, file=file_of(about)) for name, about in abouts.items()}
            files |= ledger.write_excluded(path, number, (excluded | gone).values())
            replaced.append(ledger.EXCLUDED)
        after = before.model_copy(update={"counts": before.counts | {"videos": before.counts["rows"] - len(rows)}})
        return _next(path, after, files, *replaced)


def restore(path: Path, names: Sequence[str]) -> Manifest:
    """Lets videos that were deleted be indexed again, by the ids that they were deleted by.

    The next `append` or `sync` takes them from their files.
    """
    with _existing(path) as before:
        old = Ledger.read(path, before)
        unknown = [name for name in names if name not in old.excluded]
        if unknown or not names:
            there = first_few([*map(repr, sorted(old.excluded))]) or "nothing that is remembered"
            what = first_few([*map(repr, unknown)]) or "no ids"
            raise ExpectedError(f"{path}: {what} to restore; deleted from it: {there}")
        touched = {old.excluded[name]["file"] for name in names}
        known = {name: file for name, file in old.files.items() if name not in touched}
        excluded = {name: line for name, line in old.excluded.items() if name not in names}
        files = Ledger(known, old.notes, excluded).write(path, before.counts["generation"] + 1)
        return _next(path, before, files, *ledger.KINDS)


def move(path: Path, videos: Path | None, release: Path | None) -> Manifest:
    """Stores where the videos or the release are now; of several folders, the one that is not where it was."""
    if videos is None and release is None:
        raise ExpectedError(f"{path}: nothing to store; give --videos DIR, --release PATH or both")
    if release is not None and not release.is_dir():
        raise ExpectedError(f"--release {release}: no such folder; give the one of the release")
    with _existing(path) as before:
        before = _upgraded(path, before, Table(path, before))
        config = before.config if videos is None else places.moved(path, before, videos)
        if release is not None:
            config = config | {"release": places.stored(path, release)}
        return _next(path, before, {}, config=config)


def compact(path: Path) -> Manifest:
    """Makes one segment of all rows that are not deleted.

    An approximate index and a calibration are dropped, since rows get other numbers. A gallery of format 2 stays one,
    and forgets what was deleted by hand, which it knew by the rows alone.
    """
    with _existing(path) as before:
        shutil.rmtree(path / WORK, ignore_errors=True)  # of an index that was killed and never continued
        table = Table(path, before)
        if len(table.parts) < 2 and not len(table.deleted):
            return before
        number = before.counts["generation"] + 1
        files = ledger.listed(before, *ledger.KINDS)
        counts: dict[str, Any] = {k: v for k, v in before.counts.items() if k != "captions"}
        counts |= {"generation": number, "rows": before.counts["videos"]}
        if before.counts["videos"]:
            segment, merged = generation.write_merged(path, number, list(table.live()))
            files |= merged
            counts |= {} if segment.captions is None else {"captions": len(segment.captions)}
        config = {k: v for k, v in before.config.items() if k not in DERIVED}
        update = {"files": files, "counts": counts, "config": config}
        return generation.publish(path, before.model_copy(update=update))


def approximate(path: Path) -> Manifest:
    """Builds an approximate index of all videos, measures what it finds, and stores both; one that is there stays."""
    check_installed()
    with _existing(path) as before:
        table = Table(path, before)
        rows = table.rows()
        if len(rows) < LEAST:
            raise ExpectedError(f"{path}: {len(rows)} videos, expected at least {LEAST}; search so few exactly")
        made, exact = table.approximate, partial(table.nearest, exact=True)
        if made is not None and made.covers == len(table) and np.array_equal(made.rows, rows):
            return before
        read = table.sound_vectors
        return _with_file(path, before, APPROXIMATE, len(rows), lambda file: build(file, read, exact, rows))


def calibrate(path: Path, release: Any, queries: Sequence[str]) -> Manifest:
    """Stores how well all videos fit a bank of queries, by which searches put hubs back (QB-Norm).

    What is there of the same bank and videos stays.

    For models of one stage: the full scores of EERCF and GLSCL have no hubs that this finds (docs/galleries.md).
    """
    backend = backend_of(release)
    with _existing(path) as before:
        check_made_by(path, before, backend.path, backend.id)
        if "tokens" in before.config:
            raise ExpectedError(
                f"{path}: its model ranks in two stages, which calibration does not improve; search it as it is"
            )
        table = Table(path, before, searched=backend.searched)
        if not queries or not len(table.rows()):
            found = f"{len(queries)} queries for {len(table.rows())} videos"
            raise ExpectedError(
                f"{path}: {found}, expected some of both; give captions or queries, and index videos first"
            )
        asked = {"bank": hashlib.sha256(canonical_json([*queries])).hexdigest(), "videos": len(table.rows())}
        made = before.config.get(CALIBRATION, {})
        if made.get("covers") == len(table) and asked.items() <= made.items():
            return before
        starts = progress(range(0, len(queries), TOGETHER), f"encode {len(queries)} queries (batches)")
        bank = np.concatenate([backend.asked(queries[start : start + TOGETHER]).vectors for start in starts])
        best = table.nearest(bank, calibration.BEST, exact=True)
        size = max(1, calibration.CELLS // len(bank))
        starts = progress(range(0, len(table), size), f"compare {len(table)} videos (blocks)")
        blocks = (_block(table, start, min(start + size, len(table))) for start in starts)
        rows = before.counts["videos"]

        def make(file: Path) -> dict[str, Any]:
            return calibration.write(file, blocks, bank, best) | asked

        return _with_file(path, before, CALIBRATION, rows, make)


def _block(table: Table, begin: int, end: int) -> tuple[Float32[np.ndarray, "_ dim"], Bool[np.ndarray, " _"]]:
    """Return the vectors of some rows, and which of these are not deleted."""
    rows = np.arange(begin, end)
    return table.sound_vectors(rows), ~among(rows, table.deleted)


def _with_file(
    path: Path, before: Manifest, kind: str, rows: int, make: Callable[[Path], dict[str, Any] | None]
) -> Manifest:
    """The next generation, with another file of some kind; `make` writes it and returns facts for the config."""
    number = before.counts["generation"] + 1
    name = f"{kind}/{number:05d}.safetensors"
    facts, config = make(path / name), before.config
    if facts is not None:
        config = config | {kind: facts | {"file": name, "covers": before.counts["rows"]}}
    return _next(path, before, {name: sealed_file(path / name, rows)}, kind, config=config)


def _next(
    path: Path, before: Manifest, files: dict[str, SealedFile], *replaced: str, config: dict[str, Any] | None = None
) -> Manifest:
    """Publish the next generation: with `files` in place of those in the folders `replaced`, and another config."""
    update = {
        "files": generation.without(before.files, *replaced) | files,
        "counts": before.counts | {"generation": before.counts["generation"] + 1},
        "config": config or before.config,
    }
    return generation.publish(path, before.model_copy(update=update))


def _upgraded(path: Path, before: Manifest, table: Table) -> Manifest:
    """Return the manifest of a generation as this version keeps it; one of an earlier version gets a ledger."""
    if before.version > places.AS_GIVEN:
        return before
    files = difference.known(path, before, table).write(path, before.counts["generation"] + 1)
    config = places.present_config(path, before)
    update = {"version": generation.VERSION, "config": config, "notes": [], "files": before.files | files}
    return before.model_copy(update=update)


def verify(path: Path) -> Manifest:
    """Compares every file with its hash; opening a gallery compares sizes alone."""
    manifest = generation.read(path)
    check_files(path, manifest, verify=True)
    return manifest


def missing(path: Path, videos: Path) -> int:
    """Return how many videos have no file in the folder `videos`."""
    live = ((part, row) for part, own in Table(path, generation.read(path)).live() for row in own.tolist())
    return sum(not (videos / part.about[row]["source"]).is_file() for part, row in live)


def _existing(path: Path) -> Any:
    generation.read(path)  # says what is wrong with a folder that is no gallery, before it is locked
    return generation.changing(path)
