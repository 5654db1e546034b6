"""The temporal transformer over frame features (CLIP4Clip's seqTransf head; X-CLIP and TeachCLIP use the same).

Frames [video, frame, dim] go in, frames that have seen one another come out, same shape. Three details decide whether
the authors' numbers come back: LayerNorm in the TensorFlow style (epsilon 1e-12 inside the root, not CLIP's 1e-5),
padding that is pushed away by an additive -1e6 on keys only (padded queries still produce values), and a second
residual around the whole transformer that leaves the positions out.
"""

from collections import OrderedDict
from typing import Literal

import torch
from jaxtyping import Bool, Float
from open_clip.transformer import QuickGELU
from pydantic import Field
from torch import Tensor, nn

from distill.config import Config
from distill.errors import RecipeError
from distill.model.adapter import AnyTextTower
from distill.model.clip import ClipModel, TextTower

LAYER_NORM_EPS = 1e-12
PADDED_KEY = -1e6  # added to the attention score of a padded frame


class TemporalConfig(Config):
    """Size of the temporal transformer and where its first weights come from."""

    layers: int = Field(default=4, ge=1)  # transformer blocks
    heads: int | None = Field(default=None, ge=1)  # None: one head per 64 dimensions, at least one
    positions: int = Field(default=77, ge=1)  # longest video in frames
    init: Literal["clip_text", "normal"] = "clip_text"  # the first blocks of CLIP's text tower, or N(0, 0.02)

    def heads_for(self, dim: int) -> int:
        """Return the number of attention heads for features of size `dim`."""
        heads = self.heads or max(1, dim // 64)
        if dim % heads:
            raise RecipeError(f"temporal.heads: {heads} heads do not divide features of size {dim}")
        return heads


class TemporalBlock(nn.Module):
    """Pre-norm attention and MLP, each with its residual."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        c_fc, c_proj = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module](c_fc=c_fc, gelu=QuickGELU(), c_proj=c_proj))

    def forward(
        self, frames: Float[Tensor, "video frame dim"], padding: Float[Tensor, "video frame"]
    ) -> Float[Tensor, "video frame dim"]:
        """Apply the block; `padding` is added to scores of keys: 0 on real frames, -1e6 on padded ones."""
        normed = self.ln_1(frames)
        padding = padding.to(normed.dtype)
        frames = frames + self.attn(normed, normed, normed, key_padding_mask=padding, need_weights=False)[0]
        return frames + self.mlp(self.ln_2(frames))


class TemporalTransformer(nn.Module):
    """Transformer in which the frames of a video see one another (CLIP4Clip, seqTransf)."""

    def __init__(self, dim: int, config: TemporalConfig):
        super().__init__()
        self.pos_embed = nn.Embedding(config.positions, dim)
        self.num_heads = config.heads_for(dim)
        self.blocks = nn.ModuleList(TemporalBlock(dim, self.num_heads) for _ in range(config.layers))
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @classmethod
    def for_clip(cls, clip: ClipModel, config: TemporalConfig) -> "TemporalTransformer":
        """Build one for the features of some towers, with the first weights that the config names."""
        temporal = cls(clip.dim, config)
        if config.init == "clip_text":
            temporal.init_from_text(clip.text)
        return temporal

    def init_from_text(self, text: TextTower | AnyTextTower) -> None:
        """Copy the first positions and blocks of CLIP's text tower; raise `RecipeError` for one that does not fit."""
        if not isinstance(text, TextTower):
            raise RecipeError("temporal.init: clip_text needs a plain text tower; use temporal.init: normal")
        positions, dim = self.pos_embed.weight.shape
        own = {"width": dim, "heads": self.num_heads, "layers": len(self.blocks), "positions": positions}
        found = {"width": text.width, "heads": text.heads, "layers": text.layers, "positions": text.context}
        same = all(own[key] == found[key] for key in ("width", "heads"))
        if not same or own["layers"] > found["layers"] or own["positions"] > found["positions"]:
            raise RecipeError(
                f"temporal.init: clip_text cannot fill a temporal transformer of {_named(own)} from a text tower of "
                f"{_named(found)} (width and heads must agree, layers and positions may be fewer); "
                "change temporal.heads, layers or positions, or use temporal.init: normal"
            )
        with torch.no_grad():
            self.pos_embed.weight.copy_(text.positional_embedding[:positions])
        for block, source in zip(self.blocks, text.transformer.resblocks, strict=False):
            block.load_state_dict(source.state_dict())

    def forward(
        self, frames: Float[Tensor, "video frame dim"], real: Bool[Tensor, "video frame"]
    ) -> Float[Tensor, "video frame dim"]:
        """Return T(frames + positions) + frames, T being the blocks."""
        num_frames = frames.shape[1]
        if num_frames > self.pos_embed.num_embeddings:
            limit = self.pos_embed.num_embeddings
            raise RecipeError(f"temporal.positions: {limit} are too few for videos of {num_frames} frames")
        contextual = frames + self.pos_embed(torch.arange(num_frames, device=frames.device))
        padding = (~real).to(frames.dtype) * PADDED_KEY
        for block in self.blocks:
            contextual = block(contextual, padding)
        return contextual + frames


def _named(sizes: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())
