"""The recipe's section `losses`."""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.config import Config
from distill.losses import coarse, fine


class ContrastiveConfig(Config):
    """Symmetric InfoNCE on the student's logits (paper: l_IN)."""

    weight: float = Field(default=0.2, ge=0)  # of l_IN


SOFT = 4.0  # of the student's logits where the teacher's have their own (`auto`), as the demo's recipes chose it
Temperature = Annotated[float, Field(gt=0)] | Literal["auto"]


class CoarseConfig(Config):
    """How the student's batch similarities follow the teacher's (paper: l_CgT).

    The paper: Pearson distance of softmaxed rows and columns at temperature 1. `temperature` (the authors' beta)
    divides both sides' logits before the softmax; `cross_entropy` and `l1` are the distances it is compared with.
    With `auto` the student's logits are divided by 4, and the teacher's by the temperature that its label set
    recommends: at that one they are as soft as a trained teacher's at 4, whatever their scale is.
    """

    weight: float = Field(default=1.0, ge=0)  # of l_CgT
    temperature: Temperature = 1.0  # of the softmax of both sides' logits; auto: 4, and the label set's
    distance: coarse.Distance = "pearson"  # between the softmaxed rows and columns
    targets: list[str] = Field(default=[])  # which of the student's logits; none named: all it has

    @model_validator(mode="after")
    def _has_softmax(self) -> "CoarseConfig":
        if self.temperature == "auto" and self.distance == "l1":
            raise ValueError("temperature: auto, but distance: l1 compares logits without a softmax; write a number")
        return self


class FineConfig(Config):
    """How the student's frame weights follow the teacher's frame relevance (paper: l_FgT).

    The paper: cross-entropy at temperature 1, averaged over pairs and frames (`reduction: frame`), so that it fades as
    1/frames; `pair` is the usual cross-entropy, whatever the number of frames. `temperature` divides the teacher's raw
    relevance alone: the published teachers are flat at 1, X-CLIP's own attention uses 0.01. Padded frames take part as
    in the paper, unless the student masks them in its own pooling (`model.afa.mask_padding`). `standardise`
    first brings every pair's relevance to mean 0 and deviation 1, so that one temperature suits teachers of any scale.
    `auto` is the temperature that the label set recommends.
    """

    weight: float = Field(default=2.0, ge=0)  # of l_FgT
    temperature: Temperature = 1.0  # divides the teacher's raw relevance; auto: the one that the label set recommends
    distance: fine.Distance = "cross_entropy"  # between the two distributions over frames
    reduction: fine.Reduction = "frame"  # mean over pairs and frames (paper), or over pairs
    standardise: bool = False  # true: each pair's relevance gets mean 0 and deviation 1 first
    targets: list[str] = Field(default=[])  # which of the student's frame scores; none named: all it has

    @model_validator(mode="after")
    def _one_scale(self) -> "FineConfig":
        if self.temperature == "auto" and self.standardise:
            raise ValueError(
                "temperature: auto is of raw relevance, which standardise: true changes; choose one of them"
            )
        return self


class SentenceConfig(Config):
    """How a student's pseudo-query follows the teacher's sentence of the caption: as it follows the student's own
    (PIG, L_recon). The paper has no teacher."""

    weight: float = Field(default=0.0, ge=0)  # of the mean squared distance of unit vectors


class LossConfig(Config):
    """Weights of the loss; the defaults are TeachCLIP's. All but the first apply to every label set of the recipe."""

    contrastive: ContrastiveConfig = ContrastiveConfig()
    coarse: CoarseConfig = CoarseConfig()
    fine: FineConfig = FineConfig()
    sentence: SentenceConfig = SentenceConfig()


@dataclass(frozen=True, kw_only=True)
class Temperatures:
    """Temperatures that one label set recommends; None where no loss asks for it."""

    fine: float | None = None
    coarse: float | None = None

    def used(self) -> dict[str, float]:
        """Return those that a loss asks for, by its name."""
        return {name: value for name, value in asdict(self).items() if value is not None}
