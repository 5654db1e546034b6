"""Attentive frame aggregation: learned frame relevance that pools frames into one vector (TeachCLIP, AFA).

Frames [video, frame, dim] go in; the pooled vector [video, dim] and the raw relevance [video, frame] come out. The
relevance pools at temperature 0.1, and the fine loss reads the same scores at temperature 1.
"""

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from distill.config import Config
from distill.model.similarity import precise, unit

# Relevance of a padded frame under `mask_padding`. Far below any real score, so its softmax weight is exactly 0 in
# float32; finite, so its log-softmax is finite and 0 * log 0 in the fine loss is 0, where -inf would give NaN.
PADDED_RELEVANCE = -1e4


class AfaConfig(Config):
    """Options of the pooling. `mask_padding: false` is the authors' code: padded frames take part in both softmaxes
    (a 3-frame video padded to 12 starts with three quarters of its weight on padding). With true they have no
    weight, and the fine loss leaves them out as well."""

    pool_temperature: float = Field(default=0.1, gt=0)  # of the softmax over relevance that pools frames
    mask_padding: bool = False  # true: padded frames get no weight


class AttentiveFrameAggregation(nn.Module):
    """Learned relevance that weighs frames and pools them into one video vector (TeachCLIP, AFA).

    With `uniform` the last layer starts at zero: all frames that count have the same weight until training says more.
    """

    def __init__(self, dim: int, config: AfaConfig, *, uniform: bool = False):
        super().__init__()
        hidden, last = nn.Linear(dim, dim), nn.Linear(dim, 1)
        self.score = nn.Sequential(hidden, nn.ReLU(), last)
        self.pool_temperature = config.pool_temperature
        self.mask_padding = config.mask_padding
        for layer in (hidden, last):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if uniform:
            nn.init.zeros_(last.weight)

    def forward(
        self, frames: Float[Tensor, "video frame dim"], real: Bool[Tensor, "video frame"]
    ) -> tuple[Float[Tensor, "video dim"], Float[Tensor, "video frame"]]:
        """Return weighted sums of unit frames, not normalised again, and raw relevance, in float32 or better."""
        relevance = precise(self.score(frames).squeeze(-1))
        if self.mask_padding:
            relevance = relevance.masked_fill(~real, PADDED_RELEVANCE)
        weights = (relevance / self.pool_temperature).softmax(-1)
        vector = (weights.unsqueeze(-1) * unit(frames)).sum(1)
        return vector, relevance
