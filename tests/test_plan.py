"""The batch plan is a pure function of (seed, step), every caption comes once, and no video meets itself."""

import hashlib
import itertools
import math
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.plan import VERSION, Plan
from distill.errors import RecipeError

COUNTS = st.lists(st.integers(1, 9), min_size=8, max_size=40)
HARD = st.one_of(  # one video with most captions; equal counts; a few with many
    st.tuples(st.integers(10, 200), COUNTS).map(lambda made: [made[0], *made[1]]),
    st.tuples(st.integers(1, 9), st.integers(8, 40)).map(lambda made: [made[0]] * made[1]),
    st.lists(st.sampled_from([1, 2, 30]), min_size=8, max_size=40),
    COUNTS,
)


def rows_of(plan: Plan) -> list[list[tuple[int, int]]]:
    return [[(int(v), int(c)) for v, c in plan.batch(step)] for step in range(plan.total_steps)]


def most_batches(captions: list[int], batch_size: int) -> int:
    """How many batches of different videos can be filled: each takes the videos that have most captions left."""
    left, batches = sorted(captions, reverse=True), 0
    while left[batch_size - 1]:
        left[:batch_size] = [count - 1 for count in left[:batch_size]]
        left.sort(reverse=True)
        batches += 1
    return batches


@given(HARD, st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=80)
def test_an_epoch_has_as_many_batches_as_can_be_filled_with_different_videos(
    captions: list[int], batch_size: int, seed: int
):
    """By brute force over all steps, up to a batch of all videos."""
    batch_size = min(batch_size, len(captions))
    plan = Plan(captions, batch_size, epochs=2, seed=seed)
    batches = most_batches(captions, batch_size)
    assert plan.steps_in_epoch == [batches] * 2
    for epoch in range(2):
        rows = rows_of(plan)[epoch * batches :][:batches]
        assert all(len({video for video, _ in batch}) == len(batch) == batch_size for batch in rows)
        pairs = [pair for batch in rows for pair in batch]
        assert len(pairs) == len(set(pairs)) and all(0 <= caption < captions[video] for video, caption in pairs)
        seen = Counter(video for video, _ in pairs)
        missing = [min(count, batches) - seen[video] for video, count in enumerate(captions)]
        assert set(missing) <= {0, 1} and sum(missing) < batch_size  # but for what cannot be placed, a remainder
        assert plan.left_out[epoch] == sum(captions) - len(pairs)


@given(HARD, st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=60)
def test_captions_of_a_video_are_spread_evenly(captions: list[int], batch_size: int, seed: int):
    """Each half of the epoch has its share of every video's captions, and so has each half of a half."""
    plan = Plan(captions, batch_size, epochs=1, seed=seed)
    videos = [[video for video, _ in batch] for batch in rows_of(plan)]
    halves = [(0, len(videos))]
    for first, last in halves:
        middle = (first + last) // 2
        held = Counter(itertools.chain.from_iterable(videos[first:last]))
        early = Counter(itertools.chain.from_iterable(videos[first:middle]))
        for video, count in held.items():
            share = Fraction(count * (middle - first), last - first)
            assert math.floor(share) <= early[video] <= math.ceil(share)
        halves += [half for half in ((first, middle), (middle, last)) if half[1] - half[0] > 1 < last - first]


def test_every_division_into_batches_is_equally_likely():
    """Six videos, batches of three: ten divisions into two. Each caption comes in each batch equally often, too."""
    divisions, captions = Counter(), Counter()
    for seed in range(900):
        plan = Plan([1, 2, 1, 1, 3, 1], 3, 1, seed)
        captions.update(plan.batch(seed % 3)[:, 1][plan.batch(seed % 3)[:, 0] == 4].tolist())
        rows = rows_of(Plan([1] * 6, 3, 1, seed))
        divisions[frozenset(frozenset(video for video, _ in batch) for batch in rows)] += 1
    assert len(divisions) == 10 and all(abs(count - 90) < 5 * 90**0.5 for count in divisions.values())
    assert len(captions) == 3 and all(abs(count - 300) < 5 * 300**0.5 for count in captions.values())


def test_an_epoch_misses_less_than_a_batch_where_captions_are_spread_evenly():
    plan = Plan([20] * 300, 64, epochs=1, seed=0)
    assert plan.total_steps == 300 * 20 // 64


