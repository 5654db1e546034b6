"""The learned factor between cosines and logits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LogitScale(nn.Module):
    """Factor exp(log) between cosines and logits. Training caps `log` at `max_log` after every step, as CLIP does."""

    MAX_LOG = math.log(100)

    def __init__(self, log: float = math.log(1 / 0.07)):
        super().__init__()
        self.max_log = self.MAX_LOG
        self.log = nn.Parameter(torch.tensor([log]))  # one element, not zero-dimensional: DeepSpeed needs an axis

    def forward(self, similarity: Float[Tensor, "text video"]) -> Float[Tensor, "text video"]:
        """Return exp(log) * similarity, in the precision of the similarity."""
        return self.log.to(similarity.dtype).exp() * similarity
