"""A second look is chosen on validation, taught by labels if asked, kept in the release, and reported apart."""

import math

import numpy as np
import pytest
import torch
from test_release import VOCABULARY, make, release

from distill.data.frames import FrameSet
from distill.data.tokens import Tokenizer
from distill.evaluation import choosing
from distill.evaluation.evaluate import Encoded
from distill.evaluation.metrics import ranks_t2v, ranks_v2t
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.second_look import SecondLook, TaughtLook
from distill.model.similarity import unit
from distill.release.release import load
from students.teachclip import TeachClipConfig

DIM, FRAMES, VIDEOS = 64, 6, 60


def validation(informed: str) -> Encoded:
    """One caption a video, of which either one frame knows all and the vector little, or the other way round."""
    generator = torch.Generator().manual_seed(5)
    sentence, vector = (torch.randn(VIDEOS, DIM, generator=generator) for _ in range(2))
    frames = torch.randn(VIDEOS, FRAMES, DIM, generator=generator)
    if informed == "frames":
        frames[:, 2] += 3 * sentence
        vector += 0.2 * sentence
    else:
        vector += 3 * sentence
    real = torch.ones(VIDEOS, FRAMES, dtype=torch.bool)
    video = VideoFeatures(vector=vector, frames=frames, real=real)
    return Encoded(TextFeatures(sentence=sentence), video, torch.arange(VIDEOS))


@pytest.mark.parametrize("informed", ["frames", "vector"])
def test_the_weight_of_frames_is_what_finds_most_on_validation(informed):
    _, model = make()
    seen = validation(informed)
    look = choosing.chosen(model, seen)
    scores = unit(seen.text.sentence) @ unit(seen.video.vector).T
    cosines = torch.einsum("td,vfd->tvf", unit(seen.text.sentence), unit(seen.video.frames))
    best = {}
    for temperature in choosing.TEMPERATURES:
        answers = ((cosines / temperature).softmax(-1) * cosines).sum(-1)
        chosen = []
        for ranks in (ranks_t2v, ranks_v2t):
            first = {w: (ranks(scores + w * answers, seen.video_of_text) == 0).numpy() for w in choosing.WEIGHTS}
            most = max(first.values(), key=lambda found: found.mean())
            for weight, found in sorted(first.items()):
                lost = most.astype(float) - found
                if lost.mean() <= lost.std() / np.sqrt(VIDEOS):  # a caption a video: all are independent
                    chosen.append((most.mean(), weight))
                    break
        best[temperature] = chosen
    (t2v, v2t) = best[look.temperature]
    assert (look.t2v, look.v2t) == (t2v[1], v2t[1]) and (look.t2v > 0) == (look.v2t > 0) == (informed == "frames")
    assert t2v[0] + v2t[0] == max(sum(recall for recall, _ in chosen) for chosen in best.values())


def test_captions_of_a_video_count_together_in_a_standard_error():
    values = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    alone = choosing.standard_error(values, torch.arange(6))
    assert alone == pytest.approx(float(values.std(correction=0)) / math.sqrt(6))
    pairs = torch.tensor([0, 0, 1, 1, 2, 2])
    assert choosing.standard_error(values, pairs) == pytest.approx(math.sqrt(1 + 1 + 0) / 6) and alone < 0.21


def test_a_teacher_gets_none():
    frames = FrameSet.__new__(FrameSet)  # is not looked at
    assert choosing.choose(make("xclip")[1], frames, Tokenizer(16, VOCABULARY)) is None


def test_a_student_that_is_trained_for_it_has_scores_for_every_loss():
    config, model = make()
    taught = TeachClipConfig.model_validate(config.model_dump() | {"second": {"temperature": 0.2, "weight": 0.5}})
    assert (taught.coarse_targets(), taught.fine_targets()) == (("logits", "second"), ("pooling", "second"))
    assert (config.coarse_targets(), config.fine_targets()) == (("logits",), ("pooling",))
    assert taught.released().second is None
    pixels = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    real = torch.tensor([[True, True, True, True], [True, True, False, False], [True] * 4])
    model.train()
    assert model.encode_video(pixels, real).frames is None, "training for one vector gathers no frames"
    model.second = TaughtLook(temperature=0.2, weight=0.5, contrastive=0.7)
    video, text = model.encode_video(pixels, real), model.encode_text(torch.tensor([[0, 1, 2, 3]] * 3))
    scores = model.training_scores(text, video, None)
    cosines = torch.einsum("td,vfd->tvf", unit(text.sentence), unit(video.frames))
    gates = (cosines / 0.2).masked_fill(~real, -math.inf).softmax(-1)
    expected = unit(text.sentence) @ unit(video.vector).T + 0.5 * (gates * cosines).sum(-1)
    assert torch.allclose(scores.rankings["second"], model.clip.logit_scale(expected), atol=1e-4)
    assert [weight for weight, _ in scores.contrasts] == [1.0, 0.7]
    assert scores.contrasts[1][1] is scores.rankings["second"]
    assert torch.allclose(scores.frames["second"], cosines.diagonal(dim1=0, dim2=1).T / 0.2, atol=1e-5)


def test_a_release_carries_it_and_one_of_a_former_version_has_none(tmp_path):
    look = SecondLook(temperature=0.1, t2v=1.0, v2t=0.25)
    config, model = make()
    release(tmp_path / "with", config, model, second_look=look)
    release(tmp_path / "without", config, model)
    assert load(tmp_path / "with").second_look == look and load(tmp_path / "without").second_look is None
    assert load(tmp_path / "with").manifest.id != load(tmp_path / "without").manifest.id
