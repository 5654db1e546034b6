"""The CLIP4Clip sampler against frame numbers recorded from the authors' code."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import load_file

from distill.data.sampler import SAMPLERS, Clip4ClipSampler
from distill.errors import VideoError

FIXTURES = Path(__file__).parent / "fixtures"
TENSORS = load_file(FIXTURES / "m17_frames_clip4clip.safetensors")
TABLE = json.loads((FIXTURES / "m17_frames_clip4clip.json").read_text())["table"]
ROWS = range(len(TENSORS["input.num_frames"]))


def real(row) -> list[int]:
    """A fixture row without its padding of -1."""
    return [int(index) for index in row if index >= 0]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("slice", ["head", "tail", "uniform"])
@pytest.mark.parametrize("num_frames", [12, 64])
def test_frames_are_those_of_the_authors_code(row, slice, num_frames):
    sampler = Clip4ClipSampler(kind="clip4clip", num_frames=num_frames, slice=slice)
    found = sampler.indices(int(TENSORS["input.num_frames"][row]), float(TENSORS["input.fps"][row]))
    assert found == real(TENSORS[f"output.clip4clip.{slice}.F{num_frames}"][row])


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row['num_frames']}@{row['fps']}")
def test_the_printed_table_holds_too(row):
    assert Clip4ClipSampler(kind="clip4clip").indices(row["num_frames"], row["fps"]) == row["uniform12"]


@pytest.mark.parametrize("row", range(5))
def test_a_clip_between_two_seconds_is_that_of_the_authors_code(row):
    start, end = (float(second) for second in TENSORS["input.clip.start_end"][row])
    sampler = Clip4ClipSampler(kind="clip4clip", num_frames=1000)
    count, fps = int(TENSORS["input.clip.num_frames"][row]), float(TENSORS["input.clip.fps"][row])
    assert sampler.indices(count, fps, start, end) == real(TENSORS["output.clip4clip.clip_raw"][row])


def test_a_clip_with_fractions_of_a_second_is_widened_to_whole_ones():
    sampler = Clip4ClipSampler(kind="clip4clip")
    assert sampler.indices(500, 25.0, 3.7, 6.2) == sampler.indices(500, 25.0, 3.0, 7.0)


def test_two_frames_per_second_are_the_first_and_the_middle_of_each():
    assert Clip4ClipSampler(kind="clip4clip", fps=2).indices(60, 30.0) == [0, 15, 30, 45]


@given(st.integers(1, 5000), st.floats(1, 120), st.integers(1, 40), st.sampled_from(["head", "tail", "uniform"]))
def test_frames_ascend_exist_and_are_at_most_as_many_as_asked(count, fps, num_frames, slice):
    found = Clip4ClipSampler(kind="clip4clip", num_frames=num_frames, slice=slice).indices(count, fps)
    assert 1 <= len(found) <= num_frames
    assert found == sorted(set(found)) and found[0] >= 0 and found[-1] < count


@pytest.mark.parametrize("fps", [0.0, 0.5, 0.999])
def test_less_than_a_frame_per_second_is_refused(fps):
    with pytest.raises(VideoError, match="frame rate below 1"):
        Clip4ClipSampler(kind="clip4clip").indices(100, fps)


def test_a_rate_below_the_sampled_one_is_refused():
    with pytest.raises(VideoError, match="below the sampler's: 3 per second, 5 asked"):
        Clip4ClipSampler(kind="clip4clip", fps=5).indices(100, 3.0)


def test_too_few_frames_are_refused_with_their_number():
    with pytest.raises(VideoError, match="too few frames: 2 sampled of 50, at least 3"):
        Clip4ClipSampler(kind="clip4clip", min_frames=3).indices(50, 25.0)
    with pytest.raises(VideoError, match=r"too few frames: 0 sampled of 50 between 9\.0 s and 12\.0 s"):
        Clip4ClipSampler(kind="clip4clip").indices(50, 25.0, 9.0, 12.0)


def test_the_configuration_is_strict():
    for wrong in ({"fps": 0}, {"num_frames": "12"}, {"slice": "middle"}, {"frames": 12}):
        with pytest.raises(ValidationError):
            Clip4ClipSampler.model_validate({"kind": "clip4clip", **wrong})
    assert SAMPLERS["clip4clip"] is Clip4ClipSampler
