"""The batch plan is a pure function of (seed, step), every caption comes once, and no video meets itself."""

import hashlib
import itertools
import math
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


@pytest.mark.parametrize(
    ("apart", "digest"),
    [
        (True, "ef21a1ebbe72957109f1b32cc193d7e77f6621147fe65f2527ce61cd1614ee35"),
        (False, "9f61f93da7823169037fded45e1bde07a5e9421a07606aea8a7071e6950705cd"),
    ],
)
def test_the_order_is_the_one_that_published_numbers_were_measured_with(apart: bool, digest: str):
    """Frozen with the first release: another order would be as good, but its losses would not be the recorded ones."""
    plan = Plan([1, 20, 3, 7, 2] * 12, 16, epochs=3, seed=11, same_video_apart=apart)
    assert plan.steps_in_epoch == [24, 24, 24]
    rows = np.concatenate([plan.batch(step) for step in range(plan.total_steps)])
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == digest


@st.composite
def windowed(draw, most: int = 6) -> tuple[list[int], list[int], int, int, bool]:
    """Captions and shard of every video, a window, and a batch that any such window fills."""
    per_shard = draw(st.lists(st.integers(2, 7), min_size=2, max_size=7))
    shards = [number for number, videos in enumerate(per_shard) for _ in range(videos)]
    captions = draw(st.lists(st.integers(1, most), min_size=len(shards), max_size=len(shards)))
    window, apart = draw(st.integers(1, len(per_shard) + 2)), draw(st.booleans())
    windows = math.ceil(len(per_shard) / window)
    held = [sum(1 if apart else captions[v] for v, s in enumerate(shards) if s == n) for n in range(len(per_shard))]
    smallest = min(sum(some) for some in itertools.combinations(held, len(per_shard) // windows))
    return captions, shards, window, draw(st.integers(1, smallest)), apart


def rows_of(plan: Plan) -> list[list[tuple[int, int]]]:
    return [[(int(v), int(c)) for v, c in plan.batch(step)] for step in range(plan.total_steps)]


@given(windowed(), st.integers(0, 99))
@settings(deadline=None, max_examples=80)
def test_a_windowed_batch_needs_few_shards_and_keeps_the_rules(made: tuple, seed: int):
    """Against the definition, by brute force over what came out."""
    captions, shards, window, batch_size, apart = made
    plan = Plan(captions, batch_size, 2, seed, same_video_apart=apart, shards=shards, window=window)
    for epoch, steps in enumerate(plan.steps_in_epoch):
        batches = rows_of(plan)[sum(plan.steps_in_epoch[:epoch]) :][:steps]
        pairs = [pair for batch in batches for pair in batch]
        assert len(pairs) == len(set(pairs)) and all(0 <= c < captions[v] for v, c in pairs)
        opened: list[int] = []  # shards in the order of their first use
        for batch in batches:
            assert len(batch) == batch_size
            assert not apart or len({video for video, _ in batch}) == batch_size
            assert len({shards[video] for video, _ in batch}) <= 2 * window
            opened += sorted({shards[video] for video, _ in batch} - set(opened))
        for batch in batches:  # ... and shards that were opened long ago are not needed again
            places = [opened.index(shards[video]) for video, _ in batch]
            assert max(places) - min(places) < 3 * window


@given(windowed(most=1), st.integers(1, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_with_windows_only_the_tail_of_an_epoch_is_left_out(made: tuple, each: int, seed: int):
    """Videos with equally many captions: whatever is missing comes from the shards that were drawn last."""
    ones, shards, window, batch_size, apart = made
    plan = Plan([each] * len(ones), batch_size, 1, seed, same_video_apart=apart, shards=shards, window=window)
    seen = {pair for batch in rows_of(plan) for pair in batch}
    missing = {(video, caption) for video in range(len(ones)) for caption in range(each)} - seen
    if not apart:
        assert len(missing) < batch_size
    assert len({shards[video] for video, _ in missing}) <= window


@given(windowed(), st.integers(0, 99), st.data())
@settings(deadline=None, max_examples=40)
def test_a_windowed_plan_is_a_pure_function_of_the_step(made: tuple, seed: int, data: st.DataObject):
    """A run that resumes at any step, and one whose batches are cut among several processes, sees the same pairs."""
    captions, shards, window, batch_size, apart = made
    options = {"same_video_apart": apart, "shards": shards, "window": window}
    whole = rows_of(Plan(captions, batch_size, 3, seed, **options))
    resumed = Plan(captions, batch_size, 3, seed, **options)
    if whole:
        step = data.draw(st.integers(0, len(whole) - 1))
        assert [tuple(pair) for pair in resumed.batch(step).tolist()] == whole[step]
        assert resumed.epoch_of(step) == Plan(captions, batch_size, 3, seed, **options).epoch_of(step)
    longer = rows_of(Plan(captions, batch_size, 4, seed, **options))
    assert longer[: len(whole)] == whole  # more epochs change nothing of the first ones
    assert rows_of(Plan(captions, batch_size, 3, seed + 1, **options)) != whole or sum(captions) < 8


def test_shards_come_in_another_order_every_epoch():
    shards = [number for number in range(16) for _ in range(10)]
    plan = Plan([2] * 160, 10, 3, seed=4, shards=shards, window=2)
    orders = []
    for epoch in range(3):
        first = sum(plan.steps_in_epoch[:epoch])
        pairs = np.concatenate([plan.batch(step) for step in range(first, first + plan.steps_in_epoch[epoch])])
        orders.append(tuple(dict.fromkeys(shards[video] for video in pairs[:, 0])))
    assert len(set(orders)) == 3 and all(sorted(order) == list(range(16)) for order in orders)


def test_one_video_with_too_many_captions_costs_only_captions_of_its_own():
    """200 captions of one video cannot stand apart in the few batches of two windows; all others still come."""
    shards = [number for number in range(6) for _ in range(8)]
    captions = [200] + [3] * 47
    plan = Plan(captions, 4, 1, seed=2, shards=shards, window=1)
    seen = Counter(video for batch in rows_of(plan) for video, _ in batch)
    tail = {shards[video] for video in range(1, 48) if seen[video] < 3}
    assert len(tail) <= 1 and 0 < seen[0] < 200


def test_a_window_that_fills_no_batch_is_refused_with_one_that_does():
    shards = [0] * 10 + [1] * 10 + [2] * 3  # the last shard of a set is rarely full
    with pytest.raises(RecipeError, match=r"shuffle_shards: 1: .* only 3 videos.* batch of 8; set it to 3 or more"):
        Plan([2] * 23, 8, 1, seed=0, shards=shards, window=1)
    Plan([2] * 23, 8, 1, seed=0, shards=shards, window=3)
    Plan([9] * 23, 8, 1, seed=0, shards=shards, window=1, same_video_apart=False)  # captions count there
