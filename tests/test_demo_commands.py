"""Commands of the demo: order by what they need, two at a time, cores, and what a failed or killed one leaves."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_launchers import in_proc, said_at_the_end

from distill.demo.commands import Command, Commands
from distill.errors import ExpectedError

WRITES = "import os, sys, time; time.sleep(0.3); open(sys.argv[1], 'w').write(os.environ['OMP_NUM_THREADS'])"

SLEEPS = """
import os, sys, time
from distill import signals
signals.listen()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""
RUNS = """
import sys
from pathlib import Path
from distill.demo.commands import Command, Commands
pid = Path(sys.argv[1])
sleeps = Command("sleeps", [sys.executable, "-c", sys.argv[2], pid], pid.parent / "done")
Commands(pid.parent / "logs", total=1).run(sleeps)
"""


def writing(path: Path, *needs: Path) -> Command:
    """A command that writes how many threads it was given."""
    return Command(path.name, [sys.executable, "-S", "-c", WRITES, path], path, needs)


def test_what_others_wait_for_comes_first_and_alone_has_all_cores(tmp_path):
    teacher, one, other, labels, taught = (tmp_path / name for name in ("teacher", "one", "other", "labels", "taught"))
    commands = Commands(tmp_path / "logs", total=5)
    commands._cores = 4
    order = [writing(one), writing(teacher), writing(labels, teacher, other), writing(taught, labels), writing(other)]
    commands.side_by_side(order)
    threads = {path.name: path.read_text() for path in (teacher, one, other, labels, taught)}
    assert threads == {"teacher": "4", "other": "4", "labels": "4", "one": "2", "taught": "2"}
    first = sorted((teacher, one, other, labels, taught), key=lambda path: path.stat().st_mtime_ns)[:3]
    assert first == [teacher, other, labels]
    commands.side_by_side(order)  # what is there is not made again
    assert commands._finished == 10


def test_a_command_that_nothing_can_run_beside_has_all_cores(tmp_path):
    commands = Commands(tmp_path / "logs", total=1)
    commands._cores = 4
    commands.side_by_side([writing(tmp_path / "alone")])
    assert (tmp_path / "alone").read_text() == "4"


def test_commands_keep_what_they_free_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    asks = "import os, sys; open(sys.argv[1], 'w').write(' '.join(os.environ[name] for name in sys.argv[2:]))"
    names, told = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"), tmp_path / "told"
    Commands(tmp_path / "logs", total=1).run(Command("asks", [sys.executable, "-c", asks, told, *names], told))
    assert told.read_text() == f"7 {2**34}"


def test_a_failed_command_says_where_its_log_is(tmp_path):
    commands = Commands(tmp_path / "logs", total=2)
    with pytest.raises(ExpectedError, match=r"broken failed with exit code 3; .*broken.log says: no way"):
        commands.run(
            Command("broken", [sys.executable, "-c", "print('no way'); raise SystemExit(3)"], tmp_path / "never")
        )
    with pytest.raises(ExpectedError, match="empty ended without making"):
        commands.run(Command("empty", [sys.executable, "-c", ""], tmp_path / "never"))


@in_proc
def test_a_command_ends_with_the_study_that_began_it(tmp_path):
    told = tmp_path / "pid"
    study = subprocess.Popen([sys.executable, "-c", RUNS, str(told), SLEEPS])
    try:
        deadline = time.monotonic() + 60
        while not (told.exists() and told.read_text()):
            assert study.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        study.kill()
        study.wait()
    assert "the launcher is gone" in said_at_the_end([int(told.read_text())], tmp_path / "logs" / "sleeps.log")
