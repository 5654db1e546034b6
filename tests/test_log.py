"""Progress: shown for what takes long, by one process of a job."""

import time

import pytest

from distill import log


@pytest.mark.parametrize(
    ("rank", "delay", "shown"), [("", 0.0, True), ("0", 0.0, True), ("1", 0.0, False), ("", 60.0, False)]
)
def test_only_the_first_process_shows_progress_and_only_of_what_takes_long(
    rank: str, delay: float, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(log, "DELAY", delay)
    monkeypatch.setenv("RANK", rank) if rank else monkeypatch.delenv("RANK", raising=False)
    found = []
    for item in log.progress(["a", "b"], "spell letters"):
        time.sleep(0.01)
        found.append(item)
    assert found == ["a", "b"]
    assert ("spell letters" in capsys.readouterr().err) == shown
