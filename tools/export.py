"""Hands a gallery to an engine that you already run, or a student to ONNX Runtime.

    distill export gallery database --to lancedb
    distill export gallery features/videos --to bigfile
    distill export runs/teachclip/release --to onnx --frames frames/test

Of a gallery: vectors, rerank tokens, ids, and what is known of the videos. lancedb, qdrant (a folder of qdrant-client),
parquet and faiss need the extra [export]; bigfile is what TeachCLIP's and many other retrieval tools read. Search them
with the inner products of distill.release.load(...).embed_text([query]). Of a model of two stages (EERCF, GLSCL) these
vectors recall; its tokens follow as columns token_..., which BigFile and faiss have no place for.

Of a release: its towers as graphs of any batch size, in the folder `onnx` beside its weights (extra [onnx]). text.onnx
takes token ids, video.onnx uint8 frames; text_int8.onnx and video_int8.onnx are smaller. All captions and videos of a
frame set are encoded by torch and by ONNX Runtime first: float32 must give every score to 1e-4, int8 must share 97 % of
the ten best videos, or nothing is exported. The release keeps its id, and so its galleries stay valid. Answer queries
without torch by distill.onnx.session.TextSession.open(RELEASE).vectors([query]).
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable
from distill.remote import Place, locate
from distill.terminal import Parser, show

ENGINES = ("bigfile", "faiss", "lancedb", "parquet", "qdrant")  # of a gallery
GRAPHS = "onnx"  # of a release


def main(argv: list[str] | None = None) -> None:
    """Export, and print what came out."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", type=locate, metavar="SOURCE", help="a gallery, as folder or hf:REPO; for onnx, a student's release"
    )
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="the folder to make; not for onnx")
    parser.add_argument("--to", choices=(*ENGINES, GRAPHS), required=True, help="the engine")
    parser.add_argument(
        "--frames",
        type=locate,
        metavar="FRAMES",
        help="onnx: frame set to compare on (default: the test or validation set of the release's recipe)",
    )
    parser.add_argument("--float32", action="store_true", help="onnx: no graphs of 8 bits")
    args = parser.parse_intermixed_args(argv)  # OUT may stand after the options
    if args.to == GRAPHS:
        if args.out is not None:
            parser.error(f"--to onnx writes into the release: leave {args.out} out")
        if not isinstance(args.source, Path):
            parser.error(f"--to onnx writes into the release: fetch {args.source} first, and name its folder")
        return _graphs(args.source, args.frames, not args.float32)
    if args.out is None or args.frames is not None or args.float32:
        parser.error("--frames and --float32 are for onnx" if args.out else f"--to {args.to} needs OUT")
    check_writable(args.out, *([] if args.to == "bigfile" else [args.out.parent]))

    from distill import log
    from distill.retrieval import generation
    from distill.retrieval.export import export

    log.setup()
    videos, dim = export(generation.local(args.source), args.to, args.out)
    show(f"{args.out}: {videos} vectors of {dim} floats, unit length, for {args.to}")


def _graphs(release: Path, frames: Place | None, int8: bool) -> None:
    check_writable(release)

    from distill import log
    from distill.exporting.onnx import export_onnx

    log.setup()
    found = export_onnx(release, frames, int8)
    on = f"{found.texts:,} captions and {found.videos:,} videos of {found.frames}"
    show(f"{release / 'onnx'}: measured on {on}; times of one at a time, on one thread")
    rows = {"torch": (0.0, 100.0, found.torch)}
    rows |= {
        name: (one.score, one.top10, one) for name in ("float32", "int8") if (one := getattr(found, name)) is not None
    }
    show(f"{'':8} {'score off by':>12} {'ten best':>8} {'R@1':>6} {'MB':>8} {'ms/text':>8} {'ms/video':>8}")
    for name, (off, shared, one) in rows.items():
        sizes = f"{one.bytes / 1e6:8.2f} {one.text_ms:8.2f} {one.video_ms:8.2f}"
        show(f"{name:8} {off:12.1e} {shared:7.1f}% {one.r1:6.2f} {sizes}")


if __name__ == "__main__":
    door(main)
