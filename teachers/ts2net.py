"""TS2-Net (Liu et al., ECCV 2022): tokens that move between frames, and the few of each frame that are worth keeping.

Frames [video, frame, 3, row, column] or stem tokens and token ids [text, word] go in. In the last visual blocks some
patch tokens come from the neighbouring frames (token shift); of every frame the class token and the three best patches
go through the temporal transformer (token selection); what comes out at the class tokens is compared with the sentence,
frame by frame, and frames count by a softmax of that very cosine.

    here              the authors' checkpoint, below visual_token_selector.score_predictor
    selector.norm     in_conv.0
    selector.hidden   in_conv.1
    selector.joint    out_conv.0
    selector.score    out_conv.2

Keys `attn.net.*` in the authors' last two visual blocks say that the model was trained with the token shift.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from distill.errors import RecipeError
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import Interaction, RetrievalConfig, Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.logit_scale import LogitScale
from distill.model.selection import Noise, TokenSelector
from distill.model.similarity import mean_pool, unit
from distill.model.temporal import TemporalConfig, TemporalTransformer
from distill.model.towers import Towers
from distill.model.wiring import Wiring

SHARPNESS = 4.0  # of the softmax that weighs frames
LEFT_OUT = -1e18  # the weight, before that softmax, of a frame that does not count


class Ts2NetConfig(RetrievalConfig):
    """The towers, the shifted layers and the kept tokens.

    `mask: tiled` is the authors' code: the padding mask of the frames is repeated as a whole along the kept
    tokens, which stand frame by frame, so that in a video shorter than `frames` wrong tokens are masked;
    `interleaved` is the correction. `noise` is that of the selection outside training: the authors draw noise there
    too; "seeded" always takes the same, "zero" none.
    """

    kind: Literal["ts2net"]
    temporal: TemporalConfig = TemporalConfig()
    frames: int = Field(ge=1)  # of every video, padding included: the shift must know where a video ends
    shift_layers: int = Field(default=2, ge=0)  # the last so many visual blocks shift tokens; 0: none does
    selected: int = Field(default=3, ge=1)  # patch tokens kept of every frame
    noise: Noise = "seeded"  # in the token selection outside training
    mask: Literal["tiled", "interleaved"] = "tiled"  # of padded frames: as the authors' code, or the correction

    def fixed_sizes(self) -> dict[str, int]:
        """Return the number of frames that the shift was built for."""
        return {"frames": self.frames}


class Ts2NetInteraction(Interaction):
    """TS2-Net's score of stored frame features: no parameters but the logit scale."""

    video_fields = ("vector", "frames", "real")

    def __init__(self):
        super().__init__()
        self.logit_scale = LogitScale()

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, to build this module again."""
        return {}

    def forward(self, text: TextFeatures, video: VideoFeatures, scaled: bool = True) -> Float[Tensor, "text video"]:
        """Return logits, or with `scaled=False` the similarity before the logit scale; in float32 or better."""
        assert video.frames is not None and video.real is not None, "TS2-Net scores the frames that count"
        with torch.autocast(text.sentence.device.type, enabled=False):
            cosines = torch.einsum("td,vfd->tvf", unit(text.sentence), unit(video.frames))
            weights = F.normalize(cosines * video.real, dim=-1).masked_fill(~video.real, LEFT_OUT)
            similarity = ((SHARPNESS * weights).softmax(-1) * cosines).sum(-1)
        return self.logit_scale(similarity) if scaled else similarity


class Ts2Net(Teacher):
    """The heavy towers with shift and selection, and the interaction that scores their features.

    The logit scale is CLIP's, moved into the interaction (`clip` has none afterwards).
    """

    def __init__(self, config: Ts2NetConfig, towers: Towers):
        super().__init__()
        wiring = Wiring(all_tokens=True, frames=config.frames, shift_layers=config.shift_layers)
        self.clip = clip = ClipModel(towers, wiring)
        num_patches = clip.plain[0].positional_embedding.shape[0] - 1
        if config.selected > num_patches:
            raise RecipeError(f"model.selected: {config.selected} tokens, but a frame has {num_patches} patches")
        self.selector = TokenSelector(clip.dim, num_patches, config.selected, config.noise)
        self.temporal = TemporalTransformer.for_clip(clip, config.temporal)
        self.interaction = Ts2NetInteraction()
        self.interaction.logit_scale = clip.take_logit_scale()
        self.frames, self.per_frame, self.mask = config.frames, 1 + config.selected, config.mask
        if config.frames * self.per_frame > config.temporal.positions:
            raise RecipeError(
                f"model.temporal.positions: {config.temporal.positions}, but {config.frames} frames of "
                f"{self.per_frame} tokens need {config.frames * self.per_frame}; raise it (with init: normal), or use "
                f"fewer frames"
            )

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return the frames' class tokens after the temporal transformer; `real` says which of them count."""
        if real.shape[1] != self.frames:
            raise RecipeError(
                f"TS2-Net was built for {self.frames} frames, but the videos have {real.shape[1]}; encode with the "
                f"sizes of the teacher"
            )
        kept = self.selector(self.clip.encode_frames(frames, real).flatten(0, 1))
        tokens = kept.unflatten(0, real.shape).flatten(1, 2)  # video (frame kept) dim
        tiled = self.mask == "tiled"
        counted = real.repeat(1, self.per_frame) if tiled else real.repeat_interleave(self.per_frame, dim=1)
        contextual = self.temporal(tokens, counted)[:, :: self.per_frame]
        counted = counted[:, :: self.per_frame]
        return VideoFeatures(vector=mean_pool(contextual, counted), frames=contextual, real=counted)
