"""Trackers: they get what metrics.jsonl gets, from files in the run's folder; one that is not installed is refused."""

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT, python
from processes import QUIET

from distill.errors import ExpectedError
from distill.training.monitor import Monitor
from distill.training.trackers import check_trackers, flat, open_trackers

ROWS = [
    (1, {"epoch": 0, "batch": "ab12", "total": 2.5, "lr": 0.001}),
    (2, {"epoch": 0, "batch": "cd34", "total": 1.25, "lr": 0.002}),
    (2, {"val": {"t2v": {"R@1": 50.0}, "v2t": {"R@1": 75.0}}}),
]


def test_values_have_joined_names_and_words_are_left_out():
    assert flat(ROWS[1][1]) == {"epoch": 0.0, "total": 1.25, "lr": 0.002}
    assert flat(ROWS[2][1]) == {"val/t2v/R@1": 50.0, "val/v2t/R@1": 75.0}


def test_no_tracker_is_on_by_default(teacher_run):
    assert not {"tensorboard", "trackio"} & {path.name for path in teacher_run.iterdir()}


def test_tensorboard_shows_what_metrics_jsonl_has(tmp_path):
    pytest.importorskip("tensorboard")
    monitor = Monitor(tmp_path, 2, trackers=open_trackers(["tensorboard", "tensorboard"], tmp_path))
    for step, values in ROWS:
        monitor.row(step, values)
    monitor.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("total")] == [(1, 2.5), (2, 1.25)]
    assert [(event.step, event.value) for event in shown.Scalars("val/v2t/R@1")] == [(2, 75.0)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1, "named twice, opened once"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(ROWS)


TRACKED = """
import json, sys
from pathlib import Path
from distill.training.monitor import Monitor
from distill.training.trackers import open_trackers
folder = Path(sys.argv[1])
monitor = Monitor(folder, 2, trackers=open_trackers(["trackio"], folder))
for step, values in json.loads(sys.argv[2]):
    monitor.row(step, values)
monitor.close()
"""


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed (its Pillow is older than ours)")
def test_trackio_keeps_them_in_the_folder_of_the_run_without_network(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    # a process of its own, which finds no other machine: trackio keeps threads, and reads its folder as it is imported
    env = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    env |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    env.pop("TRACKIO_DIR", None)
    command = [sys.executable, "-c", TRACKED, folder, json.dumps(ROWS)]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout == "", result.stderr
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        rows = opened.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("student", 1), ("student", 2), ("student", 2)]
    assert json.loads(rows[1][2])["total"] == 1.25 and json.loads(rows[2][2])["val/t2v/R@1"] == 50.0


@pytest.mark.parametrize(("name", "bring"), [("tensorboard", "retrieval-distill[track]"), ("trackio", "trackio")])
def test_a_tracker_that_is_not_installed_is_refused_before_any_work(name, bring, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ExpectedError, match=f"{name} is not installed"):
        check_trackers([name])
    with pytest.raises(ExpectedError) as refused:
        check_trackers([name])
    assert f"pip install '{bring}'" in str(refused.value)


def test_a_recipe_cannot_name_another_tracker(world, tmp_path):
    recipe = world.recipe("odd", "clip4clip", tmp_path, train={"track": ["wandb"]})
    result = python("distill/run.py", recipe, check=False)
    assert result.returncode == 2 and "train.track" in result.stderr and "Traceback" not in result.stderr
