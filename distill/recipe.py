"""The recipe tree: everything one run needs, checked before anything is loaded or launched."""

from pydantic import Field, model_validator

from distill.catalogue import ModelConfig
from distill.config import Config
from distill.data.loader import DataConfig
from distill.training.loop import TrainConfig
from distill.training.objective import LossConfig
from distill.training.optim import OptimConfig
from students.clip4clip import Clip4ClipConfig
from teachers.xclip import XClipConfig


class Recipe(Config):
    """One run: a model (student or teacher), its frames, its labels, its losses, how it is optimised."""

    name: str
    out: str = "runs"  # the run goes to OUT/NAME
    seed: int = 0
    model: ModelConfig
    data: DataConfig
    labels: list[str] = Field(default=[])  # label sets; without any, only the contrastive loss remains
    losses: LossConfig = LossConfig()
    optim: OptimConfig
    train: TrainConfig

    @model_validator(mode="after")
    def _combination(self) -> "Recipe":
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name: {self.name!r} cannot be a folder name under {self.out}")
        if isinstance(self.model, XClipConfig):
            for key, found, section, expected in (
                ("words", self.model.words, "max_words", self.data.max_words),
                ("frames", self.model.frames, "num_frames", self.data.num_frames),
            ):
                if found != expected:
                    raise ValueError(
                        f"model.{key}: {found}, but data.{section} is {expected}; X-CLIP's matrices have that size, "
                        f"so both must be equal"
                    )
        if self.labels and self.losses.fine.weight and isinstance(self.model, Clip4ClipConfig | XClipConfig):
            raise ValueError(
                f"losses.fine: {self.model.kind} has no frame scores to teach; set losses.fine.weight=0, or labels=[]"
            )
        return self
