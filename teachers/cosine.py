"""The cosine of two vectors, as models that were not trained here score: the head of their label sets.

It has no parameters and no logit scale, so its logits are similarities between -1 and 1. A softmax of them at
temperature 1 is nearly uniform: docs/labels.md says which temperature to use.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from distill.model.contract import Interaction
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import cosine


class CosineInteraction(Interaction):
    """Cosines of sentence and video vector, and of sentence and frames; nothing in it is learned."""

    video_fields = ("vector", "frames", "real")

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, to build this module again."""
        return {}

    def forward(self, text: TextFeatures, video: VideoFeatures, scaled: bool = True) -> Float[Tensor, "text video"]:
        """Return the cosine of every sentence with every video, `scaled` or not: there is no logit scale."""
        return cosine(text.sentence, video.vector)

    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """Return the cosine of sentence i with every frame of video i; padded frames get the lowest of its real ones,
        because there is nothing to see on them."""
        assert video.real is not None, "padded frames have no vectors"
        cosines = super().relevance(text, video)
        lowest = cosines.masked_fill(~video.real, torch.inf).amin(-1, keepdim=True)
        return torch.where(video.real, cosines, lowest)
