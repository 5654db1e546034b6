"""The recipe tree: everything one run needs, checked before anything is loaded or launched."""

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from distill.catalogue import ModelConfig
from distill.config import Config
from distill.data.loader import DataConfig
from distill.training.loop import TrainConfig
from distill.training.objective import LossConfig
from distill.training.optim import OptimConfig
from students.teachclip import TeachClipConfig
from teachers.ts2net import Ts2NetConfig
from teachers.xclip import XClipConfig


class LabelConfig(Config):
    """A label set, and the weight of its losses beside those of the recipe's other label sets (their mean is taken)."""

    path: str
    weight: float = Field(default=1.0, gt=0)


# A bare path is a label set of weight 1: `labels: [a, b]` is `labels: [{path: a}, {path: b}]`.
Label = Annotated[LabelConfig, BeforeValidator(lambda given: {"path": given} if isinstance(given, str) else given)]


class Recipe(Config):
    """One run: a model (student or teacher), its frames, its labels, its losses, how it is optimised."""

    name: str
    out: str = "runs"  # the run goes to OUT/NAME
    seed: int = 0
    model: ModelConfig
    data: DataConfig
    labels: list[Label] = Field(default=[])  # without any, only the contrastive loss remains
    losses: LossConfig = LossConfig()
    optim: OptimConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _combination(self) -> "Recipe":
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name: {self.name!r} cannot be a folder name under {self.out}")
        self._check_sizes()
        if self.labels and self.losses.fine.weight and not isinstance(self.model, TeachClipConfig):
            raise ValueError(
                f"losses.fine: {self.model.kind} has no frame scores to teach; set losses.fine.weight=0, or labels=[]"
            )
        return self

    def _check_sizes(self) -> None:
        """Models whose weights or wiring have a fixed size must be fed with that size."""
        sizes = []
        if isinstance(self.model, XClipConfig):
            sizes.append(("words", self.model.words, "max_words", self.data.max_words))
        if isinstance(self.model, XClipConfig | Ts2NetConfig):
            sizes.append(("frames", self.model.frames, "num_frames", self.data.num_frames))
        for key, found, section, expected in sizes:
            if found != expected:
                raise ValueError(
                    f"model.{key}: {found}, but data.{section} is {expected}; {self.model.kind} is built for that "
                    f"size, so both must be equal"
                )
