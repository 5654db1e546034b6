"""The sets that the bench of growth writes are sets as any others, and what it measures of them is what it says."""

import json
from pathlib import Path

import pytest
import torch

from distill.bench import growth
from distill.bench.grown import CAPTIONS, COMMON, FRAMES, PER_SHARD, Grown, grow
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.errors import ExpectedError
from tools import bench


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return grow(tmp_path_factory.mktemp("grown"), 2)


def test_grown_sets_are_whole_and_say_different_things_of_every_video(grown: Grown):
    """All hashes are compared, as for any set; a twentieth of the videos share a caption between shards."""
    frames = FrameSet(grown.frames)
    labels = LabelSet(grown.labels, frames)
    assert len(frames) == grown.videos == 2 * PER_SHARD == len(set(frames.videos.ids)) == len(set(frames.videos.keys))
    texts = list(frames.videos.texts)
    assert len(texts) == CAPTIONS * grown.videos
    assert len(texts) - len(set(texts)) == PER_SHARD // COMMON
    for video in (0, PER_SHARD, grown.videos - 1):
        assert frames.pixels(video).shape == (FRAMES, 3, 32, 32)
        assert torch.equal(labels.relevance(video, 1), labels.relevance(video % PER_SHARD, 1))


@pytest.mark.parametrize("size", [0, 999, 1500, -1000])
def test_sizes_that_are_not_whole_shards_are_refused(size: int, tmp_path: Path):
    with pytest.raises(ExpectedError, match=f"--videos: {size}, expected multiples of 1000"):
        bench.main(["growth", "--videos", "1000", str(size), "--folder", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [name for name in growth.STEPS if not name.startswith("first batch")])
def test_a_step_costs_time_and_memory(step: str, grown: Grown):
    seconds, busy, _, _, most = growth.STEPS[step](grown)
    assert seconds > 0 and busy > 0 and most >= 0


def test_goals_are_of_ten_million_videos_with_their_captions():
    rows = [
        growth.Cost(videos, "open with labels again", 4.0, 3.0, 300.0, 3000.0, 400.0) for videos in (1000, 10_000_000)
    ]
    assert growth._goals(rows[0]) == []
    seconds, resident = growth._goals(rows[1])
    assert (seconds.found, seconds.limit, resident.limit) == (4.0, 10.0, 200.0)
    assert resident.found == pytest.approx(3300e6 / 30e6)  # two captions a video


@pytest.mark.slow
def test_the_command_prints_every_step(tmp_path: Path, capsys: pytest.CaptureFixture):
    how = ["--videos", "1000", "--ranked", "300", "--folder", str(tmp_path)]
    bench.main(["growth", *how, "--json", str(tmp_path / "out.json")])
    rows, shown = json.loads((tmp_path / "out.json").read_text())["growth"]["rows"], capsys.readouterr().out
    steps = [(1000, step) for step in growth.STEPS]
    assert [(row["videos"], row["step"]) for row in rows] == [*steps, (300, "rank as many captions")]
    assert all(row["seconds"] > 0 and row["step"] in shown for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
