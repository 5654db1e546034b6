"""Replacements of a visual block's attention: one computes the class token's query alone, the other all tokens, after
some of them have been moved between the frames of a video.

Both keep the parameters and their names, so a state dict does not show which one is in use.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from distill.errors import RecipeError

SHIFT_DIVISOR = 7  # one token in (tokens // 7) is taken from the previous frame, and one from the next
FROM_PREVIOUS, FROM_NEXT = 1, 4  # the first token of each kind; the class token (0) never moves


class ClassTokenAttention(nn.Module):
    """The class token's output of a trained `nn.MultiheadAttention`, under the same parameter names.

    With one query, projecting all tokens to keys and values is waste: q (W h) = (q W) h, and the values may be pooled
    before they are projected. The same numbers to rounding, for a tenth of the work. The key bias adds the same to
    every score and so drops out.
    """

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.num_heads = attention.num_heads

    def forward(self, tokens: Float[Tensor, "image token width"]) -> Float[Tensor, "image width"]:
        """Return the attention of the first token to all tokens."""
        per_head = (self.num_heads, -1, tokens.shape[-1])
        w_query, w_key, w_value = self.in_proj_weight.chunk(3)
        b_query, _, b_value = self.in_proj_bias.chunk(3)
        query = F.linear(tokens[:, 0], w_query, b_query).unflatten(-1, (self.num_heads, -1))  # image head channel
        query = torch.einsum("ihc,hcw->ihw", query * query.shape[-1] ** -0.5, w_key.view(per_head))
        weights = torch.einsum("ihw,itw->iht", query, tokens).softmax(-1).to(tokens.dtype)
        pooled = torch.einsum("iht,itw->ihw", weights, tokens)
        values = torch.einsum("ihw,hcw->ihc", pooled, w_value.view(per_head)).flatten(1)
        return self.out_proj(values + b_value)


class TokenAttention(nn.Module):
    """Self-attention of all tokens, after `rearrange` has moved some of them between images (None: none move).

    A block passes the tokens after its first norm and adds the result to the tokens as they were, so only queries, keys
    and values move, never the residual stream.
    """

    def __init__(
        self, attention: nn.MultiheadAttention | ClassTokenAttention, rearrange: Callable[[Tensor], Tensor] | None
    ):
        super().__init__()
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.num_heads = attention.num_heads
        self.rearrange = rearrange

    def forward(
        self, tokens: Float[Tensor, "image token width"], *_: Tensor, **__: object
    ) -> tuple[Float[Tensor, "image token width"], None]:
        """Attend as `nn.MultiheadAttention` does in a block; keys and values are the queries' tokens."""
        if self.rearrange is not None:
            tokens = self.rearrange(tokens)
        projected = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        heads = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # part image head token channel
        query, key, value = heads.unbind()
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(pooled.transpose(1, 2).flatten(2)), None


def shift_tokens(tokens: Float[Tensor, "image token width"], num_frames: int) -> Float[Tensor, "image token width"]:
    """Replace some patch tokens of every frame by the same tokens of its neighbours in time (TS2-Net, token shift).

    Images are the frames of whole videos, one after the other. Every (tokens // 7)-th token from 1 on comes from the
    previous frame and from 4 on from the next one; the first and the last frame keep what has no neighbour. Padded
    frames take part.
    """
    num_tokens = tokens.shape[1]
    stride = num_tokens // SHIFT_DIVISOR
    if not stride:
        raise RecipeError(
            f"model.shift_layers: the towers have {num_tokens} tokens an image, the shift needs {SHIFT_DIVISOR}; "
            f"use towers with smaller patches, or shift_layers=0"
        )
    video = tokens.unflatten(0, (-1, num_frames))  # video frame token width
    shifted = video.clone()
    shifted[:, 1:, FROM_PREVIOUS::stride] = video[:, :-1, FROM_PREVIOUS::stride]
    shifted[:, :-1, FROM_NEXT::stride] = video[:, 1:, FROM_NEXT::stride]
    return shifted.flatten(0, 1)
