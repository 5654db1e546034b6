"""Looks after a gallery that tools/index.py made.

    python tools/gallery.py gallery show
    python tools/gallery.py gallery delete video7 "holiday@30-60"
    python tools/gallery.py gallery delete --file ids.txt
    python tools/gallery.py gallery restore video7
    python tools/gallery.py gallery move --videos /new/place
    python tools/gallery.py gallery compact
    python tools/gallery.py gallery approximate
    python tools/gallery.py gallery calibrate frames/train
    python tools/gallery.py gallery verify

delete marks videos, and only compact frees their bytes. What was deleted is not indexed again, though its file is
still there, and even if it changes; after restore, the next tools/index.py --append or --sync takes it. compact also
joins what many --append left in pieces, which makes searching faster. approximate makes an index by which large
galleries are searched many times faster and nearly as well: it says how much of the exact best ten it finds. calibrate
takes many queries, the captions of a frame set or the lines of a file, and puts back videos that come up for everything
(QB-Norm; tools/evaluate.py --qbnorm says what that gains). move stores where the videos or the release are now, which
other commands take as --videos and --release. verify compares every file with its hash; show and verify with --videos
also count the videos that have no file in that folder. A change is whole or not at all, however the command ends, and a
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
from distill.remote import locate
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Change what is to be changed, and print what there is."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=locate, metavar="GALLERY", help="made by tools/index.py; a folder or hf:REPO")
    does = parser.add_subparsers(dest="does", required=True, metavar="ACTION")
    shows = does.add_parser("show", help="say what is in it")
    delete = does.add_parser("delete", help="delete videos")
    delete.add_argument("ids", nargs="*", metavar="ID", help="of a video; that of a file deletes all its spans")
    restore = does.add_parser("restore", help="let deleted videos be indexed again")
    restore.add_argument("ids", nargs="*", metavar="ID", help="as it was given to delete")
    for names in (delete, restore):
        names.add_argument("--file", type=Path, metavar="TXT", help="a text file with an id in every line")
    move = does.add_parser("move", help="store where the videos or the release are now")
    move.add_argument("--release", type=Path, metavar="PATH", help="the release that made the gallery")
    does.add_parser("compact", help="free the bytes of deleted videos, and join what was added")
    does.add_parser("approximate", help="build an approximate index (extra [index])")
    calibrate = does.add_parser("calibrate", help="put back videos that come up for everything")
    calibrate.add_argument("bank", type=Path, metavar="BANK", help="a frame set, or a text file of queries, one a line")
    calibrate.add_argument("--release", type=locate, metavar="PATH", help="where the release is, if it was moved")
    verify = does.add_parser("verify", help="compare every file with its hash")
    for moved in (shows, move, verify):
        moved.add_argument("--videos", type=Path, metavar="DIR", help="where the videos are, if they were moved")
    args = parser.parse_args(argv)
    if args.does not in ("show", "verify"):
        check_writable(args.gallery)
    _carry_out(args)


def _carry_out(args: argparse.Namespace) -> None:
    from distill import log
    from distill.retrieval import generation, upkeep

    log.setup()
    args.gallery = generation.local(args.gallery)
    if args.does in ("delete", "restore"):
        ids = args.ids + ([] if args.file is None else read_list(args.file))
        manifest = (upkeep.delete if args.does == "delete" else upkeep.restore)(args.gallery, ids)
    elif args.does == "move":
        manifest = upkeep.move(args.gallery, args.videos, args.release)
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
    show(*_shown(args.gallery, manifest))
    if args.does in ("show", "verify") and args.videos is not None:
        show(f"{upkeep.missing(args.gallery, args.videos):,} videos have no file in {args.videos}")


def _release_and_bank(args: argparse.Namespace) -> tuple[Any, list[str]]:
    from distill.data.frames import FrameSet
    from distill.data.tokens import warn_of_cuts
    from distill.evaluation.evaluate import texts_of
    from distill.release.release import load
    from distill.retrieval.places import release_path

    bank = texts_of(FrameSet(args.bank)) if args.bank.is_dir() else read_list(args.bank)
    release = load(release_path(args.gallery, args.release))
    mend = "searches are cut alike; the release was trained with so many (data.max_words)"
    warn_of_cuts(bank, release.tokenizer, str(args.bank), mend, "queries")
    return release, bank


def _shown(path: Path, manifest: Any) -> list[str]:
    from distill.retrieval import generation, places

    counts, size = manifest.counts, sum(file.bytes for file in manifest.files.values())
    gone, pieces = counts["rows"] - counts["videos"], len(generation.segments(manifest))
    index, bank = (manifest.config.get(name) for name in generation.DERIVED)
    found = f", approximate index with recall@10 {index['recall@10']:.3f}" if index else ""
    found += f", calibrated by {bank['queries']:,} queries" if bank else ""
    remembered = [("made by", manifest.config["release"])]
    remembered += [("videos in", folder) for folder in manifest.config["folders"]]
    where = [(what, places.found(path, manifest, place)) for what, place in remembered]
    return [
        f"{path}: {counts['videos']:,} videos ({gone:,} deleted) in {pieces} segments, {counts.get('captions', 0):,} "
        f"captions, {manifest.config['vectors']} vectors{found}, {size / 2**20:.1f} MiB, "
        f"generation {counts['generation']}, gallery {manifest.id[:12]}",
        *(f"  {what} {place}{'' if place.is_dir() else ' (not there; see --help)'}" for what, place in where),
    ]


if __name__ == "__main__":
    door(main)