def test_the_number_of_steps_and_any_batch_of_a_large_set_take_no_time():
    """Ten million captions and 50 epochs, with a bound that any machine keeps (tools/bench.py plan tells the times)."""
    captions = np.random.default_rng(0).integers(1, 40, 500_000)
    began = time.process_time()
    whole = Plan(captions, 128, 50, seed=0)
    windowed = Plan(captions, 128, 50, seed=0, shards=[1000] * 500, window=4)
    assert whole.steps_in_epoch == [int(captions.sum()) // 128] * 50 == windowed.steps_in_epoch
    for plan in (whole, windowed):
        for step in (plan.total_steps - 1, 0):
            assert len(set(plan.batch(step)[:, 0].tolist())) == 128
    assert time.process_time() - began < 10
    began = time.process_time()
    for step in range(200):
        whole.batch(step)
    assert time.process_time() - began < 2


def test_steps_do_not_depend_on_what_was_asked_before():
    forwards, backwards = Plan([3] * 40, 8, 3, seed=5), Plan([3] * 40, 8, 3, seed=5)
    wanted = [forwards.batch(step) for step in range(forwards.total_steps)]
    for step in reversed(range(backwards.total_steps)):
        np.testing.assert_array_equal(backwards.batch(step), wanted[step])
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
@settings(max_examples=60)
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
    ("options", "steps", "digest"),
    [
        ({}, 49, "ee5013cd0884df3447e07ffbb91bef180e6db13379600853e454e89440e68a1b"),
        ({"same_video_apart": False}, 49, "d8f8765896fe9605df80d098ec12bae7625b9bb8c16f0255cfb6018d2ec7110a"),
        ({"shards": [10] * 6, "window": 2}, 46, "450b021ac75c37e5f72012ae8c88df3929eb57adf6bf8a064899696d2178ee59"),
    ],
    ids=["apart", "together", "windows"],
)
def test_the_order_is_the_one_that_checkpoints_were_written_under(options: dict, steps: int, digest: str):
    """Another order would be as good, but unfinished runs would not continue as they began: it needs a new VERSION."""
    plan = Plan([1, 20, 3, 7, 2] * 12, 8, epochs=3, seed=11, **options)
    rows = np.concatenate([plan.batch(step) for step in range(plan.total_steps)])
    assert VERSION == 2 and plan.steps_in_epoch == [steps] * 3
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == digest


@st.composite
def windowed(draw, most: int = 6) -> tuple[list[int], list[int], int, int, bool]:
    """Captions of every video, videos of every shard, a window, and a batch that any such window fills."""
    shards = draw(st.lists(st.integers(2, 7), min_size=2, max_size=7))
    shard = shard_of(shards)
    captions = draw(st.lists(st.integers(1, most), min_size=len(shard), max_size=len(shard)))
    window, apart = draw(st.integers(1, len(shards) + 2)), draw(st.booleans())
    windows = math.ceil(len(shards) / window)
    held = [sum(1 if apart else captions[v] for v, s in enumerate(shard) if s == n) for n in range(len(shards))]
    smallest = min(sum(some) for some in itertools.combinations(held, len(shards) // windows))
    return captions, shards, window, draw(st.integers(1, smallest)), apart


def shard_of(shards: list[int]) -> list[int]:
    """The shard of every video."""
    return [number for number, videos in enumerate(shards) for _ in range(videos)]


def epochs_of(plan: Plan) -> list[list[list[tuple[int, int]]]]:
    """The batches of every epoch."""
    rows = iter(rows_of(plan))
    return [list(itertools.islice(rows, steps)) for steps in plan.steps_in_epoch]


@given(windowed(), st.integers(0, 99))
@settings(max_examples=80)
def test_a_windowed_batch_needs_few_shards_and_keeps_the_rules(made: tuple, seed: int):
    """Against the definition, by brute force over what came out."""
    captions, shards, window, batch_size, apart = made
    plan = Plan(captions, batch_size, 2, seed, same_video_apart=apart, shards=shards, window=window)
    shard = shard_of(shards)
    for epoch, batches in enumerate(epochs_of(plan)):
        pairs = [pair for batch in batches for pair in batch]
        assert len(pairs) == len(set(pairs)) and all(0 <= c < captions[v] for v, c in pairs)
        assert plan.left_out[epoch] == sum(captions) - len(pairs)
        opened: list[int] = []  # shards in the order of their first use
        for batch in batches:
            assert len(batch) == batch_size
            assert not apart or len({video for video, _ in batch}) == batch_size
            assert len({shard[video] for video, _ in batch}) <= 2 * window
            opened += sorted({shard[video] for video, _ in batch} - set(opened))
        for batch in batches:  # ... and shards that were opened long ago are not needed again
            places = [opened.index(shard[video]) for video, _ in batch]
            assert max(places) - min(places) < 3 * window


@given(st.integers(2, 6), st.lists(HARD, min_size=2, max_size=4), st.integers(0, 99))
@settings(max_examples=100)
def test_each_window_has_as_many_batches_as_it_can_fill_with_what_waited(
    batch_size: int, made: list[list[int]], seed: int
):
    """Windows of one shard, counted one after the other by the greedy rule."""
    captions, shards = list(itertools.chain.from_iterable(made)), [len(counts) for counts in made]
    plan, shard = Plan(captions, batch_size, 1, seed, shards=shards, window=1), shard_of(shards)
    order = dict.fromkeys(number for batch in rows_of(plan) for number in sorted({shard[video] for video, _ in batch}))
    waiting: list[int] = []
    steps = 0
    for number in order:
        batches = most_batches([*waiting, *made[number]], batch_size)
        left = sum(min(count, batches) for count in (*waiting, *made[number])) - batches * batch_size
        waiting = [1] * left + [count - batches for count in made[number] if count > batches]
        steps += batches
    assert plan.total_steps == steps and len(order) == len(shards)


@given(windowed(most=1), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=100)
def test_with_windows_only_the_tail_of_an_epoch_is_left_out(made: tuple, each: int, seed: int):
    """Videos with equally many captions: whatever is missing comes from the shards that were drawn last."""
    ones, shards, window, batch_size, apart = made
    captions = [each] * len(ones)
    plan = Plan(captions, batch_size, 1, seed, same_video_apart=apart, shards=shards, window=window)
    seen = {pair for batch in rows_of(plan) for pair in batch}
    missing = {(video, caption) for video in range(len(ones)) for caption in range(each)} - seen
    assert len(missing) == plan.left_out[0] < batch_size
    assert plan.total_steps == each * len(ones) // batch_size
    assert len({shard_of(shards)[video] for video, _ in missing}) <= window


@given(windowed(), st.integers(0, 99), st.data())
@settings(max_examples=40)
def test_a_windowed_plan_is_a_pure_function_of_the_step(made: tuple, seed: int, data: st.DataObject):
    """A run that resumes at any step, and one whose batches are cut among several processes, sees the same pairs."""
    captions, shards, window, batch_size, apart = made
    options = {"same_video_apart": apart, "shards": shards, "window": window}
    whole = rows_of(Plan(captions, batch_size, 3, seed, **options))
    resumed = Plan(captions, batch_size, 3, seed, **options)
    for step in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)):
        assert [tuple(pair) for pair in resumed.batch(step).tolist()] == whole[step]
        assert resumed.epoch_of(step) == Plan(captions, batch_size, 3, seed, **options).epoch_of(step)
    longer = rows_of(Plan(captions, batch_size, 4, seed, **options))
    assert longer[: len(whole)] == whole  # more epochs change nothing of the first ones
    assert rows_of(Plan(captions, batch_size, 3, seed + 1, **options)) != whole or sum(captions) < 8


