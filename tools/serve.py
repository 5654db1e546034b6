"""Serves a gallery: a page in the browser, the same as JSON for programs. docs/serving.md says more.

    python tools/serve.py gallery
    python tools/serve.py gallery --port 8080 --examples "a hatching chick" "a red apple, then a fire engine"
    python tools/serve.py gallery --second-look             # rank what was found once more, by its frames
    python tools/serve.py gallery --backend onnx            # without PyTorch, by the release's text graph

It is there for this machine alone unless --host says otherwise; whoever reaches it can see all videos of the gallery.
Ctrl-C stops it.
"""

import argparse
import faulthandler
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import ExpectedError, door
from distill.remote import locate
from distill.terminal import Parser, show
from tools.search import BACKENDS, opened

EXAMPLES = ("someone laughs", "a dog runs along a beach", "food on a table, seen from above")


def main(argv: list[str] | None = None) -> None:
    """Open the gallery and serve it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=locate, metavar="GALLERY", help="made by tools/index.py; a folder or hf:REPO")
    parser.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen at (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 for any free one (default 8000)")
    parser.add_argument("--examples", nargs="+", default=EXAMPLES, metavar="QUERY", help="searches the page offers")
    parser.add_argument("--second-look", action="store_true", help="take a second look at frames with every search")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="what encodes queries (default torch)")
    parser.add_argument(
        "--release", type=locate, metavar="PATH", help="where its release is, if it was moved: a folder or hf:REPO"
    )
    parser.add_argument("--videos", type=Path, metavar="DIR", help="where the videos are, if they were moved")
    args = parser.parse_args(argv)

    from distill import log
    from distill.retrieval import generation
    from distill.retrieval.gallery import Gallery
    from distill.retrieval.places import release_path
    from distill.serving.server import serve

    log.setup()
    faulthandler.enable()  # says so if a mapped file is cut
    path = generation.local(args.gallery)
    release = opened(args.backend, release_path(path, args.release), on_gpu=True)
    gallery = Gallery.open(path, release, args.videos)
    if args.second_look and (reason := gallery.no_second_look):
        raise ExpectedError(f"--second-look: {reason}")

    def ready(url: str) -> None:
        show(f"{len(gallery)} videos of {args.gallery} at {url} (Ctrl-C stops)")

    options = {"host": args.host, "port": args.port, "examples": args.examples, "second_look": args.second_look}
    serve(gallery, **options, ready=ready)


if __name__ == "__main__":
    door(main)
