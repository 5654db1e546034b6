"""Writes the report of a finished run, or one page about several: one HTML file that needs nothing beside it.

    tools/report.py runs/teachclip                          # writes runs/teachclip/report.html again
    tools/report.py runs/teachclip --against runs/plain     # ... with differences, gains and losses
    tools/report.py runs/a runs/b runs/c --out three.html   # one table, and quality over cost

Every run that trains to its end has written the first of these itself. A report is made of what the run's folder holds,
and shows frames where those of its recipe are still there (their paths are taken from the working directory). Several
runs must have answered the same queries. A run's teacher is shown beside it if it was trained into a folder beside it.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable_file
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Write the page, and print its path."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run that has ended")
    parser.add_argument("--against", type=Path, metavar="RUN", help="compare one run with this one, query by query")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page of several runs")
    args = parser.parse_args(argv)
    several = len(args.runs) > 1
    if several and args.against:
        parser.error("--against compares one run; of several, name them all and leave it out")
    if several != (args.out is not None):
        parser.error("--out names the page of several runs; that of one is report.html in its folder")
    out = args.out or args.runs[0] / "report.html"
    check_writable_file(out)

    from distill import log
    from distill.reporting.comparison import write_comparison
    from distill.reporting.report import write_report

    log.setup()
    if several:
        write_comparison(args.runs, out)
    else:
        write_report(args.runs[0], args.against)
    show(str(out))


if __name__ == "__main__":
    door(main)
