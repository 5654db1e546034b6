"""Finds the videos of a gallery that match a query, and the seconds of each that matter most to the model.

    python tools/search.py gallery "a red star falls" --k 5
    python tools/search.py gallery "a red star falls" --k 5 --recall 300

A model of two stages (EERCF, GLSCL) finds the likeliest videos by one inner product each, and orders these anew by all
that it knows of them. `--recall` says how many: more take longer, and miss less that only the second look would find.
"""

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from distill import log
from distill.errors import ArtefactError, door
from distill.release.release import Release, load
from distill.retrieval.gallery import RECALL, Gallery, Hit, release_path


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, searches, and prints the hits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="a folder made by tools/index.py")
    parser.add_argument("query", metavar="QUERY", help="what the video shows, in words")
    parser.add_argument("--k", type=int, default=5, metavar="N", help="how many videos to show (default 5)")
    parser.add_argument(
        "--recall", type=int, metavar="N", help=f"how many are ordered anew, in two stages (default {RECALL})"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument("--release", type=Path, metavar="PATH", help="where the gallery's release is, if it was moved")
    args = parser.parse_args(argv)
    log.setup()
    gallery = Gallery.open(args.gallery, _release(args.gallery, args.release))
    hits = gallery.search([args.query], args.k, args.recall)[0]
    print(json.dumps([asdict(hit) for hit in hits], indent=1, ensure_ascii=False) if args.json else _table(hits))


def _release(gallery: Path, given: Path | None) -> Release:
    path = given or release_path(gallery)
    if given is None and not path.is_dir():
        raise ArtefactError(f"{gallery}: its release was at {path}, which is not there; give its place by --release")
    return load(path)


def _table(hits: list[Hit]) -> str:
    rows = [("rank", "score", "seconds", "file")]
    for rank, hit in enumerate(hits, 1):
        rows.append((str(rank), f"{hit.score:.4f}", f"{hit.seconds[0]:.1f}-{hit.seconds[1]:.1f}", hit.source))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) + f"  {row[3]}" for row in rows
    )


if __name__ == "__main__":
    door(main)
