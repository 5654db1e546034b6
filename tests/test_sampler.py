"""The samplers, CLIP4Clip's above all: golden frame numbers (row T28), properties, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.data.sampler import SAMPLERS, Clip4ClipSampler, GlsclSampler
from distill.errors import VideoError


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ((300, 30.0), list(range(0, 271, 30))),
        ((310, 29.97), list(range(0, 310, 29))),
        ((95, 25.0), [0, 25, 50, 75]),
        ((20, 30.0), [0]),
        ((500, 25.0, 3.0, 7.0), [75, 100, 125, 150, 175]),
        ((3000, 25.0, 0.0, 31.0), list(range(0, 776, 25))),
    ],
)
def test_golden_frames(video: tuple, expected: list[int]):
    assert Clip4ClipSampler(kind="clip4clip", num_frames=100).indices(*video) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(30, [0, 2, 5, 7, 10, 13, 15, 18, 21, 23, 26, 29]), (13, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12])],
)
def test_golden_places_of_evenly_spaced_frames(count: int, expected: list[int]):
    assert Clip4ClipSampler(kind="clip4clip").indices(count, 1.0) == expected


def test_a_clip_with_fractions_of_a_second_is_widened_to_whole_ones():
    sampler = Clip4ClipSampler(kind="clip4clip")
    assert sampler.indices(500, 25.0, 3.7, 6.2) == sampler.indices(500, 25.0, 3.0, 7.0)


def test_two_frames_per_second_are_the_first_and_the_middle_of_each():
    assert Clip4ClipSampler(kind="clip4clip", fps=2).indices(60, 30.0) == [0, 15, 30, 45]


@given(st.integers(1, 5000), st.floats(1, 120), st.integers(1, 40))
def test_glscls_frames_ascend_exist_and_are_evenly_spaced(count, fps, num_frames):
    found = GlsclSampler(kind="glscl", num_frames=num_frames).indices(count, fps)
    assert 1 <= len(found) <= num_frames and found[0] == 0 and found[-1] < count
    assert found == sorted(set(found)) and all(frame % round(fps) == 0 for frame in found)


def test_glscls_rule_rounds_the_frame_rate_and_cuts_clips_at_their_seconds():
    sampler = GlsclSampler(kind="glscl")
    assert sampler.indices(310, 29.97) == list(range(0, 310, 30))
    assert sampler.indices(500, 25.0, 3.7, 6.2) == [92, 117, 142]
    for video, message in (((100, 0.4), "frame rate below"), ((50, 25.0, 9.0, 12.0), "0 sampled of 50 between")):
        with pytest.raises(VideoError, match=message):
            sampler.indices(*video)


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
