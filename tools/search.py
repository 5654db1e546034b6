"""Finds the videos of a gallery that match a query, and the seconds of each that answer it.

    python tools/search.py gallery "a red star falls" --k 5
    python tools/search.py gallery --queries queries.txt --json     (- reads them from stdin, one in every line)
    python tools/search.py gallery "a red star falls" --second-look
    python tools/search.py gallery --like video7
    python tools/search.py gallery --like video7 --captions
    python tools/search.py gallery "a red star falls" --backend onnx

--like takes the id of a video in the gallery or a file, and finds videos that are like it, or with --captions the
stored captions that fit it. A model of two stages (EERCF, GLSCL) retrieves candidates by one inner product each, then
reranks them with the full score. `--candidates` says how many: more take longer, and miss less that only the full score
would find. `--second-look` does the like for a model of one stage: what its vectors found is ordered anew by the frames
that the gallery stores, with the weights that were chosen on the validation set when the release was trained.

Seconds are those whose frames answer the query. A gallery without stored frames, and --like, show those that weigh most
in the video instead, whatever is asked, and say so. Spans of one film (--segments) are one line, with its best moments.

`--backend onnx` answers without PyTorch, by the text graph that `distill export RELEASE --to onnx` made: in one stage,
in words or by ids (distill/retrieval/backend.py).
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.data.textfiles import listed, read_list
from distill.deprecation import keep_old_option
from distill.errors import ExpectedError, door
from distill.remote import Place, locate
from distill.terminal import Parser, printable, show

BACKENDS = ("torch", "onnx")

if TYPE_CHECKING:
    from distill.retrieval.gallery import Gallery
    from distill.retrieval.hits import CaptionHit, Hit


def main(argv: list[str] | None = None) -> None:
    """Search, and print the hits."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=locate, metavar="GALLERY", help="made by tools/index.py; a folder or hf:REPO")
    parser.add_argument("query", nargs="?", metavar="QUERY", help="what the video shows, in words")
    parser.add_argument("--queries", metavar="FILE", help="several, one in every line; - is stdin")
    parser.add_argument("--like", metavar="VIDEO", help="an id or a file, in place of a query")
    parser.add_argument("--captions", action="store_true", help="with --like: find captions, not videos")
    parser.add_argument("--k", type=int, default=5, metavar="N", help="how many to show (default 5)")
    candidates = parser.add_argument(
        "--candidates", type=int, metavar="N", help="how many a second stage reranks (default 200)"
    )
    keep_old_option(parser, "--recall", candidates)
    parser.add_argument("--second-look", action="store_true", help="order what was found by its frames, in one stage")
    parser.add_argument("--spans", action="store_true", help="a line for every span of a film, not for the film")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0], help="what encodes queries (default torch)")
    parser.add_argument(
        "--release", type=locate, metavar="PATH", help="where its release is, if it was moved: a folder or hf:REPO"
    )
    parser.add_argument("--videos", type=Path, metavar="DIR", help="where the videos are, if they were moved")
    args = parser.parse_args(argv)
    asked = [given for given in (args.query, args.queries, args.like) if given is not None]
    if len(asked) != 1 or (args.captions and args.like is None):
        raise ExpectedError("expected one of QUERY, --queries FILE and --like VIDEO (--captions goes with --like)")
    if args.like is not None and args.candidates is not None and not args.captions:
        raise ExpectedError("--candidates: videos like a video are found in one stage; leave it out")
    if args.like is not None and args.second_look:
        raise ExpectedError("--second-look: compares frames with words; leave it out with --like")
    _answer(args)


def opened(backend: str, place: Place, *, on_gpu: bool = False) -> Any:
    """Return a release as a gallery is opened with it: with its weights, or its text side in ONNX Runtime.

    Weights are put `on_gpu` if there is one.
    """
    if backend == "onnx":
        from distill.onnx.session import TextSession

        if not isinstance(place, Path):
            raise ExpectedError(f"--backend onnx: {place} is no folder; download the release, and name it by --release")
        return TextSession.open(place)
    from distill import comm
    from distill.release.release import load

    return load(place, comm.device()) if on_gpu else load(place)


