"""The batch plan: (seed, epoch, step) -> pairs (video, caption), the same for any number of processes.

Every caption comes once an epoch. Where captions of one video are kept apart, they are spread evenly over the epoch
(stratified positions) and never meet in a batch: a pair that would is put off to the next batch. Otherwise pairs are
shuffled, as the lineage's loaders do. The last captions that do not fill a batch are left out of that epoch.

By default every batch is drawn from the whole set. Where shards come from afar, `window` of them are drawn together:
each epoch puts the shards into a new order and cuts that into windows of (nearly) equal size, at most `window` shards;
captions are ordered as above inside each. What fills no batch in its window goes first in the next one, so a batch
needs the shards of at most two neighbouring windows. A caption that finds no batch there either (one video with more
captions than both windows have batches) is left out of that epoch.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from distill.errors import RecipeError

Pair = tuple[int, int]


class Plan:
    """Batches as a pure function of the step. `captions[v]` is the number of captions of video v.

    `shards[v]` is the number of the shard that holds video v; it matters only with a `window`, 0 being all shards.
    """

    def __init__(
        self,
        captions: Sequence[int],
        batch_size: int,
        epochs: int,
        seed: int,
        *,
        same_video_apart: bool = True,
        shards: Sequence[int] = (),
        window: int = 0,
    ):
        if same_video_apart and batch_size > len(captions):
            raise RecipeError(
                f"data.batch_size: {batch_size} is more than the {len(captions)} training videos, so captions of one "
                f"video would meet in a batch; lower it to at most {len(captions)}, or choose "
                f"another data.same_video"
            )
        if batch_size > sum(captions):
            raise RecipeError(f"data.batch_size: {batch_size} is more than the {sum(captions)} training captions")
        self._captions = np.asarray(captions)
        self._batch_size = batch_size
        self._seed = seed
        self._apart = same_video_apart
        self._shards, self._window = np.asarray(shards, np.int64), window
        if window:
            self._check_windows()
        self.steps_in_epoch = [len(self._epoch(epoch)) for epoch in range(epochs)]
        self.total_steps = sum(self.steps_in_epoch)
        self._first = np.concatenate([[0], np.cumsum(self.steps_in_epoch)])

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) that holds optimisation step `step` (from 0)."""
        return int(np.searchsorted(self._first, step, side="right")) - 1

    def batch(self, step: int) -> Int64[np.ndarray, "pair 2"]:
        """Rows (video number, caption number within the video) of one global batch."""
        epoch = self.epoch_of(step)
        return self._epoch(epoch)[step - self._first[epoch]]

    @lru_cache(maxsize=2)  # noqa: B019 - one plan lives as long as its run
    def _epoch(self, epoch: int) -> Int64[np.ndarray, "step pair 2"]:
        rng = np.random.default_rng([self._seed, epoch])
        batches: list[list[Pair]] = []
        left: list[Pair] = []  # what filled no batch in the window before
        for videos in self._windows(rng):
            current = set(videos.tolist())
            own = self._order(rng, videos) if self._apart else _tuples(rng.permutation(self._pairs(videos)))
            made, left = self._fill([*left, *own])
            batches.extend(made)
            left = [pair for pair in left if pair[0] in current]
        return np.asarray(batches, np.int64).reshape(-1, self._batch_size, 2)

    def _windows(self, rng: np.random.Generator) -> Iterator[Int64[np.ndarray, " video"]]:
        """The videos that are drawn together, in ascending order, window by window."""
        if not self._window:
            yield np.arange(len(self._captions))
            return
        names, shard = np.unique(self._shards, return_inverse=True)
        windows = -(-len(names) // self._window)
        window = np.empty(len(names), np.int64)  # of each shard
        for number, together in enumerate(np.array_split(rng.permutation(len(names)), windows)):
            window[together] = number
        videos = np.argsort(window[shard], kind="stable")
        yield from np.split(videos, np.searchsorted(window[shard][videos], np.arange(1, windows)))

    def _fill(self, order: list[Pair]) -> tuple[list[list[Pair]], list[Pair]]:
        """Full batches, and what is left; where captions of a video stay apart, one that would meet another waits."""
        size = self._batch_size
        if not self._apart:
            whole = len(order) // size * size
            return [order[start : start + size] for start in range(0, whole, size)], order[whole:]
        batches, batch, seen, waiting = [], [], set(), deque()
        for pair in order:
            waiting.append(pair)
            for _ in range(len(waiting)):
                video, caption = waiting.popleft()
                if video in seen:
                    waiting.append((video, caption))
                    continue
                batch.append((video, caption))
                seen.add(video)
                if len(batch) == size:
                    batches.append(batch)
                    batch, seen = [], set()
        return batches, [*batch, *waiting]

    def _order(self, rng: np.random.Generator, videos: Int64[np.ndarray, " video"]) -> list[Pair]:
        """All pairs; caption i (in shuffled order) of a video with n stands at a random place in [i/n, (i+1)/n)."""
        pairs = self._pairs(videos)
        video, caption = pairs.T
        count = self._captions[video]
        first = np.arange(len(video)) - caption
        shuffled = np.lexsort((rng.random(len(video)), video)) - first  # a random permutation within each video
        place = (shuffled + rng.random(len(video))) / count
        return _tuples(pairs[np.argsort(place, kind="stable")])

    def _pairs(self, videos: Int64[np.ndarray, " video"]) -> Int64[np.ndarray, "pair 2"]:
        counts = self._captions[videos]
        first = np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([np.repeat(videos, counts), np.arange(len(first)) - first], axis=1)

    def _check_windows(self) -> None:
        """Every window that chance may put together must fill a batch by itself."""
        assert len(self._shards) == len(self._captions), "a window needs to know the shard of every video"
        held = np.ones_like(self._captions) if self._apart else self._captions
        sizes = np.sort(np.bincount(self._shards, held)[np.unique(self._shards)]).astype(int)

        def smallest(window: int) -> int:
            """What the smallest shards hold together, as many as the smallest of the windows has."""
            return int(sizes[: len(sizes) // -(-len(sizes) // window)].sum())

        if smallest(self._window) < self._batch_size:
            what = "videos" if self._apart else "captions"
            enough = next(window for window in range(1, len(sizes) + 1) if smallest(window) >= self._batch_size)
            raise RecipeError(
                f"data.shuffle_shards: {self._window}: the smallest window may hold only {smallest(self._window)} "
                f"{what}, which does not fill a batch of {self._batch_size}; set it to {enough} or more, or to 0 for "
                f"all {len(sizes)} shards at once"
            )


def _tuples(pairs: Int64[np.ndarray, "pair 2"]) -> list[Pair]:
    return list(zip(*pairs.T.tolist(), strict=True)) if len(pairs) else []
