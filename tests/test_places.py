"""Places that take no files or keep no locks: every command says so in one line before it opens anything else.

Inputs of the commands are not there, so a command that looked at one first would complain of that instead.
"""

import errno
import fcntl
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from distill.cache import Cache
from distill.cli import COMMANDS
from distill.config import Config
from distill.errors import ArtefactError, ExpectedError
from distill.locks import UnlockableError
from distill.publishing import check_writable, check_writable_file, publish, published_folder
from distill.remote import locate
from distill.retrieval import generation
from distill.training.folder import alone_in

# Command lines that write to OUT, a folder, or to OUT/FILE.
WRITES = {
    "pack": ["none.csv", "none", "--out", "OUT"],
    "label": ["none", "none", "--out", "OUT"],
    "labels": ["merge", "none", "--out", "OUT"],
    "train": ["recipes/teachclip.yaml", "out=OUT"],
    "index": ["none", "none", "--out", "OUT"],
    "gallery": ["OUT", "calibrate", "none.txt"],
    "export": ["none", "OUT", "--to", "parquet"],
    "export-clip": ["none", "--out", "OUT"],
    "evaluate": ["none", "none", "--protocol", "demo", "--out", "OUT/FILE"],
    "report": ["none", "other", "--out", "OUT/FILE"],
    "convert": ["none.bin", "--kind", "xclip", "--out", "OUT"],
    "demo": [],
    "make-demo": ["--out", "OUT"],
    "demo-study": [],
    "make-stills": ["--stills", "10", "--out", "OUT"],
    "bench": ["loader", "none", "--json", "OUT/FILE"],
    "bench-retrieval": ["--videos", "0", "--sizes", "10000", "--folder", "OUT"],
}
READS = {"push", "search", "serve", "verify"}
UNSUPPORTED = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM]


def run(command: str, out: Path) -> None:
    """Run a command in this process, with OUT as its place; the demo's commands write below the working directory."""
    arguments = [argument.replace("OUT", str(out)) for argument in WRITES[command]]
    importlib.import_module(COMMANDS[command][0]).main(arguments)


def refused(command: str, out: Path) -> str:
    with pytest.raises(ExpectedError) as found:
        run(command, out)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_every_command_is_listed():
    assert WRITES.keys() | READS == COMMANDS.keys()


@pytest.mark.parametrize("command", WRITES)
def test_a_file_in_the_way_is_named_first(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("mine")
    text = refused(command, tmp_path / "runs" / "deep" / "out")
    assert "runs is in the way, expected a folder" in text
    if command.startswith("demo"):
        return
    assert "in the way" in refused(command, tmp_path / "runs")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "link is in the way" in refused(command, tmp_path / "link")
    assert (tmp_path / "runs").read_text() == "mine" and {p.name for p in tmp_path.iterdir()} == {"runs", "link"}


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("command", WRITES)
def test_a_place_that_takes_no_file_is_named_first(
    command: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The refusal is the system's answer to opening a file for writing there; a superuser gets no other."""
    opened = os.open

    def refusing(path: str, flags: int, *args: int, **options: int | None) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(Path(path).absolute()).startswith(str(tmp_path)):
            raise OSError(code, os.strerror(code), path)
        return opened(path, flags, *args, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "open", refusing)
    where = tmp_path if WRITES[command] else Path(".")
    assert f"cannot be written ({where}: {os.strerror(code)})" in refused(command, tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_takes_no_files_is_refused():
    with pytest.raises(ExpectedError, match=r"^/proc/out/deep: cannot be written \(/proc: "):
        check_writable(Path("/proc/out/deep"))
    with pytest.raises(ExpectedError, match="web servers are only read"):
        check_writable(locate("https://127.0.0.1/labels"))


def test_a_place_that_takes_files_is_left_as_it_was(tmp_path: Path):
    with pytest.raises(ExpectedError, match="File name too long"):
        check_writable(tmp_path / ("x" * 300))
    check_writable(tmp_path / "a" / "b", locate(f"file://{tmp_path}/c"))
    check_writable_file(tmp_path / "a" / "result.json")
    with pytest.raises(ArtefactError, match="a folder, where a file is to be written"):
        check_writable_file(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_refusing_command_ends_with_one_line_and_code_2(tmp_path: Path):
    (tmp_path / "file").touch()
    command = [sys.executable, "tools/pack_frames.py", "none.csv", "none", "--out", str(tmp_path / "file")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and "in the way" in found.stderr


def test_what_begins_to_refuse_during_the_work_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ExpectedError, match=r"file/part.tar: cannot be written \(.*\); choose another place"):
        publish(tmp_path / "file" / "part.tar", b"")
    with pytest.raises(ExpectedError, match=r"cannot be written .*File name too long"):
        publish(tmp_path / ("x" * 300), b"")
    with pytest.raises(ExpectedError, match="cannot be written"), published_folder(tmp_path / "file" / "release"):
        pass
    with pytest.raises(ExpectedError, match="cannot be written"), published_folder(tmp_path / "file") as part:
        (part / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("code", UNSUPPORTED)
def test_a_file_system_without_locks_is_told_from_a_lock_that_is_held(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def unsupported(file: object, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(fcntl, "lockf", unsupported)
    words = rf"keeps no locks \({os.strerror(code)}\); choose a folder on another one"
    with pytest.raises(UnlockableError, match=words), generation.changing(tmp_path / "gallery"):
        pytest.fail("changed without a lock")
    with pytest.raises(UnlockableError, match=words):
        Cache(tmp_path / "cache").open(locate("file:///none"), "0" * 64, 1)
    with alone_in(tmp_path, Config()):  # a run makes its folder itself, so it goes on
        pass
    assert "nothing else trains into it" in caplog.text and os.strerror(code) in caplog.text


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_held_is_waited_for_and_never_deleted(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def held(file: object, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", held)
    monkeypatch.setattr(fcntl, "lockf", held)
    with pytest.raises(ExpectedError, match="another process is changing") as one, generation.changing(tmp_path / "g"):
        pass
    with pytest.raises(ExpectedError, match="is running already") as two, alone_in(tmp_path, Config()):
        pass
    assert not any("delete" in str(found.value) or "remove" in str(found.value) for found in (one, two))


def test_a_lock_file_that_may_not_be_opened_is_not_to_be_deleted(tmp_path: Path):
    """As one of another user is not; here it is a link into a file system that makes no files."""
    (tmp_path / ".lock").symlink_to("/proc/none")
    for change in (lambda: generation.changing(tmp_path), lambda: alone_in(tmp_path, Config())):
        with (
            pytest.raises(ExpectedError, match=r"\.lock: cannot be opened for writing") as found,
            change(),
        ):
            pass
        assert "delete" not in str(found.value)
