"""Fine-grained teaching: the student's frame weights must follow the teacher's frame relevance (TeachCLIP, FgT)."""

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from distill.losses.pearson import pearson_distance

Distance = Literal["cross_entropy", "pearson"]
Reduction = Literal["frame", "pair"]
LOWEST = -1e4  # its softmax is exactly 0 beside any real score; finite, because 0 * -inf would be NaN


def fine(
    student: Float[Tensor, "pair frame"],
    teacher: Float[Tensor, "pair frame"],
    temperature: float = 1.0,
    real: Bool[Tensor, "pair frame"] | None = None,
    distance: Distance = "cross_entropy",
    reduction: Reduction = "frame",
) -> Float[Tensor, ""]:
    """Cross-entropy of softmax(teacher / temperature) against softmax(student), or their Pearson distance.

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
