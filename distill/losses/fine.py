"""Fine-grained teaching: the student's frame weights must follow the teacher's frame relevance (TeachCLIP, FgT)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.losses.pearson import pearson_distance

Distance = Literal["cross_entropy", "pearson"]
Reduction = Literal["frame", "pair"]
EPSILON = 1e-6  # beside a deviation of cosines of about 0.01
LOWEST = -1e4  # its softmax is exactly 0 beside any real score; finite, because 0 * -inf would be NaN


def fine(
    student: Float[Tensor, "pair frame"],
    teacher: Float[Tensor, "pair frame"],
    temperature: float = 1.0,
    real: Bool[Tensor, "pair frame"] | None = None,
    distance: Distance = "cross_entropy",
    reduction: Reduction = "frame",
) -> Float[Tensor, ""]:
    """Return the cross-entropy of softmax(teacher / temperature) against softmax(student), or their Pearson distance.

    Both sides are raw scores. `reduction: frame` averages the cross-entropy over pairs *and* frames, which makes it
    1/frames of the usual one, as in the authors' code; `pair` sums over frames and averages over pairs. Without `real`
    padded frames count as frames (again as in the code); with it they are left out of both softmaxes and of the
    average.
    """
    assert min(student.dtype.itemsize, teacher.dtype.itemsize) >= 4, "losses are computed in float32 or better"
    teacher = teacher / temperature
    if real is not None:
        student, teacher = student.masked_fill(~real, LOWEST), teacher.masked_fill(~real, LOWEST)
    if distance == "pearson":
        return pearson_distance(student.softmax(-1), teacher.softmax(-1))
    total = -(teacher.softmax(-1) * student.log_softmax(-1)).sum()
    frames = student.numel() if real is None else real.sum()
    return total / (frames if reduction == "frame" else len(student))


def standardised(
    relevance: Float[Tensor, "pair frame"], real: Bool[Tensor, "pair frame"] | None = None
) -> Float[Tensor, "pair frame"]:
    """Bring every row to mean 0 and deviation 1 over its real frames; a row without any spread becomes 0."""
    counted = torch.ones_like(relevance) if real is None else real.to(relevance.dtype)
    count = counted.sum(-1, keepdim=True)
    centred = (relevance - (relevance * counted).sum(-1, keepdim=True) / count) * counted
    return centred / ((centred.square().sum(-1, keepdim=True) / count).sqrt() + EPSILON)
