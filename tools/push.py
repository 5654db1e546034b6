"""Publishes a release on the Hugging Face Hub, as a pull request that its owner merges.

    python tools/push.py runs/teachclip/release me/teachclip-msrvtt
    python tools/push.py my/frames/test datasets/me/my-test --direct

The release is compared with its manifest first, and what arrived afterwards. Nothing is ever written over: a repository
that holds other files of these names is refused, and one that holds the same is left as it is. A repository that is
not there is made, private unless `--public`. Frame sets, label sets and galleries go into repositories of data
(datasets/OWNER/NAME). The printed name, `hf:OWNER/NAME@COMMIT`, opens what was pushed in every command that takes such
a folder, and in Python: `distill.release.load("hf:OWNER/NAME@COMMIT")`. A token that may write: `hf auth login`.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Push, and print where it is."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path, metavar="RELEASE", help="a release, or another sealed folder")
    parser.add_argument("repository", metavar="REPO", help="OWNER/NAME, or datasets/OWNER/NAME")
    parser.add_argument("--direct", action="store_true", help="commit to the main branch, without a pull request")
    parser.add_argument("--public", action="store_true", help="let everybody see a repository that has to be made")
    args = parser.parse_args(argv)

    from distill import log
    from distill.release.pushing import push

    log.setup()
    pushed = push(args.release, args.repository, direct=args.direct, public=args.public)
    show(pushed.page, f"{pushed.name}{'' if pushed.files else ' (was there already)'}")


if __name__ == "__main__":
    door(main)
