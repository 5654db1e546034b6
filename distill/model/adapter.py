"""Towers of open_clip that are not plain transformers, behind the same calls as `clip.VisionTower` and `TextTower`.

MobileCLIP, SigLIP, PE-Core, EVA02, ConvNeXt, ViTamin, ResNets and the rest: a picture becomes its feature, a caption
those of its sentence and words, through the few public calls of open_clip that all of them share. They have no stem, no
patch tokens in the joint space and no room for prompts. Decisions:

* They stay in evaluation mode. That changes two things only: BatchNorm keeps its statistics, which would depend on how
  a batch is divided among processes, and nothing is dropped at random, which no resumed run could repeat.
* Captions are padded to the whole context, as these towers were trained: attention of many goes both ways.
"""

import warnings
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill.data.jsontokens import Spelling
from distill.errors import RecipeError
from distill.model.preprocessing import Preprocessing


class AnyVisionTower(nn.Module):
    """Images to their features, by any of open_clip's vision towers."""

    stem_layers: int | None = None

    def __init__(self, tower: nn.Module, preprocessing: Preprocessing, unlocked: int | None):
        super().__init__()
        self.tower, self.preprocessing = tower, preprocessing
        if unlocked is not None:
            _lock(tower, unlocked, where="clip.unlocked_vision")
        self.eval()  # from the start, not only after somebody's call of `train`

    def train(self, mode: bool = True) -> "AnyVisionTower":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, frames: Tensor, stem_only: bool = False) -> Float[Tensor, "image dim"]:
        """Return features of images: uint8, or float and normalised."""
        assert not stem_only, "no part of this tower is a stem"
        pixels = self.preprocessing.normalise(frames) if frames.dtype == torch.uint8 else frames
        return self.tower(pixels.to(next(self.tower.parameters()).dtype))


class AnyTextTower(nn.Module):
    """Token ids to the features of the sentence and of every word, by any of open_clip's text transformers."""

    def __init__(self, tower: nn.Module, spelling: Spelling | None, unlocked: int | None):
        super().__init__()
        self.tower, self.spelling = tower, spelling  # None: CLIP's tokens
        self.context, self.width, self.heads = (_size(tower, name) for name in ("context_length", "width", "heads"))
        self.layers = len(tower.get_submodule("transformer.resblocks"))  # pyrefly: ignore
        # Called, so that everything that gathers parameters around `forward` does so here too.
        tower.forward = partial(_sentence_and_words, tower)
        if unlocked is not None:
            _lock(tower, unlocked, where="clip.unlocked_text")
        self.eval()

    def train(self, mode: bool = True) -> "AnyTextTower":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(
        self, ids: Int[Tensor, "text word"]
    ) -> tuple[Float[Tensor, "text dim"], Float[Tensor, "text word dim"]]:
        """Return the feature of the sentence and those at every position that `ids` has."""
        num_words = ids.shape[1]
        if num_words > self.context:
            raise RecipeError(f"captions of {num_words} tokens do not fit a text tower of {self.context}")
        pad = 0 if self.spelling is None else self.spelling.pad
        whole = nn.functional.pad(ids, (0, self.context - num_words), value=pad)
        sentence, words = self.tower(whole)
        return sentence, words[:, :num_words]

    def real_words(self, ids: Int[Tensor, "text word"]) -> Bool[Tensor, "text word"]:
        """Mark the positions of tokens: all up to the first end token; without one, all that are not padding."""
        if self.spelling is None:
            return real_words(ids)
        if self.spelling.end is None:
            return ids != self.spelling.pad
        ends = (ids == self.spelling.end).long()
        return ends.cumsum(-1) - ends == 0


def real_words(ids: Int[Tensor, "text word"]) -> Bool[Tensor, "text word"]:
    """Mark the positions of CLIP's tokens: all up to the end token, which has the largest id; start and end count."""
    return torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(-1, keepdim=True)


def _sentence_and_words(tower: Any, ids: Int[Tensor, "text word"]) -> tuple[Tensor, Tensor]:
    found = tower.forward_intermediates(ids, indices=1, normalize_intermediates=True, output_fmt="NLC")
    words, projection = found["text_intermediates"][-1], tower.text_projection
    if isinstance(projection, nn.Linear):
        words = projection(words)
    elif projection is not None:
        words = words @ projection
    return found["text_features"], words


def _lock(tower: Any, unlocked: int, *, where: str) -> None:
    """Leave only the last groups of layers trainable, as open_clip counts them; 0: at most the last projection."""
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # open_clip imports a module that moved
            tower.lock(unlocked)
    except (AssertionError, AttributeError, KeyError) as error:
        raise RecipeError(
            f"{where}: {unlocked}: this tower cannot be frozen in part ({error}); use 0 or null"
        ) from None


def _size(tower: nn.Module, name: str) -> int:
    value = getattr(tower, name)
    assert isinstance(value, int), "open_clip's text transformers say their sizes"
    return value
