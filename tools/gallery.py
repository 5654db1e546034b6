"""Looks after a gallery that tools/index.py made.

    python tools/gallery.py gallery show
    python tools/gallery.py gallery delete video7 "holiday@30-60"
    python tools/gallery.py gallery delete --file ids.txt
    python tools/gallery.py gallery compact
    python tools/gallery.py gallery approximate
    python tools/gallery.py gallery calibrate frames/train
    python tools/gallery.py gallery verify

delete marks videos, and only compact frees their bytes; compact also joins what many --append left in pieces, which
makes searching faster. approximate makes an index by which large galleries are searched many times faster and nearly
as well: it says how much of the exact best ten it finds. calibrate takes many queries, the captions of a frame set or
the lines of a file, and puts back videos that come up for everything (QB-Norm; tools/evaluate.py --qbnorm says what
that gains). verify compares every file with its hash. A change is whole or not at all, however the command ends, and a
server or a search that has the gallery open is not disturbed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.data.textfiles import read_list
from distill.errors import door
from distill.publishing import check_writable
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Change what is to be changed, and print what there is."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="a folder made by tools/index.py")
    does = parser.add_subparsers(dest="does", required=True, metavar="ACTION")
    does.add_parser("show", help="say what is in it")
    delete = does.add_parser("delete", help="delete videos")
    delete.add_argument("ids", nargs="*", metavar="ID", help="of a video; that of a file deletes all its spans")
    delete.add_argument("--file", type=Path, metavar="TXT", help="a text file with an id in every line")
    does.add_parser("compact", help="free the bytes of deleted videos, and join what was added")
    does.add_parser("approximate", help="build an approximate index (extra [index])")
    calibrate = does.add_parser("calibrate", help="put back videos that come up for everything")
    calibrate.add_argument("bank", type=Path, metavar="BANK", help="a frame set, or a text file of queries, one a line")
    calibrate.add_argument("--release", type=Path, metavar="PATH", help="where the release is, if it was moved")
    does.add_parser("verify", help="compare every file with its hash")
    args = parser.parse_args(argv)
    if args.does not in ("show", "verify"):
        check_writable(args.gallery)

    from distill import log
    from distill.retrieval import generation, upkeep

    log.setup()
    if args.does == "delete":
        manifest = upkeep.delete(args.gallery, args.ids + ([] if args.file is None else read_list(args.file)))
    elif args.does == "calibrate":
        manifest = upkeep.calibrate(args.gallery, *_release_and_bank(args))
    else:
        does = {
            "show": generation.read,
            "compact": upkeep.compact,
            "approximate": upkeep.approximate,
            "verify": upkeep.verify,
        }
        manifest = does[args.does](args.gallery)
    show(_shown(args.gallery, manifest))


def _release_and_bank(args: argparse.Namespace) -> tuple[Any, list[str]]:
    from distill.data.frames import FrameSet
    from distill.data.tokens import warn_of_cuts
    from distill.evaluation.evaluate import texts_of
    from distill.release.release import load
    from distill.retrieval.gallery import release_path

    bank = texts_of(FrameSet(args.bank)) if args.bank.is_dir() else read_list(args.bank)
    release = load(release_path(args.gallery, args.release))
    mend = "searches are cut alike; the release was trained with so many (data.max_words)"
    warn_of_cuts(bank, release.max_words, str(args.bank), mend, "queries")
    return release, bank


def _shown(path: Path, manifest: Any) -> str:
    from distill.retrieval import generation

    counts, size = manifest.counts, sum(file.bytes for file in manifest.files.values())
    gone, pieces = counts["rows"] - counts["videos"], len(generation.segments(manifest))
    index, bank = (manifest.config.get(name) for name in generation.DERIVED)
    found = f", approximate index with recall@10 {index['recall@10']:.3f}" if index else ""
    found += f", calibrated by {bank['queries']:,} queries" if bank else ""
    return (
        f"{path}: {counts['videos']:,} videos ({gone:,} deleted) in {pieces} segments, {counts.get('captions', 0):,} "
        f"captions, {manifest.config['vectors']} vectors{found}, {size / 2**20:.1f} MiB, "
        f"generation {counts['generation']}, gallery {manifest.id[:12]}"
    )


if __name__ == "__main__":
    door(main)
