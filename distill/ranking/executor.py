"""Scores of pairs of texts and videos from stored features: the one executor of score parts (distill/model/reading.py).

A text that comes alone, as in a search, reads features where they are stored, in C (distill/model/inplace.py);
several texts are scored by matrix products of copied rows, and so is one where that library is missing, or on a GPU.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from distill.model import inplace
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.reading import Reading, ScorePart, Seen, counted_parts, parts_of
from distill.model.similarity import lengths

CALL = 2**21  # numbers of candidates in one call: 8 MiB, which the processor's cache and the allocator can hold

Similarity = Callable[[TextFeatures, VideoFeatures], Float[Tensor, "text video"]]  # a model's
Pairs = Callable[[Int64[Tensor, " query"], Int64[Tensor, " candidate"]], Float[Tensor, "query candidate"]]


@runtime_checkable
class Stored(Protocol):
    """Features of all candidates, of which some are read: `VideoFeatures` themselves, or tokens of a gallery."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return them as they are stored, of all candidates or of some."""

    def __getitem__(self, rows: Tensor) -> VideoFeatures: ...


@runtime_checkable
class InMemory(Stored, Protocol):
    """Stored features that may be read where they lie: float16 or float32, or int8 with `scales(name)` beside them."""

    def scored(self, rows: Tensor, score: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> Tensor:
        """Score rows; `score` gets the stored tensors, and row numbers in them."""


def scales(name: str) -> str:
    """Return the name of the scales of a field that is stored as int8."""
    return f"{name}_scales"


def of_parts(
    model: RetrievalModel, text: TextFeatures, tokens: Callable[[tuple[str, ...]], Stored]
) -> list[tuple[Pairs, int]]:
    """Return the parts of a model's score where texts ask, and for how many of the best each is added, in times k.

    `tokens` gives the stored features of some fields. A score that is no sum of parts is one part.
    """
    parts = model.score_parts()
    if not parts:
        return [(of_texts(model.similarity, text, tokens(model.rerank_fields)), 1)]
    return [(of_part(part, text, tokens(part.fields)), part.of_best) for part in parts]


def of_part(part: ScorePart, text: TextFeatures, video: Stored) -> Pairs:
    """Return one part of a score where texts ask."""
    together = of_texts(part.score, text, video)
    if not reads_in_place(video, part, text):
        return together

    def pairs(texts: Tensor, videos: Tensor) -> Tensor:
        if len(texts) > 1:
            return together(texts, videos)
        number = int(texts)  # a slice is a view, rows named by a tensor are a copy
        return score_in_place(part, text[number : number + 1], video, videos)

    return pairs


def reads_in_place(video: Stored, part: ScorePart, text: TextFeatures) -> TypeGuard[InMemory]:
    """Return whether a text that comes alone reads these features where they are stored: on the CPU, in C."""
    # Asking isinstance(video, InMemory) looks up all that the protocol names, every time: a twentieth of a search.
    there = hasattr(video, "scored") and text.sentence.is_cpu and inplace.built()
    return there and all(reading.k is None for reading in part.readings)


def score_in_place(
    part: ScorePart, text: TextFeatures, video: InMemory, rows: Int64[Tensor, " row"]
) -> Float32[Tensor, "1 row"]:
    """Score one text with some videos, by one part."""
    asking = [(reading, query[0]) for reading, query in zip(part.readings, part.queries(text), strict=True)]

    def score(stored: Mapping[str, Tensor], own: Tensor) -> Tensor:
        return part.combine(*(_read(reading, query, stored, own) for reading, query in asking))[0]

    return video.scored(rows, score).unsqueeze(0)


def _read(reading: Reading, query: Float32[Tensor, " dim"], stored: Mapping[str, Tensor], rows: Tensor) -> Seen:
    """Compare one text with the parts of some videos, where they are stored, as `distill.model.reading.read` does."""
    keys = parts_of(stored, reading.keys, query)
    mask = None if reading.mask is None else stored[reading.mask]
    if reading.values is None:
        of_keys = stored.get(scales(reading.keys))
        of_keys = None if of_keys is None else of_keys.reshape(keys.shape[:2])
        products, cosine = inplace.products(query, keys, rows, unit=reading.unit, scales=of_keys), None
    else:
        values = parts_of(stored, reading.values, query)
        products, along = inplace.pooled(
            query, keys, values, rows, temperature=reading.temperature, counted=mask, unit=reading.unit
        )
        cosine = (along if reading.unit else along / lengths(query)).unsqueeze(0)
    counted = None if mask is None else counted_parts(mask.index_select(0, rows), keys.shape[1])
    return Seen(products.unsqueeze(0), counted, cosine)


def of_texts(similarity: Similarity, text: TextFeatures, video: Stored) -> Pairs:
    """Return the score of pairs where texts ask (text-to-video)."""

    def pairs(texts: Tensor, videos: Tensor) -> Tensor:
        asking = text[texts]
        return torch.cat([similarity(asking, video[part]) for part in videos.split(in_one_call(video))], dim=1)

    return pairs


def of_videos(similarity: Similarity, text: TextFeatures, video: Stored) -> Pairs:
    """Return the score of pairs where videos ask (video-to-text)."""
    size = in_one_call(text)

    def pairs(videos: Tensor, texts: Tensor) -> Tensor:
        asking = video[videos]
        return torch.cat([similarity(text[part], asking) for part in texts.split(size)]).T

    return pairs


def in_one_call(candidates: TextFeatures | Stored) -> int:
    """Return the number of candidates with such features that are scored at once."""
    return max(1, CALL // sum(value[0].numel() for value in candidates.tensors().values()))
