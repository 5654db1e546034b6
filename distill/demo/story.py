"""The run of the demo: all commands from drawing to search, as a user would run them, and one table of their results.

Nothing is trained here: the commands train, label, index and search, two at a time; this file reads, measures and
prints what they leave. A command whose result is already there is not run again.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from distill.config import ROOT
from distill.data.frames import FrameSet
from distill.demo.commands import Command, Commands, tool
from distill.evaluation.evaluate import encode_texts, encode_videos, texts_of
from distill.evaluation.metrics import paired_bootstrap
from distill.model.features import TextFeatures, VideoFeatures
from distill.release.release import Release, load

CORPUS, FRAMES, LABELS = Path("demo/corpus"), Path("demo/frames"), Path("demo/labels")
SIZE = 64  # pixels
SPLITS = ("train", "val", "test")
QUERIES = 50  # timed one by one
METRICS = ("R@1", "R@5", "R@10", "MdR", "MnR")


@dataclass(frozen=True)
class Trial:
    """One row of the demo's table: a recipe of the folder `recipes`, and the changes to it."""

    key: str
    title: str
    recipe: str
    changes: tuple[str, ...] = ()
    taught_by: tuple[str, ...] = ()  # keys of the teachers whose labels it is trained on
    teaches: bool = False


MEAN = Trial("mean", "CLIP4Clip, mean pooling", "clip4clip")
SEQ = Trial("seqtransf", "CLIP4Clip, temporal transformer", "clip4clip", ("model.head=seqTransf",))
PLAIN = Trial("afa", "TeachCLIP without labels", "teachclip", ("labels=[]",))
LONG = Trial("afa3x", "TeachCLIP without labels, 3 x steps", "teachclip", ("labels=[]", "train.epochs=36"))
TAUGHT = Trial("teachclip", "TeachCLIP with X-CLIP's labels", "teachclip", taught_by=("xclip",))
BY_TS2NET = Trial("teachclip-ts2net", "TeachCLIP with TS2-Net's labels", "teachclip", taught_by=("ts2net",))
BY_XPOOL = Trial("teachclip-xpool", "TeachCLIP with X-Pool's labels", "teachclip", taught_by=("xpool",))
BY_TWO = Trial("teachclip-two", "TeachCLIP with X-CLIP's and TS2-Net's", "teachclip", taught_by=("xclip", "ts2net"))
ONES = ("losses.coarse.temperature=1.0", "losses.fine.temperature=1.0")
PUBLISHED = Trial("teachclip-t1", "TeachCLIP with labels, temperatures 1", "teachclip", ONES, taught_by=("xclip",))
ALONE = ("labels=[]", "losses.contrastive.weight=1.0")  # as each paper trains
OTHERS = tuple(
    trial
    for key, title in (("eercf", "EERCF"), ("glscl", "GLSCL"), ("prompt_switch", "Prompt Switch"))
    for trial in (
        Trial(key, f"{title} without labels", key, ALONE),
        Trial(f"{key}-taught", f"{title} with X-CLIP's labels", key, taught_by=("xclip",)),
    )
)
TEACHER = Trial("xclip", "X-CLIP (teacher)", "xclip", teaches=True)
TS2NET = Trial("ts2net", "TS2-Net (teacher)", "ts2net", teaches=True)
XPOOL = Trial("xpool", "X-Pool (teacher)", "xpool", teaches=True)
DEMO = (MEAN, PLAIN, LONG, TAUGHT, TEACHER)
STUDY = (MEAN, SEQ, PLAIN, LONG, PUBLISHED, TAUGHT, BY_TS2NET, BY_XPOOL, BY_TWO, *OTHERS, TEACHER, TS2NET, XPOOL)
PAIRS = (  # whose R@1 is compared
    (TEACHER, TAUGHT),
    (TAUGHT, PLAIN),
    (BY_TS2NET, PLAIN),
    (BY_XPOOL, PLAIN),
    (BY_TWO, PLAIN),
    (BY_TWO, TAUGHT),
    (TAUGHT, LONG),
    (TAUGHT, PUBLISHED),
    (PLAIN, SEQ),
    (PLAIN, MEAN),
    *zip(OTHERS[1::2], OTHERS[::2], strict=True),
)


