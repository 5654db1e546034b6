"""The loader keeps to its memory, hands errors over as they are, and has remote shards before they are needed."""

import gc
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import World, launch, python, steps
from labelling import pack_shards
from test_remote import Server, serving

from distill.cache import Cache
from distill.data.dataconfig import DataConfig
from distill.data.datasets import PairDataset
from distill.data.draw import Draw
from distill.data.frames import FrameSet
from distill.data.loader import MOST_AHEAD, batches_ahead, load_batches
from distill.data.plan import Plan
from distill.data.prefetch import check_cache_size, fetched_ahead
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError, ExpectedError, RecipeError

PER_SHARD = 8


@pytest.fixture(scope="module")
def shards(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training videos in many small shards."""
    return pack_shards(world, tmp_path_factory.mktemp("shards") / "train", PER_SHARD)


class Counted(PairDataset):
    """Writes a byte to a file for every batch that is made, in whichever process."""

    log: Path

    def __getitems__(self, pairs):
        batch = super().__getitems__(pairs)
        with self.log.open("ab") as file:
            file.write(b".")
        return batch


def counted(frames: FrameSet, log: Path) -> Counted:
    dataset = Counted(frames, [], Tokenizer(24), pixels=True)
    dataset.log = log
    return dataset


class Owner:
    """A thing that only the process that made it can free, such as FFmpeg's threads; in a ring of garbage."""

    def __init__(self, log: Path):
        self.log, self.ring = log, self

    def __del__(self):
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")


class Collecting(PairDataset):
    """Collects garbage for every batch."""

    def __getitems__(self, pairs):
        gc.collect()
        return super().__getitems__(pairs)


def test_workers_do_not_free_what_the_process_left_as_garbage(shards: Path, tmp_path: Path):
    dataset = Collecting(FrameSet(shards), [], Tokenizer(24), pixels=True)
    gc.disable()
    try:
        Owner(tmp_path / "freed")
        assert len([*load_batches(dataset, [[(0, 0)], [(1, 0)], [(2, 0)]], 2)]) == 3
        assert not (tmp_path / "freed").exists()
    finally:
        gc.enable()
    gc.collect()
    assert (tmp_path / "freed").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize(("workers", "room"), [(1, 3.5), (2, 2.2), (2, 100.0)])
def test_no_more_batches_are_in_flight_than_the_memory_holds(shards: Path, tmp_path: Path, workers: int, room: float):
    """Counted where they are made: after every batch that is taken, workers run on until they have to stop."""
    frames, log = FrameSet(shards), tmp_path / "log"
    pairs = [[(video, 0) for video in range(start, start + 4)] for start in range(0, 24, 2)]
    size = 4 * (12 * 3 * 64 * 64 + 24 * 8 + 12 + 8)  # frames, token ids, mask, number of the video
    gigabytes = room * workers * size / 1e9
    fits = min(int(room) - 1, MOST_AHEAD) * workers  # the last one is for the batch that a worker fills
    loaded = load_batches(counted(frames, log), pairs, workers, gigabytes)
    log.unlink()  # the first batch was measured by one of its pairs
    seen = []
    for taken in range(1, len(pairs) + 1):
        batch = next(loaded)
        assert batch.nbytes == size
        deadline, expected = time.monotonic() + 20, min(taken + fits, len(pairs))
        while log.stat().st_size < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05 if taken < 4 else 0)
        seen.append(log.stat().st_size - taken)
        assert (seen[-1] + workers) * size <= gigabytes * 1e9
    assert max(seen) == min(fits, len(pairs) - 1)  # what fits is used
    assert next(loaded, None) is None


def test_memory_that_does_not_hold_a_batch_per_worker_is_refused(shards: Path):
    dataset = PairDataset(FrameSet(shards), [], Tokenizer(24), pixels=True)
    with pytest.raises(RecipeError, match=r"memory_gb: 0.001 GB, but data.workers=2 .*0.000591 GB each need 0.00236"):
        load_batches(dataset, [[(0, 0), (1, 0), (2, 0), (3, 0)]], 2, 0.001)
    assert len(list(load_batches(dataset, [[(0, 0)]], 0, 1e-9))) == 1  # without workers nothing is made ahead


def test_shared_memory_is_divided_among_the_processes_of_a_host(monkeypatch: pytest.MonkeyPatch):
    assert batches_ahead(10, 2, 1.0, None) == MOST_AHEAD
    assert batches_ahead(10, 2, 61 / 1e9, 1000) == 2
    assert batches_ahead(10, 2, 1.0, 90) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert batches_ahead(10, 2, 1.0, 90) == 1
    with pytest.raises(RecipeError, match=r"/dev/shm: 7.9e-08 GB free, but 2 training processes .*--shm-size"):
        batches_ahead(10, 2, 1.0, 79)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_reaches_the_user_as_it_is(shards: Path, tmp_path: Path, workers: int):
    for path in shards.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    tar = tmp_path / "00001.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    dataset = PairDataset(FrameSet(tmp_path, verify=False), [], Tokenizer(24), pixels=True)
    with pytest.raises(ArtefactError, match=r"00001.tar: frames of 0000100000 cannot be decoded") as found:
        list(load_batches(dataset, [[(0, 0)], [(PER_SHARD, 0)]], workers))
    assert "Traceback" not in str(found.value)


