"""The batch plan: (seed, step) -> pairs (video, caption), the same for any number of processes.

Each caption comes once an epoch. An *item* is something that a batch may hold only once: a video, where captions of one
video are kept apart, otherwise a single caption. An epoch is cut into windows: all items at once, or, where shards come
from afar, the items of `window` shards (nearly equal numbers of shards, in a new random order every epoch).

The number of batches follows from counts. Batches of `size` items can be filled exactly if there are batches * size
captions and no item has more captions than there are batches (McNaughton's wrap-around rule). So a window has the
largest number of batches with sum(min(captions, batches)) >= batches * size. Captions that are left (fewer than `size`,
and what an item has beyond the number of batches) wait for the next window of the epoch. They come into its first
batches, or, if it is too full for that, into all of them; a batch needs the shards of at most two neighbouring windows.
Captions that the next window cannot take either, and those that the last window leaves, are left out of the epoch.

Which batch holds which item is drawn by halving. The batches are cut into a first and a second half, and each half gets
its share of every item's captions, rounded up or down at random such that both halves are exactly full; then each half
is halved in the same way. This spreads the captions of a video evenly over the epoch. Halves are drawn when a step
needs them and are kept for the steps that follow: the first step of a window takes time in proportion to the window,
the others on average in proportion to size * log2(batches). The captions of a video come in their order in the set,
from a random one on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from distill.errors import RecipeError

VERSION = 2  # of the order; a checkpoint names the one that it was written under
ORDER, DRAW, HALVE, SHUFFLE = range(4)  # uses of random numbers, each with streams of its own


class _Part(NamedTuple):
    """Batches [first, last), and what they hold: so many captions of each item, in their order from a place on."""

    first: int
    last: int
    items: Int32[np.ndarray, " item"]
    counts: Int32[np.ndarray, " item"]
    places: Int32[np.ndarray, " item"]  # of the first caption, to be taken modulo the item's number of captions


class Plan:
    """Batches as a function of the step. `captions[v]` is the number of captions of video v.

    `shards[s]` is the number of videos in shard s, in the order of the videos. It matters only with a `window`, the
    number of shards that are drawn together; 0 draws from all. Raises `RecipeError` where batches cannot be filled.
    """

    def __init__(
        self,
        captions: Sequence[int] | Int64[np.ndarray, " video"],
        batch_size: int,
        epochs: int,
        seed: int,
        *,
        same_video_apart: bool = True,
        shards: Sequence[int] = (),
        window: int = 0,
    ):
        self._captions = np.asarray(captions, np.int64)
        self._size, self._seed, self._apart = batch_size, seed, same_video_apart
        self._ends, total = np.cumsum(self._captions), int(self._captions.sum())
        self._counts = self._captions if same_video_apart else np.broadcast_to(np.int64(1), total)  # of every item
        self._check_size()
        edges = np.cumsum([0, *(shards if window else [len(captions)])])  # each shard's first video
        assert edges[-1] == len(captions), "a window needs to know the shard of every video"
        self._edges = edges if same_video_apart else np.append(0, self._ends)[edges]  # and its first item
        number = len(self._edges) - 1
        if window:
            self._check_window(window)
        self._windows = -(-number // (window or number))  # in an epoch
        self._cuts = np.arange(self._windows + 1) * number // self._windows  # of an epoch's shards into windows
        self._orders = [self._rng(ORDER, epoch).permutation(number) for epoch in range(epochs)]
        self._steps, self._left = self._count()
        self._first = np.cumsum([0, *self._steps])  # step of every window of the run
        self._open: list[_Part] = []
        self.total_steps = int(self._first[-1])
        self.steps_in_epoch: list[int] = np.reshape(self._steps, (epochs, -1)).sum(1).tolist()
        self.left_out = [total - steps * batch_size for steps in self.steps_in_epoch]  # captions, in every epoch

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) that holds optimisation step `step` (from 0)."""
        return self._window_of(step) // self._windows

    def batch(self, step: int) -> Int64[np.ndarray, "pair 2"]:
        """Rows (video number, caption number within the video) of one global batch."""
        part = self._drawn(step)
        order = self._rng(SHUFFLE, step).permutation(np.flatnonzero(part.counts))
        item, place = part.items[order], part.places[order]
        if self._apart:
            return np.stack([item, place % self._captions[item]], axis=1)
        video = np.searchsorted(self._ends, item, side="right")
        return np.stack([video, item - self._ends[video] + self._captions[video]], axis=1)

    def _rng(self, *use: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *use])

    def _window_of(self, step: int) -> int:
        """A step's window, counted from the first of the run."""
        return int(np.searchsorted(self._first, step, side="right")) - 1

    def _drawn(self, step: int) -> _Part:
        """The part that is one batch; `_open` holds the parts that are yet to be halved, the next one last."""
        while True:
            if not self._open or step < self._open[-1].first:
                self._open = self._begin(self._window_of(step))
            part = self._open.pop()
            if step < part.last:
                if part.last - part.first == 1:
                    self._open.append(part)  # the same step may be asked for again
                    return part
                middle = (part.first + part.last) // 2
                self._open += self._cut(part, middle, (middle - part.first) * self._size)

    def _cut(self, part: _Part, middle: int, room: int) -> list[_Part]:
        """The batches from `middle` on, and those before it, which take `room` of the part's captions."""
        rng, total = self._rng(HALVE, part.first, part.last), int(part.counts.sum())
        early, rest = np.divmod(part.counts * np.int64(room), total)
        up = rng.integers(total, size=len(rest)) < rest
        missing = room - int(early.sum()) - np.count_nonzero(up)
        turned = np.flatnonzero((rest > 0) & (up == (missing < 0)))  # of these as many as make `room` exactly full
        up[rng.choice(turned, abs(missing), replace=False)] = missing > 0
        early = (early + up).astype(np.int32)
        late = part.counts - early
        first, second = np.flatnonzero(early), np.flatnonzero(late)
        return [
            _Part(middle, part.last, part.items[second], late[second], (part.places + early)[second]),
            _Part(part.first, middle, part.items[first], early[first], part.places[first]),
        ]

    def _begin(self, window: int) -> list[_Part]:
        """Return a window's batches as parts that are still to be halved, the first one last."""
        own, _ = self._draw(window)
        if window % self._windows == 0:
            return [own]
        first, last = own.first, own.last
        _, waiting = self._draw(window - 1)
        waiting = _Part(first, last, waiting.items, np.minimum(waiting.counts, last - first), waiting.places)
        number = int(waiting.counts.sum())
        if not number:
            return [own]
        # The first batches can take all that waited if every item of this window finds enough others after them.
        early = max(-(-number // self._size), int(waiting.counts.max()))
        if early == last - first or (last - first - int(own.counts.max())) * self._size < number:
            return [_joined(waiting, own)]
        later, earlier = self._cut(own, first + early, early * self._size - number)
        return [later, _joined(waiting._replace(last=first + early), earlier)]

    def _draw(self, window: int) -> tuple[_Part, _Part]:
        """The window's own items: what its batches hold of them, and what waits for the next window."""
        items, rng, steps = self._items(window), self._rng(DRAW, window), self._steps[window]
        counts = self._counts[items].astype(np.int32)
        held = np.minimum(counts, steps)
        spare = np.flatnonzero((counts > 0) & (counts <= steps))  # there are more of these than captions that are left
        held[rng.choice(spare, self._left[window], replace=False)] -= 1
        places = rng.integers(1 << 30, size=len(items), dtype=np.int32)
        span = int(self._first[window]), int(self._first[window + 1])
        waits = np.flatnonzero(held < counts)
        waiting = _Part(*span, items[waits], (counts - held)[waits], (places + held)[waits])
        return _Part(*span, items, held, places), waiting

    def _items(self, window: int) -> Int32[np.ndarray, " item"]:
        epoch, number = divmod(window, self._windows)
        shards = self._orders[epoch][self._cuts[number] : self._cuts[number + 1]]
        return np.concatenate([np.arange(*self._edges[shard : shard + 2], dtype=np.int32) for shard in shards])

    def _count(self) -> tuple[list[int], list[int]]:
        """For every window of the run: its batches, and how many of its items leave one caption for the next window.

        (Items with more captions than there are batches leave those beyond as well.)
        """
        sums = np.add.reduceat(self._counts, self._edges[:-1])
        largest = np.maximum.reduceat(self._counts, self._edges[:-1])
        steps: list[int] = []
        lefts: list[int] = []
        for order in self._orders:
            totals = np.add.reduceat(sums[order], self._cuts[:-1]).tolist()
            left, beyond = 0, self._counts[:0]
            for total, most in zip(totals, np.maximum.reduceat(largest[order], self._cuts[:-1]).tolist(), strict=True):
                if most <= (left + total) // self._size and not len(beyond):
                    batches, left = divmod(left + total, self._size)
                else:
                    own = self._counts[self._items(len(steps))]
                    counts = np.concatenate([np.ones(left, np.int64), beyond, own])
                    batches = _most_batches(counts, self._size)
                    left = int(np.minimum(counts, batches).sum()) - batches * self._size
                    beyond = own[own > batches] - batches
                steps.append(batches)
                lefts.append(left)
            if self._windows == 1:  # epochs are alike
                return steps * len(self._orders), lefts * len(self._orders)
        return steps, lefts

    def _check_size(self) -> None:
        """Refuses a batch that has room for every item, and more."""
        number = np.count_nonzero(self._counts)
        if self._size <= number:
            return
        if self._apart:
            raise RecipeError(
                f"data.batch_size: {self._size} is more than the {number} training videos, so captions of one "
                f"video would meet in a batch; lower it to at most {number}, or choose another data.same_video"
            )
        raise RecipeError(f"data.batch_size: {self._size} is more than the {number} training captions")

    def _check_window(self, window: int) -> None:
        """Refuses windows if chance may put one together that fills no batch by itself."""
        held = np.sort(np.add.reduceat(np.minimum(self._counts, 1), self._edges[:-1]))

        def smallest(window: int) -> int:
            """How many items the smallest shards hold together, as many as the smallest of the windows has."""
            return int(held[: len(held) // -(-len(held) // window)].sum())

        if smallest(window) < self._size:
            what = "videos" if self._apart else "captions"
            enough = next(window for window in range(1, len(held) + 1) if smallest(window) >= self._size)
            raise RecipeError(
                f"data.shuffle_shards: {window}: the smallest window may hold only {smallest(window)} "
                f"{what}, which does not fill a batch of {self._size}; set it to {enough} or more, or to 0 for "
                f"all {len(held)} shards at once"
            )


def _most_batches(counts: Int64[np.ndarray, " item"], size: int) -> int:
    """The largest number of batches of `size` different items: sum(min(counts, batches)) >= batches * size."""
    batches = int(counts.sum()) // size
    while np.minimum(counts, batches).sum() < batches * size:  # Newton's method on a concave function, from the right
        beyond = counts > batches
        batches = int(counts[~beyond].sum()) // (size - int(beyond.sum()))
    return batches


def _joined(one: _Part, other: _Part) -> _Part:
    """The items of two parts that are in the same batches."""
    return _Part(*one[:2], *(np.concatenate(pair) for pair in zip(one[2:], other[2:], strict=True)))
