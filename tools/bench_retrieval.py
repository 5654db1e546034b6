"""Measures searches of a gallery, and what shortcuts miss: operations, time, bytes and recall, model beside model.

    tools/bench_retrieval.py
    tools/bench_retrieval.py --json results/retrieval.json
    tools/bench_retrieval.py runs/xclip/release runs/glscl/release --frames frames/test

Models: 10,000 synthetic videos with features of the papers' sizes (ViT-B/32: 512 numbers, 12 frames, 49 patches a
frame, 32 words), in which coarse and full scores go together about as in trained models. Needs 10 GB of memory, for the
patches, and about ten minutes. With releases: also those, on the videos and captions of a frame set. Two stages recall
by exact inner products, or by an approximate index (extra [index]).

    MAC/pair    multiply-accumulates of one text and one video by the published formula, of the full score
    M MAC       million multiply-accumulates a query as computed here; encoding the query is not counted
    ms          median time of a query alone, and of a query when 16 or 64 come at once
    of X-CLIP   1/n of what X-CLIP takes, whose calls are cut to the size that this machine does fastest
    bytes       a video: vectors (a teacher's: all its features, float32) + tokens (float16)
    top 10      how much of the model's own exhaustive top ten is found
    lost        R@1 points against its own exhaustive search
    GB/s        read by the first part of a second stage, for a query alone; a copy: by a plain copy of such rows

Galleries: 10,000, 100,000 and 1,000,000 such videos (--sizes) in galleries on disk, searched exactly, approximately
and in two stages beside a plain matrix product. The largest takes 30 GB in --folder, which are removed again, and
about a quarter of an hour.

    built in    seconds to write and hash a gallery of known vectors, or to make an approximate index of it
    top 10      how much of the exact ten best is found; in two stages, of the ten best by the full score of all videos

One thread by default: ratios then depend least on what else the machine does. At the end stands what became of the
papers' claims, at searches that find 99 % of the exhaustive top ten.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.deprecation import keep_old_option
from distill.errors import ExpectedError, door
from distill.publishing import check_writable, check_writable_file
from distill.remote import locate
from distill.terminal import Parser


def main(argv: list[str] | None = None) -> None:
    """Measure, and print a table for each gallery."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", type=locate, nargs="*", metavar="RELEASE", help="releases to measure on --frames")
    parser.add_argument("--frames", type=Path, metavar="FRAMES", help="a folder made by tools/pack_frames.py")
    parser.add_argument(
        "--videos", type=int, default=10_000, metavar="N", help="of the models (default 10000; 0: leave them out)"
    )
    parser.add_argument("--queries", type=int, default=100, metavar="N", help="synthetic ones (default 100)")
    candidates = parser.add_argument(
        "--candidates",
        type=int,
        nargs="+",
        default=[20, 50, 100, 200, 500],
        metavar="K",
        help="reranked in two stages (default 20 50 100 200 500)",
    )
    keep_old_option(parser, "--recall", candidates)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[10_000, 100_000, 1_000_000],
        metavar="N",
        help="of the galleries (default 10000 100000 1000000; none: leave them out)",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/bench"), metavar="DIR", help="for the galleries (build/bench)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the processor (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    args = parser.parse_args(argv)
    _check(args)
    _bench(args)


def _check(args: argparse.Namespace) -> None:
    if bool(args.releases) != (args.frames is not None):
        raise ExpectedError("RELEASE and --frames belong together: releases are measured on a frame set; give both")
    if min(*args.candidates, args.queries, args.threads, args.videos + 1) < 1 or 0 < args.videos < args.queries:
        raise ExpectedError(
            "--videos, --queries, --candidates, --threads: at least 1 each, and no more queries than videos"
        )
    if args.sizes:
        check_writable(args.folder)
    if args.json is not None:
        check_writable_file(args.json)


def _bench(args: argparse.Namespace) -> None:
    import torch

    from distill import log
    from distill.bench import galleries
    from distill.bench.report import table
    from distill.bench.rounds import machine
    from distill.bench.written import check_sizes_fit
    from distill.records import write_json
    from distill.retrieval.approximate import check_installed
    from distill.retrieval.upkeep import LEAST

    log.setup()
    check_installed()
    if args.sizes:
        if min(args.sizes) < LEAST:
            raise ExpectedError(f"--sizes: {min(args.sizes)}, expected at least {LEAST} videos")
        check_sizes_fit(args.folder, args.sizes)
    torch.set_num_threads(args.threads)
    measured, stored = [], []
    for report in _reports(args):
        measured.append(report)
        print(table(report), end="\n\n", flush=True)
    for size in args.sizes:
        stored.append(galleries.measure_size(args.folder, size))
        print(galleries.table(stored[-1]), end="\n\n", flush=True)
    goals = galleries.goals(max(stored, key=lambda s: s.videos)) if stored else []
    for goal in goals:
        print(goal.sentence())
    if args.json is not None:
        parts = {"models": measured, "galleries": stored, "goals": goals}
        found = {part: [asdict(one) for one in measures] for part, measures in parts.items()}
        write_json(args.json, {"machine": machine()} | found)


def _reports(args: argparse.Namespace) -> Iterator[Any]:
    """Measure the releases, then the models on drawn features, as far as they are asked for."""
    from distill.bench import contenders
    from distill.bench.report import RetrievalReport, claims
    from distill.bench.retrieval import measure_searches
    from distill.bench.synthetic import Sizes, World
    from distill.data.frames import FrameSet
    from distill.release.release import load

    if args.releases:
        models, own = contenders.of_releases([load(path) for path in args.releases], FrameSet(args.frames))
        rows = measure_searches(models, own, args.candidates)
        about = {"releases": [str(path) for path in args.releases]}
        yield RetrievalReport(str(args.frames), models[0].videos, len(own), about, rows)
    if args.videos:
        sizes, world = Sizes(), World()
        rows = measure_searches(*contenders.synthetic(args.videos, args.queries, sizes, world), args.candidates)
        about = {"sizes": asdict(sizes), "world": asdict(world)}
        yield RetrievalReport("synthetic", args.videos, args.queries, about, rows, claims(rows))


if __name__ == "__main__":
    door(main)
