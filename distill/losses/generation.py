"""Generation: the pseudo-query of a video must be the sentence of its caption (PIG, L_recon)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def generation(query: Float[Tensor, "pair dim"], sentence: Float[Tensor, "pair dim"]) -> Float[Tensor, ""]:
    """Return the mean over pairs of |q/|q| - s/|s||^2, which is 2 - 2 cos(q, s)."""
    assert min(query.dtype.itemsize, sentence.dtype.itemsize) >= 4, "losses are computed in float32 or better"
    return (F.normalize(query, dim=-1) - F.normalize(sentence, dim=-1)).square().sum(-1).mean()
