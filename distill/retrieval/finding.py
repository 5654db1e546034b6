"""Finding the rows that answer queries: by their vectors, then in the order of a second stage or of a calibration."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int64

from distill.retrieval.calibration import AMONG, BEST, SPARE, Calibration
from distill.retrieval.vectors import Answer

# A second stage: candidates of every query, and how many of them to return, best first.
Rerank = Callable[[Int64[np.ndarray, "query candidate"], int], Answer]
CANDIDATES = 200  # videos to rerank: 99 % of the best ten in 10,000 are among them (tools/bench_retrieval.py)


class Finding:
    """The search for some queries, of which any number of rows can be asked."""

    def __init__(
        self,
        queries: Float32[np.ndarray, "query dim"],
        nearest: Callable[..., Answer],
        calibration: Calibration | None,
        rerank: Rerank | None,
        candidates: int | None,
        *,
        in_its_order: bool,
    ):
        """Take query vectors, their `Table.nearest`, the gallery's calibration, and the second stage, if there is one.

        `candidates` go into the second stage; without one the order is the calibration's if `in_its_order`.
        """
        self.queries, self.calibration, self.rerank, self.candidates = queries, calibration, rerank, candidates
        self._nearest, self._in_its_order = nearest, in_its_order
        self._best: Float32[np.ndarray, "query best"] | None = None  # similarities

    def __call__(self, k: int) -> Answer:
        """Return scores and rows of the `k` best videos for each query."""
        if self.rerank is not None:
            # Whether anything fits is said of similarities; an index alone has estimates of them.
            quickly = self.calibration is None
            _, rows = self._by_vector(max(k, self.candidates or CANDIDATES), candidates=quickly)
            return self.rerank(rows, k)
        if self._in_its_order and self.calibration is not None:
            return self.calibration.best(*self._by_vector(max(AMONG, SPARE * k)), k)
        return self._by_vector(k)

    def fits(self) -> list[bool | None]:
        """Return for each query whether anything that was found fits it well; None where it is not known."""
        known = None
        if self.calibration is not None and self._best is not None:
            known = self.calibration.fits(self.queries, self._best)
        return [None] * len(self.queries) if known is None else known.tolist()

    def _by_vector(self, k: int, **options: bool) -> Answer:
        asked = k if self.calibration is None else max(k, BEST)
        scores, rows = self._nearest(self.queries, asked, **options)
        self._best = scores[:, :BEST]
        return scores[:, :k], rows[:, :k]
