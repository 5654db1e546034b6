"""Verify label sets, print their statistics, compare two of them, and merge the parts of one.

    tools/labels.py verify demo/labels/xclip --teacher runs/xclip/release --frames demo/frames/train
    tools/labels.py stats demo/labels/xclip demo/labels/ts2net
    tools/labels.py diff demo/labels/xclip demo/labels/xclip-fp32
    tools/labels.py merge host-a/labels host-b/labels --out labels

verify  hash every file and check every row; with the teacher and the frames, compute some rows again and compare
stats   sizes, coverage, entropy, temperatures; with a second set, how far the two teachers agree on frames
diff    compare two sets of the same frames row by row, and on random batches
merge   join the parts that tools/dump_soft_labels.py --part made on hosts that share no folder
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import ExpectedError, door
from distill.publishing import check_writable
from distill.remote import locate
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Run one of the four commands."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser(
        "verify", help="check that a set is whole and that its teacher still gives these labels"
    )
    verify.add_argument("labels", type=locate, help="label set")
    teacher = "the set's teacher as tools/dump_soft_labels.py was given it, to compute some rows again"
    verify.add_argument("--teacher", help=teacher)
    verify.add_argument("--vectors", type=Path, metavar="FOLDER", help="in its place, the vectors it was made of")
    verify.add_argument("--frames", type=locate, help="frame set or text file that was labelled; needed with either")
    verify.add_argument("--rows", type=int, default=20, help="how many random rows to compute again (20)")
    verify.add_argument("--seed", type=int, default=0, help="seed of the choice of rows (0)")
    stats = commands.add_parser("stats", help="sizes, coverage, entropy; agreement of two teachers")
    stats.add_argument("labels", type=locate, help="label set")
    stats.add_argument("other", type=locate, nargs="?", help="second set of the same frames, to measure agreement")
    diff = commands.add_parser("diff", help="compare two sets of the same frames row by row")
    diff.add_argument("labels", type=locate, help="label set")
    diff.add_argument("other", type=locate, help="second set of the same frames")
    diff.add_argument("--seed", type=int, default=0, help="seed of the random batches (0)")
    merge = commands.add_parser(
        "merge", help="join the parts of one job, made on hosts that share no folder, into one set"
    )
    merge.add_argument("parts", type=locate, nargs="+", help="folders that each hold some of the shards")
    merge.add_argument("--out", type=locate, required=True, help="folder of the whole set")
    for command in (verify, stats, diff):
        command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args(argv)

    if args.command == "merge":
        check_writable(args.out)

    from distill import log

    log.setup()
    COMMANDS[args.command](args)


def _verify(args: argparse.Namespace) -> None:
    again = args.teacher is not None or args.vectors is not None
    if again != (args.frames is not None):
        raise ExpectedError(
            "verify: computing rows again needs both --teacher and --frames (or --vectors and --frames); give the "
            "other one too"
        )
    if args.rows < 1:
        raise ExpectedError(f"--rows: {args.rows}, expected at least 1")

    from distill import comm
    from distill.data.frames import FrameSet
    from distill.data.labels import StoredLabels
    from distill.data.texts import Texts
    from distill.labelling.audit import check_rows
    from distill.labelling.opening import open_labeller
    from distill.labelling.recompute import recompute, recompute_texts

    stored = StoredLabels(args.labels)
    found: dict[str, Any] = {"files": len(stored.manifest.files), "rows": check_rows(stored)}
    lines = []
    if again:
        given = Texts.open(args.frames) if stored.config.sampler is None else FrameSet(args.frames)
        labeller = open_labeller(args.teacher, args.vectors, given, comm.device())
        if isinstance(given, Texts):
            differences = recompute_texts(stored, labeller, given, args.rows, args.seed)
        else:
            differences = recompute(stored, labeller, given, args.rows, args.seed)
        found["recomputed"] = {name: asdict(difference) for name, difference in differences.items()}
        lines = [["recomputed", "largest difference", "largest value"]]
        lines += [[name, f"{one.largest:.2g}", f"{one.scale:.2g}"] for name, one in differences.items()]
    _show(args, found, f"{args.labels}: {found['files']} files as sealed, {found['rows']} rows", lines)


def _stats(args: argparse.Namespace) -> None:
    from distill.data.labels import StoredLabels
    from distill.labelling.audit import BINS, agreement, statistics

    sets = [StoredLabels(path) for path in (args.labels, args.other) if path is not None]
    found = [statistics(stored) for stored in sets]
    agreed = agreement(*sets) if len(sets) == 2 else None
    tiers = list(dict.fromkeys(tier for each in found for tier in each.bytes))
    lines = [
        ["", *(stored.path.name for stored in sets)],
        ["videos", *(f"{each.videos:,}" for each in found)],
        ["rows (captions)", *(f"{each.rows:,}" for each in found)],
        ["captions a video", *(_spread(each.captions) for each in found)],
        ["frames a video", *(_spread(each.frames) for each in found)],
        ["videos with padding", *(f"{each.short:,}" for each in found)],
        *([f"bytes of {tier}", *(f"{each.bytes.get(tier, 0):,}" for each in found)] for tier in tiers),
        ["entropy of relevance, nat", *(_number(each.entropy) for each in found)],
        ["  relative to uniform", *(_number(each.relative_entropy) for each in found)],
    ]
    for low in range(BINS):
        spans = f"  rows {low / BINS:.1f} to {(low + 1) / BINS:.1f}"
        lines.append([spans, *(f"{each.histogram[low]:,}" for each in found)])
    for kind, what in (("fine", "relevance"), ("coarse", "logits")):
        soft = [each.softness[kind] or {} for each in found]
        lines.append([f"temperature of {what}: auto", *(_temperature(one.get("recommended")) for one in soft)])
        lines.append(["  flat above", *(_temperature(one.get("flat")) for one in soft)])
        lines.append(["  at temperature 1", *(_at_one(one) for one in soft)])
    text = ""
    if agreed:
        same, correlation = 100 * agreed.same_best, _number(agreed.correlation)
        text = f"same best frame in {same:.1f} % of rows; mean correlation {correlation}"
    _show(args, {"sets": [asdict(each) for each in found], "agreement": agreed and asdict(agreed)}, text, lines)


def _diff(args: argparse.Namespace) -> None:
    from distill.data.labels import StoredLabels
    from distill.labelling.audit import BATCHES, PAIRS, compare

    found = compare(StoredLabels(args.labels), StoredLabels(args.other), args.seed)
    lines = [
        ["rows", f"{found.rows:,}"],
        ["largest difference", f"{found.largest:.3g}"],
        ["  in video", found.worst_video],
        ["  of caption", found.worst_caption],
        ["mean difference", f"{found.mean:.3g}"],
    ]
    if found.coarse:
        lines += [
            ["logits, mean correlation", _number(found.coarse.correlation)],
            ["logits, same best video", f"{100 * found.coarse.same_best:.1f} %"],
        ]
    text = f"logits: {BATCHES} random batches of up to {PAIRS} pairs" if found.coarse else ""
    _show(args, asdict(found), text, lines)


def _merge(args: argparse.Namespace) -> None:
    from distill.labelling.sealing import merge_labels

    counts = merge_labels(args.parts, args.out).counts
    show(f"{args.out}: {counts['captions']} captions and {counts.get('videos', 0)} videos from {len(args.parts)} parts")


def _show(args: argparse.Namespace, found: dict[str, Any], text: str, lines: list[list[str]]) -> None:
    from distill.evaluation.report import aligned

    if args.json:
        show(json.dumps(found))
        return
    show(*(aligned(lines).split("\n") if lines else []), *([text] if text else []))


def _spread(counts: Any) -> str:
    return f"{counts.least} to {counts.most}, mean {counts.mean:.1f}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _at_one(soft: dict[str, float | None]) -> str:
    flat = soft.get("flat")
    return "none" if flat is None else "flat" if flat < 1 else "not flat"


def _temperature(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


COMMANDS = {"verify": _verify, "stats": _stats, "diff": _diff, "merge": _merge}

if __name__ == "__main__":
    door(main)
