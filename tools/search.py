"""Finds the videos of a gallery that match a query, and the seconds of each that matter most to the model.

    python tools/search.py gallery "a red star falls" --k 5
    python tools/search.py gallery --queries queries.txt --json     (- reads them from stdin, one in every line)
    python tools/search.py gallery --like video7
    python tools/search.py gallery --like video7 --captions

--like takes the id of a video in the gallery or a file, and finds videos that are like it, or with --captions the
stored captions that fit it. A model of two stages (EERCF, GLSCL) finds the likeliest videos by one inner product each,
and orders these anew by all that it knows of them. `--recall` says how many: more take longer, and miss less that only
the second look would find.
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
from distill.errors import ExpectedError, door
from distill.packing.textfiles import read_list
from distill.release.release import load
from distill.retrieval.gallery import CANDIDATES, CaptionHit, Gallery, Hit, release_path

Hits = list[Hit] | list[CaptionHit]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, searches, and prints the hits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="a folder made by tools/index.py")
    parser.add_argument("query", nargs="?", metavar="QUERY", help="what the video shows, in words")
    parser.add_argument("--queries", metavar="FILE", help="several, one in every line; - is stdin")
    parser.add_argument("--like", metavar="VIDEO", help="an id or a file, in place of a query")
    parser.add_argument("--captions", action="store_true", help="with --like: find captions, not videos")
    parser.add_argument("--k", type=int, default=5, metavar="N", help="how many to show (default 5)")
    parser.add_argument(
        "--recall", type=int, metavar="N", help=f"how many are ordered anew, in two stages (default {CANDIDATES})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--release", type=Path, metavar="PATH", help="where the gallery's release is, if it was moved")
    args = parser.parse_args(argv)
    log.setup()
    asked = [given for given in (args.query, args.queries, args.like) if given is not None]
    if len(asked) != 1 or (args.captions and args.like is None):
        raise ExpectedError("expected one of QUERY, --queries FILE and --like VIDEO (--captions goes with --like)")
    if args.like is not None and args.recall is not None and not args.captions:
        raise ExpectedError("--recall: videos like a video are found in one stage; leave it out")
    gallery = Gallery.open(args.gallery, load(release_path(args.gallery, args.release)))
    if args.queries is not None:
        queries = _queries(args.queries)
        answers = dict(zip(queries, gallery.search(queries, args.k, args.recall), strict=True))
        plain = {query: [asdict(hit) for hit in hits] for query, hits in answers.items()}
        table = "\n\n".join(f"{query}\n{_table(hits)}" for query, hits in answers.items())
    else:
        hits = _like(gallery, args) if args.like is not None else gallery.search([args.query], args.k, args.recall)[0]
        plain, table = [asdict(hit) for hit in hits], _table(hits)
    print(json.dumps(plain, indent=1, ensure_ascii=False) if args.json else table)


def _like(gallery: Gallery, args: argparse.Namespace) -> Hits:
    video = args.like if args.like in gallery or not Path(args.like).is_file() else Path(args.like)
    return gallery.search_captions(video, args.k, args.recall) if args.captions else gallery.like(video, args.k)


def _queries(given: str) -> list[str]:
    queries = list(dict.fromkeys(_stdin() if given == "-" else read_list(Path(given))))
    if not queries:
        raise ExpectedError(f"{given}: no queries; write one in every line")
    return queries


def _stdin() -> list[str]:
    try:
        return [line.strip() for line in sys.stdin if line.strip()]
    except UnicodeDecodeError as error:
        raise ExpectedError(f"stdin: not UTF-8 at byte {error.start}; give UTF-8 text, a query in every line") from None


def _table(hits: Hits) -> str:
    rows = [("rank", "score", "seconds", "file")]
    for rank, hit in enumerate(hits, 1):
        if isinstance(hit, CaptionHit):
            rows[0] = ("rank", "score", "video", "caption")
            rows.append((str(rank), f"{hit.score:.4f}", hit.video, hit.text))
        else:
            rows.append((str(rank), f"{hit.score:.4f}", f"{hit.seconds[0]:.1f}-{hit.seconds[1]:.1f}", hit.source))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) + f"  {row[3]}" for row in rows
    )


if __name__ == "__main__":
    door(main)