def _answer(args: argparse.Namespace) -> None:
    from distill import log
    from distill.data.tokens import warn_of_cuts
    from distill.retrieval import generation
    from distill.retrieval.gallery import Gallery
    from distill.retrieval.places import release_path

    log.setup()
    path = generation.local(args.gallery)
    release = opened(args.backend, release_path(path, args.release))
    gallery = Gallery.open(path, release, args.videos)
    queries = _queries(args)
    where = "QUERY" if args.queries is None else "stdin" if args.queries == "-" else args.queries
    warn_of_cuts(queries, release.tokenizer, where, "say in fewer words what the video shows", "queries")
    if args.queries is not None:
        answers = dict(zip(queries, _searched(gallery, queries, args), strict=True))
        plain = {query: [asdict(hit) for hit in hits] for query, hits in answers.items()}
        table = "\n\n".join(f"{printable(query)}\n{_table(hits)}" for query, hits in answers.items())
    else:
        found = _one(gallery, args)
        plain, table = [asdict(hit) for hit in found], _table(found)
    show(*(json.dumps(plain, indent=1, ensure_ascii=False) if args.json else table).split("\n"))


def _searched(gallery: "Gallery", queries: list[str], args: argparse.Namespace) -> "list[list[Hit]]":
    options = {"second_look": args.second_look, "by_file": not args.spans}
    return gallery.search(queries, args.k, args.candidates, **options)


def _one(gallery: "Gallery", args: argparse.Namespace) -> "list[Hit] | list[CaptionHit]":
    """The hits of QUERY, or of --like."""
    if args.like is None:
        return _searched(gallery, [args.query], args)[0]
    video = args.like if args.like in gallery or not Path(args.like).is_file() else Path(args.like)
    if args.captions:
        return gallery.search_captions(video, args.k, args.candidates)
    return gallery.like(video, args.k, by_file=not args.spans)


def _queries(args: argparse.Namespace) -> list[str]:
    """The queries of the command line; none with --like."""
    given = args.queries
    if given is None:
        return [] if args.query is None else [args.query]
    queries = list(dict.fromkeys(_stdin() if given == "-" else read_list(Path(given))))
    if not queries:
        raise ExpectedError(f"{given}: no queries; write one in every line")
    return queries


def _stdin() -> list[str]:
    try:
        return listed(sys.stdin.read())
    except UnicodeDecodeError as error:
        raise ExpectedError(f"stdin: not UTF-8 at byte {error.start}; give UTF-8 text, a query in every line") from None


def _table(hits: "list[Hit] | list[CaptionHit]") -> str:
    from distill.retrieval.hits import CaptionHit, Hit

    rows = [("rank", "score", "seconds", "file")]
    for rank, hit in enumerate(hits, 1):
        if isinstance(hit, CaptionHit):
            rows[0] = ("rank", "score", "video", "caption")
            rows.append((str(rank), f"{hit.score:.4f}", printable(hit.video), printable(hit.text)))
        else:
            seconds = ", ".join(f"{one.seconds[0]:.1f}-{one.seconds[1]:.1f}" for one in (hit, *hit.others))
            rows.append((str(rank), f"{hit.score:.4f}", seconds, printable(hit.source)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    cells = ([cell.rjust(width) for cell, width in zip(row, widths, strict=False)] + [row[3]] for row in rows)
    lines = ["  ".join(line) for line in cells]
    if any(isinstance(hit, Hit) and hit.weighed_by == "video" for hit in hits):
        lines.append("(seconds: what weighs most in the video, whatever is asked)")
    return "\n".join(lines)


if __name__ == "__main__":
    door(main)
