"""A draw: the rows of a batch by their numbers, before any of them is read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Draw:
    """The rows of a batch, or of one process's share of it."""

    pairs: list[tuple[int, int]]  # (video, caption)
    videos: list[int]  # of `data.unlabelled`
    texts: list[int]  # of `data.texts`
