"""How soft a set's labels are at a temperature: the one to train with, and the one above which they say nothing.

Labels train through a softmax: relevance over a video's real frames (fine), logits over the videos and over the
captions of a batch (coarse). Its entropy over the logarithm of the number of entries is 0 where one entry has all of
it, and 1 where all are equal; it never falls as the temperature grows. The recommended temperature is the one at which
its mean over rows is that of a trained teacher (`FINE`, `COARSE`), so labels of any scale teach alike.

Rows are those of a fixed sample: a caption each of at most 512 videos at equal steps, of at most 16 shards; coarse
batches have up to 128 of these pairs. Temperatures are rounded to three digits, so they do not depend on who seals.
"""

import math
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distill.catalogue import scoring_head
from distill.data.labels import Coarse, LabelSoftness, Softness, StoredLabels
from distill.model.contract import teacher_logits

# Measured on the labels of X-CLIP, trained on the demo's corpus with seed 0: relevance at 0.1 and logits at 4, the
# temperatures that the demo's recipes chose on validation. At the paper's 1 they are 0.97 and 0.03.
FINE, COARSE = 0.54, 0.65
FLAT = 0.99  # mean above which labels are called flat
SHARDS, VIDEOS, BATCH = 16, 512, 128  # of the sample
LOWEST, HIGHEST, HALVINGS = -8.0, 8.0, 60  # decimal logarithms of temperatures, and steps of the search


def entropy(scores: Float[Tensor, "row column"], temperature: float) -> Float[Tensor, " row"]:
    """Return the entropy of softmax(scores / temperature) of every row, relative to the uniform distribution's."""
    shares = (scores.double() / temperature).softmax(-1)
    return torch.special.entr(shares).sum(-1) / math.log(scores.shape[1])


def measured(stored: StoredLabels) -> LabelSoftness:
    """Measure the labels of a set on its sample; a set of captions without videos, or of videos without, has none."""
    if stored.config.sampler is None:
        return LabelSoftness()
    pairs = _sample(stored)
    return LabelSoftness(fine=_fine(stored, pairs), coarse=_coarse(stored, pairs))


def is_flat(softness: Softness | None, temperature: float) -> bool:
    """Return whether labels of that softness tell hardly anything apart at a temperature."""
    return softness is not None and temperature > softness.flat


def _sample(stored: StoredLabels) -> list[tuple[str, int]]:
    """Return the sample's pairs as (key, caption row), the captions in turn."""
    shards: dict[str, list[str]] = {}
    for key in stored.keys:
        shards.setdefault(stored.shards.shard_of(key), []).append(key)
    keys = [key for shard in _steps(list(shards), SHARDS) for key in shards[shard]]
    captions = {key: len(stored.about(key)["captions"]) for key in keys}
    chosen = _steps([key for key, count in captions.items() if count], VIDEOS)
    return [(key, number % captions[key]) for number, key in enumerate(chosen)]


def _steps(items: Sequence[str], most: int) -> list[str]:
    """Return at most so many of the items, at equal steps."""
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _fine(stored: StoredLabels, pairs: Sequence[tuple[str, int]]) -> Softness | None:
    if "relevance" not in stored.tiers:
        return None
    rows = [stored.tensor(key, "relevance", row)[: len(stored.about(key)["timestamps"])] for key, row in pairs]
    return _softness([row.unsqueeze(0) for row in rows if len(row) > 1], FINE)


def _coarse(stored: StoredLabels, pairs: Sequence[tuple[str, int]]) -> Softness | None:
    tier = coarse_tier(stored)
    batches = math.ceil(len(pairs) / BATCH)
    if tier is None or len(pairs) < 2:
        return None
    head = scoring_head(stored)
    logits = [teacher_logits(head, stored.rows(pairs[start::batches], tier)) for start in range(batches)]
    return _softness([side for scores in logits for side in (scores, scores.T)], COARSE)


def coarse_tier(stored: StoredLabels) -> Coarse | None:
    """Return the tier from which a set gives logits, the exact one first; None if it gives none."""
    return next((tier for tier in get_args(Coarse) if tier in stored.tiers), None)


def _softness(tables: Sequence[Tensor], target: float) -> Softness | None:
    """Return the temperatures at which the mean entropy of all rows is the target, and at which they become flat."""
    if not tables:
        return None

    def mean(temperature: float) -> float:
        return float(np.mean(torch.cat([entropy(table, temperature) for table in tables]).numpy()))

    return Softness(recommended=_temperature(mean, target), flat=_temperature(mean, FLAT) or 0.0)


def _temperature(mean: Callable[[float], float], target: float) -> float | None:
    """Return the temperature at which the mean entropy is the target, found by bisection; None if it is never below."""
    low, high = LOWEST, HIGHEST
    if not mean(10**low) <= target:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(10**middle) < target else (low, middle)
    return float(f"{10 ** ((low + high) / 2):.3g}")
