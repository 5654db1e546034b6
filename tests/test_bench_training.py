"""The training benches: what they count is what a count by hand gives, and all they print is in their JSON."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import families
import pytest
import torch
from conftest import ARCHITECTURE, World, make_towers, python
from labelling import change_videos

from distill.bench import operations, passes, planning, ranks, scaling
from distill.bench import towers as towers_bench
from distill.bench.device import uncovered
from distill.bench.drawn import draw_frames
from distill.bench.rounds import Goal, ratio, take_turns
from distill.bench.steps import Setting
from distill.bench.synthetic import Sizes
from distill.bench.waiting import LEFT_OUT
from distill.data.datasets import PairDataset, VideoDataset
from distill.data.loader import load_batches
from distill.data.tokens import Tokenizer
from distill.errors import ExpectedError
from tools import bench as tools_bench

TOWER = {"tokens": 17, "patch": 16, "width": 64, "layers": 3, "heads": 2}  # conftest.ARCHITECTURE
WORDS, FRAMES, DIM, PAIRS, EPOCHS, CAPTIONS, VIDEOS = 24, 12, 32, 4, 2, 20, 8


def bench(*args: str | Path, **options) -> dict:
    """The JSON of a bench that ran as a process."""
    path = Path(str(args[-1]))
    result = python("tools/bench.py", *args[:-1], "--json", path, **options)
    return json.loads(path.read_text()) | {"shown": result.stdout}


def test_sides_take_turns_and_a_ratio_is_of_one_round():
    order: list[str] = []

    def side(name: str, value: float):
        return lambda: order.append(name) or value * len(order)

    found = take_turns({"a": side("a", 1.0), "b": side("b", 2.0)}, 2, "turns")
    assert "".join(order) == "baabba"  # the first two warm up
    assert found == {"a": [3.0, 6.0], "b": [8.0, 10.0]}
    assert math.isclose(ratio(found["b"], found["a"]), (8 / 3 + 10 / 6) / 2)


def test_a_goal_says_by_how_much_it_is_missed():
    reached = Goal(what="x", found=0.95, limit=0.9, at_least=True)
    assert reached.reached and reached.sentence() == "x: 0.95, goal >= 0.9: reached"
    missed = Goal(what="waiting", found=0.08, limit=0.05, percent=True, why="too few workers")
    assert missed.sentence() == "waiting: 8.0 %, goal <= 5.0 %: missed by 3.0 %; too few workers"
    assert asdict(missed)["reached"] is False


def test_the_loader_gives_what_the_shards_hold(tmp_path: Path):
    """Drawn sets are alike at every seed, and pictures laid out for the decoder are the same numbers."""
    frames = draw_frames(tmp_path / "a", videos=3, captions=2, num_frames=2, size=32)
    again = draw_frames(tmp_path / "b", videos=3, captions=2, num_frames=2, size=32)
    assert frames.manifest.id == again.manifest.id
    assert len({caption.text for video in frames.videos for caption in video.captions}) == 6
    frames.num_frames = 3  # as if all videos were too short for the sampler
    dataset = PairDataset(frames, [], Tokenizer(WORDS), pixels=True)
    for workers in (0, 1):
        (batch,) = load_batches(dataset, [[(2, 1), (0, 0)]], workers)
        assert batch.frames.shape == (2, 3, 3, 32, 32) and batch.real.tolist() == [[True, True, False]] * 2
        assert (batch.frames[0, :2].numpy() == frames.pixels(2)).all() and not batch.frames[:, 2].any()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_never_change_a_batch_that_was_handed_over(tmp_path: Path, workers: int):
    """Workers fill the same memory again; padding must not show what another batch left there."""
    frames = draw_frames(tmp_path, videos=6, captions=1, num_frames=2, size=32)
    video, frames.num_frames = frames.videos[3], 3
    change_videos(frames, {3: replace(video, timestamps=video.timestamps[:1])})  # shorter than the one before it
    rows = [[(number % 6, 0), ((number + 1) % 6, 0)] for number in range(40)]
    dataset = PairDataset(frames, [], Tokenizer(WORDS), pixels=True)
    held = list(load_batches(dataset, rows, workers))
    for batch, expected in zip(held, load_batches(dataset, rows, 0), strict=True):
        assert torch.equal(batch.frames, expected.frames) and torch.equal(batch.ids, expected.ids)
    videos = list(load_batches(VideoDataset(frames), [[0, 1], [2, 3], [4, 5]] * 9 + [[3]], workers))
    assert torch.equal(videos[1][0], held[2].frames) and torch.equal(videos[-1][0][0], held[3].frames[0])


@pytest.mark.slow
def test_loader_is_measured_beside_decoding_alone(tmp_path: Path):
    frames = draw_frames(tmp_path / "frames", videos=6, captions=1, num_frames=3, size=64)
    found = bench("loader", frames.path, "--batch", "4", "--rounds", "1", "--workers", "0", "2", tmp_path / "out.json")
    measured, shown = found["loader"], found["shown"]
    assert [row["workers"] for row in measured["rows"]] == [0, 2]
    for row, goal in zip(measured["rows"], measured["goals"], strict=True):
        assert row["of_limit"] == pytest.approx(row["loader"] / row["limit"]) == goal["found"]
        assert goal["limit"] == 0.9 and goal["reached"] == (goal["found"] >= 0.9)
        assert row["mib"] == pytest.approx(row["loader"] * measured["video_bytes"] / 2**20)
        assert f"{row['of_limit']:.3f}" in shown and goal["what"] in shown
    jpegs = sum(len(frames._shards.read(video.key, f"{n:03d}.jpg")) for video in frames.videos for n in range(3))
    assert measured["video_bytes"] == jpegs / 6
    assert measured["parts"].keys() >= {"decode", "read from the shard", "captions to tokens"}
    with pytest.raises(ExpectedError, match="6 videos do not fill a batch of 16; give --batch 6"):
        tools_bench.main(["loader", str(frames.path)])


@pytest.fixture(scope="module")
def labels(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The bench of labels on small towers."""
    folder = tmp_path_factory.mktemp("labels")
    recipes = {kind: world.recipe(kind, kind, folder) for kind in ("teachclip", "xclip", "ts2net")}
    options = ["--pairs", str(PAIRS), "--rounds", "1", "--epochs", str(EPOCHS)]
    teachers = ["--teachers", recipes["xclip"], recipes["ts2net"]]
    return bench("labels", recipes["teachclip"], *options, *teachers, folder / "out.json")


