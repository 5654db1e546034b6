"""The batches of a run, of which the next one is on its way to the device while the present one is computed on.

On a GPU the copy runs on a stream of its own, from page-locked memory; on a CPU there is nothing to copy, and batches
are merely taken from the loader one step earlier. Neither changes a value, an order or a seed.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator

import torch

from distill.data.batch import Batch
from distill.errors import ExpectedError

Mark = float | torch.cuda.Event  # a moment of the host, or of a GPU


class Ahead:
    """Iterates over batches on the device, and what comes with each.

    `place` brings a batch to the device. An `ExpectedError` of the loader is raised where its batch is due, so that the
    step before it is whole.
    """

    def __init__(self, loaded: Iterator[tuple[Batch, str]], place: Callable[[Batch], Batch]):
        self._loaded, self._place = loaded, place
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        self._coming: deque[tuple[Batch, str] | ExpectedError | None] = deque()  # at most one; None is the end
        self._marks: list[tuple[Mark, Mark]] = []  # before and after each fetch

    def __iter__(self) -> "Ahead":
        return self

    def __next__(self) -> tuple[Batch, str]:
        if not self._coming:
            self.fetch()
        found = self._coming.popleft()
        if found is None:
            raise StopIteration
        if isinstance(found, ExpectedError):
            raise found
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
            found[0].record_stream(torch.cuda.current_stream())
        return found

    def fetch(self) -> None:
        """Take the next batch from the loader and send it to the device; call it when the device has work to do."""
        began = self._now()
        try:
            found = next(self._loaded, None)
            with torch.cuda.stream(self._stream):  # pyrefly: ignore  # no stream, no effect: a CPU
                self._coming.append(None if found is None else (self._place(found[0]), found[1]))
        except ExpectedError as error:
            self._coming.append(error)
        self._marks.append((began, self._now()))

    def waited(self) -> float:
        """Return the seconds, since it was last asked, in which the device had nothing to do but wait for a batch.

        Ask it after a step, when the device has come past the fetch within it.
        """
        marks, self._marks = self._marks, []
        return sum((_seconds(*each) for each in marks), 0.0)

    def _now(self) -> Mark:
        """Return the present; of a GPU the moment when it has done all that it was given so far."""
        if self._stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(began: Mark, ended: Mark) -> float:
    """Return the seconds between two marks, once the device has come to the second."""
    if isinstance(began, float) or isinstance(ended, float):
        assert isinstance(began, float) and isinstance(ended, float), "marks of one device"
        return ended - began
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3
