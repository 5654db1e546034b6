"""Fine-grained teaching: the student's frame weights must follow the teacher's frame relevance (TeachCLIP, FgT)."""

from jaxtyping import Bool, Float
from torch import Tensor


def fine(
    student: Float[Tensor, "pair frame"],
    teacher: Float[Tensor, "pair frame"],
    temperature: float = 1.0,
    real: Bool[Tensor, "pair frame"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of softmax(teacher / temperature) against softmax(student), averaged over pairs *and* frames.

    Both sides are raw scores. Averaging over frames makes the term 1/frames of the usual cross-entropy, as in the
    authors' code. Without `real` padded frames count as frames (again as in the code); with it they are left out of
    both softmaxes and of the average.
    """
    assert min(student.dtype.itemsize, teacher.dtype.itemsize) >= 4, "losses are computed in float32 or better"
    if real is None:
        return -((teacher / temperature).softmax(-1) * student.log_softmax(-1)).mean()
    lowest = -1e4  # its softmax is exactly 0 beside any real score; finite, because 0 * -inf would be NaN
    weights = (teacher / temperature).masked_fill(~real, lowest).softmax(-1)
    terms = weights * student.masked_fill(~real, lowest).log_softmax(-1)
    return -terms[real].mean()
