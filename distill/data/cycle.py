"""Items that come round: (seed, step) -> the numbers of one batch, the same for any number of processes.

For what a batch holds beside its pairs: videos without captions, captions without videos. A round shuffles all items
and cuts them into whole batches; what is left over (fewer than a batch) waits for another round's order.
"""

import numpy as np
from jaxtyping import Int64


class Cycle:
    """Batches of `size` of `number` items, as a function of the step; no batch holds an item twice.

    `use` keeps the random numbers of two cycles of one run apart. `number` must be at least `size`.
    """

    def __init__(self, number: int, size: int, seed: int, use: int):
        assert 0 < size <= number, (size, number)
        self._number, self._size, self._key = number, size, (seed, use)
        self._round, self._order = -1, np.empty(0, np.int64)

    def batch(self, step: int) -> Int64[np.ndarray, " item"]:
        """Return the items of one global batch."""
        turn, place = divmod(step, self._number // self._size)
        if turn != self._round:
            self._round, self._order = turn, np.random.default_rng([*self._key, turn]).permutation(self._number)
        return self._order[place * self._size : (place + 1) * self._size]
