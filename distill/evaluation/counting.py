"""Ranks of scores that no process holds as a whole: counted part by part, and equal to those of distill/evaluation/
metrics.py.

A text's rank follows from its own row. A video's needs the score of its own captions first, which may stand in a later
part; so the parts are gone through twice, and computed twice where a process may not hold its share of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from distill import comm
from distill.evaluation.metrics import Ranks, not_finite

HELD = 1 << 30  # bytes of scores that a process may hold

Parts = Callable[[], Iterable[Float[Tensor, "text video"]]]


@dataclass(frozen=True)
class Counted(Ranks):
    """Ranks, and of every text its own video's score and the videos that rank first; on the CPU."""

    own: Float[Tensor, " text"]
    first: Int64[Tensor, "text first"]
    first_scores: Float[Tensor, "text first"]


def count_ranks(parts: Parts, part: int, videos: int, video_of_text: Int[Tensor, " text"], first: int = 0) -> Counted:
    """Return `ranks_t2v` and `ranks_v2t`, and the `first` best videos of every text; a collective.

    `parts()` gives the scores of this process's share of the texts, so many texts in each part but the last; a video's
    texts follow one another. Raises `ExpectedError` for scores that are not finite.
    """
    rows = comm.share(len(video_of_text))
    held = list(parts()) if len(rows) * videos * 4 <= HELD else None
    captioned, group = video_of_text.long().unique_consecutive(return_inverse=True)
    of_text = list[tuple[Tensor, ...]]()
    bad = _NotFinite()
    for numbers, scores in _numbered(held or parts(), rows, part):
        bad.add(numbers, scores)
        right = scores.gather(1, video_of_text[numbers].long().unsqueeze(1).to(scores.device))
        best = scores.topk(min(first, videos))
        of_text.append(((scores >= right).sum(1) - 1, right.squeeze(1), best.indices, best.values))
    bad.check()
    t2v, right, listed, listed_scores = (
        comm.gather_rows(torch.cat(found).to(comm.device()), len(video_of_text)).cpu()
        for found in zip(*of_text, strict=True)
    )
    own = right.new_full((len(captioned),), -torch.inf).scatter_reduce_(0, group, right, "amax")
    counts, open_group, open_hits = torch.zeros(len(captioned), dtype=torch.int64), -1, None
    for numbers, scores in _numbered(held or parts(), rows, part):
        hits = (scores[:, captioned.to(scores.device)] >= own.to(scores.device)).to(torch.uint8)
        begin = int(numbers[0]) // comm.world_size() * comm.world_size()
        hits = comm.gather_rows(hits, min(len(video_of_text) - begin, len(numbers) * comm.world_size())).cpu()
        groups, place = group[begin : begin + len(hits)].unique_consecutive(return_inverse=True)
        of_group = hits.new_zeros(len(groups), hits.shape[1])
        of_group.scatter_reduce_(0, place.unsqueeze(1).expand_as(hits), hits, "amax")
        if open_hits is not None:  # the last group of the part before, which may go on in this one
            if open_group == int(groups[0]):
                of_group[0] |= open_hits
            else:
                counts += open_hits
        open_group, open_hits = int(groups[-1]), of_group[-1].clone()
        counts += of_group[:-1].sum(0)
    counts += 0 if open_hits is None else open_hits
    return Counted(t2v, counts - 1, right, listed, listed_scores)


def _numbered(parts: Iterable[Tensor], rows: list[int], part: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the numbers of the texts of each part, and its scores."""
    for place, scores in enumerate(parts):
        yield torch.tensor(rows[place * part : (place + 1) * part]), scores


class _NotFinite:
    """Counts the scores that are not finite, and keeps the first."""

    def __init__(self) -> None:
        self.number, self.first = 0, torch.full((1, 3), torch.inf, dtype=torch.float64)

    def add(self, numbers: Tensor, scores: Tensor) -> None:
        bad = ~scores.isfinite()
        if bad.any():
            row, video = bad.nonzero()[0].tolist()
            self.number += int(bad.sum())
            if self.number == int(bad.sum()):
                self.first = torch.tensor(
                    [[float(numbers[row]), video, float(scores[row, video])]], dtype=torch.float64
                )

    def check(self) -> None:
        """Raise `ExpectedError` in all processes if one of them has counted some."""
        number = int(comm.total(float(self.number)))
        if number:
            text, video, value = min(comm.gather_rows(self.first.to(comm.device()), comm.world_size()).tolist())
            raise not_finite(int(text), int(video), value, number)
