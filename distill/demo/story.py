"""The run of the demo: all commands from drawing to search, as a user would run them, and one table of their results.

Nothing is trained here: the commands train, label, index and search, two at a time; this file reads, measures and
prints what they leave. A command whose result is already there is not run again.
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.config import ROOT, read_recipe
from distill.data.frames import FrameSet
from distill.demo.build import check_corpus
from distill.demo.commands import Command, Commands, tool
from distill.demo.corpus import MORE
from distill.demo.measuring import measured
from distill.demo.record import SIDES, Record
from distill.demo.trials import PAIRS, TAUGHT, Trial
from distill.errors import ExpectedError
from distill.evaluation.metrics import paired_bootstrap
from distill.recipe import Recipe
from distill.release.release import load
from distill.training.folder import TEST, TEST_RANKS

CORPUS, FRAMES, LABELS = Path("demo/corpus"), Path("demo/frames"), Path("demo/labels")
SIZE = 64  # pixels
SPLITS = ("train", "val", "test")
CLIPS_MORE = 3  # of split `more`, for every training clip
METRICS = ("R@1", "R@5", "R@10", "MdR", "MnR")
COMPARED = ("R@1", "R@10", "MnR")


def splits(rows: Sequence[Trial]) -> tuple[str, ...]:
    """Return the splits that rows need."""
    return (*SPLITS, *([MORE] if any(row.beside for row in rows) else []))


def corpus(commands: Commands, clips: int, rows: Sequence[Trial]) -> None:
    """Draw the corpus that rows need and pack its splits.

    Raises `ExpectedError` where another corpus was drawn, or where the clips would not fill a batch of the recipes.
    """
    needed = splits(rows)
    check_corpus(CORPUS, clips, seed=0)  # the command that would refuse it is not run again where its result is there
    batch = read_recipe("recipes/xclip.yaml", [], Recipe).data.batch_size  # all others extend it
    if clips < batch:
        raise ExpectedError(f"--clips: {clips}, expected at least {batch}: a batch of the recipes has so many videos")
    make = (*tool("make_demo"), "--out", CORPUS, "--clips", str(clips), "--seed", "0")
    make += ("--more", str(CLIPS_MORE * clips)) if MORE in needed else ()
    title = f"draw {clips} training clips and the galleries as mp4 files"
    commands.run(Command(title, make, CORPUS / f"{needed[-1]}.csv"))
    for split in needed:
        pack = (*tool("pack_frames"), CORPUS / f"{split}.csv", CORPUS / "videos")
        options = ("--layout", "msrvtt", "--size", str(SIZE), "--out", FRAMES / split)
        commands.run(Command(f"pack {split} frames", (*pack, *options), FRAMES / split / "manifest.json"))


def num_commands(rows: Sequence[Trial]) -> int:
    """Return the number of commands that `train_all` runs: one for every row, and one for every set of labels."""
    return sum(not row.of for row in rows) + len(labelled(rows)) * sum(row.teaches for row in rows)


def labelled(rows: Sequence[Trial]) -> tuple[str, ...]:
    """Return the splits that a teacher labels."""
    return ("train", *splits(rows)[len(SPLITS) :])


def train_all(commands: Commands, rows: Sequence[Trial], runs: Path, labels: Path, seed: int) -> None:
    """Train every row into RUNS/KEY, teachers first, and write the teachers' labels into LABELS/KEY."""
    jobs = []
    for teacher in (row for row in rows if row.teaches):
        release = runs / teacher.key / "release"
        jobs.append(_training(teacher, runs, labels, seed))
        for split in labelled(rows):
            out = label_folder(labels, teacher.key, split)
            dump = (*tool("dump_soft_labels"), release, FRAMES / split, "--out", out)
            title = f"write the labels of {teacher.title}, {split}"
            jobs.append(Command(title, dump, out / "manifest.json", needs=(release,)))
    students = [row for row in rows if not row.teaches and not row.of]
    students.sort(key=lambda row: (-row.epochs, not row.taught_by))  # the longest are not left to the end
    commands.side_by_side([*jobs, *(_training(row, runs, labels, seed) for row in students)])


def _training(row: Trial, runs: Path, labels: Path, seed: int) -> Command:
    sets = [label_folder(labels, teacher, "train") for teacher in row.taught_by]
    if row.beside:
        sets += [label_folder(labels, teacher, MORE) for teacher in row.taught_by]
    launcher = [sys.executable]
    if row == TAUGHT:  # the demo's main run goes through DeepSpeed's launcher
        launcher += ["-m", "deepspeed.launcher.runner", "--master_port", "0", "--num_accelerators", "1"]
    arguments = [*launcher, ROOT / "distill/run.py", f"recipes/{row.recipe}.yaml"]
    needs = tuple(folder / "manifest.json" for folder in sets)
    arguments += _changes(row, runs, labels, seed)
    return Command(f"train {row.title}", arguments, runs / row.key / "release", needs)


def _changes(row: Trial, runs: Path, labels: Path, seed: int) -> list[str]:
    """Return what a row's run changes in its recipe."""
    changes = [f"name={row.key}", f"out={runs}", f"seed={seed}", *row.changes]
    if row.beside:
        changes += [f"data.{side}={FRAMES / MORE}" for side in row.beside]
    if row.taught_by:
        changes.append(f"labels=[{', '.join(_label(labels, teacher, row.beside) for teacher in row.taught_by)}]")
    return changes


