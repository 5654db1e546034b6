"""Features that the towers return: the only things that travel between encoding, gathering, similarity and storage.

Axes: text (captions or queries), video, word, frame, patch, concept, dim. `real` is True where a frame exists, False
on padding.
"""

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

F = TypeVar("F", bound="Features")


class Features:
    """Named tensors that share their first axis; absent ones are None."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are there, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in named.items() if value is not None}

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def __getitem__(self: F, rows: slice | Tensor) -> F:
        return type(self)(**{name: value[rows] for name, value in self.tensors().items()})

    def to(self: F, device: torch.device | str) -> F:
        """Copy the features to another device."""
        return type(self)(**{name: value.to(device) for name, value in self.tensors().items()})

    @classmethod
    def cat(cls: type[F], parts: list[F]) -> F:
        """Join batches along their first axis."""
        tables = [part.tensors() for part in parts]
        return cls(**{name: torch.cat([table[name] for table in tables]) for name in tables[0]})


@dataclass(frozen=True, kw_only=True)
class TextFeatures(Features):
    """Captions or queries after the text tower, not normalised."""

    sentence: Float[Tensor, "text dim"]  # at the end-of-text token
    words: Float[Tensor, "text word dim"] | None = None  # every position, start, end and padding included
    concepts: Float[Tensor, "text concept dim"] | None = None  # read from the words by learned queries
    real: Bool[Tensor, "text word"] | None = None  # True from the start token to the end token, False on padding


@dataclass(frozen=True, kw_only=True)
class VideoFeatures(Features):
    """Videos after the video tower; galleries search by `vector` unless a model says otherwise."""

    vector: Float[Tensor, "video dim"]
    frames: Float[Tensor, "video frame dim"] | None = None  # per frame, not normalised
    contextual: Float[Tensor, "video frame dim"] | None = None  # frames that have seen one another, not normalised
    patches: Float[Tensor, "video frame patch dim"] | None = None  # projected patch tokens, not normalised
    concepts: Float[Tensor, "video concept dim"] | None = None  # read from the frames by learned queries
    reading: Float[Tensor, "video concept frame"] | None = None  # how much of each frame each concept read
    pseudo_query: Float[Tensor, "video dim"] | None = None  # a sentence that the video might be asked for by
    relevance: Float[Tensor, "video frame"] | None = None  # the model's own frame scores, before any softmax
    real: Bool[Tensor, "video frame"] | None = None


@dataclass(frozen=True, kw_only=True)
class PairFeatures(Features):
    """Results of an auxiliary captioner on matched pairs of caption and video."""

    caption_loss: Float[Tensor, " pair"]  # weighted sum of the negative log likelihood of its words
    caption_weight: Float[Tensor, " pair"]  # sum of the weights
    attention: Float[Tensor, "pair frame"]  # how much of each frame the words read
