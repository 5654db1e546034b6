"""The run of the demo: all commands from drawing to search, as a user would run them, and one table of their results.

Nothing is trained here: the commands train, label, index and search, two at a time; this file reads, measures and
prints what they leave. A command whose result is already there is not run again.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from distill.data.frames import FrameSet
from distill.demo.commands import Command, Commands, tool
from distill.demo.measure import measure_release
from distill.evaluation.metrics import paired_bootstrap
from distill.evaluation.report import aligned
from distill.packaged import ROOT
from distill.release.release import load

CORPUS, FRAMES, LABELS = Path("demo/corpus"), Path("demo/frames"), Path("demo/labels")
SIZE = 64  # pixels
SPLITS = ("train", "val", "test")
METRICS = ("R@1", "R@5", "R@10", "MdR", "MnR")


@dataclass(frozen=True)
class Trial:
    """One row of the demo's table: a recipe and the changes to it."""

    key: str
    title: str
    recipe: str
    changes: tuple[str, ...] = ()
    taught_by: tuple[str, ...] = ()  # keys of the teachers whose labels it is trained on
    teaches: bool = False


MEAN = Trial("mean", "CLIP4Clip, mean pooling", "recipes/clip4clip.yaml")
SEQ = Trial("seqtransf", "CLIP4Clip, temporal transformer", "recipes/clip4clip.yaml", ("model.head=seqTransf",))
PLAIN = Trial("afa", "TeachCLIP without labels", "recipes/teachclip.yaml", ("labels=[]",))
LONG = Trial("afa3x", "TeachCLIP without labels, 3 x steps", "recipes/teachclip.yaml", ("labels=[]", "train.epochs=36"))
TAUGHT = Trial("teachclip", "TeachCLIP with X-CLIP's labels", "recipes/teachclip.yaml", taught_by=("xclip",))
BY_TS2NET = Trial(
    "teachclip-ts2net", "TeachCLIP with TS2-Net's labels", "recipes/teachclip.yaml", taught_by=("ts2net",)
)
BY_XPOOL = Trial("teachclip-xpool", "TeachCLIP with X-Pool's labels", "recipes/teachclip.yaml", taught_by=("xpool",))
BY_TWO = Trial(
    "teachclip-two", "TeachCLIP with X-CLIP's and TS2-Net's", "recipes/teachclip.yaml", taught_by=("xclip", "ts2net")
)
PUBLISHED = Trial(
    "teachclip-t1",
    "TeachCLIP with labels, temperatures 1",
    "recipes/teachclip.yaml",
    ("losses.coarse.temperature=1.0", "losses.fine.temperature=1.0"),
    taught_by=("xclip",),
)
ALONE = ("labels=[]", "losses.contrastive.weight=1.0")  # as each paper trains
OTHERS = tuple(
    Trial(f"{key}{suffix}", f"{title} {words}", f"recipes/{key}.yaml", changes, taught_by)
    for key, title in (("eercf", "EERCF"), ("glscl", "GLSCL"), ("prompt_switch", "Prompt Switch"))
    for suffix, words, changes, taught_by in (
        ("", "without labels", ALONE, ()),
        ("-taught", "with X-CLIP's labels", (), ("xclip",)),
    )
)
TEACHER = Trial("xclip", "X-CLIP (teacher)", "recipes/xclip.yaml", teaches=True)
TS2NET = Trial("ts2net", "TS2-Net (teacher)", "recipes/ts2net.yaml", teaches=True)
XPOOL = Trial("xpool", "X-Pool (teacher)", "recipes/xpool.yaml", teaches=True)
DEMO = (MEAN, PLAIN, LONG, TAUGHT, TEACHER)
STUDY = (MEAN, SEQ, PLAIN, LONG, PUBLISHED, TAUGHT, BY_TS2NET, BY_XPOOL, BY_TWO, *OTHERS, TEACHER, TS2NET, XPOOL)
PAIRS = (
    (TEACHER.key, TAUGHT.key),
    (TAUGHT.key, PLAIN.key),
    (BY_TS2NET.key, PLAIN.key),
    (BY_XPOOL.key, PLAIN.key),
    (BY_TWO.key, PLAIN.key),
    (BY_TWO.key, TAUGHT.key),
    (TAUGHT.key, LONG.key),
    (TAUGHT.key, PUBLISHED.key),
    (PLAIN.key, SEQ.key),
    (PLAIN.key, MEAN.key),
    ("eercf-taught", "eercf"),
    ("glscl-taught", "glscl"),
    ("prompt_switch-taught", "prompt_switch"),
)


def corpus(commands: Commands, clips: int) -> None:
    """Draw the corpus and pack its splits."""
    make = (*tool("make_demo"), "--out", CORPUS, "--clips", str(clips), "--seed", "0")
    commands.run(f"draw {clips} training clips and the galleries as mp4 files", make, CORPUS / "train.csv")
    for split in SPLITS:
        pack = (*tool("pack_frames"), CORPUS / f"{split}.csv", CORPUS / "videos")
        options = ("--layout", "msrvtt", "--size", str(SIZE), "--out", FRAMES / split)
        commands.run(f"pack {split} frames", (*pack, *options), FRAMES / split / "manifest.json")


