"""The two formulas every model shares: cosine similarity and the masked mean over frames.

Similarity is always [text, video], and always computed in float32 or better: a cosine in half precision would not
survive a logit scale of 100.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def precise(features: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """The same in float32 or better."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def unit(features: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Vectors of length 1, in float32 or better."""
    return F.normalize(precise(features), dim=-1)


def cosine(text: Float[Tensor, "text dim"], video: Float[Tensor, "video dim"]) -> Float[Tensor, "text video"]:
    """Cosine of every text with every video; neither side needs to be normalised."""
    with torch.autocast(text.device.type, enabled=False):
        return unit(text) @ unit(video).T


def mean_pool(
    frames: Float[Tensor, "video frame dim"], real: Bool[Tensor, "video frame"]
) -> Float[Tensor, "video dim"]:
    """Mean of the unit vectors of the real frames, itself not normalised (CLIP4Clip, meanP)."""
    total = (unit(frames) * real.unsqueeze(-1)).sum(1)
    return total / real.sum(1, keepdim=True).clamp(min=1)  # a video without a real frame pools to zero
