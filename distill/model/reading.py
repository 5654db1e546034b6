"""Readings: how a text reads the stored parts of a video, said as data, so that each score is written once.

The scores of second stages are functions of what one vector of a text finds in a video: its inner products with the
video's parts (frames, patches, concepts), and its cosine with the parts pooled for it. A `Reading` names that vector
and those parts, a `ScorePart` says what is made of them. `ScorePart.score` reads in PyTorch, for any number of texts;
a search reads for one text where the parts are stored (distill/ranking/executor.py). Both give the same numbers up to
rounding.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.model.features import TextFeatures, VideoFeatures
from distill.model.pooling import attend, best, pooled_cosine
from distill.model.similarity import inner, lengths, precise, unit

MAX_CELLS = 2**24  # numbers of parts held at once, or their inner products: 64 MiB in float32, and a few copies


def unit_sentence(text: TextFeatures) -> Float[Tensor, "text dim"]:
    """Return the sentences as unit vectors."""
    return unit(text.sentence)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A vector q of every text, and the parts of videos that it reads: keys k_i and, where they are pooled, values v_i.

    The pooled vector is the sum of w_i v_i, where w is the softmax of <q, k> / temperature or, with `k`, 1 for the `k`
    parts of the largest <q, k> and 0 for the others. A field is cut into parts of the size of q.
    """

    query: Callable[[TextFeatures], Float[Tensor, "text dim"]] = unit_sentence
    keys: str  # a field of `VideoFeatures`
    values: str | None = None  # the field that is pooled; None: nothing is
    temperature: float = 1.0
    k: int | None = None
    mask: str | None = None  # the field that is False on padding, which is not pooled then; None: padding counts too
    unit: bool = True  # keys and values are made unit vectors; one that pools has a unit query then


@dataclass(frozen=True)
class Seen:
    """Result of a reading."""

    products: Float[Tensor, "text video part"]  # <q, k_i>
    counted: Bool[Tensor, "video part"] | None  # False on padding; None: padding counts too
    cosine: Float[Tensor, "text video"] | None  # of q and the pooled vector, if there is one

    def pooled(self) -> Float[Tensor, "text video"]:
        """Return the cosine of a reading that pools."""
        assert self.cosine is not None, "this reading has no values"
        return self.cosine

    def whole(self) -> Float[Tensor, "text video"]:
        """Return the inner product of a reading that has one key a video."""
        return self.products.squeeze(-1)


@dataclass(frozen=True)
class ScorePart:
    """A summand of a model's `similarity`. Searches add the later ones for the best candidates alone."""

    readings: tuple[Reading, ...]
    combine: Callable[..., Float[Tensor, "text video"]]  # of one `Seen` for each reading
    of_best: int = 1  # it is added for the best so far, so many times as many as are asked for; the first for all

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of `VideoFeatures` that its readings name, beyond `vector`."""
        named = [name for reading in self.readings for name in (reading.keys, reading.values, reading.mask)]
        return tuple(dict.fromkeys(name for name in named if name is not None and name != "vector"))

    def queries(self, text: TextFeatures) -> list[Float[Tensor, "text dim"]]:
        """Return the vectors that read, one tensor for each reading."""
        return [precise(reading.query(text)) for reading in self.readings]

    def score(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Score every text with every video, in float32 or better, a few videos at a time."""
        with torch.autocast(text.sentence.device.type, enabled=False):
            asking = list(zip(self.readings, self.queries(text), strict=True))
            counts = [math.prod(video.tensors()[r.keys].shape[1:]) // q.shape[1] * max(q.shape) for r, q in asking]
            size = max(1, MAX_CELLS // max(counts))
            few = [video] if len(video) <= size else [video[n : n + size] for n in range(0, len(video), size)]
            return torch.cat([self.combine(*(read(r, q, some) for r, q in asking)) for some in few], dim=1)


def read(reading: Reading, query: Float[Tensor, "text dim"], video: VideoFeatures) -> Seen:
    """Compare the texts' vectors with the parts of every video, in PyTorch."""
    fields = video.tensors()
    keys = precise(parts_of(fields, reading.keys, query))
    products = inner(query, keys)
    if reading.unit:
        products = products / lengths(keys)
    counted = None if reading.mask is None else counted_parts(fields[reading.mask], keys.shape[1])
    if reading.values is None:
        return Seen(products, counted, None)
    if reading.k is not None:
        weights = best(products, counted, reading.k)
    else:
        weights = attend(products, counted, reading.temperature)
    if reading.values == reading.keys:
        values, along = keys, (weights * products).sum(-1)
    else:
        values, along = precise(parts_of(fields, reading.values, query)), None
    if reading.unit:
        weights = weights / lengths(values)
    return Seen(products, counted, pooled_cosine(query, values, weights, along))


def parts_of(fields: Mapping[str, Tensor], name: str, query: Float[Tensor, "*text dim"]) -> Tensor:
    """Cut a field of some videos into parts of the size of the query, [video, part, dim]."""
    return fields[name].reshape(len(fields[name]), -1, query.shape[-1])


def counted_parts(mask: Bool[Tensor, "video frame"], num_parts: int) -> Bool[Tensor, "video part"]:
    """Repeat the mask of frames for the parts (patches) of each frame."""
    parts_a_frame = num_parts // mask.shape[1]
    return mask if parts_a_frame == 1 else mask.repeat_interleave(parts_a_frame, dim=1)
