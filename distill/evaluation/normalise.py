"""Scores that know more queries than the one asked: dual softmax (DSL) and query-bank normalisation (QB-Norm).

Both fight hubs, videos that score high for everything, by asking how well a video answers other queries. A number made
this way must not stand beside one that was made without:

* DSL takes the other queries of the test set itself, so the answer to one query changes with the queries that happen to
  be asked beside it. A search engine that gets one query at a time cannot do this.
* QB-Norm takes a bank of queries that are known beforehand (the captions of the training set); no test query sees
  another. A search engine can do this if it keeps the bank, and galleries do (distill/retrieval/calibration.py).

Rows of every matrix are texts, columns are videos.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from distill.retrieval import calibration


def dual_softmax_t2v(logits: Float[Tensor, "text video"]) -> Float64[Tensor, "text video"]:
    """S * softmax of S over the texts: TS2-Net's evaluation, temperature 1 on logits (with the logit scale).

    In double: a single float rounds a probability below exp(-103) to 0, and then distant videos would tie.
    """
    return logits.double() * logits.double().softmax(0)


def dual_softmax_v2t(logits: Float[Tensor, "text video"]) -> Float64[Tensor, "text video"]:
    """The same with the videos as queries: S * softmax of S over the videos."""
    return logits.double() * logits.double().softmax(1)


@dataclass(frozen=True)
class Bank:
    """What QB-Norm keeps of a bank of queries, for one gallery."""

    log_sum: Float64[Tensor, " video"]  # log of the sum over the bank's queries of exp(beta similarity)
    first: Bool[Tensor, " video"]  # whether the video comes first for at least one of them


def bank_of(parts: Iterable[Float[Tensor, "_ video"]], num_videos: int) -> Bank:
    """A bank from the similarity of its queries with the gallery, a part of the queries at a time."""
    log_sum = torch.full((num_videos,), -torch.inf, dtype=torch.float64)
    first = torch.zeros(num_videos, dtype=torch.bool)
    for part in parts:
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(calibration.BETA * part.double(), 0))
        first[part.argmax(1)] = True
    return Bank(log_sum, first)


def query_bank_t2v(similarity: Float[Tensor, "text video"], bank: Bank) -> Float64[Tensor, "text video"]:
    """QB-Norm's dynamic inverted softmax (Bogolin et al., CVPR 2022, section 3), for text-to-video ranks only.

    A text whose own first video comes first for at least one query b of the bank too is scored by the inverted softmax

        exp(beta s[text, video]) / sum over b of exp(beta s[b, video]),

    of which the logarithm is returned, which ranks alike and cannot overflow; any other text keeps its similarity. The
    two kinds of row are on different scales, so columns must not be compared. Of tied first videos the lowest counts.
    """
    return calibration.inverted_softmax(similarity, bank.log_sum, bank.first[similarity.argmax(1)].unsqueeze(1))
