"""Trains a teacher or a student from one recipe, and leaves a release that people can load and search with.

    deepspeed distill/run.py recipes/teachclip.yaml
    torchrun --standalone --nproc_per_node 2 distill/run.py recipes/teachclip.yaml train.epochs=3
    python distill/run.py recipes/xclip.yaml optim.lr=0.0005

Everything after the recipe is `section.key=value`, read by the same strict reader. The run goes to runs/NAME. The same
command continues an unfinished run from its last checkpoint; a finished one is left alone and NAME-2 begun.

`recipes/...` is a file in the working directory if there is one, else the recipe of that name that comes with the
project. The same holds for `extends` and `model.clip.model` inside a recipe.
"""

import pathlib
import sys

if not __package__:  # run by path: the repository root must be first, not distill/
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Sequence

from distill.errors import check_installed, door
from distill.terminal import Parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the recipe, train, test once, release."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML recipe, e.g. recipes/teachclip.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    args = parser.parse_args(argv)
    check_installed("deepspeed")

    from distill import comm, log
    from distill.config import read_recipe
    from distill.experiment import run
    from distill.recipe import Recipe

    log.setup(comm.rank())
    recipe = read_recipe(args.recipe, args.overrides, Recipe)
    with comm.reporting_lost_ranks(recipe.train.timeout_minutes):
        run(recipe)


if __name__ == "__main__":
    door(main)
