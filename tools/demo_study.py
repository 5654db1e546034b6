"""The demo's comparison over several seeds: means, standard deviations and paired bootstrap intervals.

    make study           or: python tools/demo_study.py --seeds 3
    python tools/demo_study.py --rows teachclip teachclip+look afa

Every seed has its own teacher, labels and students (initialisation and batch order) on the demo's corpus; the rows are
trained for the same number of steps, but for the one that is given the compute of teacher, labels and student together.
Writes runs/study/summary.json and prints the table as text and as Markdown. A step that is finished is not repeated.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable
from distill.terminal import Parser

RUNS = Path("runs/study")


def main(argv: list[str] | None = None) -> None:
    """Trains what is missing and prints the study."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (0, 1, ...)")
    parser.add_argument("--clips", type=int, default=700, help="training clips of the corpus in demo/")
    parser.add_argument(
        "--rows", nargs="+", metavar="KEY", default=[], help="these rows and what they need (default: all)"
    )
    args = parser.parse_args(argv)
    check_writable(RUNS, Path("demo"))

    from distill.demo import story
    from distill.demo.commands import Commands
    from distill.evaluation.report import aligned
    from distill.records import write_json

    keys = [row.key for row in story.STUDY]
    if unknown := set(args.rows) - set(keys):
        parser.error(f"--rows: no row {', '.join(sorted(unknown))}; there are {', '.join(keys)}")
    rows = story.chosen(story.STUDY, args.rows or keys)
    commands = Commands(RUNS / "logs", total=1 + len(story.SPLITS) + args.seeds * story.num_commands(rows))
    story.corpus(commands, args.clips)
    folders = [RUNS / f"seed{seed}" for seed in range(args.seeds)]
    for seed, runs in enumerate(folders):
        story.train_all(commands, rows, runs, story.LABELS / f"study-seed{seed}", seed)
    found = [story.results(rows, runs) for runs in folders]
    gains = story.intervals(rows, folders)
    table, words = story.table(found), story.gains_text(gains)
    print(f"\n{args.seeds} seeds, test split:\n\n{aligned(table)}\n\n{words}\n\n{story.markdown(table)}")
    write_json(RUNS / "summary.json", {"seeds": found, "gains": gains})


if __name__ == "__main__":
    door(main)
