"""Coarse-grained teaching: the student's ranking of a batch must correlate with the teacher's (TeachCLIP, CgT).

Correlation ignores scale and offset, so student and teacher may differ in both. No epsilon guards the division, as in
the paper: a row whose probabilities are all equal has no correlation and gives NaN, which stops training.
"""

from jaxtyping import Float
from torch import Tensor


def pearson_distance(student: Float[Tensor, "row column"], teacher: Float[Tensor, "row column"]) -> Float[Tensor, ""]:
    """1 - Pearson correlation of paired rows, averaged over rows."""
    student = student - student.mean(-1, keepdim=True)
    teacher = teacher - teacher.mean(-1, keepdim=True)
    correlation = (student * teacher).sum(-1) / (student.norm(dim=-1) * teacher.norm(dim=-1))
    return 1 - correlation.mean()


def coarse(
    student: Float[Tensor, "text video"], teacher: Float[Tensor, "text video"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Distance of the softmaxed rows plus distance of the softmaxed columns; both sides are logits.

    `temperature` (beta in the authors' configs) divides both before the softmax.
    """
    assert min(student.dtype.itemsize, teacher.dtype.itemsize) >= 4, "losses are computed in float32 or better"
    student, teacher = student / temperature, teacher / temperature
    by_text = pearson_distance(student.softmax(-1), teacher.softmax(-1))
    return by_text + pearson_distance(student.T.softmax(-1), teacher.T.softmax(-1))
