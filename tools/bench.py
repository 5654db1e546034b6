"""Measures the cost of training beside the work that it cannot do without, of towers, and of one GPU: eight benches.

    tools/bench.py loader                        frames per second beside decoding alone
    tools/bench.py labels                        a step with labels beside one without, and one with live teachers
    tools/bench.py train recipes/teachclip.yaml  how long a training step waits for its batch
    tools/bench.py plan                          time and memory of the batch plan, up to ten million captions
    tools/bench.py growth                        time and memory of opening, planning, labelling, by number of videos
    tools/bench.py ranks                         a step on 1, 2 and 4 processes, and on paper on 512
    tools/bench.py towers                        what a frame and a query cost with other towers than ViT-B-32
    tools/bench.py gpu                           training, labelling and indexing beside a GPU's peak and bare towers

Every figure but those of `plan`, `growth` and `ranks` stands beside a limit that was measured in the same run, in turns
with it, so that a busy machine slows both; a ratio is the median over rounds. Where there are goals, it stands at the
end whether each was reached, and what stood in the way. `tools/bench.py COMMAND --help` says what is measured and how.
tools/bench_retrieval.py measures searching.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import ExpectedError, door
from distill.publishing import check_writable_file
from distill.terminal import Parser, show

LOADER = """How many videos a second the training loader decodes, beside PIL alone.

The limit decodes the same JPEGs from memory, in as many processes and in the same batches, and keeps nothing; the
loader also reads its shards, spells captions, pads, stacks and hands batches over. Goal: 0.9 of the limit with any
number of workers. Without FRAMES a set of 64 videos of 12 frames of 224 pixels is drawn. About a minute.
"""
LABELS = """The cost of stored labels in a training step, beside a step without and one with live teachers.

The student and its teachers are those of the recipes, with random weights: time does not depend on them. Random label
shards of that size are written by a real label job and read within the step. Goals: at most 1.10 of the step without
a teacher, at most 0.63 of the step with live teachers. Operations are counted while the steps run. Then, with small
towers, frames and captions are counted that go through teachers' towers over all epochs, with labels and without.
With the recipes that stand by default: ViT-B/32, 12 frames, 32 words, about three minutes and 10 GB of memory.
"""
TRAIN = """How long a training step waits for its batch, with and without the cache of stem outputs, by workers.

Runs the recipe as distill/run.py does, until enough steps are in its metrics.jsonl, in a folder of its own that is
removed; the recipe's frames and labels must be there (the default recipe's: after `make demo`). The first steps of
every epoch do not count. Goal: at most 5 % of a step. Without a cache only, where the recipe has no stem_cache_gb.
"""
PLAN = """How long the batch plan takes to start, to give its first batch and those after it, and how much memory.

Plans of ten epochs over 180,000 captions and over ten million, with batches of 128. Goals: a start in 50 ms and in 1 s,
a first batch in 3 s, 1 GB of memory. About a minute.
"""
RANKS = """A training step on several processes, with the same work for each core, beside what its parts add up to.

Student and teacher are those of the recipes, with random weights, drawn frames and words; one thread a process. Parts
(towers, the student's matrix of all texts and videos, the teacher's rows, the link) are measured alone. Then the same
sum for GPUs whose speed is assumed, up to 512, with operations and bytes counted in a step of the papers' size. About
three minutes and 4 GB of memory.
"""
GROWTH = """The time and memory of what is done once per run, by the number of videos.

Writes frame sets and label sets of tiny members (500 bytes of index a video; the tars are hard links to one), and opens
them for the first time, again, and together; plans ten epochs; loads the first batches; and begins a label job, each in
a process of its own. Then ranks as many captions as videos. Goals at ten million videos: open both again in 10 s, and
at most 200 resident bytes of each video and caption. Takes 1.4 GB of disk for a million videos.
"""
TOWERS = """The cost of a frame and of a query with towers of open_clip, beside ViT-B-32, on one core.

Each takes turns with ViT-B-32; weights are random. A query has 32 tokens, or as many as the tower reads; towers that
are not plain transformers compute their whole context. Also parameters (M: millions), pixels of a side, bytes of a
video's vector, and which students take it. Without NAMES eleven towers: about three minutes and 4 GB of memory.
"""
GPU = """Training, label jobs and indexing on one GPU, beside what the device can do at most, measured in the same run.

