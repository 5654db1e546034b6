"""The symmetric contrastive loss of CLIP (InfoNCE), on the logits of the whole batch."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def contrastive(logits: Float[Tensor, "text video"], videos: Int[Tensor, " video"] | None = None) -> Float[Tensor, ""]:
    """Return the mean of both cross-entropies: of captions that must find their videos, and of videos, their captions.

    Pairs stand on the diagonal. Without `videos` every other pair of the batch is a negative, as in the lineage's code.
    With it (the number of each column's video) pairs of one video are no negatives of one another and are left out.
    """
    assert logits.dtype.itemsize >= 4, "losses are computed in float32 or better"
    paired = torch.arange(len(logits), device=logits.device)
    if videos is not None:
        same = (videos[:, None] == videos) & (paired[:, None] != paired)
        logits = logits.masked_fill(same, -torch.inf)
    return (F.cross_entropy(logits, paired) + F.cross_entropy(logits.T, paired)) / 2
