"""Pearson distance, with which TeachCLIP compares rankings.

Correlation ignores scale and offset, so student and teacher may differ in both. No epsilon guards the division, as in
the paper: a row whose values are all equal has no correlation and gives NaN, which stops training.
"""

from jaxtyping import Float
from torch import Tensor


def pearson_distance(student: Float[Tensor, "row column"], teacher: Float[Tensor, "row column"]) -> Float[Tensor, ""]:
    """Return 1 - the Pearson correlation of paired rows, averaged over rows."""
    student = student - student.mean(-1, keepdim=True)
    teacher = teacher - teacher.mean(-1, keepdim=True)
    correlation = (student * teacher).sum(-1) / (student.norm(dim=-1) * teacher.norm(dim=-1))
    return 1 - correlation.mean()
