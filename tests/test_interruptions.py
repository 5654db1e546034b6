"""Every interruption ends with one line and a state from which the same command continues."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, World, diverged, metrics, one_line_error, python, steps, tree_bytes
from processes import Ranks

from distill import comm
from distill.config import Config
from distill.data.datasets import VideoDataset
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.loader import load_batches
from distill.errors import ArtefactError, ExpectedError
from distill.training import checkpoint
from distill.training.checkpoint import Progress
from distill.training.folder import alone_in
from distill.training.monitor import Monitor

MB = 1 << 20


def script(folder: Path, text: str) -> Path:
    """A little command of the project's kind."""
    path = folder / "script.py"
    path.write_text(f"import sys\nsys.path[0] = {str(ROOT)!r}\n" + textwrap.dedent(text))
    return path


def wait_for(condition: Callable[[], bool], ranks: Ranks) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert ranks.running, ranks.said(0)
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.002)


def rows(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def told(run: Path) -> dict:
    """The provenance of a run's release without times, and without where its files are."""
    provenance = json.loads((run / "release" / "provenance.json").read_bytes())
    for key in ("seconds", "query", "command", "recipe_sha256"):
        assert provenance.pop(key)
    del provenance["recipe"]["out"], provenance["cost"]["seconds"], provenance["cost"]["joules"]
    return provenance


def test_a_signal_ends_training_after_its_step_and_the_same_command_continues(
    world: World, teacher_run: Path, tmp_path: Path
):
    recipe, run = world.recipe("xclip", "xclip", tmp_path), tmp_path / "xclip"
    ranks = Ranks(["distill/run.py", recipe], 1, tmp_path / "log")
    wait_for(lambda: rows(run) >= 2, ranks)
    seen = rows(run)
    ranks.processes[0].terminate()
    assert ranks.ended(60) and ranks.codes == [143]
    done = rows(run)
    assert seen <= done <= seen + 2, "it ended after the step that it was in"
    assert ranks.said(0)[-1] == f"stopped by SIGTERM after step {done}; the same command continues there"
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step{done:06d}"]
    python("distill/run.py", recipe)
    assert metrics(run) == metrics(teacher_run)
    assert tree_bytes(run)["release/model.safetensors"] == tree_bytes(teacher_run)["release/model.safetensors"]
    assert told(run) == told(teacher_run), "but for times and places"


def test_a_signal_to_one_rank_ends_all_of_them_and_says_so_once(world: World, tmp_path: Path):
    recipe, run = world.recipe("xclip", "xclip", tmp_path), tmp_path / "xclip"
    ranks = Ranks(["distill/run.py", recipe, "train.epochs=9"], 2, tmp_path / "log")
    wait_for(lambda: rows(run) >= 2, ranks)
    ranks.processes[1].terminate()
    assert ranks.ended(60) and ranks.codes == [143, 143]
    said = [line for rank in (0, 1) for line in ranks.said(rank) if "stopped" in line]
    assert said == [f"stopped by SIGTERM after step {rows(run)}; the same command continues there"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step{rows(run):06d}"]


def test_a_loss_that_is_not_finite_ends_all_ranks_and_names_the_part(world: World, tmp_path: Path):
    recipe = world.recipe("xclip", "xclip", tmp_path)
    command = ["distill/run.py", recipe, f"model.clip.model={diverged(world, tmp_path / 'towers')}"]
    ranks = Ranks(command, 2, tmp_path / "log")
    assert ranks.ended(300) and ranks.codes == [2, 2]
    for rank in (0, 1):
        assert ranks.said(rank)[-1].startswith("error: step") and "loss part" in ranks.said(rank)[-1]
        assert "Traceback" not in "".join(ranks.said(rank))


class Said(Config):
    """A recipe of one key."""

    seed: int = 0


def test_a_second_job_in_the_same_folder_is_refused_and_changes_nothing_in_it(tmp_path: Path):
    path = script(
        tmp_path,
        """
        import time
        from pathlib import Path
        from distill.config import Config
        from distill.training.folder import alone_in

        class Said(Config):
            seed: int = 0

        with alone_in(Path(sys.argv[1]), Said()):
            print("in", flush=True)
            time.sleep(600)
        """,
    )
    first = Ranks([path, tmp_path], 1, tmp_path / "log")
    wait_for(lambda: first.said(0) == ["in"], first)
    before = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(ExpectedError, match="running already"), alone_in(tmp_path, Said(seed=1)):
        pass
    assert before == b"seed: 0\n" == (tmp_path / "recipe.yaml").read_bytes()
    first.kill_all()
    with alone_in(tmp_path, Said(seed=1)):
        assert (tmp_path / "recipe.yaml").read_bytes() == b"seed: 1\n"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_share_that_breaks_while_it_is_read_is_named(world: World, tmp_path: Path, workers: int):
    folder = shutil.copytree(world.frames["val"], tmp_path / "share")
    frames = FrameSet(folder)
    (folder / "00000.tar").unlink()
    (folder / "00000.tar").symlink_to("/proc/self/mem")  # reads fail with an I/O error
    with pytest.raises(ArtefactError, match=r"share/00000\.tar: cannot be read \(Input/output error\)"):
        list(load_batches(VideoDataset(frames), [[0, 1]], workers))


GROUP = """
    import os, time, torch, torch.distributed as dist
    from distill import comm
    from distill.errors import door

    def main():
        with comm.reporting_lost_ranks(0.05):
            dist.init_process_group("gloo", timeout=comm.limit_waiting(0.05))
            group = dist.new_group([0, 1])  # as DeepSpeed makes one
            dist.all_reduce(torch.ones(1), group=group)
            open(f"{sys.argv[1]}.{dist.get_rank()}", "w").close()
            while True:
                time.sleep(0.1)
                dist.all_reduce(torch.ones(1), group=group)

    door(main)
"""


@pytest.mark.parametrize(("how", "says"), [(signal.SIGKILL, "was lost"), (signal.SIGSTOP, "did not answer within")])
def test_a_rank_that_dies_or_stops_ends_the_others_with_a_line(tmp_path: Path, how: signal.Signals, says: str):
    ranks = Ranks([script(tmp_path, GROUP), tmp_path / "ready"], 2, tmp_path / "log")
    wait_for(lambda: all((tmp_path / f"ready.{rank}").exists() for rank in (0, 1)), ranks)
    ranks.processes[1].send_signal(how)
    assert ranks.processes[0].wait(30) == 2
    ranks.kill_all()
    assert len(ranks.said(0)) == 1, ranks.said(0)
    assert ranks.said(0)[0].startswith("error: rank 0: another process " + says)


@pytest.mark.parametrize("text", ["[pair.cc:1] op.preamble.length <= op.nbytes. 8 vs 4 (gloo)", "index out of range"])
def test_our_own_mistakes_keep_their_traceback(text: str):
    with pytest.raises(RuntimeError, match=r"nbytes|range"), comm.reporting_lost_ranks(1.0):
        raise RuntimeError(text)


@pytest.mark.slow
def test_a_command_that_waits_inside_a_library_ends_all_the_same(tmp_path: Path):
    """A mutex taken twice never returns to Python, as a collective may not for half an hour."""
    path = script(
        tmp_path,
        """
        import ctypes
        from distill.errors import door

        def main():
            library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            print("ready", flush=True)
            while True:
                library.pthread_mutex_lock(mutex)

        door(main)
        """,
    )
    ranks = Ranks([path], 1, tmp_path / "log")
    wait_for(lambda: ranks.said(0) == ["ready"], ranks)
    ranks.processes[0].terminate()
    assert ranks.ended(20) and ranks.codes == [143]
    assert ranks.said(0)[1:] == ["stopped by SIGTERM; what is finished is kept, and the same command continues there"]


def test_a_signal_that_arrives_while_garbage_is_freed_ends_a_command_at_once(tmp_path: Path):
    """Python ignores what is raised in `__del__`, and would print its traceback."""
    path = script(
        tmp_path,
        """
        import os, signal, time
        from distill.errors import door

        class Garbage:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)

        def main():
            Garbage()
            print("went on", flush=True)

        door(main)
        """,
    )
    ranks = Ranks([path], 1, tmp_path / "log")
    assert ranks.ended(20) and ranks.codes == [143]
    assert ranks.said(0) == ["stopped by SIGTERM; what is finished is kept, and the same command continues there"]


def test_a_reader_that_goes_away_ends_a_command_without_a_word(tmp_path: Path):
    path = script(
        tmp_path,
        """
        from distill.errors import door

        door(lambda: print("a line\\n" * 100_000))
        """,
    )
    command = f'{sys.executable} {path} | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("a line\n141\n", "")


WORKERS = """
    import os, time
    from distill.errors import door
    from distill.workers import worker_pool

    def work(number):
        open(f"{sys.argv[1]}.{os.getpid()}", "w").close()
        time.sleep(600)

    def main():
        with worker_pool(2) as pool:
            for done in [pool.submit(work, number) for number in range(4)]:
                done.result()

    if __name__ == "__main__":
        door(main)
"""


@pytest.mark.parametrize(
    ("whom", "how", "code", "says"),
    [
        ("parent", signal.SIGTERM, 143, "stopped by SIGTERM"),
        ("parent", signal.SIGKILL, -9, None),
        ("worker", signal.SIGKILL, 2, "error: a worker process was killed"),
    ],
)
def test_workers_end_with_their_parent_and_say_so(tmp_path: Path, whom: str, how: signal.Signals, code: int, says):
    ranks = Ranks([script(tmp_path, WORKERS), tmp_path / "ready"], 1, tmp_path / "log")
    wait_for(lambda: len(list(tmp_path.glob("ready.*"))) == 2, ranks)
    worker = int(next(tmp_path.glob("ready.*")).suffix[1:])
    os.kill(ranks.processes[0].pid if whom == "parent" else worker, how)
    assert ranks.ended(20), f"{ranks.left()} are left"
    assert ranks.codes == [code]
    if says:  # a killed parent's resource tracker has its own words
        assert [line[: len(says)] for line in ranks.said(0)] == [says]


class Disk:
    """A file system of a given size, which can be made larger."""

    def __init__(self, path: Path, size: int):
        self.path = path
        path.mkdir()
        self._mount(size, "-t", "tmpfs", "none")

    def grow(self, size: int) -> None:
        self._mount(size, "-o", "remount")

    def _mount(self, size: int, *how: str) -> None:
        done = subprocess.run(["mount", *how, "-o", f"size={size}", str(self.path)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    """Makes one disk of so many bytes."""
    path = tmp_path / "disk"
    if shutil.which("mount") is None or os.geteuid():
        pytest.skip("only root can mount a small file system")
    yield lambda size: Disk(path, size)
    subprocess.run(["umount", "--lazy", str(path)], capture_output=True)


def nothing_torn(folder: Path) -> None:
    assert not [path for path in folder.rglob("*") if ".part" in path.name]


def test_a_full_disk_stops_packing_and_after_making_room_the_bytes_are_the_same(world: World, small_disk):
    disk = small_disk(MB // 4)
    out = disk.path / "frames"
    pack = ["tools/pack_frames.py", world.corpus / "val.csv", world.corpus / "videos", "--layout", "msrvtt"]
    pack += ["--size", "64", "--out", out]
    one_line_error(python(*pack, check=False), "00000.tar", "disk is full", "bytes", "are free")
    nothing_torn(out)
    disk.grow(64 * MB)
    python(*pack)
    assert tree_bytes(out) == tree_bytes(world.frames["val"])


def test_a_full_disk_stops_a_label_dump(world: World, teacher: Path, small_disk):
    disk = small_disk(MB // 16)
    dump = ["tools/dump_soft_labels.py", teacher, world.frames["val"], "--out"]
    one_line_error(python(*dump, disk.path / "labels", check=False), "00000", "disk is full", "are free")
    nothing_torn(disk.path)
    disk.grow(64 * MB)
    python(*dump, disk.path / "labels")
    LabelSet(disk.path / "labels", FrameSet(world.frames["val"]))  # whole, every byte as it was sealed


def test_a_full_disk_stops_a_run_and_after_making_room_it_continues(world: World, teacher_run: Path, small_disk):
    disk = small_disk(32 * MB)  # one checkpoint and the start of a second
    recipe = world.recipe("xclip", "xclip", disk.path)
    command = ("distill/run.py", recipe, "train.checkpoint_every=5")
    result = python(*command, check=False)
    one_line_error(result, "step000010", "disk is full", "bytes", "are free")
    nothing_torn(disk.path)
    assert [path.name for path in (disk.path / "xclip" / "checkpoints").iterdir()] == ["step000005"]
    disk.grow(400 * MB)
    python(*command)
    assert metrics(disk.path / "xclip") == metrics(teacher_run)


def test_a_checkpoint_that_meets_a_full_disk_while_it_is_written_leaves_the_older_one(small_disk, monkeypatch):
    disk = small_disk(3 * MB)
    folder, weights = disk.path / "checkpoints", {"w": torch.ones(MB // 4)}
    checkpoint.save(folder, weights, {"m": torch.zeros(1)}, Progress(step=1, metrics_bytes=0))
    monkeypatch.setattr(checkpoint, "check_free_space", lambda path, needed: None)  # another one filled it in between
    with pytest.raises(
        ExpectedError, match=r"optimizer\.safetensors: the disk is full: the file takes 2,097,152 bytes, 1,0"
    ):
        checkpoint.save(folder, weights, {"m": torch.ones(MB // 2)}, Progress(step=2, metrics_bytes=0))
    nothing_torn(disk.path)
    found = checkpoint.latest(folder)
    assert found is not None and found[2].step == 1 and torch.equal(found[0]["w"], weights["w"])


def test_metrics_on_a_full_disk_stop_with_a_line_and_whole_rows(small_disk):
    disk = small_disk(64 << 10)
    monitor = Monitor(disk.path, total_steps=10)
    monitor.row(1, {"total": 0.5})
    kept = monitor.bytes()
    (disk.path / "filler").write_bytes(bytes(shutil.disk_usage(disk.path).free))
    with pytest.raises(ExpectedError, match=r"metrics\.jsonl: the disk is full"):
        for step in range(2, 5000):
            monitor.row(step, {"total": 0.5})
    monitor.close()
    (disk.path / "filler").unlink()
    assert all(line.endswith(b"}\n") for line in (disk.path / "metrics.jsonl").read_bytes().splitlines(keepends=True))
    again = Monitor(disk.path, total_steps=10, keep_bytes=kept)
    again.row(2, {"total": 0.25})
    again.close()
    assert [row["step"] for row in steps(disk.path)] == [1, 2]


def test_metrics_that_were_deleted_or_cut_go_on_without_holes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    monitor = Monitor(tmp_path, total_steps=10)
    for step in (1, 2, 3):
        monitor.row(step, {"loss": 1.0})
    kept = monitor.bytes()
    monitor.close()
    path = tmp_path / "metrics.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    for left in (b"", rows[0] + rows[1][:5]):
        path.write_bytes(left)
        again = Monitor(tmp_path, total_steps=10, keep_bytes=kept)
        again.row(4, {"loss": 2.0})
        again.close()
        found = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert [row["step"] for row in found] == ([1, 4] if left else [4])
        assert f"holds {len(left):,} of the {kept:,} bytes" in caplog.text
