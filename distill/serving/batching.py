"""Requests that arrive together are answered together: one worker thread, a bounded queue.

Queries that wait are handed to the worker as one batch, and an idle worker waits some milliseconds for company. Those
that ask for different numbers of videos are ranked apart, so that nobody's answer depends on who else is asking.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Search = Callable[[Sequence[str], int, int | None], list[T]]  # queries, k, candidates -> an answer for each query


class Busy(Exception):
    """The queue is full, or a search waited too long; worth another try after a second or two."""


@dataclass(frozen=True)
class Waiting(Generic[T]):
    """Queries of one request, and where their answers go."""

    queries: tuple[str, ...]
    depth: tuple[int, int | None]  # k and candidates
    answers: "asyncio.Future[list[T]]"


class Batcher(Generic[T]):
    """Hands waiting queries to `search` in one worker thread, up to `batch` at a time.

    At most `capacity` queries wait. `gather` and `patience` are seconds: how long an idle worker waits for company, and
    how long a request waits for its answer.
    """

    def __init__(self, search: Search[T], *, batch: int, capacity: int, gather: float, patience: float):
        self._search = search
        self._batch, self._capacity = batch, capacity
        self._gather, self._patience = gather, patience
        self._queue: deque[Waiting[T]] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Queries in the queue; those that the worker has are not counted."""
        return sum(len(request.queries) for request in self._queue)

    async def search(self, queries: Sequence[str], k: int, candidates: int | None) -> list[T]:
        """An answer for each query. `Busy` if the queue is full or the answer late; else what `search` raises."""
        if self.waiting + len(queries) > self._capacity:
            raise Busy("too many searches are waiting")
        answers: asyncio.Future[list[T]] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(tuple(queries), (k, candidates), answers))
        self._arrived.set()
        try:
            return await asyncio.wait_for(answers, self._patience)  # which cancels `answers` if they are late
        except TimeoutError:
            raise Busy("the search waited too long") from None

    async def run(self) -> None:
        """Serves the queue until cancelled."""
        with ThreadPoolExecutor(1, thread_name_prefix="search") as worker:
            while True:
                await self._arrived.wait()
                if self.waiting < self._batch:
                    await asyncio.sleep(self._gather)
                if together := self._take():
                    await self._answer(together, worker)

    def _take(self) -> list[Waiting[T]]:
        """The oldest request and those of the same depth, until the batch is full.

        Requests that nobody waits for any more are dropped.
        """
        together: list[Waiting[T]] = []
        left: deque[Waiting[T]] = deque()
        room = self._batch
        for request in self._queue:
            if request.answers.done():
                continue
            if not together or (request.depth == together[0].depth and len(request.queries) <= room):
                together.append(request)
                room -= len(request.queries)
            else:
                left.append(request)
        self._queue = left
        if not left:
            self._arrived.clear()
        return together

    async def _answer(self, together: Sequence[Waiting[T]], worker: ThreadPoolExecutor) -> None:
        queries = [query for request in together for query in request.queries]
        try:
            found = await asyncio.get_running_loop().run_in_executor(worker, self._search, queries, *together[0].depth)
        except Exception as error:  # theirs alone: the next batch must go on
            for request in together:
                if not request.answers.done():
                    request.answers.set_exception(error)
            return
        assert len(found) == len(queries)
        answers = iter(found)
        for request in together:
            own = [next(answers) for _ in request.queries]
            if not request.answers.done():
                request.answers.set_result(own)