def block(rows: int, tokens: int, width: int) -> int:
    """Multiply-accumulates of a transformer block on so many sequences: projections, attention, MLP."""
    return rows * (12 * tokens * width**2 + 2 * tokens**2 * width)


def by_hand() -> int:
    """Multiply-accumulates of both teachers' towers and relevance on the pairs of a step, from their equations."""
    images, tokens, width = PAIRS * FRAMES, TOWER["tokens"], TOWER["width"]
    patches = (tokens - 1) * 3 * TOWER["patch"] ** 2 * width
    text = 2 * block(PAIRS, WORDS, DIM) + PAIRS * WORDS * DIM**2  # two layers, and the projection of every word
    full = images * patches + TOWER["layers"] * block(images, tokens, width)
    # The class token's query alone in the last block (ClassTokenAttention): q, q W_k, scores, sum, W_v, out; MLP.
    per_head = 2 * TOWER["heads"] * tokens * width
    last = images * (width**2 + 2 * width**2 + per_head + width**2 + 8 * width**2)
    xclip = (
        images * patches + 2 * block(images, tokens, width) + last + images * width * DIM + block(PAIRS, FRAMES, DIM)
    )
    selector = images * tokens * (DIM * DIM // 2 + DIM * DIM // 2 + DIM // 2) + images * 3 * (tokens - 1) * DIM
    ts2net = full + images * tokens * width * DIM + selector + block(PAIRS, 4 * FRAMES, DIM)
    return xclip + ts2net + 2 * text


@pytest.mark.slow
def test_operations_of_live_teachers_are_those_of_their_towers(labels: dict):
    plain, stored, live = (row["flops"] for row in labels["steps"]["rows"])
    assert live - stored == 2 * by_hand()
    # Interactions with stored features: X-CLIP's and TS2-Net's scores of every pair of the batch.
    sizes = steps_sizes()
    assert stored - plain == 2 * sizes
    assert labels["steps"]["by_operations"] == stored / live < 1


def steps_sizes() -> int:
    """Multiply-accumulates of both interactions on the batch, by the formulas of the search bench."""
    from distill.bench.operations import KINDS
    from distill.bench.synthetic import Sizes

    sizes, total = Sizes(dim=DIM, frames=FRAMES, words=WORDS), 0
    for kind in ("xclip", "ts2net"):
        counted = KINDS[kind][1](sizes, None)
        total += PAIRS * counted.query + PAIRS * counted.video + PAIRS**2 * counted.products
    return total


@pytest.mark.slow
def test_stored_and_live_labels_give_the_same_loss(labels: dict):
    assert labels["steps"]["loss_difference"] < 1e-3  # stored in half precision, as by default
    assert labels["passes"]["loss_difference"] < 1e-4  # in single precision, over whole trainings


@pytest.mark.slow
def test_teachers_passes_are_those_counted_by_hand(labels: dict):
    """A label set takes every video and caption once; live teachers see every pair of every epoch; two teachers."""
    counted = labels["passes"]
    pairs = EPOCHS * VIDEOS * CAPTIONS
    assert counted["steps"] == pairs // VIDEOS
    job, stored, live = counted["rows"]
    assert (job["frames"], job["captions"]) == (2 * VIDEOS * FRAMES, 2 * VIDEOS * CAPTIONS)
    assert (stored["frames"], stored["captions"]) == (0, 0)
    assert (live["frames"], live["captions"]) == (2 * pairs * FRAMES, 2 * pairs)
    assert counted["saved_frames"] == 2 * FRAMES * (pairs - VIDEOS)
    assert counted["saved_captions"] == 2 * (pairs - VIDEOS * CAPTIONS)
    assert f"{EPOCHS * CAPTIONS} times fewer frames, {EPOCHS} times fewer captions" in labels["shown"]


@pytest.mark.slow
def test_labels_are_judged_by_their_goals(labels: dict):
    rows, goals = labels["steps"]["rows"], labels["steps"]["goals"]
    assert [row["step"] for row in rows] == ["no teacher", "labels", "live teachers"]
    assert rows[0]["of_plain"] == 1 and all(row["milliseconds"] > 0 for row in rows)
    assert [goal["limit"] for goal in goals] == [1.10, 0.63]
    assert goals[0]["found"] == rows[1]["of_plain"] and all(goal["what"] in labels["shown"] for goal in goals)
    assert labels["machine"]["torch"] == torch.__version__


@pytest.mark.slow
def test_waiting_is_what_the_loop_records(world: World, tmp_path: Path):
    recipe = world.recipe("clip", "clip4clip", tmp_path / "recipe")
    found = bench("train", recipe, "labels=[]", "--workers", "0", "--steps", "3", tmp_path / "out.json")["train"]
    assert [(row["stem_cache_gb"], row["workers"]) for row in found["rows"]] == [(1, 0), (0, 0)]
    for row, goal in zip(found["rows"], found["goals"], strict=True):
        assert row["steps"] == 3 and 0 <= row["waited"] < row["milliseconds"]
        assert row["share"] == pytest.approx(row["waited"] / row["milliseconds"]) == goal["found"]
    assert all(row["waited"] > 0 for row in found["rows"])


@pytest.mark.slow
def test_a_run_that_ends_too_soon_says_what_it_said(world: World, tmp_path: Path):
    recipe = world.recipe("clip", "clip4clip", tmp_path / "recipe", data={"train": str(tmp_path / "nothing")})
    with pytest.raises(ExpectedError, match=f"more than {LEFT_OUT} steps of an epoch; it said: error: .*/nothing: no"):
        tools_bench.main(["train", str(recipe), "--workers", "0"])


def test_plans_are_timed_from_their_start_to_a_batch_in_mid_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    few = [(planning.SMALL, "apart", {}), (planning.SMALL, "negatives", {"same_video_apart": False})]
    monkeypatch.setattr(planning, "PLANS", few)
    tools_bench.main(["plan", "--rounds", "1", "--json", str(tmp_path / "out.json")])
    found, shown = json.loads((tmp_path / "out.json").read_text())["plan"], capsys.readouterr().out
    assert [(row["captions"], row["drawn"]) for row in found["rows"]] == [(180_000, "apart"), (180_000, "negatives")]
    for row, goals in zip(found["rows"], (found["goals"][:3], found["goals"][3:]), strict=True):
        assert [goal["found"] for goal in goals] == [row["start"], row["first"], row["megabytes"]]
        assert [goal["limit"] for goal in goals] == [0.05, 3.0, 1000.0]
        assert 0 < row["following"] < row["first"] and row["megabytes"] > 180_000 * 8 / 20 / 1e6  # of counts alone
        assert all(goal["what"] in shown for goal in goals)


def test_towers_are_timed_in_turns_with_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    plain, other = make_towers(tmp_path / "plain"), families.write("convnext", tmp_path / "other")
    monkeypatch.setattr(towers_bench, "REFERENCE", str(plain))
    threads = torch.get_num_threads()
    names = [str(plain), str(other)]
    tools_bench.main(["towers", *names, "--rounds", "3", "--json", str(tmp_path / "out.json")])
    found, shown = json.loads((tmp_path / "out.json").read_text())["towers"], capsys.readouterr().out
    same, tower = found["rows"]
    assert [row["name"] for row in found["rows"]] == names and torch.get_num_threads() == threads
    assert [row["plain"] for row in found["rows"]] == [True, False]
    assert [line.split()[-1] for line in shown.splitlines()[1:3]] == ["all", "tower"]
    vision, text = ARCHITECTURE["vision_cfg"], ARCHITECTURE["text_cfg"]
    weights = (vision["image_size"] // vision["patch_size"]) ** 2 * vision["width"] + vision["width"]  # positions
    weights += 3 * vision["patch_size"] ** 2 * vision["width"] + vision["width"] + 4 * vision["width"]  # patches, norms
    weights += (text["vocab_size"] + text["context_length"]) * text["width"] + 2 * text["width"]
    weights += sum(part["layers"] * (12 * part["width"] ** 2 + 13 * part["width"]) for part in (vision, text))
    weights += ARCHITECTURE["embed_dim"] * (vision["width"] + text["width"]) + 1
    assert round(1e6 * same["millions"]) == weights
    assert (same["image"], tower["image"], same["video_bytes"]) == (64, 64, 4 * ARCHITECTURE["embed_dim"])
    assert all(row[key] > 0 for row in found["rows"] for key in ("frame", "query", "frame_of_reference"))
    with pytest.raises(ExpectedError, match=r"clip\.model: 'vit-b32' is neither a folder nor an architecture"):
        tools_bench.main(["towers", "ViT-B-32", "vit-b32"])


def small_ranks(folder: Path) -> Setting:
    """TeachCLIP taught by X-CLIP, with towers of 64 numbers, 12 frames and 32 words."""
    _, setting = tools_bench._setting("recipes/msrvtt/teachclip.yaml", [], ["recipes/msrvtt/xclip.yaml"])
    return passes.small(setting, folder / "towers", pairs=4)


def test_the_work_of_a_step_on_many_ranks_is_what_a_count_by_hand_gives(tmp_path: Path):
    """Forward and backward of one cosine for the student, X-CLIP's formula for the teacher; no words travel."""
    work = ranks._work(ranks._Step(small_ranks(tmp_path), 4))
    teacher = operations.xclip(Sizes(dim=64, frames=12, words=32), None).products
    assert (work.student, work.teacher) == (3 * 2 * 64, 2 * teacher)
    assert work.features == 64 + 64 + 12 + 12  # sentence, vector, relevance and truth of frames
    assert work.labels == 64 + 12 * 64 + 12  # vector, frames, relevance
    machine = scaling.Machine(name="x", towers=1e9, student=2e6, teacher=4e6, link=1e6, latency=0.5)
    step = scaling.forecast(work, machine, 4, 8)
    assert math.isclose(step.student, 384 * 32 * 32 / 2e6) and math.isclose(step.teacher, 2 * teacher * 8 * 32 / 4e6)
    gathered = 4 * 3 * 8 * (2 * 152 + 844 + 32)  # bytes of the other processes' rows
    assert math.isclose(step.gather, gathered / 1e6 + 5 * 0.5)
    assert math.isclose(step.gradients, 2 * 4 * work.parameters * 3 / 4 / 1e6)
    alone = scaling.forecast(work, machine, 1, 8)
    assert alone.gather == alone.gradients == alone.moved == 0
    assert scaling.table([alone, step]).splitlines()[-1].split()[8] == f"{100 * alone.total / step.total:.0f}"


@pytest.mark.slow
def test_steps_on_several_processes_stand_beside_their_forecast(tmp_path: Path):
    setting = small_ranks(tmp_path)
    report = ranks.measure_ranks(setting, setting, [1, 2], pairs=4, rounds=2)
    assert [(row.ranks, row.pairs) for row in report.rows] == [(1, 4), (2, 4)]
    assert all(row.seconds > 0 and row.forecast > 0 for row in report.rows) and report.rows[1].link > 0
    assert [step.ranks for step in report.paper] == [1, 8, 64, 512]
    assert "efficiency" in report.table() and "teacher in full" in report.table()


ON_A_CPU = """
import sys
from functools import partial

from distill.bench import gpu, training
from tools import bench

training.WARM = training.PROFILED = 1
gpu.require_gpu = lambda: None
kinds = [kind for kind in training.KINDS if kind != "labels, compile"]
small = {"videos": 8, "captions": 2, "files": 2, "seconds": 3, "rate": 4, "picture": (64, 48), "side": 64}
gpu.Sizes = partial(gpu.Sizes, **small, kinds=kinds, collectives=(1 << 12,))
bench.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_all_of_one_gpu_is_measured_where_the_bench_is_told_that_a_cpu_is_one(tmp_path: Path):
    """Operations, rows and goals are counted there as on a GPU; what only a GPU tells is left out."""
    towers = str(make_towers(tmp_path / "towers"))
    world = World(tmp_path, tmp_path, dict.fromkeys(("train", "val", "test"), tmp_path), Path(towers))
    one = {"batch_size": 4, "same_video": "negatives"}
    recipes = {kind: world.recipe(kind, kind, tmp_path, data=one) for kind in ("teachclip", "xclip", "ts2net")}
    script = tmp_path / "bench.py"
    script.write_text(ON_A_CPU)
    how = ["--teachers", recipes["xclip"], recipes["ts2net"], "--towers", towers, "--steps", "2", "--rounds", "1"]
    found = python(script, "gpu", recipes["teachclip"], *how, "--json", tmp_path / "out.json").stdout
    measured = json.loads((tmp_path / "out.json").read_text())["gpu"]
    rows = {row["step"]: row for row in measured["steps"]}
    assert list(rows) == ["no labels", "labels", "labels, stem cache", "labels, activation checkpointing"]
    for row in rows.values():
        assert row["samples"] == pytest.approx(4e3 / row["milliseconds"]) and 0 <= row["waited"] < 1
        assert row["mfu"] == pytest.approx(row["flops"] / (row["milliseconds"] / 1e3 * measured["peak"]))
        assert row["idle"] is None and row["gigabytes"] is None
    # cached are two frozen layers; what is computed again counts once
    assert rows["labels, stem cache"]["flops"] < rows["no labels"]["flops"] < rows["labels"]["flops"]
    assert rows["labels, activation checkpointing"]["flops"] == rows["labels"]["flops"]
    jobs = [(job["job"], job["unit"]) for job in measured["jobs"]]
    labelled = [(f"labels of {kind}", "frames") for kind in ("xclip", "ts2net", "xpool")]
    assert jobs == [*labelled, ("index of frame shards", "videos"), ("index of files", "videos")]
    for job in measured["jobs"]:
        assert job["of_bare"] == pytest.approx(job["rate"] / job["bare"])
    assert {one["collective"] for one in measured["collectives"]} == {"all_gather", "all_reduce", "broadcast"}
    assert [goal["limit"] for goal in measured["goals"]] == [0.45, 1.05, *[0.9] * 5]
    assert all(goal["what"] in found for goal in measured["goals"])


def test_without_a_gpu_its_bench_says_so_in_one_line():
    result = python("tools/bench.py", "gpu", check=False, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr == "error: no CUDA device: this bench measures one GPU; run it on a host that has one\n"


def test_time_that_no_kernel_covers():
    assert uncovered([(0.0, 4.0), (2.0, 3.0), (6.0, 8.0), (8.0, 10.0)]) == pytest.approx(0.2)
    assert uncovered([(5.0, 6.0), (1.0, 6.0)]) == 0
