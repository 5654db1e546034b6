"""Scores that use other queries too: dual softmax (DSL) and query-bank normalisation (QB-Norm).

Both lower the scores of hubs, videos that match almost every query, by how well a video answers other queries. Their
figures must not be compared with figures without them:

* DSL uses the other queries of the test set, so an answer depends on what else is asked. A search engine that gets one
  query at a time cannot do this.
* QB-Norm uses a bank of queries that are known beforehand (the captions of the training set); no test query sees
  another. A search engine can do this if it keeps the bank, as galleries do (distill/retrieval/calibration.py).

Rows of every matrix are texts, columns are videos.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from distill.retrieval import calibration


def dual_softmax(logits: Float[Tensor, "text video"], queries: int) -> Float64[Tensor, "text video"]:
    """Return S * softmax of S over the axis of the queries: 0 (texts) where these rank videos, 1 for the reverse.

    As in TS2-Net's evaluation: temperature 1 on logits, with their scale. In double precision: float32 rounds
    probabilities below exp(-103) to 0, and distant videos would tie.
    """
    return logits.double() * logits.double().softmax(queries)


@dataclass(frozen=True)
class Bank:
    """The part of a query bank that QB-Norm needs, for one gallery."""

    log_sum: Float64[Tensor, " video"]  # log of the sum over the bank's queries of exp(beta similarity)
    first: Bool[Tensor, " video"]  # whether the video ranks first for at least one of the bank's queries


def bank_of(parts: Iterable[Float[Tensor, "_ video"]], num_videos: int) -> Bank:
    """Return a bank from the similarity of its queries with the gallery, given in parts of the queries."""
    # Sums of exp(beta s) overflow even doubles, so their logarithms are added.
    log_sum = torch.full((num_videos,), -torch.inf, dtype=torch.float64)
    first = torch.zeros(num_videos, dtype=torch.bool)
    for part in parts:
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(calibration.BETA * part.double(), 0))
        first[part.argmax(1)] = True
    return Bank(log_sum, first)


def query_bank_t2v(similarity: Float[Tensor, "text video"], bank: Bank) -> Float64[Tensor, "text video"]:
    """Return QB-Norm's dynamic inverted softmax (Bogolin et al., CVPR 2022, section 3), for text-to-video ranks only.

    A text whose first video also ranks first for at least one query b of the bank is scored by the inverted softmax

        exp(beta s[text, video]) / sum over b of exp(beta s[b, video]),

    as its logarithm, which ranks the same and cannot overflow; any other text keeps its similarity. The two kinds of
    row have different scales, so scores of one column must not be compared. Of tied first videos the lowest counts.
    """
    applies, exact = bank.first[similarity.argmax(1)].unsqueeze(1), similarity.double()
    return torch.where(applies, calibration.BETA * exact - bank.log_sum, exact)