def label_folder(labels: Path, teacher: str, split: str) -> Path:
    """Return the label set of a teacher and a split."""
    return labels / (teacher if split == "train" else f"{teacher}-{split}")


def _label(labels: Path, teacher: str, beside: Sequence[str]) -> str:
    """Return the entry of one teacher's label sets in a recipe."""
    sets = {
        "path": label_folder(labels, teacher, "train"),
        **dict.fromkeys(beside, label_folder(labels, teacher, MORE)),
    }
    return f"{{{', '.join(f'{key}: {path}' for key, path in sets.items())}}}"


def recorded(rows: Sequence[Trial], runs: Path, clips: int, recipes: Mapping[str, dict]) -> Record:
    """Return what the runs of rows found: test metrics, mass, milliseconds, seconds of training, and ranks."""
    frames, found, ranks = FrameSet(FRAMES / "test", verify=False), {}, {}
    for name in dict.fromkeys(row.folder for row in rows):
        folder, own = runs / name, [row for row in rows if row.folder == name]
        release = load(folder / "release")
        provenance = json.loads((folder / "release" / "provenance.json").read_text())
        tested, table = json.loads((folder / TEST).read_text()), load_file(folder / TEST_RANKS)
        figures = measured(release, frames, CORPUS / "relevance.json", [bool(row.of) for row in own])
        ranks["video_of_text"] = table["video_of_text"]
        for row, figure in zip(own, figures, strict=True):
            ranked = tested["second_look"] if row.of else {side: tested[side] for side in SIDES}
            found[row.key] = {"title": row.title, **ranked, **figure, "train_seconds": provenance["seconds"]}
            ranks.update({f"{row.key}/{side}": table[f"second_{side}" if row.of else side] for side in SIDES})
    return Record(clips, {row.key: found[row.key] for row in rows}, {row.key: recipes[row.key] for row in rows}, ranks)


def recipes_of(rows: Sequence[Trial], runs: Path, labels: Path, seed: int) -> dict[str, dict]:
    """Return by key of each row the resolved recipes of its run and of its teachers' runs."""
    own = {row.folder: _recipe(row, runs, labels, seed) for row in rows if not row.of}
    teachers = {row.folder: row.taught_by for row in rows}
    return {row.key: {name: own[name] for name in (row.folder, *teachers[row.folder])} for row in rows}


def _recipe(row: Trial, runs: Path, labels: Path, seed: int) -> dict:
    return read_recipe(f"recipes/{row.recipe}.yaml", _changes(row, runs, labels, seed), Recipe).model_dump(mode="json")


def intervals(rows: Sequence[Trial], seeds: Sequence[Record]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return R@1, R@10 (points) and MnR of the first minus those of the second row of each pair, by direction.

    Each is [difference, low, high] of a paired bootstrap over videos and, if there are several, over seeds: a draw
    takes some seeds, and the same videos with their queries in each.
    """
    groups = {"t2v": seeds[0].ranks["video_of_text"], "v2t": torch.arange(len(seeds[0].ranks[f"{rows[0].key}/v2t"]))}
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for one, other in (pair for pair in PAIRS if set(pair) <= set(rows)):
        found[f"{one.key} - {other.key}"] = {
            side: {metric: _interval(seeds, one, other, side, metric, of) for metric in COMPARED}
            for side, of in groups.items()
        }
    return found


def _interval(seeds: Sequence[Record], one: Trial, other: Trial, side: str, metric: str, groups: Tensor) -> list[float]:
    a, b = (torch.cat([seed.ranks[f"{row.key}/{side}"] for seed in seeds]) for row in (one, other))
    of_seed = torch.arange(len(seeds)).repeat_interleave(len(groups))
    return list(paired_bootstrap(a, b, groups.repeat(len(seeds)), 0, metric, of_seed))


COLUMNS: dict[str, Callable[[dict], float]] = {
    **{f"T2V {name}": lambda row, name=name: row["t2v"][name] for name in METRICS},
    **{f"V2T {name}": lambda row, name=name: row["v2t"][name] for name in ("R@1", "R@10", "MnR")},
    "mass %": lambda row: row["mass"],
    "moment %": lambda row: row["moment"],
    "of a part": lambda row: row["moment_part"],
    "ms/query": lambda row: row["ms"],
    "train s": lambda row: row["train_seconds"],
}
DIGITS = {"ms/query": 3, "train s": 0}


def table(seeds: Sequence[dict[str, dict]]) -> list[list[str]]:
    """Return the results of one seed, or mean and standard deviation over several, as lines of cells."""
    lines = [["", *COLUMNS]]
    for key in seeds[0]:
        cells = []
        for name, value in COLUMNS.items():
            values, digits = [value(found[key]) for found in seeds], DIGITS.get(name, 1)
            spread = f" ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        lines.append([seeds[0][key]["title"], *cells])
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    bars = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([bars[0], "|---" * len(lines[0]) + "|", *bars[1:]])


def gains_text(gains: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """Return the differences with their intervals, a line for each pair and direction."""
    return "\n".join(
        f"{pair}, {name.upper()}: "
        + ", ".join(f"{metric} {d:+.1f} [{low:+.1f}, {high:+.1f}]" for metric, (d, low, high) in found.items())
        for pair, sides in gains.items()
        for name, found in sides.items()
    )
