"""Packs videos and their captions into frame shards, the input of everything else.

    tools/pack_frames.py my/captions.csv my/videos --out frames/train
    tools/pack_frames.py demo/corpus/train.csv demo/corpus/videos --layout msrvtt --out demo/frames/train --size 64

ANNOTATIONS is the file of one split; what to give depends on the layout:

    csv          yours: a header video,caption[,start,end][,source] and a row per caption; a video may be in a
                 sub-folder; source is who wrote the caption: human, or a model and its revision
    msrvtt       MSRVTT_train.9k.csv or .7k.csv with MSRVTT_data.json beside it; MSRVTT_JSFUSION_test.csv alone;
                 any csv key,video_id,sentence; VATEX_train.csv with VATEX_data.json beside it
    msvd         train_list.txt, val_list.txt or test_list.txt with captions_msvd.json or raw-captions.json beside it
    vatex        train_list.txt or test_list.txt with ref_captions.json beside it
    lsmdc        LSMDC16_annos_training.csv, LSMDC16_annos_val.csv or LSMDC16_challenge_1000_publictect.csv
    activitynet  train.json or val_1.json, of which every video is packed; lists of ids beside it are not read
    didemo       train_data.json, val_data.json or test_data.json (or didemo_ before it); train_list.txt, val_list.txt
                 or test_list.txt beside it, if any, decides the videos
    webdataset   the folder of 00000.tar ... that img2dataset or video2dataset made; the videos are in it too

A folder of videos alone, `tools/pack_frames.py my/clips --out frames/unlabelled`, is packed without captions: a student
learns from its videos through a teacher's features (data.unlabelled of a recipe).

Frames are cut to squares of --size pixels, as CLIP's towers take them. With --whole they keep their shape, so that
towers of other sizes, and those that squash pictures (SigLIP, PE-Core), work from one set; --size is then that of the
largest tower, or more.

Frames are sampled as CLIP4Clip does: one per second, then --frames of them evenly; --sampler glscl is GLSCL's rule of
the same kind, which takes other frames where the frame rate is no whole number; --sampler prompt_switch is Prompt
Switch's, in passes over the whole video, and --sampler pig PIG's, evenly from its first frame to its last. A video that
cannot be used is skipped and listed in OUT/manifest.json with the reason. Started again after an interruption, the
command continues, and ends with the same bytes.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import ExpectedError, door
from distill.publishing import check_writable
from distill.terminal import Parser, show

LAYOUTS = ("activitynet", "csv", "didemo", "lsmdc", "msrvtt", "msvd", "vatex", "webdataset")
SAMPLERS = ("clip4clip", "glscl", "pig", "prompt_switch")


def main(argv: list[str] | None = None) -> None:
    """Pack one split and say what became of its videos."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="annotation file of one split, or a folder, see above")
    parser.add_argument("videos", type=Path, nargs="?", help="folder with the video files (not of webdataset)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the frame set")
    parser.add_argument("--layout", choices=LAYOUTS, default="csv", help="of the annotation file")
    parser.add_argument("--size", type=int, default=224, help="pixels, height and width (224 for CLIP ViT-B)")
    parser.add_argument(
        "--whole", action="store_true", help="keep the shape of frames, with a shorter side of --size pixels at most"
    )
    parser.add_argument("--frames", type=int, default=12, help="at most so many frames a video")
    parser.add_argument("--sampler", choices=SAMPLERS, default="clip4clip", help="rule that chooses them")
    parser.add_argument("--prompts", type=int, help="prompt_switch: frames of one pass over the video (default 6)")
    args = parser.parse_args(argv)
    alone = args.layout == "csv" and args.annotations.is_dir()
    if alone and args.videos is not None:
        raise ExpectedError(
            f"{args.annotations}: a folder has no captions; give an annotation file, or the folder alone"
        )
    layout, together = ("folder" if alone else args.layout), alone or args.layout == "webdataset"
    if args.videos is None and not together:
        raise ExpectedError(f"--layout {args.layout}: give the folder with the video files after {args.annotations}")
    if together and args.videos not in (None, args.annotations):
        raise ExpectedError(f"{args.videos}: of webdataset the videos lie in {args.annotations} itself; leave it out")
    check_writable(args.out)

    from distill import log
    from distill.config import validate
    from distill.data import sampler
    from distill.packing.packing import PackConfig, pack

    log.setup()
    rule = {"kind": args.sampler, "num_frames": args.frames} | ({"prompts": args.prompts} if args.prompts else {})
    chosen = validate(rule, sampler.SAMPLERS[args.sampler], where=f"--sampler {args.sampler}")
    config = PackConfig(sampler=chosen, size=args.size, whole=args.whole)
    manifest = pack(args.annotations, layout, args.videos or args.annotations, args.out, config)
    counts = manifest.counts
    show(f"{args.out}: {counts['videos']} videos, {counts['captions']} captions, {counts['frames']} frames")
    for note in manifest.notes[:10]:
        show(f"  skipped {note['video']} ({note['source']}): {note['reason']}")
    if len(manifest.notes) > 10:
        show(f"  ... and {len(manifest.notes) - 10} more; {args.out / 'manifest.json'} lists them all")


if __name__ == "__main__":
    door(main)
