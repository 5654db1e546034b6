"""Hands a gallery to an engine that you already run: vectors, rerank tokens, ids, and what is known of the videos.

    python tools/export_gallery.py gallery --to lancedb database
    python tools/export_gallery.py gallery --to bigfile features/videos

lancedb, qdrant (a folder of qdrant-client), parquet and faiss need the extra [export]; bigfile is what TeachCLIP's and
many other retrieval tools read. Search them with the inner products of distill.release.load(...).embed_text([query]).
Of a model of two stages (EERCF, GLSCL) these vectors recall; its tokens follow as columns token_..., which BigFile and
faiss have no place for.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable
from distill.remote import locate
from distill.terminal import Parser, show

ENGINES = ("bigfile", "faiss", "lancedb", "parquet", "qdrant")


def main(argv: list[str] | None = None) -> None:
    """Export, and print what came out."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=locate, metavar="GALLERY", help="made by tools/index.py; a folder or hf:REPO")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--to", choices=ENGINES, required=True, help="the engine")
    args = parser.parse_args(argv)
    check_writable(args.out, *([] if args.to == "bigfile" else [args.out.parent]))

    from distill import log
    from distill.retrieval import generation
    from distill.retrieval.export import export

    log.setup()
    videos, dim = export(generation.local(args.gallery), args.to, args.out)
    show(f"{args.out}: {videos} vectors of {dim} floats, unit length, for {args.to}")


if __name__ == "__main__":
    door(main)
