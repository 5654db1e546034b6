"""CLIP-ViP's proxy tokens, through which the frames of a video see one another (Xue et al., ICLR 2023; PIG's tower).

A video is one sequence: M global tokens, which are the class token and learned proxies, then the frames one after the
other, each a frame token and its patches. Global tokens attend to all tokens, those of a frame to the global tokens and
to their own frame. So frames meet in the global tokens alone, for hardly more than the price of single images.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill.model.pooling import LEFT_OUT
from distill.model.similarity import precise

# The global tokens behind the class token, every frame's frame token, and what is added to all tokens of each frame. A
# plain tuple: ZeRO-3 looks for tensors in what modules return, and finds none in objects of our own.
Proxies = tuple[Float[Tensor, "proxy width"], Float[Tensor, " width"], Float[Tensor, "frame width"]]


class ProxyTokens(nn.Module):
    """The proxies of a tower and its table of positions in time.

    They start as the authors' do: proxies from N(0, 1), frame tokens as CLIP's class token, positions in time at zero.
    """

    def __init__(self, count: int, frames: int, class_embedding: Float[Tensor, " width"]):
        super().__init__()
        self.added = nn.Parameter(torch.randn(count, len(class_embedding)))
        self.in_frames = nn.Parameter(class_embedding.detach().clone())
        self.temporal = nn.Parameter(torch.zeros(1, frames, len(class_embedding)))

    def forward(self, num_frames: int) -> Proxies:
        """Return the proxies of videos of so many frames; other numbers than the table's interpolate it linearly.

        They are copies: under ZeRO-3 a parameter is there only while the forward of its own module runs.
        """
        temporal = self.temporal.transpose(1, 2)  # 1 width frame
        if num_frames != temporal.shape[2]:
            temporal = F.interpolate(temporal, size=num_frames, mode="linear", align_corners=False)
        return self.added.clone(), self.in_frames.clone(), temporal[0].T.clone()


def video_tokens(
    patches: Float[Tensor, "video frame patch width"],
    classes: Float[Tensor, " width"],
    positions: Float[Tensor, "place width"],
    proxies: Proxies,
) -> Float[Tensor, "video token width"]:
    """Return the sequences of videos before the tower's first norm, from CLIP's patches, class token and positions.

    The class token and the proxies have the class token's position and none in time.
    """
    added, in_frames, temporal = proxies
    whole = torch.cat([classes.unsqueeze(0), added]) + positions[0]
    first = (in_frames + temporal + positions[0]).expand(patches.shape[0], 1, -1, -1).transpose(1, 2)
    frames = torch.cat([first, patches + temporal.unsqueeze(1) + positions[1:]], dim=2)
    return torch.cat([whole.expand(patches.shape[0], -1, -1), frames.flatten(1, 2)], dim=1)


def left_out(counted: Bool[Tensor, "video frame"], global_tokens: int, per_frame: int) -> Float[Tensor, "video token"]:
    """Return what is added to the global tokens' scores: nothing, but on tokens of frames that do not count."""
    hidden = torch.zeros(counted.shape, device=counted.device).masked_fill(~counted, LEFT_OUT)
    return F.pad(hidden.repeat_interleave(per_frame, dim=1), (global_tokens, 0))


class ProxyAttention(nn.Module):
    """A block's self-attention over such a sequence: two softmaxes over one set of CLIP's own projections.

    Parameters and their names are those of `nn.MultiheadAttention`.
    """

    def __init__(self, attention: nn.MultiheadAttention, global_tokens: int, per_frame: int):
        super().__init__()
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.num_heads = attention.num_heads
        self.global_tokens, self.per_frame = global_tokens, per_frame

    def forward(
        self,
        tokens: Float[Tensor, "video token width"],
        *_: Tensor,
        attn_mask: Float[Tensor, "video token"] | None = None,
        need_weights: bool = True,
    ) -> tuple[Float[Tensor, "video token width"], Float[Tensor, "video head global token"] | None]:
        """Return what every token reads, and if asked for the weights of the global tokens over all tokens.

        `attn_mask` is added to the scores of the global tokens; tokens of a frame never see another frame. The weights
        have no gradient, and are in float32 or better: a choice by them must not stumble over ties of bfloat16.
        """
        projected = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        heads = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # part video head token channel
        query, key, value = heads.unbind()
        asking = query[:, :, : self.global_tokens]
        hidden = None if attn_mask is None else attn_mask[:, None, None].to(query.dtype)
        read = F.scaled_dot_product_attention(asking, key, value, attn_mask=hidden)
        read = torch.cat([read, self._within_frames(query, key, value)], dim=2)
        weights = _weights(asking, key, hidden) if need_weights else None
        return self.out_proj(read.transpose(1, 2).flatten(2)), weights

    def _within_frames(self, query: Tensor, key: Tensor, value: Tensor) -> Float[Tensor, "video head token channel"]:
        """Return what the tokens of frames read: of the global tokens and of their own frame."""
        first = self.global_tokens
        query, *rest = (
            part[:, :, first:].unflatten(2, (-1, self.per_frame)).transpose(1, 2) for part in (query, key, value)
        )
        frames = query.shape[1]  # video frame head token channel
        key, value = (
            torch.cat([part[:, None, :, :first].expand(-1, frames, -1, -1, -1), own], dim=3).flatten(0, 1)
            for part, own in zip((key, value), rest, strict=True)
        )
        read = F.scaled_dot_product_attention(query.flatten(0, 1), key, value)
        return read.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2, 3)


@torch.no_grad()
def _weights(query: Tensor, key: Tensor, hidden: Tensor | None) -> Float[Tensor, "video head query token"]:
    with torch.autocast(query.device.type, enabled=False):
        scores = precise(query) @ precise(key).transpose(-1, -2) * query.shape[-1] ** -0.5
        return (scores if hidden is None else scores + hidden).softmax(-1)