class Killed(PairDataset):
    def __getitems__(self, pairs):
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out


def test_a_worker_that_dies_is_one_line(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # torch looks every 5 s
    dataset = Killed(FrameSet(shards), [], Tokenizer(24), pixels=True)
    with pytest.raises(ExpectedError, match=r"a decoding process died .*lower data.workers"):
        list(load_batches(dataset, [[(0, 0)]], 1))


def windows(frames: FrameSet, window: int) -> tuple[list[Draw], list[int]]:
    """Batches of two epochs, and the shard of every video."""
    shards = [number for number, rows in enumerate(frames.shards().values()) for _ in rows]
    sizes = [len(rows) for rows in frames.shards().values()]
    plan = Plan([len(v.captions) for v in frames.videos], 4, 2, seed=1, shards=sizes, window=window)
    steps = [[(int(v), int(c)) for v, c in plan.batch(step)] for step in range(plan.total_steps)]
    return [Draw(pairs, [], []) for pairs in steps], shards


@pytest.mark.parametrize("window", [0, 1, 2])
def test_shards_are_fetched_before_their_batches_and_not_much_before(shards: Path, tmp_path: Path, window: int):
    with serving(shards) as server:
        frames = FrameSet(server.url, cache=Cache(tmp_path / "cache"))
        before = threading.active_count()
        batches, shard = windows(frames, window)
        ahead = fetched_ahead(batches, [frames.source()], window)
        names = list(frames.shards())
        assert next(ahead) == batches[0] and not _fetched(server) and threading.active_count() == before
        touched = {names[shard[video]] for video, _ in batches[0].pairs}
        for batch in batches[1:]:
            assert next(ahead) == batch
            touched |= {names[shard[video]] for video, _ in batch.pairs}
            deadline = time.monotonic() + 10
            while not touched - {names[shard[v]] for v, _ in batches[0].pairs} <= _fetched(server):
                assert time.monotonic() < deadline, "nobody fetched what this batch needs"
                time.sleep(0.005)
            if window and len(_fetched(server)) < len(names):
                assert (
                    len(_fetched(server) - touched) <= 2 * window
                )  # one window, and the rest of a batch that opens it
        assert next(ahead, None) is None
        assert all(count == 1 for name, count in server.seen.items() if name.endswith(".tar"))


def _fetched(server: Server) -> set[str]:
    return {name for name in server.seen if name.endswith(".tar")}


def test_a_cache_that_neighbouring_batches_do_not_fit_is_refused(shards: Path):
    source = FrameSet(shards).source()
    sizes = sorted(source.shards.tar_bytes().values())
    check_cache_size([source], 1, sum(sizes[-2:]) / 1e9)
    with pytest.raises(RecipeError, match=r"data.cache_gb: .* two windows of data.shuffle_shards=1 shards need"):
        check_cache_size([source], 1, (sum(sizes[-2:]) - 1) / 1e9)
    with pytest.raises(RecipeError, match=r"batches drawn from all shards need .* data.shuffle_shards to a few"):
        check_cache_size([source], 0, (sum(sizes) - 1) / 1e9)
    check_cache_size([source, source], 0, 2 * sum(sizes) / 1e9)


@pytest.mark.slow
def test_a_streamed_run_on_two_processes_equals_a_local_one_on_one(world: World, shards: Path, tmp_path: Path):
    data = {"train": str(shards), "shuffle_shards": 2}
    python("distill/run.py", world.recipe("local", "clip4clip", tmp_path, data=data, train={"stem_cache_gb": 0.0}))
    with serving(shards) as server:
        far = {**data, "train": server.url, "cache": str(tmp_path / "cache"), "cache_gb": 0.1, "workers": 1}
        recipe = world.recipe("far", "clip4clip", tmp_path, data=far, train={"stem_cache_gb": 0.0})
        launch(2, "distill/run.py", recipe)
        assert all(count == 1 for name, count in server.seen.items() if name.endswith(".tar"))
    local, far = steps(tmp_path / "local"), steps(tmp_path / "far")
    assert [row["batch"] for row in local] == [row["batch"] for row in far] and len(local) > 4
    for one, two in zip(local, far, strict=True):
        assert abs(one["total"] - two["total"]) < 1e-5 * max(1, abs(one["total"]))


def test_a_recipe_says_where_remote_shards_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert DataConfig(train="a", val="b").open_cache() == Cache(tmp_path / "retrieval-distill", 50.0)
    assert DataConfig(train="a", val="b", cache="c", cache_gb=1.0).open_cache() == Cache(Path("c"), 1.0)
