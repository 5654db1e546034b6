"""The formulas that models share: inner products, cosine similarity, and the masked mean over frames.

Similarity is always [text, video], and always computed in float32 or better: a cosine in half precision would not
survive a logit scale of 100.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SHORTEST = 1e-12  # the least length that a vector is divided by, as in torch's normalize


def precise(features: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Return the features in float32 or better."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def unit(features: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Divide vectors by their lengths, in float32 or better."""
    return F.normalize(precise(features), dim=-1)


def lengths(features: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows"]:
    """Return the lengths that `unit` divides by: after an inner product there is less to divide than before it."""
    return features.norm(dim=-1).clamp(min=SHORTEST)


def inner(
    sentence: Float[Tensor, "text dim"], parts: Float[Tensor, "video part dim"]
) -> Float[Tensor, "text video part"]:
    """Return the inner products of every sentence with every part of every video, as one matrix product."""
    return (sentence @ parts.flatten(0, 1).T).unflatten(1, parts.shape[:2])


def cosine(text: Float[Tensor, "text dim"], video: Float[Tensor, "video dim"]) -> Float[Tensor, "text video"]:
    """Return the cosine of every text with every video; neither side needs to be normalised."""
    with torch.autocast(text.device.type, enabled=False):
        return unit(text) @ unit(video).T


def mean_pool(
    frames: Float[Tensor, "video frame dim"], real: Bool[Tensor, "video frame"]
) -> Float[Tensor, "video dim"]:
    """Average the unit vectors of the real frames; the mean is not normalised (CLIP4Clip, meanP)."""
    total = (unit(frames) * real.unsqueeze(-1)).sum(1)
    return total / real.sum(1, keepdim=True).clamp(min=1)  # a video without a real frame pools to zero
