"""Whatever files and words are called, a terminal is shown one line: no escape codes, no turned line, no forged one."""

import ast
import json
import logging
import sys
import unicodedata
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from test_release import make, release

from distill import errors, log
from distill.data.video import write_video
from distill.errors import ExpectedError
from distill.evaluation.report import aligned
from distill.terminal import printable, show
from tools import index, pack_frames, search

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\r\nerror: forged \u202egpj\x9b31m"
OWN_WORDS = {"distill/terminal.py", "distill/signals.py", "distill/deprecation.py", "distill/demo/commands.py"}
OWN_WORDS |= {"tools/demo.py", "tools/demo_study.py", "tools/bench_retrieval.py"}  # nothing in them is read from files


def steering(text: str) -> set[str]:
    """Characters that move a cursor, end a line or turn it around, but for the ends of lines themselves."""
    turning = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return {
        char
        for char in text.replace("\n", "")
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in turning
    }


@given(st.text(st.characters()), st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"])))
def test_what_steers_a_terminal_is_written_out_and_all_else_is_kept(text: str, plain: str):
    assert not steering(printable(text)) and "\n" not in printable(text)
    assert printable(plain) == plain
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


def test_emoji_and_scripts_that_are_joined_stay_whole():
    for words in ("👩\u200d👧 видео 一只狗", "क्\u200dष"):
        assert printable(words) == words


def test_errors_log_lines_progress_and_tables_are_one_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    ended: list[str] = []
    monkeypatch.setattr(errors.signals, "listen", lambda: None)
    monkeypatch.setattr(errors.signals, "leave", lambda line, code: ended.append(line))

    def refuse() -> None:
        raise ExpectedError(f"{HOSTILE}: no such file")

    errors.door(refuse)
    assert len(ended) == 1 and "\n" not in ended[0] and not steering(ended[0])
    show(HOSTILE, "second")
    monkeypatch.setattr(log, "DELAY", 0.0)
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        log.setup()
        logging.getLogger("distill.anything").warning("read %s", HOSTILE)
    finally:
        logging.getLogger().handlers[:] = before[0]
        logging.getLogger().setLevel(before[1])
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and err.count("\n") == 1 and not steering(out + err)
    list(log.progress(["x"], f"read {HOSTILE}"))
    shown = capsys.readouterr().err
    assert "read a" in shown and not steering(shown.replace("\r", "")) and "\n" not in shown
    table = aligned([["video", HOSTILE], ["n", "1"]])
    assert table.count("\n") == 1 and not steering(table)


def test_commands_show_hostile_names_on_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture):
    release(tmp_path / "release", *make())
    name = HOSTILE.replace("/", "")
    write_video(tmp_path / "videos" / f"{name}.mp4", np.zeros((4, 32, 32, 3), np.uint8), fps=2)
    (tmp_path / "videos" / f"broken {name}.mp4").write_text("no video")
    index.main([str(tmp_path / "release"), str(tmp_path / "videos"), "--out", str(tmp_path / "gallery")])
    found = capsys.readouterr()
    assert found.out.count("\n") == 2 and "left out broken a\\u001b[2J" in found.out and not steering(found.out)
    search.main([str(tmp_path / "gallery"), f"a red star {HOSTILE}"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 2 and "\\u000d\\u000aerror: forged" in shown and not steering(shown)
    search.main([str(tmp_path / "gallery"), "a star", "--json"])
    answer = capsys.readouterr().out
    assert not steering(answer) and json.loads(answer)[0]["video"] == name, "programs still get the name itself"

    cells = [f"{name}.mp4", f"broken {name}.mp4"]
    rows = "".join('"' + cell.replace("\r\n", "\n") + '",words\n' for cell in cells)
    (tmp_path / "a.csv").write_text(f"video,caption\nfound,words\n{rows}")
    write_video(tmp_path / "videos" / "found.mp4", np.zeros((4, 32, 32, 3), np.uint8), fps=2)
    pack_frames.main(
        [str(tmp_path / "a.csv"), str(tmp_path / "videos"), "--out", str(tmp_path / "frames"), "--size", "32"]
    )
    packed = capsys.readouterr()
    assert len(packed.out.splitlines()) == 3 and not steering(packed.out + packed.err.replace("\r", ""))


def test_a_wrong_command_line_is_shown_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    for wrong in (
        ["a", "b", "--out", "c", HOSTILE],
        ["a", "b", "--out", "c", "--frames", HOSTILE],
        ["--layout", HOSTILE],
    ):
        with pytest.raises(SystemExit):
            pack_frames.main(wrong)
        shown = capsys.readouterr().err
        assert not steering(shown) and "forged" in shown.splitlines()[-1]
    parsers = [path for path in ROOT.glob("tools/*.py") if "ArgumentParser(" in path.read_text()]
    assert not parsers, "every command has the parser that shows one line"


def test_what_is_printed_passes_through_show():
    """Every `print` of the product stands in a file that prints nothing but words of its own."""
    printing = set()
    for path in [*ROOT.glob("distill/**/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("students/*.py")]:
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        if any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls):
            printing.add(path.relative_to(ROOT).as_posix())
    assert printing == OWN_WORDS


def test_queries_from_windows_come_without_their_byte_order_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "\ufeffa red star\r\n\r\n\ufeffa dog \r\n"  # two lists, joined
    (tmp_path / "queries.txt").write_bytes(text.encode())
    given = Namespace(queries=str(tmp_path / "queries.txt"), query=None)
    assert search._queries(given) == ["a red star", "a dog"]
    with (tmp_path / "queries.txt").open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert search._queries(Namespace(queries="-", query=None)) == ["a red star", "a dog"]
