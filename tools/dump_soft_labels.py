"""Run a teacher once over a frame set and write its soft labels; students then train without the teacher.

    tools/dump_soft_labels.py runs/xclip/release demo/frames/train --out demo/labels/xclip --plan
    tools/dump_soft_labels.py runs/xclip/release demo/frames/train --out demo/labels/xclip
    torchrun --standalone --nproc_per_node 4 --max-restarts 3 tools/dump_soft_labels.py TEACHER FRAMES --out LABELS
    tools/dump_soft_labels.py TEACHER FRAMES --out LABELS --part $SLURM_ARRAY_TASK_ID/40
    tools/dump_soft_labels.py open_clip:PE-Core-L-14-336/meta FRAMES --out LABELS
    tools/dump_soft_labels.py sentence-transformers:REPO FRAMES --out LABELS
    tools/dump_soft_labels.py --vectors FOLDER FRAMES --out LABELS

A teacher needs no training here: `open_clip:` names an architecture and its weights (NAME/TAG), a folder of towers or
hf-hub:REPO, `sentence-transformers:` a folder, a REPO or REPO@REVISION of a model of text and images (or of text and
video), and `--vectors` a folder of vectors that were computed elsewhere, whose format docs/labels.md describes. Such
labels are cosines. A model that does not fit its device is divided by --memory: layers beyond it wait in memory and on
disk until their turn comes (accelerate); the labels are the same. `accelerate launch` starts several processes as well
as torchrun does.

The tier `relevance` holds the teacher's score of every frame for every caption of its video. Two more tiers give the
text x video logits of any batch: `features` exactly, with the teacher's features; `topk` approximately and in less
space, with each caption's K best videos of the whole frame set and the mass of the rest. `--plan` prints what would be
written and how long it would take, and writes nothing.

Videos without captions get features alone (FRAMES need none), and so do captions without videos: FRAMES may be a text
file with one a line. A student learns from both through the rankings of its batches (data.unlabelled, data.texts).

An interrupted command continues when it is started again. The result has the same bytes for any number of processes and
interruptions. Processes that torchrun starts divide the missing shards among themselves, and take over those of a
process that was lost; with --max-restarts torchrun starts it again. `--part I/N` (I from 1) makes part I of N of all
shards without a process group. The process that finds every shard present seals the set. See docs/labels.md.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import ExpectedError, door
from distill.publishing import check_writable
from distill.remote import Place, locate
from distill.terminal import Parser, show

if TYPE_CHECKING:
    from distill.data.frames import FrameSet
    from distill.data.texts import Texts
    from distill.labelling.job import LabelJob, LabelJobConfig
    from distill.labelling.labeller import Labeller

DTYPES = ("bfloat16", "float16", "float32")
TIERS = ("relevance", "topk", "features")
TIERS_BY_DEFAULT = ["relevance", "features"]


def main(argv: list[str] | None = None) -> None:
    """Label a frame set, or a part of it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "teacher",
        nargs="?",
        help="release of a teacher, open_clip:NAME/TAG, or sentence-transformers:NAME",
    )
    parser.add_argument("frames", type=locate, help="frame set to label, or a text file with a caption in each line")
    parser.add_argument("--vectors", type=Path, metavar="FOLDER", help="vectors from elsewhere, in place of a teacher")
    parser.add_argument("--out", type=locate, required=True, help="folder of the label set")
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=TIERS_BY_DEFAULT)
    parser.add_argument("--top", type=int, default=256, metavar="K", help="videos per caption in tier topk (256)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="of stored features and topk scores (float16)"
    )
    parser.add_argument("--batch", type=int, default=32, help="videos per forward pass (32)")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes of each process (0)")
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="of the device for a model that does not fit; the rest waits outside"
    )
    parser.add_argument("--part", type=_part, metavar="I/N", help="make part I of N of all shards, without a group")
    parser.add_argument("--plan", action="store_true", help="print what would be written and how long it would take")
    _label(parser.parse_intermixed_args(argv))


