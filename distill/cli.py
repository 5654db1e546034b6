"""One command for the whole arrow: videos -> frames -> soft labels -> student -> gallery -> search."""

import argparse
import importlib
import sys

from distill.errors import door
from distill.terminal import Parser

# Name: the module with its `main`, and what it does; in the order of the arrow.
COMMANDS = {
    "pack": ("tools.pack_frames", "pack videos and their captions into frame shards"),
    "label": ("tools.dump_soft_labels", "run a teacher once over a frame set and write its soft labels"),
    "labels": ("tools.labels", "verify label sets, describe, compare and merge them"),
    "train": ("distill.run", "train a teacher or a student from one recipe, and release it"),
    "index": ("tools.index", "encode videos with a release into a gallery"),
    "search": ("tools.search", "find the videos of a gallery that match a query"),
    "serve": ("tools.serve", "serve a gallery as a web page, and as JSON for programs"),
    "gallery": ("tools.gallery", "describe a gallery, delete videos, compact, approximate, calibrate, verify it"),
    "export": ("tools.export", "write a gallery for LanceDB, Qdrant, FAISS, Parquet or BigFile; a release for ONNX"),
    "export-clip": ("tools.export_clip", "write the CLIP towers of a release as a folder that open_clip reads"),
    "evaluate": ("tools.evaluate", "evaluate a release under a named protocol"),
    "report": ("tools.report", "write a run's report again, compare it with another run, or several runs"),
    "verify": ("tools.verify", "derive the numbers and hashes of a release again, and name what differs"),
    "push": ("tools.push", "publish a release on the Hugging Face Hub, as a pull request"),
    "convert": ("tools.convert_checkpoint", "convert a checkpoint of the authors' code into a release"),
    "demo": ("tools.demo", "run the whole arrow on the embedded corpus and print one table"),
    "make-demo": ("tools.make_demo", "draw the embedded corpus as mp4 files with captions"),
    "demo-study": ("tools.demo_study", "repeat the demo's comparison over several seeds, with intervals"),
    "make-stills": ("tools.make_stills", "draw the captioned stills that the demo's CLIP is pretrained on"),
    "bench": ("tools.bench", "measure what training costs: loader, labels, waiting for data"),
    "bench-retrieval": ("tools.bench_retrieval", "measure what searching costs, and what its shortcuts miss"),
}


def main() -> None:
    """Run the command that the first argument names, with the arguments after it; nothing else is imported."""
    table = "\n".join(f"  {name:<16} {about}" for name, (_, about) in COMMANDS.items())
    parser = Parser(
        prog="distill",
        usage="distill COMMAND ...",
        description=f"{__doc__}\n\ncommands:\n{table}",
        epilog="distill COMMAND --help describes one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of those above; its own arguments follow"
    )
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv[:2] = [f"distill {command}"]  # what argparse calls the program
    door(importlib.import_module(COMMANDS[command][0]).main)


if __name__ == "__main__":
    main()