def corpus(commands: Commands, clips: int) -> None:
    """Draw the corpus and pack its splits."""
    make = (*tool("make_demo"), "--out", CORPUS, "--clips", str(clips), "--seed", "0")
    title = f"draw {clips} training clips and the galleries as mp4 files"
    commands.run(Command(title, make, CORPUS / "train.csv"))
    for split in SPLITS:
        pack = (*tool("pack_frames"), CORPUS / f"{split}.csv", CORPUS / "videos")
        options = ("--layout", "msrvtt", "--size", str(SIZE), "--out", FRAMES / split)
        commands.run(Command(f"pack {split} frames", (*pack, *options), FRAMES / split / "manifest.json"))


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
    arguments = [*launcher, ROOT / "distill/run.py", f"recipes/{row.recipe}.yaml", *changes]
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
            **_measured(release, frames, CORPUS / "relevance.json"),
            "train_seconds": provenance["seconds"],
        }
    return found


def intervals(rows: Sequence[Trial], runs: Sequence[Path]) -> dict[str, dict[str, list[float]]]:
    """Return R@1 of the first minus that of the second row of each pair, in points: [difference, low, high].

    A paired bootstrap over videos; with several runs (seeds), every draw takes a video with its queries in all of them.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for pair in (pair for pair in PAIRS if set(pair) <= set(rows)):
        a, b = ([load_file(run / row.key / "test_ranks.safetensors") for run in runs] for row in pair)
        text = torch.cat([ranks["video_of_text"] for ranks in a])
        video = torch.cat([torch.arange(len(ranks["v2t"])) for ranks in a])
        found[f"{pair[0].key} - {pair[1].key}"] = {
            name: list(paired_bootstrap(_joined(a, name), _joined(b, name), groups, seed=0))
            for name, groups in (("t2v", text), ("v2t", video))
        }
    return found


def _joined(ranks: Sequence[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([table[name] for table in ranks])


def _measured(release: Release, frames: FrameSet, truth: Path) -> dict[str, float]:
    """Return `mass` and `ms` of a release on a frame set of the demo; `truth` is the corpus's `relevance.json`."""
    with torch.inference_mode():
        video = encode_videos(release.model, frames)
        text = encode_texts(release.model, texts_of(frames)[:QUERIES], release.tokenizer)
        return {"mass": _relevance_mass(release, frames, video, truth), "ms": _query_ms(release, text, video)}


def _relevance_mass(release: Release, frames: FrameSet, video: VideoFeatures, truth: Path) -> float:
    """Return the percent of the frame weights on frames that are relevant to the caption, the mean over all captions.

    A model that averages frames weights all alike.
    """
    relevant = json.loads(truth.read_text())["captions"]
    if video.relevance is None or release.pool_temperature is None:
        weights = torch.full((len(frames), release.num_frames), 1 / release.num_frames)
    else:
        weights = (video.relevance.float() / release.pool_temperature).softmax(-1)
    shares = [
        float(weights[row] @ _at(relevant[about.id][caption.id], about.timestamps, release.num_frames))
        for row, about in enumerate(frames.videos)
        for caption in about.captions
    ]
    return 100 * statistics.fmean(shares)


def _query_ms(release: Release, text: TextFeatures, video: VideoFeatures) -> float:
    """Return the median milliseconds to score one encoded query with all videos and take the ten best."""
    times = []
    for query in range(-3, len(text)):  # the first three warm up
        one = text[slice(max(query, 0), max(query, 0) + 1)]
        start = time.perf_counter()
        release.model.similarity(one, video).topk(min(10, len(video)))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])


def _at(seconds: list[int], timestamps: tuple[float, ...], num_frames: int) -> Float[Tensor, " frame"]:
    """Return 0 or 1 for every packed frame, from 0 or 1 for every second."""
    values = [float(seconds[min(int(at), len(seconds) - 1)]) for at in timestamps]
    return torch.tensor(values + [0.0] * (num_frames - len(values)))


COLUMNS: dict[str, Callable[[dict], float]] = {
    **{f"T2V {name}": lambda row, name=name: row["t2v"][name] for name in METRICS},
    **{f"V2T {name}": lambda row, name=name: row["v2t"][name] for name in ("R@1", "R@10", "MnR")},
    "mass %": lambda row: row["mass"],
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


def gains_text(gains: dict[str, dict[str, list[float]]]) -> str:
    """Return the differences with their intervals, a line each."""
    return "\n".join(
        f"R@1 {pair}: "
        + ", ".join(f"{name.upper()} {d:+.1f} [{low:+.1f}, {high:+.1f}]" for name, (d, low, high) in sides.items())
        for pair, sides in gains.items()
    )
