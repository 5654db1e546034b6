"""The temporal transformer and the frame aggregation: padding, half precision, first weights, refusals."""

import pytest
import torch

from distill.errors import RecipeError
from distill.model.afa import AfaConfig, AttentiveFrameAggregation
from distill.model.clip import ClipModel
from distill.model.temporal import TemporalConfig, TemporalTransformer
from distill.model.towers import Towers


def test_padding_never_reaches_a_real_frame():
    temporal = TemporalTransformer(64, TemporalConfig(layers=2, init="normal")).double()
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    frames = torch.randn(2, 5, 64, dtype=torch.float64)
    changed = frames.clone()
    changed[1, 3:] = 100.0
    assert torch.equal(temporal(frames, real)[real], temporal(changed, real)[real])
    short = temporal(frames[1:, :3], real[1:, :3])
    assert (temporal(frames, real)[1:, :3] - short).abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["bf16 parameters", "autocast"])
@pytest.mark.parametrize("training", [True, False])
def test_runs_in_half_precision(mode, training):
    generator = torch.Generator().manual_seed(0)
    temporal = TemporalTransformer(32, TemporalConfig(layers=2, heads=4, init="normal")).train(training)
    with torch.no_grad():
        for parameter in temporal.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    frames, real = torch.randn(3, 5, 32, generator=generator), torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    expected = temporal(frames, real)
    if mode == "bf16 parameters":
        temporal, frames = temporal.bfloat16(), frames.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        found = temporal(frames, real)
    found.float().sum().backward()
    assert torch.cosine_similarity(found.float(), expected, dim=-1).min() > 0.998


ARCHITECTURE = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 64},
    "text_cfg": {"context_length": 20, "vocab_size": 50, "width": 64, "heads": 2, "layers": 3},
}


def test_blocks_start_as_clips_text_blocks():
    text = ClipModel(Towers.from_architecture(ARCHITECTURE)).text
    temporal = TemporalTransformer(64, TemporalConfig(layers=2, heads=2, positions=12))
    temporal.init_from_text(text)
    assert torch.equal(temporal.pos_embed.weight, text.positional_embedding[:12])
    for n in range(2):
        source = text.transformer.resblocks[n].state_dict()
        assert all(torch.equal(value, source[key]) for key, value in temporal.blocks[n].state_dict().items())


@pytest.mark.parametrize(
    "config",
    [
        TemporalConfig(layers=2, positions=12),
        TemporalConfig(layers=4, heads=2, positions=12),
        TemporalConfig(layers=2, heads=2),
    ],
)
def test_a_text_tower_that_does_not_fit_is_refused(config):
    temporal = TemporalTransformer(64, config)
    with pytest.raises(
        RecipeError, match=r"width 64, heads \d, layers \d, positions \d+ from a text tower of width 64"
    ):
        temporal.init_from_text(ClipModel(Towers.from_architecture(ARCHITECTURE)).text)


def test_impossible_sizes_are_refused():
    with pytest.raises(RecipeError, match="7 heads do not divide"):
        TemporalTransformer(64, TemporalConfig(heads=7))
    with pytest.raises(RecipeError, match="4 are too few for videos of 5 frames"):
        TemporalTransformer(64, TemporalConfig(positions=4))(torch.zeros(1, 5, 64), torch.ones(1, 5, dtype=torch.bool))


def test_masked_afa_does_not_see_padding():
    afa = AttentiveFrameAggregation(64, AfaConfig(mask_padding=True))
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    frames = torch.randn(2, 5, 64)
    vector, relevance = afa(frames, real)
    short, _ = afa(frames[1:, :3], real[1:, :3])
    assert torch.allclose(vector[1:], short, atol=1e-6)
    assert relevance.isfinite().all() and relevance.log_softmax(-1).isfinite().all()
