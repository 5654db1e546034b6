"""The choice of a second look (distill/model/second_look.py) for a trained student, on validation, never on test.

Tried are a few temperatures and weights, 0 among them. Each direction gets the smallest weight whose R@1 falls short of
the best one by no more than one standard error of their difference, in which the captions of a video count together:
what validation cannot tell apart is no reason for a larger weight (the rule of one standard error, Breiman et al.
1984). The temperature is the one with the highest sum of R@1 over both directions.
"""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.tokens import TextTokenizer
from distill.evaluation.evaluate import Encoded, encode, rank, score, score_by
from distill.evaluation.metrics import Ranks, ranks_t2v, ranks_v2t
from distill.model.contract import RetrievalModel, Teacher
from distill.model.second_look import SecondLook, frame_answers, second_look

TEMPERATURES = (0.03, 0.1, 0.3)
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def choose(
    model: RetrievalModel, frames: FrameSet, tokenizer: TextTokenizer, *, bf16: bool = False, workers: int = 0
) -> SecondLook | None:
    """Choose the second look of a student of one stage on validation frames; None for any other model.

    A collective, whose result all processes share.
    """
    if isinstance(model, Teacher) or model.rerank_fields:
        return None
    return chosen(model, encode(model, frames, tokenizer, bf16=bf16, workers=workers, all_features=True))


def chosen(model: RetrievalModel, seen: Encoded) -> SecondLook:
    """Choose the second look of a student on features of validation frames."""
    plain, found = score(model, seen.text, seen.video), []
    videos = torch.arange(len(seen.video))
    for temperature in TEMPERATURES:
        answers = score_by(frame_answers(temperature).score, seen.text, seen.video)
        first = {weight: _first(plain + weight * answers, seen.video_of_text) for weight in WEIGHTS}
        t2v = _smallest({weight: sides[0] for weight, sides in first.items()}, seen.video_of_text)
        v2t = _smallest({weight: sides[1] for weight, sides in first.items()}, videos)
        found.append((t2v[0] + v2t[0], SecondLook(temperature=temperature, t2v=t2v[1], v2t=v2t[1])))
    return max(found, key=lambda pair: pair[0])[1]


def look_again(look: SecondLook, seen: Encoded) -> Ranks:
    """Rank everything by a second look, each direction by its own weight; the videos have frames. A collective."""
    found = {weight: rank(second_look(look.temperature, weight).score, seen) for weight in sorted({look.t2v, look.v2t})}
    return Ranks(found[look.t2v].t2v, found[look.v2t].v2t)


def _first(
    scores: Float[Tensor, "text video"], video_of_text: Int[Tensor, " text"]
) -> tuple[Float64[Tensor, " text"], Float64[Tensor, " captioned"]]:
    """Return 1 for every text whose video, and every video whose text ranks first, and 0 for the others."""
    t2v, v2t = ranks_t2v(scores, video_of_text), ranks_v2t(scores, video_of_text)
    return (t2v == 0).double(), (v2t == 0).double()


def _smallest(first: dict[float, Float64[Tensor, " query"]], groups: Int[Tensor, " query"]) -> tuple[float, float]:
    """Return the best R@1, from 0 to 1, and the smallest weight that cannot be told from it."""
    best = max(first.values(), key=lambda found: float(found.mean()))
    close = (weight for weight, found in first.items() if (best - found).mean() <= standard_error(best - found, groups))
    return float(best.mean()), min(close)


def standard_error(values: Float64[Tensor, " query"], groups: Int[Tensor, " query"]) -> float:
    """Return the standard error of the mean of values that are independent between groups alone."""
    off = values - values.mean()
    sums = torch.zeros(int(groups.max()) + 1, dtype=off.dtype).index_add(0, groups, off)
    return float(sums.square().sum().sqrt()) / len(values)
