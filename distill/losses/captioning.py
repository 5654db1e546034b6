"""Captioning: an auxiliary decoder must say every caption from the frames of its video (Prompt Switch, L_cap).

Words that say little count less, and the loss of a batch is the mean over everything that counts: so pairs hand over
their sums, and the mean is taken once all of a global batch are there.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def caption_loss(
    logits: Float[Tensor, "token vocabulary"],
    targets: Int[Tensor, "pair word"],
    said: Bool[Tensor, "pair word"],
    counts: Float[Tensor, "pair word"],
) -> Float[Tensor, " pair"]:
    """Sum over each caption the negative log likelihood of its words, each times how much it counts.

    `logits` are of the `said` places of all captions, in one list.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    surprise = F.cross_entropy(logits, targets[said], reduction="none") * counts[said]
    return surprise.new_zeros(said.shape).masked_scatter(said, surprise).sum(1)


def captioning(loss: Float[Tensor, " pair"], weight: Float[Tensor, " pair"]) -> Float[Tensor, ""]:
    """Return the weighted mean over the words of all captions, from each caption's sum and the sum of its counts."""
    assert loss.dtype.itemsize >= 4, "losses are computed in float32 or better"
    return loss.sum() / weight.sum()
