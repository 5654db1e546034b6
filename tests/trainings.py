"""`python tests/trainings.py RECIPE[,section.key=value ...] ...`: several trainings, one after the other.

Training alone, without tests and releases, so that starting a process is paid once for all of them. Started as
several processes, each takes its part in every one.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill import comm
from distill.config import read_recipe
from distill.experiment import prepare
from distill.recipe import Recipe
from distill.training import engine
from distill.training.loop import train


def main(*wanted: str) -> None:
    """Trains each into the folder OUT/NAME of its recipe."""
    engine.start(timeout_minutes=5)
    for path, *overrides in (given.split(",") for given in wanted):
        recipe = read_recipe(path, overrides, Recipe)
        job, _ = prepare(recipe)
        job.folder.mkdir(parents=True, exist_ok=True)
        train(job)
    comm.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
