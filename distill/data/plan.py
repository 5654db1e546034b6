"""The batch plan: (seed, epoch, step) -> pairs (video, caption), the same for any number of processes.

Every caption comes once an epoch. Where captions of one video are kept apart, they are spread evenly over the epoch
(stratified positions) and never meet in a batch: a pair that would is put off to the next batch. Otherwise pairs are
shuffled, as the lineage's loaders do. The last captions that do not fill a batch are left out of that epoch.
"""

from collections import deque
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from distill.errors import RecipeError


class Plan:
    """Batches as a pure function of the step. `captions[v]` is the number of captions of video v."""

    def __init__(self, captions: list[int], batch_size: int, epochs: int, seed: int, *, same_video_apart: bool = True):
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
        if not self._apart:
            pairs = rng.permutation(self._pairs())
            return pairs[: len(pairs) // self._batch_size * self._batch_size].reshape(-1, self._batch_size, 2)
        order = self._order(rng)
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
                if len(batch) == self._batch_size:
                    batches.append(batch)
                    batch, seen = [], set()
        return np.asarray(batches, np.int64).reshape(-1, self._batch_size, 2)

    def _order(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """All pairs; caption i (in shuffled order) of a video with n stands at a random place in [i/n, (i+1)/n)."""
        video, caption = self._pairs().T
        count = np.repeat(self._captions, self._captions)
        first = np.arange(len(video)) - caption
        shuffled = np.lexsort((rng.random(len(video)), video)) - first  # a random permutation within each video
        place = (shuffled + rng.random(len(video))) / count
        rank = np.argsort(place, kind="stable")
        return list(zip(video[rank].tolist(), caption[rank].tolist(), strict=True))

    def _pairs(self) -> Int64[np.ndarray, "pair 2"]:
        video = np.repeat(np.arange(len(self._captions)), self._captions)
        first = np.repeat(np.cumsum(self._captions) - self._captions, self._captions)
        return np.stack([video, np.arange(len(video)) - first], axis=1)
