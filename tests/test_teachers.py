"""TS2-Net and X-Pool as teachers: formulas against NumPy, independence of batches, padding, stems, and refusals."""

import numpy as np
import pytest
import torch

from distill.errors import RecipeError
from distill.model import pooling
from distill.model.attention import shift_tokens
from distill.model.contract import Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.selection import SAMPLES, TokenSelector, perturbed_topk, topk_indices
from distill.model.similarity import unit
from distill.model.temporal import TemporalConfig
from distill.model.towers import ClipConfig, Towers
from teachers.ts2net import Ts2Net, Ts2NetConfig, Ts2NetInteraction
from teachers.xpool import XPool, XPoolConfig, XPoolInteraction

ARCHITECTURE = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 20, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2},
}
CLIP = ClipConfig(model="unused")
KINDS = ["ts2net", "xpool"]


def build(kind: str, *, freeze: int | None = None, **options) -> Teacher:
    """A teacher with random weights that are not those it starts from."""
    torch.manual_seed(0)
    towers = Towers.from_architecture(ARCHITECTURE, freeze_vision=freeze)
    if kind == "xpool":
        model: Teacher = XPool(XPoolConfig(kind="xpool", clip=CLIP, **options), towers)
    else:
        temporal = TemporalConfig(layers=1, init="normal")
        options = {"frames": 4, **options}
        model = Ts2Net(Ts2NetConfig(kind="ts2net", clip=CLIP, temporal=temporal, **options), towers)
    with torch.no_grad():
        for parameter in model.interaction.parameters():
            if parameter.numel() > 1:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def batch(videos: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 90, (videos, 8), generator=generator)
    ids[:, 5], ids[:, 6:] = 99, 0
    frames = torch.randint(0, 256, (videos, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    real = torch.arange(4) < torch.tensor([4, 3, 1] * videos)[:videos, None]
    return ids, frames, real


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_scaled_similarity_and_train_every_parameter(kind: str):
    model = build(kind)
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    torch.manual_seed(5)  # the same dropout in both
    logits = model.logits(text, video)
    torch.manual_seed(5)
    assert logits.shape == (3, 3)
    assert torch.allclose(logits, model.similarity(text, video) / 0.07, atol=1e-4)
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert [name for name in model.state_dict() if "logit_scale" in name] == ["interaction.logit_scale.log"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_padded_frames_changes_nothing(kind: str):
    model = build(kind).eval()
    ids, frames, real = batch()
    changed = frames.clone()
    changed[~real] = 255 - changed[~real]
    with torch.no_grad():
        text = model.encode_text(ids)
        found = [model.similarity(text, model.encode_video(given, real)) for given in (frames, changed)]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("freeze", [1, 2])  # with the shift behind the stem, and partly within it
def test_stem_tokens_stand_for_pixels(kind: str, freeze: int):
    model = build(kind, freeze=freeze).eval()
    _, frames, real = batch()
    with torch.no_grad():
        tokens = model.clip.frames_to_stem(frames, real)
        from_pixels, from_stem = (model.encode_video(given, real).tensors() for given in (frames, tokens))
    assert all(torch.equal(value, from_stem[name]) for name, value in from_pixels.items())


@pytest.mark.parametrize("options", [{"noise": "seeded"}, {"noise": "zero"}])
def test_a_video_does_not_depend_on_its_batch(options: dict):
    model = build("ts2net", **options).eval()
    _, frames, real = batch()
    with torch.no_grad():
        together = model.encode_video(frames, real)
        alone = [model.encode_video(frames[i : i + 1], real[i : i + 1]) for i in range(3)]
        again = model.encode_video(frames, real)
    for name, value in together.tensors().items():
        assert torch.equal(value, again.tensors()[name])
        torch.testing.assert_close(torch.cat([one.tensors()[name] for one in alone]), value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interaction_is_rebuilt_from_its_config_and_weights(kind: str):
    model = build(kind).eval()
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    again = type(model.interaction)(**model.interaction.config()).eval()
    again.load_state_dict(model.interaction.state_dict())
    assert torch.equal(again(text, video), model.logits(text, video))
    assert torch.equal(again.relevance(text, video), model.interaction.relevance(text, video))


def test_ts2net_scores_equal_a_numpy_oracle():
    generator = torch.Generator().manual_seed(2)
    sentence, frames = (torch.randn(*shape, 16, generator=generator).double() for shape in ((3,), (2, 5)))
    real = torch.tensor([[True] * 5, [True, True, False, True, False]])
    head = Ts2NetInteraction().double()
    text, video = TextFeatures(sentence=sentence), VideoFeatures(vector=frames[:, 0], frames=frames, real=real)
    found = head(text, video, scaled=False)
    for t in range(3):
        for v in range(2):
            cosines = (unit(frames[v]) @ unit(sentence[t])).numpy()
            kept = real[v].numpy()
            sharp = np.where(kept, np.exp(4 * cosines / np.linalg.norm(cosines[kept])), 0)
            assert found[t, v].item() == pytest.approx((sharp / sharp.sum() * cosines).sum(), abs=1e-12)
    assert torch.allclose(head(text, video), found * head.logit_scale.log.exp())


def test_xpool_equals_a_numpy_oracle(monkeypatch):
    head = XPoolInteraction(16, 0.3).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    w = {name: value.detach().numpy() for name, value in head.pooling.state_dict().items()}
    sentence, frames = (torch.randn(*shape, 16, generator=generator).double() for shape in ((3,), (2, 5)))
    text, video = TextFeatures(sentence=sentence), VideoFeatures(vector=frames[:, 0], frames=frames)
    found, relevance = head(text, video, scaled=False), head.relevance(text[:2], video)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    for t in range(3):
        for v in range(2):
            s, f = sentence[t].numpy(), frames[v].numpy()
            scores = linear("k_proj", norm("norm1", f)) @ linear("q_proj", norm("norm1", s)) / 4
            weights = np.exp(scores) / np.exp(scores).sum()
            attended = norm("norm2", linear("out_proj", weights @ linear("v_proj", norm("norm1", f))))
            pooled = norm("norm3", attended + linear("linear_proj", attended))
            cosine = pooled @ s / np.linalg.norm(pooled) / np.linalg.norm(s)
            assert found[t, v].item() == pytest.approx(cosine, abs=1e-12)
            if t == v:
                np.testing.assert_allclose(relevance[t].detach().numpy(), scores, atol=1e-12)
    monkeypatch.setattr(pooling, "MAX_CELLS", 1)  # a video at a time
    assert (head(text, video, scaled=False) - found).abs().max() < 1e-12


def test_the_shift_keeps_videos_apart():
    tokens = torch.arange(2 * 3 * 15).view(6, 15, 1).float()
    shifted = shift_tokens(tokens, num_frames=3)
    apart = torch.cat([shift_tokens(video, num_frames=3) for video in tokens.split(3)])
    assert torch.equal(shifted, apart)
    assert torch.equal(shifted[:, 0], tokens[:, 0])  # class tokens stay
    assert shifted[1, 1] == tokens[0, 1] and shifted[1, 4] == tokens[2, 4] and shifted[1, 2] == tokens[1, 2]


def test_the_mask_is_the_authors_or_the_right_one():
    _, frames, real = batch()
    tiled, right = (build("ts2net", mask=mask).eval().encode_video(frames, real) for mask in ("tiled", "interleaved"))
    assert torch.equal(right.real, real)
    assert tiled.real.tolist() == [[True] * 4, [True] * 4, [True] * 4]  # 4 frames x 4 tokens: slot 4f is frame 0's mask


def test_noise_that_vanishes_gives_the_best_tokens():
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(4))
    noise = torch.randn(1, SAMPLES, 9, generator=torch.Generator().manual_seed(5))
    soft = perturbed_topk(scores, noise, kept=3, sigma=1e-6)
    assert torch.equal(soft.argmax(-1), topk_indices(scores, 3))
    assert torch.allclose(perturbed_topk(scores, noise, kept=3).sum(-1), torch.ones(4, 3))


def test_training_draws_new_noise_and_evaluation_does_not():
    selector = TokenSelector(16, 8, 3, "seeded")
    tokens = torch.randn(5, 9, 16, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        selector.score.weight.mul_(20)
        assert not torch.equal(selector(tokens), selector(tokens))
        assert torch.equal(selector.eval()(tokens), selector(tokens))


def test_what_cannot_be_built_or_fed_is_refused():
    with pytest.raises(RecipeError, match="positions: 77, but 20 frames of 4 tokens need 80"):
        build("ts2net", frames=20)
    with pytest.raises(RecipeError, match="selected: 17 tokens, but a frame has 16 patches"):
        build("ts2net", selected=17)
    with pytest.raises(RecipeError, match="shift_layers: 4 is more than the tower's 3 layers"):
        build("ts2net", shift_layers=4)
    _, frames, real = batch()
    with pytest.raises(RecipeError, match="built for 4 frames, but the videos have 3"):
        build("ts2net").encode_video(frames[:, :3], real[:, :3])
    with pytest.raises(RecipeError, match="5 tokens an image, the shift needs 7"):
        shift_tokens(torch.zeros(4, 5, 8), 2)