Of every tower: steps of the recipe's batch without labels and with them, with the cache of stem outputs, with compiled
blocks, with activation checkpointing; loaded, copied and trained on as in a run. Milliseconds, pairs a second, the
share of the rate of bf16 matrix products (MFU), the shares of time in which the device waits for its batch and in which
it runs nothing (torch.profiler), memory. Then label jobs of X-CLIP, TS2-Net and X-Pool and indexing, from frame shards
and from mp4 files, beside the bare towers, and collectives of one process. Weights, videos and captions are drawn.
Goals: an MFU of 45 % with the first tower, steps with labels 1.05 of those without, jobs 0.9 of bare towers, 5 % idle.
Without a CUDA device it says so.
"""
STUDENT = "recipes/msrvtt/teachclip.yaml"
TEACHERS = ["recipes/msrvtt/xclip.yaml", "recipes/msrvtt/ts2net.yaml"]
LABELLER = "recipes/msrvtt/xpool.yaml"  # whose label job is measured too
GPU_TOWERS = ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu"]
PAIRS = 8  # in a step on a CPU, whose batch a recipe's would not end on
CAPTIONS = 20  # of a video, as in MSR-VTT


def main(argv: list[str] | None = None) -> None:
    """Measure, and print."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = _command(commands, "loader", LOADER, _loader)
    one.add_argument("frames", type=Path, nargs="?", help="a folder made by tools/pack_frames.py")
    one.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="processes (default 0 1 2)")
    one.add_argument("--batch", type=int, default=16, metavar="N", help="videos in a batch (default 16)")
    one.add_argument("--rounds", type=int, default=5, metavar="N", help="of which the median is taken (default 5)")
    one = _command(commands, "labels", LABELS, _labels)
    one.add_argument("recipe", nargs="?", default=STUDENT, help="of the student")
    one.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to it: train.precision=fp32")
    one.add_argument("--teachers", nargs="+", default=TEACHERS, metavar="RECIPE", help="default: X-CLIP and TS2-Net")
    one.add_argument("--pairs", type=int, metavar="N", help="in a step (default: 8 on a CPU, the recipe's on a GPU)")
    one.add_argument("--rounds", type=int, default=5, metavar="N", help="of which the median is taken (default 5)")
    one.add_argument("--epochs", type=int, metavar="N", help="of the counted training (default: the recipe's)")
    one = _command(commands, "train", TRAIN, _train)
    one.add_argument("recipe", nargs="?", default="recipes/teachclip.yaml", help="what to train")
    one.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to it")
    one.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="processes (default 0 1 2)")
    one.add_argument("--steps", type=int, default=15, metavar="N", help="that count (default 15)")
    one = _command(commands, "plan", PLAN, _plan)
    one.add_argument("--rounds", type=int, default=3, metavar="N", help="of which the median is taken (default 3)")
    one = _command(commands, "ranks", RANKS, _ranks)
    one.add_argument("recipe", nargs="?", default="recipes/teachclip.yaml", help="of the student that is measured")
    one.add_argument("--teacher", default="recipes/xclip.yaml", metavar="RECIPE", help="default: the demo's X-CLIP")
    one.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="processes (default 1 2 4)")
    one.add_argument("--pairs", type=int, default=32, metavar="N", help="of each core in a step (default 32)")
    one.add_argument("--rounds", type=int, default=5, metavar="N", help="of which the median is taken (default 5)")
    one = _command(commands, "growth", GROWTH, _growth)
    sizes = [10_000, 100_000, 1_000_000]
    one.add_argument("--videos", type=int, nargs="+", default=sizes, metavar="N", help="sizes (default: up to 1000000)")
    one.add_argument("--ranked", type=int, default=50_000, metavar="N", help="captions and videos (default 50000)")
    one.add_argument("--folder", type=Path, metavar="DIR", help="write below it, not into the temporary folder")
    one = _command(commands, "towers", TOWERS, _towers)
    one.add_argument("names", nargs="*", metavar="NAME", help="an open_clip architecture, or a folder of towers")
    one.add_argument("--rounds", type=int, default=9, metavar="N", help="of which the median is taken (default 9)")
    one = _command(commands, "gpu", GPU, _gpu)
    one.add_argument("recipe", nargs="?", default=STUDENT, help="of the student")
    one.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to it: data.workers=16")
    one.add_argument("--teachers", nargs="+", default=TEACHERS, metavar="RECIPE", help="default: X-CLIP and TS2-Net")
    one.add_argument("--towers", nargs="+", default=GPU_TOWERS, metavar="NAME", help="default: ViT-B/32 and ViT-B/16")
    one.add_argument("--steps", type=int, default=30, metavar="N", help="of a kind that count (default 30)")
    one.add_argument("--rounds", type=int, default=3, metavar="N", help="of jobs, whose median is taken (default 3)")
    args = parser.parse_args(argv)
    for name, least in {
        **dict.fromkeys(("batch", "rounds", "pairs", "epochs", "steps", "ranks"), 1),
        "workers": 0,
    }.items():
        given = getattr(args, name, None)
        for number in given if isinstance(given, list) else [] if given is None else [given]:
            if number < least:
                raise ExpectedError(f"--{name}: {number}, expected at least {least}")
    if args.json is not None:
        check_writable_file(args.json)

    from distill import log
    from distill.bench.rounds import machine
    from distill.records import write_json

    log.setup()
    measured = args.measure(args)
    if args.json is not None:
        write_json(args.json, {"machine": machine()} | {part: asdict(found) for part, found in measured.items()})
    show(*"\n\n".join(found.table() for found in measured.values()).split("\n"))


