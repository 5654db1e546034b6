"""Texts without their repetitions, told apart by their hashes: columns of numbers, whatever the number of texts."""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64

from distill.data.register import ERRORS

DIGEST = 16  # bytes: of 10^12 texts no two share a digest but by a chance of 10^-14


def distinct(texts: Iterable[str]) -> tuple[Int64[np.ndarray, " distinct"], Int64[np.ndarray, " text"]]:
    """Return the place of each distinct text where it comes first, and of every text the number of its distinct one."""
    digests = bytearray()
    for text in texts:
        digests += hashlib.blake2b(text.encode(errors=ERRORS), digest_size=DIGEST).digest()
    low, high = np.frombuffer(digests, np.uint64).reshape(-1, 2).T
    order = np.lexsort((high, low))  # stable: of equal texts the first one comes first
    low, high = low[order], high[order]
    begins = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))[: len(order)]
    del low, high
    first = order[begins]
    ranks = np.empty(len(first), np.int64)
    ranks[np.argsort(first)] = np.arange(len(first))
    number = np.empty(len(order), np.int64)
    number[order] = ranks[np.cumsum(begins) - 1]
    return np.sort(first), number
