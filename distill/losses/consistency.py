"""Inter-consistency: concept i of a caption must be that of its video (GLSCL, ICL; `Intra_Consistency` in its code)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

TARGET = 0.75  # the agreement that concepts are drawn to
Over = Literal["queries", "batch"]


def consistency(
    text: Float[Tensor, "pair concept dim"],
    video: Float[Tensor, "pair concept dim"],
    beta: float,
    over: Over = "queries",
) -> Float[Tensor, ""]:
    """Return the mean squared difference of the batch's mean concepts + beta x the squared distance of r from 0.75.

    Both sides are unit vectors. r_i is the sum over the pairs of the cosine of their concepts i, divided by the number
    of concepts (`over: queries`), as in the authors' code: it grows with the batch, and the target is a mean cosine of
    0.75 x concepts / pairs. Divided by the number of pairs (`batch`) r is the mean cosine itself.
    """
    assert min(text.dtype.itemsize, video.dtype.itemsize) >= 4, "losses are computed in float32 or better"
    pairs, concepts, _ = text.shape
    agreement = (text * video).sum((0, 2)) / (concepts if over == "queries" else pairs)
    return (video.mean(0) - text.mean(0)).square().mean() + beta * (agreement - TARGET).square().sum()
