"""How near two results are that should be equal but for the order of their sums.

A processor's kernel adds the terms of a matrix product in an order that depends on the product's shape, and on some
processors on the place of a row in it. So results of the same shapes are equal to the bit, and others to a few units in
the last place (ulps) of the largest number, since terms that cancel leave their rounding behind.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from distill.retrieval import Hit


def within_ulps(found: Tensor, expected: Tensor, ulps: int) -> bool:
    """Whether all numbers are at most so many ulps of the largest expected one apart; integers and booleans none."""
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    return bool((found - expected).abs().max() <= ulps * torch.finfo(expected.dtype).eps * expected.abs().max())


def same_hits(found: Sequence[Sequence[Hit]], expected: Sequence[Sequence[Hit]], ulps: int) -> bool:
    """Whether answers name the same hits in the same order, with scores within so many ulps."""
    scores, others = zip(*map(_apart, (found, expected)), strict=True)
    return others[0] == others[1] and within_ulps(*scores, ulps)


def _apart(answers: Sequence[Sequence[Hit]]) -> tuple[Tensor, list[list[Hit]]]:
    """The scores, and all that is not a score."""
    scores = torch.tensor([hit.score for hits in answers for hit in hits])
    return scores, [[replace(hit, score=0.0) for hit in hits] for hits in answers]
