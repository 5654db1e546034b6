"""A second look at frames: the cosine of a text with one vector a video, and with the frames that answer the text.

A student of one stage finds videos by one vector. Its frames, of which that vector is pooled, tell candidates apart
that the vector cannot: with the cosine c of the text and the video's vector, and the cosines c_i of the text and the
real frames, the score is

    c + weight * sum over i of w_i c_i,    w = softmax(c_i / temperature)

`similarity` stays the first term alone, as published. A release may carry the temperature and the weights that were
chosen for it on validation (distill/evaluation/choosing.py); TeachCLIP can be trained for it (`model.second`).
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distill.config import Config
from distill.model.pooling import attend
from distill.model.reading import Reading, ScorePart, Seen


class TaughtLook(Config):
    """The second look that a student is trained for. Labels teach its ranking of the batch (coarse target `second`)
    and the cosines of captions with the frames of their own videos, over the temperature (fine target `second`)."""

    temperature: float = Field(default=0.1, gt=0)  # of the softmax over the cosines of caption and frames
    weight: float = Field(default=1.0, gt=0)  # of the frames beside the vector
    contrastive: float = Field(default=0.5, ge=0)  # weight of its contrastive loss beside that of the vector alone


class SecondLook(Config):
    """The second look of a release. A weight of 0 leaves the order of the vectors as it is."""

    temperature: float = Field(gt=0)  # of the softmax over the cosines of text and frames
    t2v: float = Field(ge=0)  # weight of the frames where texts rank videos
    v2t: float = Field(ge=0)  # and where videos rank texts


FRAMES = Reading(keys="frames", mask="real")


def second_look(temperature: float, weight: float) -> ScorePart:
    """Return the score above, of features with `vector`, `frames` and `real`."""

    def combine(vector: Seen, frames: Seen) -> Float[Tensor, "text video"]:
        return vector.whole() + weight * _answer(frames, temperature)

    return ScorePart((Reading(keys="vector"), FRAMES), combine)


def frame_answers(temperature: float) -> ScorePart:
    """Return the second term of the score above, with weight 1."""
    return ScorePart((FRAMES,), lambda frames: _answer(frames, temperature))


def _answer(frames: Seen, temperature: float) -> Float[Tensor, "text video"]:
    """Return the mean of a text's cosines with a video's real frames, weighted by their own softmax."""
    return (attend(frames.products, frames.counted, temperature) * frames.products).sum(-1)
