"""The batch plan is a pure function of (seed, step), every caption comes once, and no video meets itself."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.plan import Plan
from distill.errors import RecipeError

COUNTS = st.lists(st.integers(1, 9), min_size=8, max_size=40)


@given(COUNTS, st.integers(1, 8), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_no_two_captions_of_a_video_meet_in_a_batch(captions: list[int], batch_size: int, seed: int):
    plan = Plan(captions, batch_size, epochs=2, seed=seed)
    for step in range(plan.total_steps):
        batch = plan.batch(step)
        assert batch.shape == (batch_size, 2)
        assert len(set(batch[:, 0])) == batch_size
        assert all(caption < captions[video] for video, caption in batch)


@given(COUNTS, st.integers(1, 8), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_no_caption_comes_twice_in_an_epoch(captions: list[int], batch_size: int, seed: int):
    plan = Plan(captions, batch_size, epochs=1, seed=seed)
    pairs = Counter(tuple(pair) for step in range(plan.total_steps) for pair in plan.batch(step).tolist())
    assert not pairs or max(pairs.values()) == 1


def test_an_epoch_misses_less_than_a_batch_where_captions_are_spread_evenly():
    plan = Plan([20] * 300, 64, epochs=1, seed=0)
    assert plan.total_steps == 300 * 20 // 64


def test_steps_do_not_depend_on_what_was_asked_before():
    forwards, backwards = Plan([3] * 40, 8, 3, seed=5), Plan([3] * 40, 8, 3, seed=5)
    wanted = [forwards.batch(step) for step in range(forwards.total_steps)]
    for step in reversed(range(backwards.total_steps)):
        np.testing.assert_array_equal(backwards.batch(step), wanted[step])


def test_epochs_and_seeds_differ():
    plan, other = Plan([3] * 40, 8, 2, seed=5), Plan([3] * 40, 8, 2, seed=6)
    first, second = plan.batch(0), plan.batch(plan.steps_in_epoch[0])
    assert plan.epoch_of(plan.steps_in_epoch[0]) == 1
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other.batch(0))


def test_a_batch_larger_than_the_videos_is_refused():
    with pytest.raises(RecipeError, match=r"data.batch_size: 9 is more than the 8"):
        Plan([5] * 8, 9, 1, seed=0)


@given(COUNTS, st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_together_every_caption_comes_at_most_once_in_shuffled_order(captions: list[int], batch_size: int, seed: int):
    batch_size = min(batch_size, sum(captions))
    plan = Plan(captions, batch_size, epochs=2, seed=seed, same_video_apart=False)
    pairs = [tuple(pair) for step in range(plan.steps_in_epoch[0]) for pair in plan.batch(step)]
    assert len(pairs) == len(set(pairs)) == sum(captions) // batch_size * batch_size
    assert all(caption < captions[video] for video, caption in pairs)
    assert np.array_equal(plan.batch(0), Plan(captions, batch_size, 1, seed, same_video_apart=False).batch(0))


def test_together_captions_of_a_video_may_meet_and_more_than_there_are_cannot():
    plan = Plan([5] * 4, 8, 1, seed=0, same_video_apart=False)  # 8 pairs of 4 videos: some must meet
    assert len({int(video) for video, _ in plan.batch(0)}) <= 4
    with pytest.raises(RecipeError, match="21 is more than the 20 training captions"):
        Plan([5] * 4, 21, 1, seed=0, same_video_apart=False)