def num_commands(rows: Sequence[Trial]) -> int:
    """Return the number of commands that `train_all` runs: one for every row, and one for every teacher's labels."""
    return len(rows) + sum(row.teaches for row in rows)


def train_all(commands: Commands, rows: Sequence[Trial], runs: Path, labels: Path, seed: int) -> None:
    """Train every row into RUNS/KEY, teachers first, and write the teachers' labels into LABELS/KEY."""
    jobs = []
    for teacher in (row for row in rows if row.teaches):
        release, out = runs / teacher.key / "release", labels / teacher.key
        dump = (*tool("dump_soft_labels"), release, FRAMES / "train", "--out", out)
        jobs.append(_training(teacher, runs, labels, seed))
        jobs.append(Command(f"write the labels of {teacher.title}", dump, out / "manifest.json", needs=(release,)))
    students = [row for row in rows if not row.teaches]
    students.sort(key=lambda row: row is not LONG)  # the longest is not left to the end
    commands.side_by_side([*jobs, *(_training(row, runs, labels, seed) for row in students)])


def _training(row: Trial, runs: Path, labels: Path, seed: int) -> Command:
    changes = [f"name={row.key}", f"out={runs}", f"seed={seed}", *row.changes]
    sets = [labels / teacher for teacher in row.taught_by]
    if sets:
        changes.append(f"labels=[{', '.join(map(str, sets))}]")
    launcher = [sys.executable]
    if row is TAUGHT:  # the demo's main run goes through DeepSpeed's launcher
        launcher += ["-m", "deepspeed.launcher.runner", "--master_port", "0", "--num_accelerators", "1"]
    arguments = [*launcher, ROOT / "distill/run.py", row.recipe, *changes]
    needs = tuple(folder / "manifest.json" for folder in sets)
    return Command(f"train {row.title}", arguments, runs / row.key / "release", needs)


def results(rows: Sequence[Trial], runs: Path) -> dict[str, dict]:
    """Return the figures of every row: test metrics, mass, milliseconds, seconds of training."""
    frames, found = FrameSet(FRAMES / "test", verify=False), {}
    for row in rows:
        folder = runs / row.key
        release = load(folder / "release")
        provenance = json.loads((folder / "release" / "provenance.json").read_text())
        found[row.key] = {
            "title": row.title,
            **json.loads((folder / "test.json").read_text()),
            **measure_release(release, frames, CORPUS / "relevance.json"),
            "train_seconds": provenance["seconds"],
        }
    return found


def intervals(rows: Sequence[Trial], runs: Sequence[Path]) -> dict[str, dict[str, list[float]]]:
    """Return R@1 of the first minus that of the second row of each pair, in points: [difference, low, high].

    A paired bootstrap over videos; with several runs (seeds), every draw takes a video with its queries in all of them.
    """
    found: dict[str, dict[str, list[float]]] = {}
    keys = {row.key for row in rows}
    for better, worse in (pair for pair in PAIRS if keys.issuperset(pair)):
        a, b = ([load_file(run / key / "test_ranks.safetensors") for run in runs] for key in (better, worse))
        text = torch.cat([ranks["video_of_text"] for ranks in a])
        video = torch.cat([torch.arange(len(ranks["v2t"])) for ranks in a])
        found[f"{better} - {worse}"] = {
            name: list(paired_bootstrap(_joined(a, name), _joined(b, name), groups, seed=0))
            for name, groups in (("t2v", text), ("v2t", video))
        }
    return found


def _joined(ranks: Sequence[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    return torch.cat([table[name] for table in ranks])


COLUMNS: dict[str, Callable[[dict], float]] = {
    **{f"T2V {name}": lambda row, name=name: row["t2v"][name] for name in METRICS},
    **{f"V2T {name}": lambda row, name=name: row["v2t"][name] for name in ("R@1", "R@10", "MnR")},
    "mass %": lambda row: row["mass"],
    "ms/query": lambda row: row["ms"],
    "train s": lambda row: row["train_seconds"],
}
DIGITS = {"ms/query": 3, "train s": 0}


def table(seeds: Sequence[dict[str, dict]]) -> str:
    """Return the results of one seed, or mean and standard deviation over several, as aligned text."""
    lines = [["", *COLUMNS]]
    for key in seeds[0]:
        cells = []
        for name, value in COLUMNS.items():
            values, digits = [value(found[key]) for found in seeds], DIGITS.get(name, 1)
            spread = f" ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        lines.append([seeds[0][key]["title"], *cells])
    return aligned(lines)


def markdown(text: str) -> str:
    """Convert an aligned table to Markdown."""
    rows = [[cell.strip() for cell in re.split(r"  +", line)] for line in text.splitlines()]
    rows[0] = ["", *rows[0][-len(COLUMNS) :]]
    bars = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([bars[0], "|---" * len(rows[0]) + "|", *bars[1:]])


def gains_text(gains: dict[str, dict[str, list[float]]]) -> str:
    """Return the differences with their intervals, a line each."""
    return "\n".join(
        f"R@1 {pair}: "
        + ", ".join(f"{name.upper()} {d:+.1f} [{low:+.1f}, {high:+.1f}]" for name, (d, low, high) in sides.items())
        for pair, sides in gains.items()
    )
