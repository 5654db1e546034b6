"""Runs a teacher once over a frame set and writes its soft labels; students then train without the teacher.

    tools/dump_soft_labels.py runs/xclip/release demo/frames/train --out demo/labels/xclip
    torchrun --standalone --nproc_per_node 4 tools/dump_soft_labels.py TEACHER FRAMES --out LABELS --dtype float16

Tier `relevance` is the teacher's score of every frame for every caption of its video; tier `features` also stores what
rebuilds the teacher's text x video matrix for any batch. Started again after an interruption, the command continues,
and ends with the same bytes, on any number of processes.
"""

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from distill import log
from distill.data.frames import FrameSet
from distill.data.labels import DTYPES
from distill.errors import ArtefactError, door
from distill.model.contract import Teacher
from distill.release.release import load
from distill.training.teach import Teaching


def main(argv: Sequence[str] | None = None) -> None:
    """Labels a frame set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="release folder of a teacher")
    parser.add_argument("frames", type=Path, help="frame set to label")
    parser.add_argument("--out", type=Path, required=True, help="folder of the label set")
    parser.add_argument("--tiers", nargs="+", choices=["relevance", "features"], default=["relevance", "features"])
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float16", help="of stored features")
    parser.add_argument("--batch", type=int, default=32, help="videos per forward pass")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes beside each of these")
    args = parser.parse_args(argv)
    # Without cpu=True every CPU process believes it is the only one, and does all the work.
    state = PartialState(cpu=not torch.cuda.is_available())
    device = torch.device(state.device or "cpu")
    log.setup(state.process_index)
    frames = FrameSet(args.frames, verify=state.is_main_process)
    teacher = load(args.teacher, device)
    if not isinstance(teacher.model, Teacher):
        raise ArtefactError(f"{args.teacher}: a {teacher.config.model['kind']} is a student, it has no labels to give")
    frames.check_settings(teacher.frames_config, teacher.path)
    job = Teaching(
        teacher.model,
        teacher_id=teacher.manifest.id,
        kind=teacher.config.model["kind"],
        tokenizer=teacher.tokenizer,
        frames=frames,
        out=args.out,
        tiers=["relevance", *(["features"] if "features" in args.tiers else [])],
        storage=args.dtype,
        batch=args.batch,
        workers=args.workers,
        bf16=device.type == "cuda",
        device=device,
    )
    manifest = None
    with state.main_process_first():
        manifest = job.already_sealed()
    if manifest is None:
        job.label_shards(list(job.shards)[state.process_index :: state.num_processes], quiet=not state.is_main_process)
        state.wait_for_everyone()
        if state.is_main_process:
            manifest = job.finish()
    if manifest is not None and state.is_main_process:
        counts, encoded = manifest.counts, job.encoded
        print(
            f"{args.out}: labels of {counts['captions']} captions ({counts['distinct_captions']} distinct) and "
            f"{counts['videos']} videos; encoded here: {encoded['captions']} captions, {encoded['videos']} videos"
        )
    if dist.is_initialized():
        state.wait_for_everyone()
        dist.destroy_process_group()


if __name__ == "__main__":
    door(main)
