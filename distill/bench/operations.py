"""The multiply-accumulates of a search by formula, for every kind of model, without encoding the query.

Matrix products and weighted sums are counted; softmax, normalisation and sorting are not, for any model. Encoding a
query includes the text tower and GLSCL's decoder, which reads a text's words once.

For ViT-B/32 (512 dim, 12 frames, 32 words, 588 patches, 8 concepts) X-CLIP takes 239.7 k a pair, TS2-Net 6.2 k, EERCF
13.5 k without patches, GLSCL 16.4 k (16.9 k by its published formula, which compares the sum with the text once more).
These are the counts of a call with fewer texts than frames, as in a search; with more texts EERCF and GLSCL compute the
lengths of the sums from the frames' inner products instead, `frames^2 dim` once a video.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from distill.bench.synthetic import Sizes


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Multiply-accumulates of one model: `products` in matrix products, `sums` in weighted sums."""

    project: int = 0  # a query, before its inner products
    inner: int = 0  # a query and a video of the gallery: their inner product
    query: int = 0  # a call that scores in full, for each query in it
    video: int = 0  # a call that scores in full, for each video in it
    products: int = 0  # a pair that is scored in full
    sums: int = 0  # a pair that is scored in full
    later: int = 0  # the part of `products` and `sums` that is computed for the best of the candidates only
    by_pair: int = 0  # a pair by the published formula, where it differs from the computation here

    def exhaustive(self, videos: int) -> int:
        """Count a query that is scored in full with all videos in one call."""
        return self.query + videos * (self.video + self.products + self.sums)

    def published(self) -> int:
        """Count one pair by the published formula, without what many texts share of a video."""
        return self.by_pair or self.products + self.sums or self.inner

    def two_stage(self, videos: int, candidates: int, best: int, calls: int) -> int:
        """Count a query that scores `candidates` of `videos` in so many calls, and `best` of them in all parts."""
        first = self.project + videos * self.inner + calls * self.query
        return first + candidates * (self.pair_alone - self.later) + min(best, candidates) * self.later

    @property
    def pair_alone(self) -> int:
        """The count of a pair in a call with no other text."""
        return self.video + self.products + self.sums


def one_vector(s: Sizes, config: Any) -> Operations:
    """Count CLIP4Clip, TeachCLIP and PIG: a cosine."""
    return Operations(inner=s.dim)


def second_look_operations(s: Sizes) -> Operations:
    """Count a second look (distill/model/second_look.py): the cosine once more, those with the frames, their mean."""
    return Operations(inner=s.dim, products=s.dim + s.frames * s.dim, sums=s.frames)


def ts2net(s: Sizes, config: Any) -> Operations:
    """Count TS2-Net (section 3.3 of the paper): cosines with frames, weighted by their own softmax."""
    return Operations(products=s.frames * s.dim, sums=s.frames)


def xclip(s: Sizes, config: Any) -> Operations:
    """Count X-CLIP (section 3.3 of the paper): cosines of four grains, the learned matrices of its code, weights."""
    w, f, d = s.words, s.frames, s.dim
    mixes = w**2 + f**2 + f * w**2 + w * f**2 + f**2 + w**2
    return Operations(
        query=w * d**2 + d**2, products=d + w * d + f * d + w * f * d + mixes, sums=w + f + 2 * w * f + f + w
    )


def xpool(s: Sizes, config: Any) -> Operations:
    """Count X-Pool (equations 3 to 6 of the paper): scores, pooling, two layers, cosine; keys, values."""
    f, d = s.frames, s.dim
    return Operations(query=d**2, video=2 * f * d**2, products=2 * f * d + 2 * d**2 + d)


def eercf(s: Sizes, config: Any) -> Operations:
    """Count EERCF (section 3 of the paper): cosines, the learned matrix, the gated sum; patches as the config says."""
    f, d = s.frames, s.dim
    patches = f * s.patches if config.patches and config.rerank.weak_patch else 0
    return Operations(
        project=d**2,
        inner=d,
        query=d**2,
        products=d + 2 * f * d + f**2 + d + patches * d,
        sums=f + patches,
        later=patches * (d + 1),
    )


def prompt_switch(s: Sizes, config: Any) -> Operations:
    """Count Prompt Switch: one vector, or candidates by one vector and then a pooling that depends on the sentence.

    That is X-Pool's (transformer), or cosines with the frames and their weighted sum.
    """
    if config.pooling in ("mean", "afa"):
        return one_vector(s, config)
    if config.pooling == "transformer":
        return replace(xpool(s, config), inner=s.dim)
    return Operations(inner=s.dim, products=2 * s.frames * s.dim, sums=s.frames)


def glscl(s: Sizes, config: Any) -> Operations:
    """Count GLSCL's GIM and LIM (section III of the paper), after candidates by the config's `index_by`.

    Products with the frames, their weighted sum, and the concepts.
    """
    f, d, concepts = s.frames, s.dim, s.concepts * s.dim
    return Operations(
        inner=concepts if config.index_by == "concepts" else d,
        products=2 * f * d + concepts,
        sums=f,
        later=concepts,
        by_pair=2 * f * d + d + concepts,
    )


KINDS: dict[str, tuple[str, Callable[[Sizes, Any], Operations]]] = {  # kind of model: its name, and its formula
    "clip4clip": ("CLIP4Clip", one_vector),
    "teachclip": ("TeachCLIP", one_vector),
    "prompt_switch": ("Prompt Switch", prompt_switch),
    "pig": ("PIG", one_vector),
    "eercf": ("EERCF", eercf),
    "glscl": ("GLSCL", glscl),
    "xclip": ("X-CLIP", xclip),
    "ts2net": ("TS2-Net", ts2net),
    "xpool": ("X-Pool", xpool),
}
