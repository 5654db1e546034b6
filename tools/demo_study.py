"""The demo's comparison over several seeds: means, standard deviations and paired bootstrap intervals.

    make study           or: python tools/demo_study.py --seeds 5
    python tools/demo_study.py --rows teachclip teachclip+look teachclip-plain
    python tools/demo_study.py --search teachclip --seeds 2

Every seed has its own teacher, labels and students (initialisation and batch order) on the demo's corpus; the rows are
trained for the same number of steps, but for those that say otherwise. Intervals are over videos and seeds. Writes
runs/study/summary.json and prints the table as text and as Markdown.

--search trains a small grid of label losses (distill/demo/search.py) and compares them on validation, without the test
split; its figures go to runs/search/summary.json. A step that is finished is not repeated.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable
from distill.terminal import Parser

if TYPE_CHECKING:
    from distill.demo.trials import Trial

RUNS, SEARCH = Path("runs/study"), Path("runs/search")


def main(argv: list[str] | None = None) -> None:
    """Trains what is missing and prints the study, or the search."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many (0, 1, ...)")
    parser.add_argument("--clips", type=int, default=700, help="training clips of the corpus in demo/")
    parser.add_argument(
        "--rows", nargs="+", metavar="KEY", default=[], help="these rows and what they need (default: the study's)"
    )
    parser.add_argument("--search", nargs="+", metavar="RECIPE", default=[], help="compare losses of these students")
    args = parser.parse_args(argv)
    if args.search and args.rows:
        parser.error("--search compares a grid of its own; leave out --rows")
    check_writable(SEARCH if args.search else RUNS, Path("demo"))

    from distill.demo import trials

    for option, given, known in (
        ("rows", args.rows, [row.key for row in trials.ROWS]),
        ("search", args.search, [student.recipe for student in trials.STUDENTS]),
    ):
        if unknown := set(given) - set(known):
            parser.error(f"--{option}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    _search(args) if args.search else _study(args)


def _study(args: argparse.Namespace) -> None:
    from distill.demo import story, trials
    from distill.evaluation.report import aligned
    from distill.records import write_json

    rows = trials.chosen(trials.ROWS, args.rows or [row.key for row in trials.STUDY])
    folders = _trained(args, rows, RUNS)
    found = [story.results(rows, runs) for runs in folders]
    gains = story.intervals(rows, folders)
    table, words = story.table(found), story.gains_text(gains)
    print(f"\n{args.seeds} seeds, test split:\n\n{aligned(table)}\n\n{words}\n\n{story.markdown(table)}")
    write_json(RUNS / "summary.json", {"seeds": found, "gains": gains})


def _search(args: argparse.Namespace) -> None:
    from distill.demo import search, story
    from distill.evaluation.report import aligned
    from distill.records import write_json

    rows = search.rows(args.search)
    folders = _trained(args, rows, SEARCH)
    found = search.results(rows, folders)
    table = search.table(found)
    print(f"\nvalidation split, {args.seeds} seeds:\n\n{aligned(table)}\n\n{story.markdown(table)}")
    write_json(SEARCH / "summary.json", {"seeds": args.seeds, "rows": found})


def _trained(args: argparse.Namespace, rows: "Sequence[Trial]", runs: Path) -> list[Path]:
    """Train what is missing of all rows; return the folder of each seed."""
    from distill.demo import story
    from distill.demo.commands import Commands

    total = 1 + len(story.splits(rows)) + args.seeds * story.num_commands(rows)
    commands = Commands(runs / "logs", total=total)
    story.corpus(commands, args.clips, rows)
    folders = [runs / f"seed{seed}" for seed in range(args.seeds)]
    for seed, folder in enumerate(folders):
        story.train_all(commands, rows, folder, story.LABELS / f"{runs.name}-seed{seed}", seed)
    return folders


if __name__ == "__main__":
    door(main)
