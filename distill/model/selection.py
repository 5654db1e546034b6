"""Token selection: a frame's class token and the few patch tokens that say most (TS2-Net, sections 3.2, 3.3).

Tokens [image, token, dim] go in, token 0 being the class token; [image, 1 + kept, dim] come out. Which patches are kept
is learned through a perturbed top-k: the mean over noisy copies of the scores of the one-hot choice, whose gradient is
an expectation over the same noise (Berthet et al., NeurIPS 2020).

One table of noise serves all images of a call. The authors draw one for every image, in evaluation too; the mean and
its gradient have the same expectation, while here the choice depends neither on what else is in a batch nor on which
process sees it.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from distill.model.similarity import precise

SAMPLES, SIGMA = 500, 0.05  # noisy copies, and the standard deviation of the noise
Noise = Literal["seeded", "zero"]


class _PerturbedTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, noise: Tensor, kept: int, sigma: float) -> Tensor:
        picked = (scores.unsqueeze(1) + sigma * noise).topk(kept, dim=-1).indices.sort(-1).values  # row sample kept
        share = torch.full_like(picked, 1 / noise.shape[1], dtype=scores.dtype)
        slope = noise.expand(len(scores), -1, -1).gather(-1, picked) * share / sigma
        empty = scores.new_zeros(len(scores), kept, scores.shape[-1])
        places = picked.transpose(1, 2)
        ctx.save_for_backward(empty.scatter_add(-1, places, slope.transpose(1, 2)))
        return empty.scatter_add(-1, places, share.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (gradients[0] * slope).sum(1), None, None, None


def perturbed_topk(
    scores: Float[Tensor, "row token"], noise: Float[Tensor, "#row sample token"], kept: int, sigma: float = SIGMA
) -> Float[Tensor, "row kept token"]:
    """Return how often each token is the first, second, ... (in token order) of the `kept` best under noise.

    Rows sum to 1. The gradient is the authors': the diagonal of the Jacobian E[one_hot * noise] / sigma, in which the
    choice of a token depends on its own score alone.
    """
    indicators = _PerturbedTopK.apply(scores, noise, kept, sigma)
    assert isinstance(indicators, Tensor)
    return indicators


def topk_indices(scores: Float[Tensor, "row token"], kept: int) -> Int[Tensor, "row kept"]:
    """Return the `kept` best of every row in token order: the perturbed top-k without noise."""
    return scores.topk(kept, dim=-1).indices.sort(-1).values


class TokenSelector(nn.Module):
    """Scores every token beside its frame's class token, and keeps the best patches."""

    noise: Tensor

    def __init__(self, dim: int, num_patches: int, kept: int, evaluate_with: Noise):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.hidden = nn.Linear(dim, dim // 2, bias=False)
        self.joint = nn.Linear(2 * (dim // 2), dim // 2, bias=False)
        self.score = nn.Linear(dim // 2, 1, bias=False)
        self.kept, self.evaluate_with = kept, evaluate_with
        for layer in (self.hidden, self.joint, self.score):
            nn.init.normal_(layer.weight, std=0.02)
        fixed = torch.randn(1, SAMPLES, num_patches, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", fixed, persistent=False)

    def scores(self, tokens: Float[Tensor, "image token dim"]) -> Float[Tensor, "image token"]:
        """Score every token in (-1, 1), the class token included."""
        hidden = F.gelu(self.hidden(self.norm(tokens)))
        joint = torch.cat([hidden, hidden[:, :1].expand_as(hidden)], dim=-1)
        return self.score(F.gelu(self.joint(joint))).squeeze(-1).tanh()

    def forward(self, tokens: Float[Tensor, "image token dim"]) -> Float[Tensor, "image kept dim"]:
        """Return the class token, then the chosen patches in their order.

        In training the noise is drawn anew at every call. In evaluation it is one fixed table ("seeded"), or there is
        none and the best patches are taken as they are ("zero").
        """
        patches = tokens[:, 1:]
        scores = precise(self.scores(tokens)[:, 1:])
        if not self.training and self.evaluate_with == "zero":
            places = topk_indices(scores, self.kept).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
            chosen = patches.gather(1, places)
        else:
            noise = torch.randn_like(self.noise) if self.training else self.noise
            chosen = perturbed_topk(scores, noise.to(scores.dtype), self.kept).to(patches.dtype) @ patches
        return torch.cat([tokens[:, :1], chosen], dim=1)
