"""The difference between a gallery and a source of videos: what is new, has changed or is gone since it was indexed.

A file has changed if its bytes or the time of its last change have, or the hash of its frames in a frame set. Ids that
were deleted by hand are never taken again (distill/retrieval/ledger.py). A gallery of format 2 does not know how its
files were; they count as unchanged until its ledger is written.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np

from distill.manifest import Manifest
from distill.retrieval import places
from distill.retrieval.ledger import Excluded, KnownFile, Ledger
from distill.retrieval.segment import file_of, id_hash
from distill.retrieval.sources import Item, Note
from distill.retrieval.table import Table
from distill.retrieval.vectors import among

UNKNOWN = -1  # source of a file, where an earlier version indexed several


@dataclass
class Difference:
    """Tasks of an index, and the files that the gallery knows when they are done. Numbers count files."""

    files: dict[str, KnownFile]  # by id
    items: list[Item] = field(default_factory=list)  # to be indexed
    rows: list[int] = field(default_factory=list)  # to be deleted
    tried: set[str] = field(default_factory=set)  # ids of files that are indexed or dropped now
    new: int = 0
    changed: int = 0
    gone: int = 0
    excluded: int = 0
    hidden: int = 0  # below folders that cannot be listed; they stay
    elsewhere: int = 0  # of another folder under the same ids
    clashes: list[Note] = field(default_factory=list)  # of new videos whose ids the gallery has from other files


def compare(
    items: Sequence[Item],
    state: Callable[[Item], KnownFile],
    covers: Callable[[KnownFile], bool],
    hidden: Callable[[KnownFile], bool],
    table: Table | None,
    ledger: Ledger,
    sync: bool,
) -> Difference:
    """Compare the items of a source with a gallery's table and ledger.

    `state` tells how the file of an item is now, `covers` which known files the source would have, `hidden` which of
    these it may have unseen. Unless `sync`, files that have changed or are gone are counted, and left as they are.
    """
    found, fresh = Difference(dict(ledger.files)), []
    for file, group in groupby(items, key=lambda item: item.file):
        own = list(group)
        wanted = [item for item in own if not {item.id, item.file} & ledger.excluded.keys()]
        found.excluded += not wanted
        now, old = state(own[0]), ledger.files.get(file)
        if old is None:
            stale = _rows(table, file) if sync else []  # where some spans of the file were restored
            (found.items if stale else fresh).extend(wanted)
            found.new += bool(wanted)
            found.rows += stale
            found.files[file] = now
        elif old.get("folder") != now.get("folder"):
            found.elsewhere += 1
        elif _same(old, now, sync):
            found.files[file] = now if sync or not old["seen"] else old
        else:
            _changed(found, wanted, now, _rows(table, file), sync)
    _take(found, fresh, table)
    here = {item.file for item in items}
    absent = {file: hidden(old) for file, old in ledger.files.items() if file not in here and covers(old)}
    found.hidden = sum(absent.values())
    _gone(found, [file for file, unseen in absent.items() if not unseen], table, sync)
    found.tried |= {item.file for item in found.items}
    return found


def _take(found: Difference, fresh: Sequence[Item], table: Table | None) -> None:
    """Add what is new to the items, in its place; what the gallery has is not new."""
    taken = held(table, [item.id for item in fresh])
    _clash(found, [item for item in fresh if item.id in taken], table)
    fresh = [item for item in fresh if item.id not in taken]
    found.items = sorted([*found.items, *fresh], key=lambda item: item.place)


def _clash(found: Difference, items: Sequence[Item], table: Table | None) -> None:
    """Note new videos whose ids belong to other files, `film@30-60` to a span of `film`; spans may be restored ones."""
    for file, group in groupby(items, key=lambda item: item.file):
        if table is None or _rows(table, file):
            continue
        own = list(group)
        for item in own:
            other = table.about(table.find(item.id)[0])["source"]
            reason = f"the gallery has its id from {other}; rename one"
            found.clashes.append({"video": item.id, "source": found.files[file]["source"], "reason": reason})
        if own[0].id == file:  # not divided, so all of it; it is tried again
            del found.files[file]
            found.new -= 1


def _gone(found: Difference, gone: Sequence[str], table: Table | None, sync: bool) -> None:
    found.gone = len(gone)
    for file in gone if sync else ():
        found.rows += _rows(table, file)
        found.tried.add(file)
        del found.files[file]


def _changed(found: Difference, wanted: Sequence[Item], now: KnownFile, rows: list[int], sync: bool) -> None:
    """Take a file that has changed, if this is a sync, or if it has no rows because it could not be read before."""
    if rows and not sync:
        found.changed += 1
        return
    found.new, found.changed = found.new + (not rows and bool(wanted)), found.changed + bool(rows)
    found.items += wanted
    found.rows += rows
    found.files[now["file"]] = now


def _same(old: KnownFile, now: KnownFile, sync: bool) -> bool:
    """Return whether a file is as it was; only in a sync does it matter how it is cut, and how it was found."""
    if not old["seen"]:
        return old["source"] == now["source"]
    if not sync and len(old["seen"]) != len(now["seen"]):  # once from a frame set, once as a file
        return True
    return (old["source"], old["seen"]) == (now["source"], now["seen"]) and (
        not sync or old.get("cut") == now.get("cut")
    )


def _rows(table: Table | None, file: str) -> list[int]:
    """Return the rows of a file, or of all its spans."""
    if table is None:
        return []
    abouts = [(row, table.about(row)) for row in table.find(file)]
    return [row for row, about in abouts if file_of(about) == file]


def held(table: Table | None, names: Sequence[str]) -> set[str]:
    """Return those of some ids of videos or files that have rows."""
    keys, here = np.array([id_hash(name) for name in names], np.int64), set()
    for segment in [] if table is None else table.parts:
        likely = [names[place] for place in np.flatnonzero(among(keys, segment.hashes)).tolist()]
        here |= {name for name in likely if table is not None and table.find(name)}
    return here


def known(path: Path, before: Manifest, table: Table) -> Ledger:
    """Return the ledger of a gallery, or what the rows tell of one that has none."""
    ledger = Ledger.read(path, before)
    if before.version > places.AS_GIVEN:
        return ledger
    of = 0 if len(before.config.get("made_of", [])) == 1 else UNKNOWN
    for part, own in table.live():
        for row in own.tolist():
            about = part.about[row]
            file = file_of(about)
            ledger.files[file] = KnownFile(file=file, of=of, source=about["source"], seen=[])
            if "folder" in about:
                ledger.files[file]["folder"] = about["folder"]
    for about in map(table.about, table.deleted.tolist()):
        if not table.find(about["id"]):
            ledger.excluded[about["id"]] = Excluded(id=about["id"], file=file_of(about))
    return ledger


def hiding(folder: Path | None) -> Callable[[KnownFile], bool]:
    """Return a function that tells whether a file below `folder` may be there, where none can be seen.

    None stands for a source that shows all that it has.
    """
    if folder is None:
        return lambda _: False

    @cache
    def closed(inside: PurePosixPath) -> bool:
        path = folder / inside
        try:
            with os.scandir(path):
                return False
        except FileNotFoundError:
            return path.is_symlink()  # to a disk that is not mounted
        except OSError as error:
            return not isinstance(error, NotADirectoryError)

    return lambda known: any(map(closed, PurePosixPath(known["source"]).parents))


def told(change: Difference, sync: bool) -> Iterator[str]:
    """Yield lines that say what there is to do, and what is left as it is."""
    left = f"{change.changed:,} files have changed and {change.gone:,} are gone since they were indexed"
    if sync and (change.new or change.changed or change.gone):
        yield f"{change.new:,} files are new, {change.changed:,} have changed, {change.gone:,} are gone"
    elif not sync and (change.changed or change.gone):
        yield f"{left}; --sync takes that over"
    if change.excluded:
        yield f"{change.excluded:,} files stay out because they were deleted (tools/gallery.py restores them)"
    if change.hidden:
        yield f"{change.hidden:,} files stay, because their folders cannot be listed, or are links to nothing"
    if change.elsewhere:
        yield f"{change.elsewhere:,} files are skipped: the gallery has their ids from another folder"
