"""Preprocessing of pictures, as each tower was trained: how they are cut or squashed, mean and standard deviation.

Architectures carry it as open_clip does, under `preprocess_cfg`; where they say nothing, it is OpenAI's.
"""

from typing import Annotated, Any

import torch
from jaxtyping import Float, UInt8
from pydantic import ConfigDict, Field
from torch import Tensor

from distill.config import Config, validate
from distill.data.pictures import Fit, Interpolation, Resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
KEY = "preprocess_cfg"  # of an architecture, and of open_clip's folders

Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0)]


class Preprocessing(Config):
    """A tower's preprocessing, in open_clip's words; what it says beside that does not change pictures."""

    model_config = ConfigDict(extra="ignore")

    mean: Annotated[list[Share], Field(min_length=3, max_length=3)] = Field(default=[*CLIP_MEAN])  # of each colour
    std: Annotated[list[Spread], Field(min_length=3, max_length=3)] = Field(default=[*CLIP_STD])
    interpolation: Interpolation = "bicubic"
    resize_mode: Resize = "shortest"

    def fit(self, size: int) -> Fit:
        """Return how pictures of any shape become `size` x `size` pixels."""
        return Fit(size, self.resize_mode, self.interpolation)

    def normalise(self, frames: UInt8[Tensor, "*image 3 row column"]) -> Float[Tensor, "*image 3 row column"]:
        """Normalise pixels 0..255 in float32, each colour by itself in memory, as weights expect."""
        mean, std = torch.tensor([self.mean, self.std], device=frames.device).view(2, 3, 1, 1)
        return (frames.to(torch.float32, memory_format=torch.contiguous_format) / 255 - mean) / std


OPENAI = Preprocessing()


def read_preprocessing(given: dict[str, Any], *, where: str) -> Preprocessing:
    """Check a `preprocess_cfg` of open_clip; raise `RecipeError`, naming the key, for what cannot be done here."""
    return validate(given, Preprocessing, where=where)


def preprocessing_of(architecture: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing that an architecture carries."""
    return Preprocessing(**architecture.get(KEY, {}))


def image_size(architecture: dict[str, Any]) -> int:
    """Return the pixels of a side that an architecture takes."""
    return architecture["vision_cfg"].get("image_size", 224)  # open_clip's default
