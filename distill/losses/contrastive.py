"""The symmetric contrastive loss of CLIP (InfoNCE), on the logits of the whole batch."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def contrastive(logits: Float[Tensor, "text video"]) -> Float[Tensor, ""]:
    """Each caption must find its video, and each video its caption; pairs sit on the diagonal."""
    assert logits.dtype.itemsize >= 4, "losses are computed in float32 or better"
    paired = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, paired) + F.cross_entropy(logits.T, paired)) / 2