@given(st.integers(4, 9), st.integers(1, 9), st.lists(st.integers(0, 9), min_size=2, max_size=5), st.integers(0, 99))
@settings(max_examples=60)
def test_what_waited_comes_into_the_first_batches_of_the_next_window(
    videos: int, each: int, more: list[int], seed: int
):
    """So that the shards of a window can leave the cache soon after it."""
    shards, batch_size = [videos + number for number in more], videos - 2
    plan = Plan([each] * sum(shards), batch_size, 1, seed, shards=shards, window=1)
    shard = shard_of(shards)
    number = [{shard[video] for video, _ in batch} for batch in rows_of(plan)]
    assert sum(len(some) > 1 for some in number) < len(shards)  # at most one batch on either side of a window's end


def test_shards_come_in_another_order_every_epoch():
    plan = Plan([2] * 160, 10, 3, seed=4, shards=[10] * 16, window=2)
    orders = [
        tuple(dict.fromkeys(video // 10 for batch in batches for video, _ in batch)) for batches in epochs_of(plan)
    ]
    assert len(set(orders)) == 3 and all(sorted(order) == list(range(16)) for order in orders)


@given(st.integers(1, 400), st.integers(0, 99))
@settings(max_examples=60)
def test_one_video_with_too_many_captions_costs_only_captions_of_its_own(most: int, seed: int):
    """A video's captions cannot stand apart in fewer batches than two windows have; all others still come."""
    plan = Plan([most] + [3] * 47, 4, 1, seed, shards=[8] * 6, window=1)
    seen = Counter(video for batch in rows_of(plan) for video, _ in batch)
    tail = {video // 8 for video in range(1, 48) if seen[video] < 3}
    left_out = sum(3 - seen[video] for video in range(1, 48)) + max(min(most, 6) - seen[0], 0)
    assert len(tail) <= 1 and left_out < 4  # a window of eight videos has six batches; the last one may lack a few rows


def test_a_window_that_fills_no_batch_is_refused_with_one_that_does():
    shards = [10, 10, 3]  # the last shard of a set is rarely full
    with pytest.raises(RecipeError, match=r"shuffle_shards: 1: .* only 3 videos.* batch of 8; set it to 3 or more"):
        Plan([2] * 23, 8, 1, seed=0, shards=shards, window=1)
    Plan([2] * 23, 8, 1, seed=0, shards=shards, window=3)
    Plan([9] * 23, 8, 1, seed=0, shards=shards, window=1, same_video_apart=False)  # captions count there