def _label(args: argparse.Namespace) -> None:
    from distill import comm, log

    rank, size = comm.rank(), comm.world_size()
    if args.part and size > 1:
        raise ExpectedError(f"--part: started as {size} processes, which divide the shards themselves; leave it out")
    log.setup(rank)
    if not args.plan and not (args.out / "manifest.json").is_file():  # a sealed set is only read
        check_writable(args.out)
    if isinstance(args.frames, Path) and args.frames.is_file():
        _label_texts(args, rank, size)
        return
    job = _job(args)
    if args.plan:
        if rank == 0:
            _print_plan(args.out, job, args.part[1] if args.part else size)
        return
    manifest = job.begin(verify=rank == 0)
    if manifest is None:
        manifest = job.label_part(args.part[0] - 1, args.part[1]) if args.part else job.label(rank, size)
    encoded = f"encoded here: {job.encoder.encoded['captions']} captions, {job.encoder.encoded['videos']} videos"
    if manifest is not None:
        counts = manifest.counts
        show(
            f"{args.out}: labels of {counts['captions']} captions ({counts['distinct_captions']} distinct) and "
            f"{counts['videos']} videos; {encoded}"
        )
    elif args.part:
        shards = len(job.shards)
        kept = f", features of {shards - len(job.features.missing())}" if job.top else ""
        show(
            f"{args.out}: {shards - len(job.labels.missing())} of {shards} shards are there{kept}; {encoded}; when "
            f"all parts have ended, run them again if the set is not sealed"
        )


def _label_texts(args: argparse.Namespace, rank: int, size: int) -> None:
    """Label the captions of a text file."""
    from distill.data.texts import Texts
    from distill.labelling.job import CAPTIONS_PER_VIDEO
    from distill.labelling.textjob import TextJob

    if args.part or args.tiers != TIERS_BY_DEFAULT:
        raise ExpectedError(f"{args.frames}: captions without videos take no --part and --tiers; leave them out")
    config, texts = _config(args), Texts.open(args.frames)
    labeller = _labeller(args, texts)
    labeller.warn_of_cuts(texts.captions, str(texts.path))
    batch = config.batch * CAPTIONS_PER_VIDEO
    job = TextJob(labeller, texts, args.out, storage=config.storage, batch=batch, precision=config.precision)
    if args.plan:
        numbers, seconds = job.forecast()
        left = f"{len(job.shards.missing())} of {len(job.shards.names)} shards left"
        show(f"{args.out}: {len(texts.captions)} captions, {numbers:,} bytes of features, {left}")
        show(f"about {seconds / 60 / size:.1f} minutes for {size} process(es) like this one")
        return
    manifest = job.begin(verify=rank == 0) or job.label(rank, size)
    if manifest is not None:
        show(f"{args.out}: labels of {manifest.counts['captions']} captions without videos")


def _job(args: argparse.Namespace) -> "LabelJob":
    from distill import comm
    from distill.data.frames import FrameSet
    from distill.labelling.job import LabelJob

    config, frames = _config(args), FrameSet(args.frames, verify=comm.rank() == 0)
    return LabelJob(_labeller(args, frames), frames, args.out, config)


def _config(args: argparse.Namespace) -> "LabelJobConfig":
    """Return the settings of a job, before anything is read."""
    from distill import comm
    from distill.config import validate
    from distill.labelling.job import LabelJobConfig

    given = {"tiers": args.tiers, "storage": args.dtype, "batch": args.batch, "workers": args.workers, "top": args.top}
    given["precision"] = "bf16" if comm.device().type == "cuda" and args.vectors is None else "fp32"
    return validate(given, LabelJobConfig, where="options")


def _labeller(args: argparse.Namespace, given: "FrameSet | Texts") -> "Labeller":
    """Return who labels, on this process's device."""
    import torch

    from distill import comm
    from distill.labelling.opening import open_labeller

    device = comm.device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return open_labeller(args.teacher, args.vectors, given, device, args.memory)


def _print_plan(out: Place, job: "LabelJob", processes: int) -> None:
    from distill import comm
    from distill.evaluation.report import aligned
    from distill.labelling.forecast import forecast

    job.warn_of_cuts()
    found = forecast(job)
    show(
        f"{out}: {found.videos} videos, {found.captions} captions ({found.distinct} distinct), {found.shards} shards: "
        f"{found.shards - found.left} done, {found.left} left"
    )
    names = {"frame": "names, hashes, indexes"}
    lines = [["tier", "bytes"], *([names.get(name, name), f"{size:,}"] for name, size in found.bytes.items())]
    show(*aligned([*lines, ["all", f"{sum(found.bytes.values()):,}"]]).split("\n"))
    if found.kept:
        show(f"and {found.kept:,} bytes under {out / '.work'} until the set is sealed")
    show(
        f"about {found.seconds / 60 / processes:.1f} minutes for {processes} process(es) like this one "
        f"({comm.device().type}: {found.videos_per_second:.1f} videos/s, {found.captions_per_second:.1f} captions/s)"
    )


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not slash or not index.isdigit() or not count.isdigit() or not 1 <= int(index) <= int(count):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 1 to N, e.g. 3/40")
    return int(index), int(count)


if __name__ == "__main__":
    door(main)
