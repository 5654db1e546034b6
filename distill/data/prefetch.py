"""Fetch the shards of coming batches into the cache while the current batch trains."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from distill.data.draw import Draw
from distill.data.shards import Shards
from distill.errors import RecipeError

FETCHERS = 4  # shards at once


@dataclass(frozen=True)
class ShardSource:
    """The shards of a frame set or a label set, and the sample of each video, or each text, of one part of a batch."""

    shards: Shards
    keys: Sequence[str]
    part: Literal["pairs", "videos", "texts"] = "pairs"

    def tars(self, draw: Draw) -> Iterable[str]:
        """Return the shards that these rows need, each once, in the order of the rows."""
        numbers = [video for video, _ in draw.pairs] if self.part == "pairs" else getattr(draw, self.part)
        return dict.fromkeys(self.shards.shard_of(self.keys[number]) for number in numbers)


def check_cache_size(sources: Sequence[ShardSource], window: int, cache_gb: float) -> None:
    """Raise `RecipeError` if the cache cannot hold the shards of neighbouring batches: steps would fetch them anew."""
    sizes = [(source, sorted(source.shards.tar_bytes().values())) for source in sources]
    needed = sum(sum(each[-2 * window :] if source.part == "pairs" else each) for source, each in sizes)
    if needed > cache_gb * 1e9:
        drawn = f"two windows of data.shuffle_shards={window} shards" if window else "batches drawn from all shards"
        raise RecipeError(
            f"data.cache_gb: {cache_gb:g} GB, but {drawn} need {needed / 1e9:.3g} GB; raise it, or set "
            f"data.shuffle_shards to {'fewer' if window else 'a few'}"
        )


def fetched_ahead(batches: Iterable[Draw], sources: Sequence[ShardSource], window: int) -> Iterator[Draw]:
    """Yield the same batches, while threads fetch the next `window` shards (0: all) of each source.

    No thread starts before the second batch is requested, so that a data loader can fork its workers first. An error
    stays with its thread: reading the shard will raise it again, where it can be shown.
    """
    batches = iter(batches)
    yield from itertools.islice(batches, 1)
    pool = ThreadPoolExecutor(FETCHERS)
    try:
        if window:
            yield from _asking_ahead(batches, sources, window, pool)
        else:
            for source in sources:
                for tar in source.shards.tar_bytes():
                    pool.submit(source.shards.fetch, tar)
            yield from batches
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _asking_ahead(
    batches: Iterator[Draw], sources: Sequence[ShardSource], window: int, pool: Executor
) -> Iterator[Draw]:
    coming: deque[tuple[Draw, int]] = deque()  # each batch with the number of shards that it is the first to need
    known: dict[tuple[int, str], None] = {}  # requested shards, the most recently needed one at the end
    ahead, most = 0, window * len(sources)
    while True:
        while ahead < most and (draw := next(batches, None)) is not None:
            new = 0
            for number, source in enumerate(sources):
                for tar in source.tars(draw):
                    if (number, tar) not in known:
                        pool.submit(source.shards.fetch, tar)
                        new += 1
                    known.pop((number, tar), None)
                    known[number, tar] = None
            while len(known) > 3 * most:  # two windows and the shards ahead; the cache may have removed older ones
                known.pop(next(iter(known)))
            coming.append((draw, new))
            ahead += new
        if not coming:
            return
        draw, new = coming.popleft()
        ahead -= new
        yield draw
