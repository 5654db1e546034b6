"""Encodes videos with a release into a gallery that tools/search.py and tools/serve.py search.

    python tools/index.py runs/student/release my/videos --out gallery
    python tools/index.py runs/student/release frames/test --out gallery --videos videos --captions
    python tools/index.py runs/student/release films.txt --out gallery --segments 30 --overlap 5
    python tools/index.py runs/student/release my/videos --out gallery --append
    python tools/index.py runs/student/release my/videos --out gallery --sync

SOURCE is a folder of video files (searched with its sub-folders and linked ones), a text file with the path of one in
every line, or a frame set made by tools/pack_frames.py. Files are decoded on all cores. One that cannot be read is left
out and reported; the gallery lists them with the reasons, and tries them again when they change. Started again after an
interruption, the command continues, and ends with the same bytes. A folder in which nothing changed leaves the gallery
as it is.

--append adds what is new and says how many files have changed or are gone. --sync takes over all of that at once: rows
of new files come, those of changed files (other bytes, or another time of change) are replaced, those of files that are
gone from SOURCE are deleted. Both cut files as before unless told otherwise. What tools/gallery.py deleted stays
out, even if its file changes, until tools/gallery.py restores it.

The gallery remembers its release and the videos relative to itself, so all can be moved together. Of every row a small
picture is kept, for pages that cannot play the file (--no-posters: none).

Every model stores a vector per video, by whose inner product with a query videos are found. One of two stages (EERCF,
GLSCL) also stores tokens, in float16, from which the likeliest are ordered anew. One of one stage (TeachCLIP,
CLIP4Clip) also stores the frames of which its vector was pooled: they say which second answers a query, and order anew
what was found by a second look (tools/search.py). What all that takes per video is printed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable
from distill.remote import locate
from distill.terminal import Parser, show

STORED = ("float32", "float16", "int8")  # as which vectors are
FRAMES = ("int8", "float16", "none")
SHOWN = 10  # broken videos


def main(argv: list[str] | None = None) -> None:
    """Index, and print what came out."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=locate, metavar="RELEASE", help="the release that encodes, a folder or hf:REPO")
    parser.add_argument("source", type=locate, metavar="SOURCE", help="video files or a frame set, see above")
    parser.add_argument("--out", type=Path, required=True, metavar="GALLERY", help="the folder to make")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--append", action="store_true", help="add what the gallery lacks")
    modes.add_argument("--sync", action="store_true", help="... and replace what changed, and delete what is gone")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="folder of the video files (default: SOURCE's)")
    parser.add_argument("--vectors", choices=STORED, help="how vectors are stored (default float32)")
    parser.add_argument("--frames", choices=FRAMES, help="how frames are stored (default int8)")
    parser.add_argument("--segments", type=float, metavar="SECONDS", help="cut longer files into spans of this length")
    parser.add_argument("--overlap", type=float, default=0.0, metavar="SECONDS", help="... that share so much (0)")
    parser.add_argument("--captions", action="store_true", help="store a frame set's captions, for video-to-text")
    parser.add_argument("--no-posters", action="store_true", help="keep no pictures (some 5,000 bytes a video)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: one per core)")
    args = parser.parse_args(argv)
    check_writable(args.out)
    _index(args)


def _index(args: argparse.Namespace) -> None:
    from distill import comm, log  # here also because each process that decodes imports this file, and needs none
    from distill.manifest import NAME
    from distill.release.release import load
    from distill.retrieval import generation
    from distill.retrieval.indexing import build_gallery
    from distill.retrieval.sources import Cut

    log.setup()
    cut = None if args.segments is None else Cut(args.segments, args.overlap)
    before = generation.read(args.out) if (args.out / NAME).is_file() else None
    manifest = build_gallery(
        load(args.release, comm.device()),
        args.source,
        args.out,
        videos=args.videos,
        vectors=args.vectors,
        frames=args.frames,
        cut=cut,
        captions=args.captions,
        posters=not args.no_posters,
        append=args.append,
        sync=args.sync,
        workers=args.workers,
    )
    if manifest == before:
        show(f"{args.out}: nothing to do: {manifest.counts['videos']:,} videos, gallery {manifest.id[:12]}")
    else:
        _report(args.out, manifest)


def _report(out: Path, manifest: Any) -> None:
    from distill.retrieval.ledger import notes
    from distill.retrieval.segment import POSTERS

    counts, left_out = manifest.counts, notes(out, manifest)
    captions = counts.get("captions", 0)
    stored = f"{counts['vector_bytes']:,} bytes of vectors"
    for what in ("token", "frame"):
        stored += f" and {counts[f'{what}_bytes']:,} of {what}s" if f"{what}_bytes" in counts else ""
    total = sum(file.bytes for file in manifest.files.values())
    what = f"{counts['videos']:,} videos" + (f", {captions:,} captions" if captions else "")
    pictures = sum(file.bytes for name, file in manifest.files.items() if Path(name).name == POSTERS)
    each = f"{total / max(counts['rows'], 1):,.0f} bytes with all else"
    each += f" ({pictures / counts['rows']:,.0f} of a poster)" if pictures else ""
    show(f"{out}: {what}, {stored} a video, {each}, {total / 2**20:.1f} MiB, gallery {manifest.id[:12]}")
    for note in left_out[:SHOWN]:
        show(f"  left out {note['video']} ({note['source']}): {note['reason']}")
    if len(left_out) > SHOWN:
        show(f"  ... and {len(left_out) - SHOWN} more; {out / 'notes'} lists them all")


if __name__ == "__main__":
    door(main)
