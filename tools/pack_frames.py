"""Packs videos and their captions into frame shards, the input of everything else.

    tools/pack_frames.py my/captions.csv my/videos --out frames/train
    tools/pack_frames.py demo/corpus/train.csv demo/corpus/videos --layout msrvtt --out demo/frames/train --size 64

ANNOTATIONS is a csv `video,caption[,start,end]` with one row per caption (layout csv), or MSR-VTT's list of video ids
with MSRVTT_data.json beside it (layout msrvtt). Frames are sampled as CLIP4Clip does: one per second, then --frames of
them evenly. A video that cannot be used is skipped and listed in OUT/manifest.json with the reason. Started again
after an interruption, the command continues, and ends with the same bytes.
"""

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill import log
from distill.data.captions import LAYOUTS
from distill.data.frames import PackConfig, pack
from distill.data.sampler import Clip4ClipSampler
from distill.errors import door


def main(argv: Sequence[str] | None = None) -> None:
    """Packs one split and says what became of its videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="annotation file of one split")
    parser.add_argument("videos", type=Path, help="folder with the video files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the frame set")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="csv", help="of the annotation file")
    parser.add_argument("--size", type=int, default=224, help="pixels, height and width (224 for CLIP ViT-B)")
    parser.add_argument("--frames", type=int, default=12, help="at most so many frames a video")
    args = parser.parse_args(argv)
    log.setup()
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=args.frames), size=args.size)
    manifest = pack(args.annotations, args.layout, args.videos, args.out, config)
    counts = manifest.counts
    print(f"{args.out}: {counts['videos']} videos, {counts['captions']} captions, {counts['frames']} frames")
    for note in manifest.notes[:10]:
        print(f"  skipped {note['video']} ({note['source']}): {note['reason']}")
    if len(manifest.notes) > 10:
        print(f"  ... and {len(manifest.notes) - 10} more; {args.out / 'manifest.json'} lists them all")


if __name__ == "__main__":
    door(main)
