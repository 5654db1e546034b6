"""The temporal transformer equals the authors' (stored outputs), and padding never reaches a real frame."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distill.errors import RecipeError
from distill.model.afa import AfaConfig, AttentiveFrameAggregation
from distill.model.clip import Clip
from distill.model.temporal import LAYER_NORM_EPS, TemporalConfig, TemporalTransformer

FIXTURES = Path(__file__).parent / "fixtures"
BLOCK = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight"]
BLOCK += ["ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
BLOCK += ["ln_2.weight", "ln_2.bias"]  # the authors' order of parameters


def read(name):
    return json.loads((FIXTURES / f"{name}.json").read_text())["hyper"], load_file(FIXTURES / f"{name}.safetensors")


def det(*shape, seed, scale=1.0):
    return torch.from_numpy((np.random.RandomState(seed).randn(*shape) * scale).astype(np.float32))


def fill(named, seed, scale=0.05):
    """Deterministic values for parameters in a given order."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(named):
            value = det(*parameter.shape, seed=seed * 1000 + i, scale=scale)
            parameter.copy_(value + 1 if parameter.ndim == 1 and name.endswith("weight") else value)


def temporal_from(tensors, hyper):
    names = {"weight.frame_position_embeddings.": "pos_embed.", "weight.transformerClip.resblocks.": "blocks."}
    state = {
        key.replace(old, new): value
        for key, value in tensors.items()
        for old, new in names.items()
        if key.startswith(old)
    }
    positions = len(state["pos_embed.weight"])
    config = TemporalConfig(layers=hyper["layers"], heads=hyper["heads"], positions=positions, init="normal")
    temporal = TemporalTransformer(hyper["width"], config).double()
    temporal.load_state_dict(state)
    return temporal


def blocks_in_authors_order(temporal):
    return [(f"{n}.{key}", block.get_parameter(key)) for n, block in enumerate(temporal.blocks) for key in BLOCK]


@pytest.mark.parametrize("name", ["m01_temporal_transformer", "m01b_temporal_transformer_small_inputs"])
def test_contextual_frames_equal_the_authors(name):
    hyper, tensors = read(name)
    temporal = temporal_from(tensors, hyper)
    frames, real = tensors["input.frames"].double(), tensors["input.video_mask"].bool()
    contextual = temporal(frames, real)
    assert (contextual - tensors["output.contextual_frames"]).abs().max() < 1e-9
    assert (contextual - frames - tensors["output.transformer_out"]).abs().max() < 1e-9
    with torch.no_grad():
        single = temporal.float().eval()(frames.float(), real)
    assert (single - tensors["output.contextual_frames"]).abs().max() < (1e-5 if name.startswith("m01_") else 1e-4)


def test_layer_norm_golden():
    norm = nn.LayerNorm(8, eps=LAYER_NORM_EPS)
    fill(norm.named_parameters(), seed=2)
    found = norm(det(2, 8, seed=3, scale=1e-3))
    assert torch.allclose(found[0, :4], torch.tensor([2.0905976, 0.7192328, 0.1390638, -1.7724258]), atol=1e-5)
    assert found.sum().item() == pytest.approx(0.0407758, abs=1e-5)


def test_transformer_golden():
    temporal = TemporalTransformer(64, TemporalConfig(layers=2, heads=4, init="normal"))
    fill(blocks_in_authors_order(temporal), seed=4)
    nn.init.zeros_(temporal.pos_embed.weight)
    frames = det(5, 2, 64, seed=5).transpose(0, 1)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = (temporal(frames, real) - frames).transpose(0, 1)
    assert torch.allclose(found[0, 0, :3], torch.tensor([0.3707425, -0.2567468, 2.6973491]), atol=1e-5)
    assert found.sum().item() == pytest.approx(1.7449492, abs=1e-3)
    assert found.abs().sum().item() == pytest.approx(532.98043, abs=1e-3)


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
    hyper, tensors = read("m01_temporal_transformer")
    temporal = temporal_from(tensors, hyper).float().train(training)
    frames, real = tensors["input.frames"], tensors["input.video_mask"].bool()
    if mode == "bf16 parameters":
        temporal, frames = temporal.bfloat16(), frames.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        found = temporal(frames, real)
    found.float().sum().backward()
    expected = tensors["output.contextual_frames"].float()
    assert torch.cosine_similarity(found.float(), expected, dim=-1).min() > 0.998


ARCHITECTURE = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 64},
    "text_cfg": {"context_length": 20, "vocab_size": 50, "width": 64, "heads": 2, "layers": 3},
}


def test_blocks_start_as_clips_text_blocks():
    text = Clip.from_architecture(ARCHITECTURE).text
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
        temporal.init_from_text(Clip.from_architecture(ARCHITECTURE).text)


def test_impossible_sizes_are_refused():
    with pytest.raises(RecipeError, match="7 heads do not divide"):
        TemporalTransformer(64, TemporalConfig(heads=7))
    with pytest.raises(RecipeError, match="4 are too few for videos of 5 frames"):
        TemporalTransformer(64, TemporalConfig(positions=4))(torch.zeros(1, 5, 64), torch.ones(1, 5, dtype=torch.bool))


def afa_from(tensors, dim, config=None):
    afa = AttentiveFrameAggregation(dim, config or AfaConfig()).double()
    names = {"frameLinear.": "score.0.", "frameLinear2.": "score.2."}
    afa.load_state_dict(
        {new + k: tensors[f"weight.{old}{k}"] for old, new in names.items() for k in ("weight", "bias")}
    )
    return afa


def test_afa_equals_the_authors():
    hyper, tensors = read("m12_afa")
    real = tensors["input.video_mask"].bool()
    contextual = temporal_from(tensors, hyper)(tensors["input.frames"].double(), real)
    vector, relevance = afa_from(tensors, hyper["width"])(contextual, real)
    assert (contextual - tensors["output.contextual_frames"]).abs().max() < 1e-9
    assert (relevance - tensors["output.frame_scores"]).abs().max() < 1e-9
    assert (relevance.softmax(-1) - tensors["output.weights_T1"]).abs().max() < 1e-9
    assert (vector - tensors["output.pooled_embedding"]).abs().max() < 1e-9


def test_padding_leaks_into_the_pool_unless_it_is_masked():
    """A 3-frame video padded to 12: as in the authors' code about three quarters of the weight lie on padding."""
    torch.manual_seed(0)
    real = torch.arange(12) < 3
    frames = torch.randn(1, 12, 64)
    weights = {}
    for mask in (False, True):
        afa = AttentiveFrameAggregation(64, AfaConfig(mask_padding=mask))
        weights[mask] = (afa(frames, real[None])[1] / 0.1).softmax(-1)
    assert 0.6 < weights[False][0, ~real].sum() < 0.85
    assert weights[True][0, ~real].sum() == 0


def test_masked_afa_does_not_see_padding():
    afa = AttentiveFrameAggregation(64, AfaConfig(mask_padding=True))
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    frames = torch.randn(2, 5, 64)
    vector, relevance = afa(frames, real)
    short, _ = afa(frames[1:, :3], real[1:, :3])
    assert torch.allclose(vector[1:], short, atol=1e-6)
    assert relevance.isfinite().all() and relevance.log_softmax(-1).isfinite().all()
