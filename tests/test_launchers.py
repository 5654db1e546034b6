"""A launcher that is killed tells nobody: what it started stops by itself, with a line, and keeps a checkpoint."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, World
from processes import QUIET, free_port

from distill import signals

PORT = "PORT"  # a free one
LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    "deepspeed": ("deepspeed.launcher.runner", "--master_port", PORT, "--num_accelerators", "2"),
    "accelerate": ("accelerate.commands.launch", "--cpu", "--num_processes", "1"),
}
SECONDS = 60.0


def descendants(pid: int) -> list[int]:
    """The processes below one, that of a training among them."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


in_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")


def said_at_the_end(pids: list[int], log: Path) -> str:
    """Wait until these processes have ended by themselves; return what they said. Kills those that go on, and fails."""
    try:
        deadline = time.monotonic() + SECONDS
        while any(map(running, pids)):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return log.read_text()


@pytest.mark.slow
@in_proc
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_training_stops_when_its_launcher_is_killed(world: World, tmp_path: Path, launcher: str):
    recipe = world.recipe("xclip", "xclip", tmp_path)
    run, log = tmp_path / "xclip", tmp_path / "log"
    how = [str(free_port()) if word is PORT else word for word in LAUNCHERS[launcher]]
    command = [sys.executable, "-m", *how, "distill/run.py", str(recipe), "train.epochs=10000"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **QUIET, "DS_ACCELERATOR": "cpu"}, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 2 * SECONDS
        while not (run / "metrics.jsonl").is_file():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    finally:
        below = descendants(process.pid)
        process.kill()
        process.wait()
    said = said_at_the_end(below, log)
    processes = int(LAUNCHERS[launcher][-1])
    told = said.count("the launcher is gone; it was killed, so this process stops too")
    assert 1 <= told <= processes, said  # the first may tell the others before they have looked
    assert "stopped by SIGTERM" in said and "Traceback" not in said, said
    assert list((run / "checkpoints").iterdir()) and not (run / "release").exists()


def test_whom_a_process_follows():
    assert signals._ancestors(1) == [os.getppid()]
    assert signals._ancestors(2)[:1] == [os.getppid()]
    assert os.getpid() in descendants(os.getppid())
