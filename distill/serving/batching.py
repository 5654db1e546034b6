"""The batching of searches: requests that arrive together are answered together, from a bounded queue by one thread.

Requests that want to be searched in different manners go into different batches: no answer depends on other requests.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from distill.serving import limits

T = TypeVar("T")
M = TypeVar("M")
Search = Callable[[Sequence[str], M], list[T]]  # queries and their manner -> an answer for each query


class Busy(Exception):
    """The queue is full, or a search waited too long; the client may try again after a second or two."""


@dataclass(frozen=True)
class Waiting(Generic[M, T]):
    """The queries of one request, and the future of their answers."""

    queries: tuple[str, ...]
    manner: M
    answers: "asyncio.Future[list[T]]"


class Batcher(Generic[M, T]):
    """A queue of queries that one worker thread hands to `search`, within the limits of distill/serving/limits.py."""

    def __init__(self, search: Search[M, T]):
        self._search = search
        self._queue: deque[Waiting[M, T]] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """The number of queries in the queue, without those that the worker has."""
        return sum(len(request.queries) for request in self._queue)

    async def search(self, queries: Sequence[str], manner: M) -> list[T]:
        """Return an answer for each query; raise `Busy` if the queue is full or the answer late."""
        if self.waiting + len(queries) > limits.CAPACITY:
            raise Busy("too many searches are waiting")
        answers: asyncio.Future[list[T]] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(tuple(queries), manner, answers))
        self._arrived.set()
        try:
            return await asyncio.wait_for(answers, limits.PATIENCE)  # cancels `answers` if they are late
        except TimeoutError:
            raise Busy("the search waited too long") from None

    async def run(self) -> None:
        """Serve the queue until cancelled."""
        with ThreadPoolExecutor(1, thread_name_prefix="search") as worker:
            while True:
                await self._arrived.wait()
                if self.waiting < limits.BATCH:  # wait for more only if the batch is not full already
                    await asyncio.sleep(limits.GATHER)
                if together := self._take():
                    await self._answer(together, worker)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve the queue in a task of its own until the block is left."""
        worker = asyncio.create_task(self.run())
        yield
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker

    def _take(self) -> list[Waiting[M, T]]:
        """Take the oldest request and others of the same manner from the queue, until the batch is full."""
        together: list[Waiting[M, T]] = []
        left: deque[Waiting[M, T]] = deque()
        room = limits.BATCH
        for request in self._queue:
            if request.answers.done():  # its client gave up
                continue
            if not together or (request.manner == together[0].manner and len(request.queries) <= room):
                together.append(request)
                room -= len(request.queries)
            else:
                left.append(request)
        self._queue = left
        if not left:
            self._arrived.clear()
        return together

    async def _answer(self, together: Sequence[Waiting[M, T]], worker: ThreadPoolExecutor) -> None:
        queries = [query for request in together for query in request.queries]
        try:
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(worker, self._search, queries, together[0].manner)
        except Exception as error:  # of this batch alone: the next ones must be served
            for request in together:
                if not request.answers.done():
                    request.answers.set_exception(error)
            return
        assert len(results) == len(queries)
        answers = iter(results)
        for request in together:
            share = [next(answers) for _ in request.queries]
            if not request.answers.done():
                request.answers.set_result(share)
