"""Converts a checkpoint of the authors' code into a release, or CLIP's towers into a folder that recipes start from.

    tools/convert_checkpoint.py xclip_model.bin --kind xclip --out models/xclip
    tools/convert_checkpoint.py pytorch_model.bin.4 --kind clip4clip --head meanP --out models/clip4clip
    tools/convert_checkpoint.py ViT-B-32.pt --kind openai --out models/ViT-B-32

The file is read without running anything in it. Every tensor is converted (to float32), named as unused, or an error;
nothing is filled in. The weights may be under `state_dict`, `model` or `model_state_dict`, and all names may begin with
`module.` or `_orig_mod.`. `--kind openai` takes OpenAI's own archives, and state dicts with the names of OpenAI or of
Hugging Face.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable
from distill.terminal import Parser, show

KINDS = ("clip4clip", "teachclip", "eercf", "glscl", "prompt_switch", "pig", "xclip", "ts2net", "xpool", "openai")
SAMPLERS = ("clip4clip", "glscl", "pig", "prompt_switch")


def main(argv: list[str] | None = None) -> None:
    """Convert, and say what became of the file."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help=".pt, .bin, .pth or .safetensors")
    parser.add_argument("--kind", choices=KINDS, required=True, help="whose checkpoint it is")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--words", type=int, help="tokens of a caption (default 32; pig: 50; xclip: as in the file)")
    parser.add_argument("--frames", type=int, help="frames of a video (default 12; xclip, eercf, pig: as in the file)")
    parser.add_argument(
        "--head", choices=["meanP", "seqTransf"], help="clip4clip: how it was trained (default seqTransf)"
    )
    parser.add_argument("--token-shift", choices=["auto", "on", "off"], help="ts2net (default auto: as the names say)")
    parser.add_argument("--noise", choices=["seeded", "zero"], help="ts2net: in the token selection (default seeded)")
    parser.add_argument("--mask", choices=["tiled", "interleaved"], help="ts2net: of padded frames (default tiled)")
    parser.add_argument(
        "--shared", choices=["both", "queries", "decoder", "none"], help="glscl: between text and video (default both)"
    )
    parser.add_argument("--temperature", type=float, help="glscl: of the softmax over frames (default 3; LSMDC: 5)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="glscl: rule of its frames (default glscl)")
    parser.add_argument("--clip-frames", type=int, help="prompt_switch: num_frames of training (default: its prompts)")
    parser.add_argument("--heads", type=int, help="prompt_switch: num_mha_heads of pool_frames.* (default 1)")
    parser.add_argument("--ema", choices=["on", "off"], help="prompt_switch: take state_dict_ema, where there is one")
    parser.add_argument("--selected", type=int, help="pig: patches that its generator is shown (default 16)")
    parser.add_argument("--quickgelu", action="store_true", default=None, help="openai: the towers are known to use it")
    args = vars(parser.parse_args(argv))

    from distill.conversion.convert import convert
    from distill.conversion.options import Options

    source, kind, out = (args.pop(name) for name in ("checkpoint", "kind", "out"))
    check_writable(out, out.parent)
    show(*convert(source, kind, out, Options(**args)).report().split("\n"))


if __name__ == "__main__":
    door(main)
