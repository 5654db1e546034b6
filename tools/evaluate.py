"""Evaluates a release under a named protocol: recall and ranks both ways, on a gallery that says how whole it is.

    tools/evaluate.py runs/teachclip/release frames/test --protocol msrvtt-1ka --out results/teachclip.json
    tools/evaluate.py runs/clip4clip/release frames/test --protocol msrvtt-1ka --compare results/teachclip.json
    tools/evaluate.py runs/eercf/release frames/test --protocol msrvtt-1ka --candidates 20 50 100
    tools/evaluate.py runs/my-student/release my/frames/test --protocol own --out my/result.json

`--protocol own` takes the videos and captions of any frame set; a published protocol is not complete on other videos or
captions than its own, and the report says so. A frame set stands for one split. Its fingerprint, over all video ids and
captions, decides which results may be compared. The first table compares every query with everything. `--candidates`
also searches in two stages as a gallery of EERCF or GLSCL does, scoring so many candidates in full, text-to-video and
video-to-text. DSL and QB-Norm, which let queries help one another, are printed apart and only if asked for.

Many captions are true of more videos than their own. Graded truth says of which: nDCG@10, and R@1 that counts them,
stand in a block of their own, beside the papers' figures and never among them.

    tools/evaluate.py runs/teachclip/release frames/test --protocol own --qrels test.qrels --near-duplicates
    tools/evaluate.py runs/teachclip/release frames/test --protocol own --labels labels/xclip-test --share 0.95

A line of --qrels is a caption id, 0, a video id and a grade (TREC's format). --labels takes a label set of FRAMES
(distill label) and calls a pair relevant to which the teacher gives a share of the matched pair's score.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.deprecation import keep_old_option
from distill.errors import ArtefactError, ExpectedError, door
from distill.evaluation.protocol import PROTOCOLS
from distill.publishing import check_writable_file
from distill.remote import locate
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Evaluate, and print the result."""
    table = "\n".join(f"  {name:<16} {p.split}: {p.gallery};\n{'':<19}{p.queries}" for name, p in PROTOCOLS.items())
    parser = Parser(
        description=__doc__, epilog=f"protocols:\n{table}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "release", type=locate, metavar="RELEASE", help="student or teacher: a folder, or one of the Hub (hf:REPO)"
    )
    parser.add_argument(
        "frames", type=locate, metavar="FRAMES", help="a folder made by tools/pack_frames.py: the test split"
    )
    parser.add_argument("--protocol", required=True, choices=PROTOCOLS, metavar="NAME", help="see below")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    candidates = parser.add_argument(
        "--candidates", type=_count, nargs="+", default=[], metavar="K", help="also in two stages, scoring K in full"
    )
    keep_old_option(parser, "--recall", candidates)
    parser.add_argument("--dsl", action="store_true", help="also by dual softmax, which uses all other test queries")
    parser.add_argument(
        "--qbnorm", type=locate, metavar="BANK", help="also by QB-Norm with the captions of this frame set (training)"
    )
    truth = parser.add_mutually_exclusive_group()
    truth.add_argument("--qrels", type=Path, metavar="FILE", help="also against the judgements of this file")
    truth.add_argument("--labels", type=locate, metavar="SET", help="also against the scores of a teacher's label set")
    parser.add_argument(
        "--share", type=_share, metavar="S", help="with --labels: the share of the matched pair's score (default: 0.95)"
    )
    parser.add_argument("--near-duplicates", action="store_true", help="count captions that are true of several videos")
    parser.add_argument("--out", type=Path, metavar="RESULT", help="JSON file to write the result to")
    parser.add_argument(
        "--compare", type=Path, nargs="+", default=[], metavar="RESULT", help="earlier results to show beside this one"
    )
    args = parser.parse_args(argv)
    if args.share is not None and args.labels is None:
        parser.error("--share is of a teacher's scores: name them with --labels")
    if args.out is not None:
        check_writable_file(args.out)
    show(*_evaluated(args).split("\n"))


def _evaluated(args: argparse.Namespace) -> str:
    """The result as JSON or as tables; written to --out."""
    from distill import comm, log
    from distill.data.frames import FrameSet
    from distill.evaluation.measure import evaluate_model
    from distill.evaluation.report import report
    from distill.evaluation.result import check_comparable, read_result
    from distill.evaluation.standing import captions_of, fingerprint
    from distill.records import write_json
    from distill.release.release import load

    log.setup()
    if comm.world_size() > 1:
        raise ExpectedError(f"started as {comm.world_size()} processes; evaluation runs in one: start it with python")
    frames, earlier = FrameSet(args.frames), [read_result(path) for path in args.compare]
    found = fingerprint(captions_of(frames))
    for path, result in zip(args.compare, earlier, strict=True):
        check_comparable(path, result, args.protocol, found)
    release = load(args.release, comm.device())
    if args.out is not None and args.out.exists():
        _check_same(args.out, release.manifest.id, args.protocol, found)
    frames, truth = release.accept(frames), _truth(args, frames)
    result = evaluate_model(
        _subject(release, frames),
        release.model,
        release.tokenizer,
        frames,
        args.protocol,
        dsl=args.dsl,
        bank=None if args.qbnorm is None else FrameSet(args.qbnorm),
        candidates=args.candidates,
        second_look=release.second_look,
        truth=truth,
        duplicates=args.near_duplicates,
    )
    plain, *compared = (one.model_dump(mode="json") for one in (result, *earlier))
    if args.out is not None:
        write_json(args.out, plain)
    if args.json:
        return json.dumps(plain | {"compared": compared}, indent=1, sort_keys=True, ensure_ascii=False)
    return report(result, earlier)


def _truth(args: argparse.Namespace, frames: Any) -> Any:
    """Read the graded truth that was asked for, if any."""
    from distill.evaluation.truth import SHARE, by_teacher, read_qrels

    if args.qrels is not None:
        return read_qrels(args.qrels, frames)
    return None if args.labels is None else by_teacher(args.labels, frames, args.share or SHARE)


def _subject(release: Any, frames: Any) -> Any:
    """Name what is evaluated, and on what."""
    from distill.evaluation.result import Subject

    return Subject(
        release=str(release.path),
        release_id=release.manifest.id,
        model=release.config.model["kind"],
        frames=str(frames.path),
        frames_id=frames.manifest.id,
    )


def _check_same(out: Path, release_id: str, protocol: str, found: str) -> None:
    """Refuse to write over another result: a file is written again only for what it already is about."""
    from distill.evaluation.result import read_result

    there = read_result(out)
    if (there.subject.release_id, there.protocol, there.fingerprint) != (release_id, protocol, found):
        raise ArtefactError(f"{out}: already holds another result; choose another file for --out")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a share of a score, above 0 and at most 1")
    return share


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected how many candidates to score in full, at least 1")
    return int(text)


if __name__ == "__main__":
    door(main)