def _command(commands: Any, name: str, about: str, measure: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=about.partition("\n")[0], description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    parser.set_defaults(measure=measure)
    return parser


def _loader(args: argparse.Namespace) -> dict[str, Any]:
    from distill.bench import drawn, loader
    from distill.data.frames import FrameSet

    with tempfile.TemporaryDirectory() as folder:
        if args.frames is not None:
            frames = FrameSet(args.frames)
        else:
            frames = drawn.draw_frames(Path(folder) / "drawn", videos=64, captions=1, num_frames=12, size=224)
        return {"loader": loader.measure_loader(frames, args.workers, batch=args.batch, rounds=args.rounds)}


def _labels(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from distill import comm
    from distill.bench import passes, steps
    from distill.bench.drawn import draw_frames
    from distill.model.preprocessing import image_size
    from distill.model.towers import read_architecture
    from distill.training import engine

    student, setting = _setting(args.recipe, args.overrides, args.teachers)
    pairs = args.pairs or (student.data.batch_size if torch.cuda.is_available() else PAIRS)
    setting = replace(setting, data=setting.data.model_copy(update={"batch_size": pairs}))
    engine.start(student.train.timeout_minutes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = image_size(read_architecture(setting.student.clip))
        drawn = {"num_frames": student.data.num_frames}
        frames = draw_frames(folder / "frames", videos=pairs, captions=1, size=size, **drawn)
        measured = steps.measure_steps(setting, frames, folder / "labels", rounds=args.rounds)
        little = passes.small(setting, folder / "towers", pairs=PAIRS)
        size = passes.TOWERS["vision_cfg"]["image_size"]
        frames = draw_frames(folder / "few", videos=PAIRS, captions=CAPTIONS, size=size, **drawn)
        counted = passes.count(little, frames, folder / "few-labels", epochs=args.epochs or student.train.epochs)
    comm.close()
    return {"steps": measured, "passes": counted}


def _setting(recipe: str, overrides: list[str], teachers: list[str], clip: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """Return the student's recipe with random weights, and its setting beside teachers; `clip` changes all of them."""
    from distill.bench.steps import Setting
    from distill.config import read_recipe
    from distill.recipe import Recipe

    drawn = ["model.clip.weights=random", *clip]
    student = read_recipe(recipe, [*overrides, *drawn, "labels=[]"], Recipe)
    return student, Setting(
        student=student.model,
        teachers=[read_recipe(path, drawn, Recipe).model for path in teachers],
        data=student.data,
        losses=student.losses,
        optim=student.optim,
        bf16=student.train.precision == "bf16",
    )


def _train(args: argparse.Namespace) -> dict[str, Any]:
    from distill.bench import waiting
    from distill.config import read_recipe
    from distill.recipe import Recipe

    cached = read_recipe(args.recipe, args.overrides, Recipe).train.stem_cache_gb
    caches = [cached, 0.0] if cached else [0.0]
    measured = waiting.measure_waiting(
        args.recipe, args.overrides, caches=caches, workers=args.workers, steps=args.steps
    )
    return {"train": measured}


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from distill.bench import planning

    return {"plan": planning.measure_plans(args.rounds)}


def _ranks(args: argparse.Namespace) -> dict[str, Any]:
    from distill.bench import ranks

    _, measured = _setting(args.recipe, [], [args.teacher])
    _, paper = _setting(STUDENT, [], TEACHERS[:1])
    return {"ranks": ranks.measure_ranks(measured, paper, args.ranks, pairs=args.pairs, rounds=args.rounds)}


def _growth(args: argparse.Namespace) -> dict[str, Any]:
    from distill.bench import growth

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        return {"growth": growth.measure_growth(Path(folder), args.videos, args.ranked)}


def _towers(args: argparse.Namespace) -> dict[str, Any]:
    from distill.bench import towers

    return {"towers": towers.measure_towers(args.names or towers.NAMES, args.rounds)}


def _gpu(args: argparse.Namespace) -> dict[str, Any]:
    from distill import comm
    from distill.bench import gpu
    from distill.training import engine

    gpu.require_gpu()
    settings = {
        tower: _setting(args.recipe, args.overrides, args.teachers, (f"model.clip.model={tower}",))[1]
        for tower in args.towers
    }
    first = (f"model.clip.model={args.towers[0]}",)
    student, labelling = _setting(args.recipe, args.overrides, [*args.teachers, LABELLER], first)
    engine.start(student.train.timeout_minutes)
    with tempfile.TemporaryDirectory() as folder:
        sizes = gpu.Sizes(steps=args.steps, rounds=args.rounds)
        measured = gpu.measure_gpu(settings, labelling, Path(folder), sizes)
    comm.close()
    return {"gpu": measured}


if __name__ == "__main__":
    door(main)
