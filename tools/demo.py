"""The whole arrow on the embedded corpus: videos -> frames -> teacher -> labels -> student -> gallery -> search.

    make demo            or, once installed, in any folder: distill demo

Real H.264 files are drawn, packed, and used to train the students and the teacher of one table, which is measured in
this run and written to runs/demo/summary.json. Runs in demo/ and runs/demo/; a step that is finished is not repeated.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable
from distill.terminal import Parser

RUNS = Path("runs/demo")
NONSENSE = 200  # queries
SEARCHES = ("a hatching chick", "a red apple, then a fire engine", "an octopus spins on a blue background")


def main(argv: list[str] | None = None) -> None:
    """Runs the arrow and prints the table and three searches."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=700, help="training clips; the galleries scale along")
    args = parser.parse_args(argv)
    check_writable(RUNS, Path("demo"))

    from distill.data.frames import FrameSet
    from distill.demo import story, trials
    from distill.demo.commands import Command, Commands, tool
    from distill.demo.earlier import check_earlier
    from distill.demo.nonsense import caught, nonsense
    from distill.demo.truth import ndcg_of_runs
    from distill.evaluation.evaluate import texts_of
    from distill.evaluation.report import aligned
    from distill.records import write_json
    from distill.release.release import load
    from distill.retrieval.gallery import Gallery

    began = time.monotonic()
    release, gallery = RUNS / trials.TAUGHT.key / "release", Path("demo/gallery")
    check_earlier(trials.DEMO, RUNS, story.LABELS, 0, {trials.TAUGHT.key: gallery})
    commands = Commands(RUNS / "logs", total=len(story.SPLITS) + story.num_commands(trials.DEMO) + 3)
    story.corpus(commands, args.clips, trials.DEMO)
    story.train_all(commands, trials.DEMO, RUNS, story.LABELS, seed=0)
    index = (*tool("index"), release, story.FRAMES / "test", "--out", gallery)
    videos = ("--videos", story.CORPUS / "videos")
    title = "index the test videos with the distilled student"
    commands.run(Command(title, (*index, *videos), gallery / "manifest.json"))
    calibrate = (*tool("gallery"), gallery, "calibrate", story.FRAMES / "train")
    commands.run(Command("calibrate it with the training captions", calibrate, gallery / "calibration"))
    recipes = story.recipes_of(trials.DEMO, RUNS, story.LABELS, seed=0)
    record = story.recorded(trials.DEMO, RUNS, args.clips, recipes)
    found, gains = dict(record.figures), story.intervals(trials.DEMO, [record])
    print(f"\nMeasured on the test split, in this run:\n\n{aligned(story.table([found]))}\n\n{story.gains_text(gains)}")
    print("(difference, 95 % interval of a paired bootstrap over videos; mass: weight on truly relevant frames)\n")
    frames = FrameSet(story.FRAMES / "test")
    trained = {row.title: RUNS / row.key for row in trials.DEMO if not row.of}
    graded = ndcg_of_runs(trained, story.CORPUS / "test.qrels", frames)
    shown = ", ".join(f"{title} {value:.1f}" for title, value in graded.items())
    print(f"nDCG@10 by what every clip shows of a caption (demo/corpus/test.qrels), text to video: {shown}\n")
    opened, captions = Gallery.open(gallery, load(release)), texts_of(frames)
    judged = {
        "captions": caught(opened.search, captions),
        "nonsense": caught(opened.search, nonsense(NONSENSE, seed=0)),
    }
    print(
        f"Nothing fits well, says the gallery of {judged['captions']:.1f} % of its {len(captions):,} captions, and of "
        f"{judged['nonsense']:.1f} % of {NONSENSE} queries without sense.\n"
    )
    for query in SEARCHES:
        print(f'$ distill search {gallery} "{query}" --k 3 --second-look', flush=True)
        subprocess.run([*tool("search"), gallery, query, "--k", "3", "--second-look"], check=True)
    seconds = round(time.monotonic() - began, 1)
    summary = {"rows": found, "gains": gains, "ndcg": graded, "nothing_fits": judged, "seconds": seconds}
    write_json(RUNS / "summary.json", summary)
    print(f"\n{seconds:.0f} s in all; these numbers are in {RUNS / 'summary.json'}")


if __name__ == "__main__":
    door(main)
