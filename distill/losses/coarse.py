"""Coarse-grained teaching: the student's ranking of a batch must follow the teacher's (TeachCLIP, CgT)."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from distill.losses.pearson import pearson_distance

Distance = Literal["pearson", "kl", "cross_entropy", "l1"]


def coarse(
    student: Float[Tensor, "text video"],
    teacher: Float[Tensor, "text video"],
    temperature: float = 1.0,
    distance: Distance = "pearson",
) -> Float[Tensor, ""]:
    """Return the distance of the rows plus that of the columns; both sides are logits.

    `temperature` (beta in the authors' configs) divides both sides first. `pearson` compares softmaxed rows and columns
    (the paper's choice), `kl` is T^2 KL(teacher || student) at the temperature T, averaged over rows, and over columns
    (Hinton et al. 2015, section 2: T^2 keeps the gradient's size as T grows), `cross_entropy` the cross-entropy of the
    softmaxed rows and columns averaged over all entries, `l1` compares the logits themselves (smooth L1, once).
    """
    assert min(student.dtype.itemsize, teacher.dtype.itemsize) >= 4, "losses are computed in float32 or better"
    student, teacher = student / temperature, teacher / temperature
    if distance == "l1":
        return F.smooth_l1_loss(student, teacher)
    if distance == "pearson":
        by_text = pearson_distance(student.softmax(-1), teacher.softmax(-1))
        return by_text + pearson_distance(student.T.softmax(-1), teacher.T.softmax(-1))
    if distance == "kl":
        return temperature**2 * (_divergence(student, teacher) + _divergence(student.T, teacher.T))
    by_text = -(teacher.softmax(-1) * student.log_softmax(-1)).mean()
    return by_text - (teacher.softmax(0) * student.log_softmax(0)).mean()


def _divergence(student: Float[Tensor, "row column"], teacher: Float[Tensor, "row column"]) -> Float[Tensor, ""]:
    """Return KL(softmax(teacher) || softmax(student)), summed over a row and averaged over rows."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
