"""The Pearson constraint: every channel of a text must vary over a batch as that channel of its video does (EERCF).

The weight 0.14 is the paper's, in its choice of leaving different channels alone. As in the authors' code no epsilon
guards the deviations: a channel that is the same in the whole batch gives NaN, which stops training.
"""

from jaxtyping import Float
from torch import Tensor

STRENGTH = 0.14


def channel_constraint(text: Float[Tensor, "pair dim"], video: Float[Tensor, "pair dim"]) -> Float[Tensor, ""]:
    """Return 0.14 sum_d (C_d - 1)^2, C_d being the correlation of channel d of matched pairs (EERCF, L_PC).

    Standardised by the deviation over n - 1 and averaged over n, so that C_d is at most (n - 1) / n, as in the code.
    """
    assert min(text.dtype.itemsize, video.dtype.itemsize) >= 4, "losses are computed in float32 or better"
    text, video = ((features - features.mean(0)) / features.std(0) for features in (text, video))
    return STRENGTH * ((text * video).mean(0) - 1).square().sum()
