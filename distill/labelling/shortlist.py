"""Shortlists: for every caption its matched video, the K best other videos of the frame set, and the mass of the rest.

From these few numbers per caption the text x video logits of any batch are rebuilt, without features or scoring head.
Per caption, with videos by their number in the frame set:

    shortlist         int32 [1 + K]   the matched video, then the best others; equal logits: the lower number first
    shortlist_scores  [1 + K]         their logits less `shortlist_best`: near 0 where the softmax has its mass, so that
                                      half precision costs little
    shortlist_best    fp32            the largest logit
    shortlist_tail    fp32            log-mean-exp of all other logits, less `shortlist_best`; -inf where none is left

A video that is not on the list gets the tail. So the softmax over the whole frame set keeps its normaliser, and every
listed video its exact share.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distill.data.labels import BEST, LIST, SCORES, TAIL
from distill.errors import ArtefactError
from distill.labelling.teacher import Encoder
from distill.model.features import TextFeatures, VideoFeatures

SCORED = 256  # captions that are scored against a block of videos at once


@torch.inference_mode()
def shortlists(
    encoder: Encoder,
    text: TextFeatures,
    matched: Int[Tensor, " text"],
    blocks: Iterable[tuple[list[int], VideoFeatures]],
    top: int,
) -> dict[str, Tensor]:
    """Score captions against all videos; returns the stored tensors, one row per caption.

    `blocks` gives the numbers and features of all videos, in the order of their numbers.
    """
    chunks = [slice(start, start + SCORED) for start in range(0, len(text), SCORED)]
    lists = [Shortlist(matched[chunk], top) for chunk in chunks]
    for numbers, video in blocks:
        video = video.to(encoder.device)
        for chunk, shortlist in zip(chunks, lists, strict=True):
            logits = encoder.interaction(text[chunk].to(encoder.device), video)
            shortlist.add(torch.tensor(numbers), logits.cpu())
    tables = [shortlist.rows() for shortlist in lists]
    return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}


class Shortlist:
    """Collects logits block by block; those of videos that leave the list are summed up in double precision."""

    def __init__(self, matched: Int[Tensor, " text"], top: int):
        self._matched, self._top, self._seen = matched, top, 0
        self._own = torch.full((len(matched),), torch.nan)
        self._videos = torch.empty(len(matched), 0, dtype=torch.int64)
        self._scores = torch.empty(len(matched), 0)
        self._dropped = torch.full((len(matched),), -torch.inf, dtype=torch.float64)

    def add(self, videos: Int[Tensor, " video"], logits: Float[Tensor, "text video"]) -> None:
        """Add the logits of the next videos, whose numbers are larger than those before."""
        if not logits.isfinite().all():
            raise ArtefactError("the teacher's logits are not finite; its weights or its inputs are damaged")
        mine = videos == self._matched.unsqueeze(1)
        self._own = torch.where(mine.any(1), logits.masked_fill(~mine, 0).sum(1), self._own)
        scores = torch.cat([self._scores, logits.masked_fill(mine, -torch.inf)], dim=1)
        numbers = torch.cat([self._videos, videos.expand(len(logits), -1)], dim=1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        self._dropped = torch.logaddexp(self._dropped, scores[:, self._top :].double().logsumexp(1))
        self._scores, self._videos = scores[:, : self._top], numbers.gather(1, order)[:, : self._top]
        self._seen += len(videos)

    def rows(self) -> dict[str, Tensor]:
        """Return the stored tensors, one row per caption, after all videos were added."""
        assert self._seen > self._top and not self._own.isnan().any(), "every video is added once, the matched one too"
        scores = torch.cat([self._own.unsqueeze(1), self._scores], dim=1)
        best = scores.max(dim=1).values
        others = torch.tensor(self._seen - 1 - self._top, dtype=torch.float64)
        tail = self._dropped - others.log() if others else self._dropped
        return {
            LIST: torch.cat([self._matched.unsqueeze(1), self._videos], dim=1).int(),
            SCORES: scores - best.unsqueeze(1),
            BEST: best,
            TAIL: (tail - best.double()).float(),
        }
