"""Batching: every request gets its own answers, with others or alone, late or not at all when there are too many."""

import asyncio
import threading
import time
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.serving import limits
from distill.serving.batching import Batcher, Busy


class Echo:
    """Answers each query with itself and what it was asked with; records the batches. Closed, it waits to be opened."""

    def __init__(self):
        self.batches, self.open, self.began = [], threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, queries, manner):
        self.began.set()
        assert self.open.wait(10)
        self.batches.append(list(queries))
        if "broken" in queries:
            raise ValueError("broken")
        return [(query, manner) for query in queries]


def run(search, asking, *, batch=8, capacity=100, gather=0.0, patience=10.0):
    """The results, or errors, of the coroutines that `asking` makes of a batcher."""

    async def main():
        batcher = Batcher(search)
        worker = asyncio.create_task(batcher.run())
        try:
            return await asyncio.gather(*asking(batcher), return_exceptions=True)
        finally:
            search.open.set()
            worker.cancel()

    with patch.multiple(limits, BATCH=batch, CAPACITY=capacity, GATHER=gather, PATIENCE=patience):
        return asyncio.run(main())


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([(1, None), (2, None), (2, 7)])), min_size=1, max_size=20))
def test_everyone_gets_the_answers_to_their_own_queries_in_order(requests):
    asked = [([f"{number}.{i}" for i in range(size)], manner) for number, (size, manner) in enumerate(requests)]
    search = Echo()
    found = run(search, lambda batcher: [batcher.search(*request) for request in asked])
    assert found == [[(query, manner) for query in queries] for queries, manner in asked]
    assert all(len(batch) <= 8 for batch in search.batches)
    manners = {query: manner for queries, manner in asked for query in queries}
    assert all(len({manners[query] for query in batch}) == 1 for batch in search.batches), "ranked with their like only"


def test_requests_that_arrive_together_share_a_search_and_a_lone_one_waits_for_company():
    search = Echo()

    async def later(batcher, number):
        await asyncio.sleep(0.002 * number)
        return await batcher.search([str(number)], (1, None))

    run(search, lambda batcher: [later(batcher, number) for number in range(8)], gather=0.3)
    assert search.batches == [[str(number) for number in range(8)]]


def test_a_full_queue_refuses_and_later_takes_requests_again():
    search = Echo()
    search.open.clear()

    async def crowd(batcher):
        first = asyncio.create_task(batcher.search(["first"], (1, None)))
        await asyncio.to_thread(search.began.wait, 10)  # the worker has it: it does not count as waiting
        four = asyncio.create_task(batcher.search(list("abcd"), (1, None)))
        await asyncio.sleep(0)
        assert batcher.waiting == 4
        with pytest.raises(Busy):
            await batcher.search(["e"], (1, None))
        search.open.set()
        assert [len(answers) for answers in await asyncio.gather(first, four)] == [1, 4]
        return await batcher.search(["e"], (1, None))

    assert run(search, lambda batcher: [crowd(batcher)], capacity=4) == [[("e", (1, None))]]


def test_a_late_search_is_given_up_and_never_run():
    search = Echo()
    search.open.clear()

    async def impatient(batcher):
        began = time.monotonic()
        first = asyncio.create_task(batcher.search(["first"], (1, None)))
        await asyncio.to_thread(search.began.wait, 10)
        with pytest.raises(Busy):
            await batcher.search(["second"], (1, None))
        with pytest.raises(Busy):
            await first
        assert time.monotonic() - began < 5
        search.open.set()
        return await batcher.search(["third"], (1, None))

    assert run(search, lambda batcher: [impatient(batcher)], patience=0.3) == [[("third", (1, None))]]
    assert search.batches == [["first"], ["third"]], "nobody waited for the second any more"


def test_an_error_is_told_to_those_it_concerns_and_the_next_are_served():
    search = Echo()

    async def one_by_one(batcher):
        with pytest.raises(ValueError, match="broken"):
            await batcher.search(["broken"], (1, None))
        return await batcher.search(["sound"], (1, None))

    assert run(search, lambda batcher: [one_by_one(batcher)]) == [[("sound", (1, None))]]
