"""Worker processes that end with their work, with an error or a signal, and with a parent that was killed."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from distill import signals
from distill.errors import ExpectedError


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Run an executor of that many processes; an exception that leaves the block kills them at once.

    Raises `ExpectedError` if one of them dies.
    """
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")  # fork is unsafe in a process with threads
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield executor
        executor.shutdown(cancel_futures=True)
    except BaseException as error:
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
        executor.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ExpectedError(
                "a worker process was killed (was memory short?); run the same command again, it continues with what "
                "is finished"
            ) from None
        raise


def _end_with_parent() -> None:
    signals.leave_to_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in workers only"

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
