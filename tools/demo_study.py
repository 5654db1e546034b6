"""The demo's comparison over several seeds: means, standard deviations and paired bootstrap intervals.

    make study           or: python tools/demo_study.py --seeds 5
    python tools/demo_study.py --rows teachclip teachclip+look teachclip-plain
    python tools/demo_study.py --search teachclip --seeds 2

Every seed has its own teacher, labels and students (initialisation and batch order) on the demo's corpus; the rows are
trained for the same number of steps, but for those that say otherwise. Intervals are over videos and seeds. Prints the
table as text and as Markdown and R@1 by the wording of queries; writes the table to runs/study/summary.json and, as a
page with pictures, to runs/study/report.html.

What a seed found goes to RECORDS/seedN.safetensors. Rows that stand there, trained by the very same recipes, are not
trained again, so a study can be made in several sittings; the project's own records are in docs/study.

--search trains a small grid of label losses (distill/demo/search.py) and compares them on validation, without the test
split; its figures go to runs/search/summary.json. A step that is finished is not repeated.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import ExpectedError, door
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
    parser.add_argument(
        "--records", type=Path, default=RUNS, metavar="FOLDER", help=f"where rows of each seed are kept ({RUNS})"
    )
    parser.add_argument("--search", nargs="+", metavar="RECIPE", default=[], help="compare losses of these students")
    args = parser.parse_args(argv)
    if args.search and args.rows:
        parser.error("--search compares a grid of its own; leave out --rows")
    if args.seeds < 1:
        parser.error(f"--seeds: {args.seeds}, expected at least 1")
    check_writable(SEARCH if args.search else RUNS, args.records, Path("demo"))

    from distill.demo import trials

    for option, given, known in (
        ("rows", args.rows, [row.key for row in trials.ROWS]),
        ("search", args.search, [student.recipe for student in trials.STUDENTS]),
    ):
        if unknown := set(given) - set(known):
            parser.error(f"--{option}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    _search(args) if args.search else _study(args)


def _study(args: argparse.Namespace) -> None:
    from distill.demo import story, trials, wordings
    from distill.evaluation.report import aligned
    from distill.records import write_json
    from distill.reporting.study import write_study

    rows = trials.chosen(trials.ROWS, args.rows or [row.key for row in trials.STUDY])
    seeds = [_Seed(number, args.records, rows, args.clips) for number in range(args.seeds)]
    _train([(seed.number, seed.missing) for seed in seeds], RUNS, args.clips, lambda number: seeds[number].keep())
    found = [seed.known for seed in seeds]
    gains = story.intervals(rows, found)
    figures = [{row.key: seed.figures[row.key] for row in rows} for seed in found]
    table, words = story.table(figures), story.gains_text(gains)
    print(f"\n{args.seeds} seeds, test split:\n\n{aligned(table)}\n\n{words}\n\n{story.markdown(table)}")
    print(f"\nBy the wording of queries:\n\n{aligned(wordings.table(rows, found))}")
    summary = {"seeds": figures, "gains": gains}
    write_json(RUNS / "summary.json", summary)
    write_study(RUNS / "report.html", summary, f"The demo's comparison over {args.seeds} seeds")


class _Seed:
    """One seed of the study: what its record holds of some rows, and what is missing."""

    def __init__(self, number: int, records: Path, rows: "Sequence[Trial]", clips: int):
        from distill.demo import record, story, trials

        self.number, self._file, self._clips = number, records / f"seed{number}.safetensors", clips
        self._folder = RUNS / f"seed{number}"
        self._recipes = story.recipes_of(rows, self._folder, _labels(RUNS, number), number)
        self.known = record.read(self._file) if self._file.exists() else record.Record(clips, {}, {}, {})
        if self.known.clips != clips:
            raise ExpectedError(
                f"{self._file}: of {self.known.clips} training clips, not {clips}; choose another folder of --records"
            )
        self._new = [row for row in rows if not self.known.holds(row.key, self._recipes[row.key])]
        self.missing = trials.chosen(rows, [row.key for row in self._new])  # with the teachers of those

    def keep(self) -> None:
        """Add to the record what the runs of the missing rows found; a teacher that stands there stays."""
        from distill.demo import record, story

        if self._new:
            found = story.recorded(self._new, self._folder, self._clips, self._recipes)
            self.known = self.known.joined(found)
            record.write(self._file, self.known)


def _search(args: argparse.Namespace) -> None:
    from distill.demo import search, story
    from distill.evaluation.report import aligned
    from distill.records import write_json

    rows = search.rows(args.search)
    _train([(seed, rows) for seed in range(args.seeds)], SEARCH, args.clips, lambda _: None)
    found = search.results(rows, [SEARCH / f"seed{seed}" for seed in range(args.seeds)])
    table = search.table(found)
    print(f"\nvalidation split, {args.seeds} seeds:\n\n{aligned(table)}\n\n{story.markdown(table)}")
    write_json(SEARCH / "summary.json", {"seeds": args.seeds, "rows": found})


def _train(
    seeds: "Sequence[tuple[int, Sequence[Trial]]]", runs: Path, clips: int, then: "Callable[[int], None]"
) -> None:
    """Train the rows of each seed that are missing; `then` is called with the seed when its own are trained."""
    from distill.demo import story
    from distill.demo.commands import Commands
    from distill.demo.earlier import check_earlier

    every = [row for _, rows in seeds for row in rows]
    if not every:
        return
    for seed, rows in seeds:
        check_earlier(rows, runs / f"seed{seed}", _labels(runs, seed), seed)
    total = 1 + len(story.splits(every)) + sum(story.num_commands(rows) for _, rows in seeds)
    commands = Commands(runs / "logs", total=total)
    story.corpus(commands, clips, every)
    for seed, rows in seeds:
        story.train_all(commands, rows, runs / f"seed{seed}", _labels(runs, seed), seed)
        then(seed)


def _labels(runs: Path, seed: int) -> Path:
    return Path("demo/labels") / f"{runs.name}-seed{seed}"


if __name__ == "__main__":
    door(main)
