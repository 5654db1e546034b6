"""Whole models: similarity heads against stored values and a NumPy oracle; padding, stems, keys and precision."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.errors import RecipeError
from distill.model.afa import AfaConfig, AttentiveFrameAggregation
from distill.model.clip import Clip, ClipConfig, LogitScale
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import cosine, mean_pool, unit
from distill.model.temporal import TemporalConfig, TemporalTransformer
from students.clip4clip import Clip4Clip, Clip4ClipConfig
from students.teachclip import TeachClip, TeachClipConfig
from teachers import xclip
from teachers.xclip import XClip, XClipConfig, XClipInteraction

FIXTURES = Path(__file__).parent / "fixtures"
BLOCK = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight"]
BLOCK += ["ln_1.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
BLOCK += ["ln_2.weight", "ln_2.bias"]  # the authors' order of parameters
AUTHORS = {  # of X-CLIP's matrices, in the order of the golden recipe
    "global_mat_weight": "global_proj",
    "word_logit_weight": "word_cross",
    "frame_logit_weight": "frame_cross",
    "local_mat_weight": "local_proj",
    "frame_mat_weight": "frame_fine",
    "word_mat_weight": "word_fine",
    "frame_mat_weight2": "frame_fine2",
    "word_mat_weight2": "word_fine2",
}
ARCHITECTURE = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 2},
}
CLIP = ClipConfig(model="unused")
TEMPORAL = TemporalConfig(layers=1)
MASK = torch.tensor([[True] * 5, [True, True, True, False, False]])


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


def golden_temporal(*, whole_shell):
    """Width 64, 2 layers, 4 heads; filled as one module (seed 6), or positions (6) and blocks (4) apart."""
    temporal = TemporalTransformer(64, TemporalConfig(layers=2, heads=4, init="normal"))
    positions = [("pos_embed.weight", temporal.pos_embed.weight)]
    blocks = [(f"{n}.{key}", block.get_parameter(key)) for n, block in enumerate(temporal.blocks) for key in BLOCK]
    if whole_shell:
        fill(positions + blocks, seed=6)
    else:
        fill(positions, seed=6)
        fill(blocks, seed=4)
    return temporal


def temporal_from(tensors, hyper):
    names = {"weight.frame_position_embeddings.": "pos_embed.", "weight.transformerClip.resblocks.": "blocks."}
    pairs = [(key, old, new) for key in tensors for old, new in names.items() if key.startswith(old)]
    state = {key.replace(old, new): tensors[key] for key, old, new in pairs}
    positions = len(state["pos_embed.weight"])
    config = TemporalConfig(layers=hyper["layers"], heads=hyper["heads"], positions=positions, init="normal")
    temporal = TemporalTransformer(hyper["width"], config).double()
    temporal.load_state_dict(state)
    return temporal


def interaction_with(matrices, log_scale, temperature=0.01):
    words, frames = len(matrices["word_logit_weight"]), len(matrices["frame_logit_weight"])
    interaction = XClipInteraction(len(matrices["global_mat_weight"]), words, frames, temperature)
    state = {AUTHORS[key]: value for key, value in matrices.items()}
    interaction.load_state_dict(state | {"logit_scale.log": torch.tensor([log_scale])})
    return interaction


def golden_interaction():
    sizes = dict.fromkeys(AUTHORS, 5) | dict.fromkeys([name for name in AUTHORS if name.startswith("word")], 7)
    sizes |= {"global_mat_weight": 64, "local_mat_weight": 64}
    matrices = {
        name: torch.eye(sizes[name]) + det(sizes[name], sizes[name], seed=200 + i, scale=0.05)
        for i, name in enumerate(AUTHORS)
    }
    return interaction_with(matrices, log_scale=4.0)


def close(found, expected, atol):
    return torch.allclose(found, torch.tensor(expected), atol=atol, rtol=0)


def test_mean_pooled_similarity_equals_the_authors():
    hyper, tensors = read("m02_clip4clip_meanp_logits")
    vector = mean_pool(tensors["input.frames"].double(), tensors["input.video_mask"].bool())
    assert (unit(vector) - tensors["output.video_embedding"]).abs().max() < 1e-9
    logits = LogitScale(hyper["logit_scale"])(cosine(tensors["input.text"].double(), vector))
    assert (logits - tensors["output.logits"]).abs().max() < 1e-9


def test_teachclip_similarity_equals_the_authors():
    hyper, tensors = read("m12_afa")
    real = tensors["input.video_mask"].bool()
    contextual = temporal_from(tensors, hyper)(tensors["input.frames"].double(), real)
    afa = AttentiveFrameAggregation(hyper["width"], AfaConfig(pool_temperature=hyper["pool_temperature"])).double()
    names = {"frameLinear.": "score.0.", "frameLinear2.": "score.2."}
    afa.load_state_dict(
        {new + k: tensors[f"weight.{old}{k}"] for old, new in names.items() for k in ("weight", "bias")}
    )
    vector, _ = afa(contextual, real)
    scale, text = LogitScale(hyper["logit_scale"]), tensors["input.text"].double()
    assert (scale(cosine(text, vector)) - tensors["output.logits"]).abs().max() < 1e-9
    pooled = scale(cosine(text, mean_pool(contextual, real)))
    assert (pooled - tensors["output.meanpool_logits"]).abs().max() < 1e-9


def xclip_fixture():
    hyper, tensors = read("m04_xclip_similarity")
    interaction = interaction_with(
        {name: tensors[f"weight.{name}"] for name in AUTHORS}, hyper["logit_scale"], hyper["tau"]
    )
    text = TextFeatures(sentence=tensors["input.sentence"].double(), words=tensors["input.words"].double())
    frames, real = tensors["input.frames"].double(), tensors["input.video_mask"].bool()
    vector = unit(mean_pool(temporal_from(tensors, hyper)(frames, real), real))
    return interaction.double(), text, VideoFeatures(vector=vector, frames=frames, real=real), tensors


def test_xclip_similarity_equals_the_authors():
    interaction, text, video, tensors = xclip_fixture()
    assert (video.vector - tensors["output.video_embedding"]).abs().max() < 1e-9
    assert (interaction(text, video) - tensors["output.logits"]).abs().max() < 1e-9
    assert (interaction.similarity(text, video) * np.exp(4.0) - tensors["output.logits"]).abs().max() < 1e-9
    assert (interaction.relevance(text[:3], video).softmax(-1) - tensors["output.relevance"]).abs().max() < 1e-9


def test_xclip_in_float32_stays_within_the_stated_tolerance():
    interaction, text, video, tensors = xclip_fixture()
    single_text = TextFeatures(sentence=text.sentence.float(), words=text.words.float())
    single_video = VideoFeatures(vector=video.vector.float(), frames=video.frames.float(), real=video.real)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the interaction leaves autocast
        found = interaction.float()(single_text, single_video)
    assert (found - tensors["output.logits"]).abs().max() < 1e-3


def test_xclip_in_chunks_is_the_same(monkeypatch):
    interaction, text, video, _ = xclip_fixture()
    whole = interaction(text, video)
    for cells in (1, 2 * 4 * 7 * 5):  # one video at a time; two, and a last chunk of one
        monkeypatch.setattr(xclip, "MAX_CELLS", cells)
        assert (interaction(text, video) - whole).abs().max() < 1e-12


def oracle(scores, mix):
    weights = np.exp((scores - scores.max()) / 0.01)
    return ((weights / weights.sum()) @ mix * scores).sum()


def test_xclip_equals_a_numpy_oracle():
    """The four terms written pair by pair, with the learned matrices of the code."""
    interaction = golden_interaction().double()
    m = {name: value.detach().numpy() for name, value in interaction.state_dict().items()}
    sentence, words = det(3, 64, seed=1).double(), det(3, 7, 64, seed=2).double()
    vector, frames = det(2, 64, seed=3).double(), det(2, 5, 64, seed=4).double()
    found = interaction.similarity(
        TextFeatures(sentence=sentence, words=words), VideoFeatures(vector=vector, frames=frames)
    )
    for t in range(3):
        for v in range(2):
            s, w, x, f = (unit(a).numpy() for a in (sentence[t], words[t], vector[v], frames[v]))
            cells = w @ m["local_proj"] @ f.T  # word frame
            by_frame = np.array([oracle(cells[:, i], m["word_fine"]) for i in range(5)])
            by_word = np.array([oracle(cells[i], m["frame_fine"]) for i in range(7)])
            fine = (oracle(by_frame, m["frame_fine2"]) + oracle(by_word, m["word_fine2"])) / 2
            coarse = s @ m["global_proj"] @ x + oracle(w @ x, m["word_cross"]) + oracle(f @ s, m["frame_cross"])
            assert found[t, v].item() == pytest.approx((coarse + fine) / 4, abs=1e-12)


def test_clip4clip_golden():
    text, frames = det(3, 64, seed=7), det(2, 5, 64, seed=8)
    scale = LogitScale(4.0)
    expected = [[0.5832409, 5.4634628], [-4.8368821, 15.5662842], [6.5858665, -4.4930458]]
    assert close(scale(cosine(text, mean_pool(frames, MASK))), expected, 1e-4)
    contextual = golden_temporal(whole_shell=True)(frames, MASK)
    expected = [[1.2646172, 5.9902492], [-4.6817307, 16.5739841], [6.7442360, -2.6737330]]
    assert close(scale(cosine(text, mean_pool(contextual, MASK))), expected, 1e-4)


def test_xclip_golden():
    interaction = golden_interaction()
    sentence, words, frames = det(3, 64, seed=7), det(3, 7, 64, seed=20), det(2, 5, 64, seed=8)
    local = unit(words) @ interaction.local_proj
    expected = [[0.2833154, 0.2616896], [0.2215464, 0.3057134], [0.2269699, 0.2533498]]
    assert close(interaction._word_frame(local, unit(frames)), expected, 1e-5)
    text = TextFeatures(sentence=sentence, words=words)
    contextual = golden_temporal(whole_shell=False)(frames, MASK)
    expected = {
        "seqTransf": [[7.7382870, 12.2811413], [6.2095242, 13.9065189], [6.9141426, 10.1437883]],
        "meanP": [[7.5786152, 11.6623764], [6.1165094, 13.1893425], [7.5381832, 10.6098757]],
    }
    for name, pooled in (("seqTransf", contextual), ("meanP", frames)):
        video = VideoFeatures(vector=unit(mean_pool(pooled, MASK)), frames=frames, real=MASK)
        assert close(interaction(text, video), expected[name], 1e-4)
    rows = [
        [0.1798487, 0.1679249, 0.2068003, 0.2432787, 0.2021475],
        [0.2312917, 0.2016277, 0.2096357, 0.1704642, 0.1869806],
    ]
    text = TextFeatures(sentence=det(2, 64, seed=7), words=det(2, 7, 64, seed=20))
    assert close(interaction.relevance(text, video).softmax(-1), rows, 1e-5)


def test_teachclip_golden():
    text, frames = det(3, 64, seed=7), det(2, 5, 64, seed=8)
    contextual = golden_temporal(whole_shell=False)(frames, MASK)
    afa = AttentiveFrameAggregation(64, AfaConfig())
    fill(afa.score[0].named_parameters(), seed=50, scale=0.1)
    fill(afa.score[2].named_parameters(), seed=51, scale=0.1)
    vector, relevance = afa(contextual, MASK)
    expected = [[-3.0082841, 18.6627884], [-2.5478745, 12.5725546], [3.1528134, 6.9313745]]
    assert close(LogitScale(4.0)(cosine(text, vector)), expected, 1e-4)
    rows = [
        [0.2743258, 0.0854380, 0.2605636, 0.1620528, 0.2176197],
        [0.6480473, 0.0513101, 0.0673109, 0.1494778, 0.0838539],
    ]
    assert close(relevance.softmax(-1), rows, 1e-5)
    expected = [[0.4814232, 5.6933942], [-3.5827591, 16.2585373], [6.0296478, -4.9921436]]
    assert close(LogitScale(4.0)(cosine(text, mean_pool(contextual, MASK))), expected, 1e-4)


def build(kind, *, freeze=None, seed=0):
    torch.manual_seed(seed)
    clip = Clip.from_architecture(ARCHITECTURE, freeze_vision=freeze)
    if kind == "xclip":
        return XClip(XClipConfig(kind="xclip", clip=CLIP, temporal=TEMPORAL, words=8, frames=4), clip)
    if kind == "teachclip":
        config = TeachClipConfig(kind="teachclip", clip=CLIP, temporal=TEMPORAL, afa=AfaConfig(mask_padding=True))
        return TeachClip(config, clip)
    return Clip4Clip(Clip4ClipConfig(kind="clip4clip", clip=CLIP, head=kind, temporal=TEMPORAL), clip)


KINDS = ["meanP", "seqTransf", "teachclip", "xclip"]


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 90, (3, 8), generator=generator)
    ids[:, 5], ids[:, 6:] = 99, 0
    frames = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    real = torch.tensor([[True] * 4, [True, True, True, False], [True, False, False, False]])
    return ids, frames, real


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_scaled_similarity_and_train_every_parameter(kind):
    model = build(kind)
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    logits = model.logits(text, video)
    assert logits.shape == (3, 3) and logits.dtype == torch.float32
    assert torch.allclose(logits, model.similarity(text, video) / 0.07, atol=1e-4)
    relevance = video.relevance.sum() if video.relevance is not None else 0
    (logits.square().sum() + relevance).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_padded_frames_changes_nothing(kind):
    model = build(kind).eval()
    ids, frames, real = batch()
    changed = frames.clone()
    changed[~real] = 255 - changed[~real]
    with torch.no_grad():
        text = model.encode_text(ids)
        found = [model.similarity(text, model.encode_video(given, real)) for given in (frames, changed)]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["meanP", "seqTransf", "teachclip"])
def test_more_padding_changes_nothing(kind):
    model = build(kind).eval()
    ids, frames, real = batch()
    longer = torch.cat([frames, frames[:, :2]], dim=1), torch.cat([real, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        text = model.encode_text(ids)
        short, long = (model.similarity(text, model.encode_video(*given)) for given in ((frames, real), longer))
    assert (short - long).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_stem_tokens_stand_for_pixels(kind):
    model = build(kind, freeze=1).eval()
    _, frames, real = batch()
    with torch.no_grad():
        tokens = model.clip.frames_to_stem(frames, real)
        from_pixels, from_stem = (model.encode_video(given, real).tensors() for given in (frames, tokens))
    assert all(torch.equal(value, from_stem[name]) for name, value in from_pixels.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["bf16 parameters", "autocast"])
def test_models_run_in_half_precision(kind, mode):
    model = build(kind)
    ids, frames, real = batch()
    expected = model.similarity(model.encode_text(ids), model.encode_video(frames, real))
    if mode == "bf16 parameters":
        model = model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        found = model.similarity(model.encode_text(ids), model.encode_video(frames, real))
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.03


def test_added_modules_have_the_released_keys():
    def added(kind):
        return {name for name in build(kind).state_dict() if not name.startswith("clip.")}

    temporal = {f"temporal.blocks.0.{key}" for key in BLOCK} | {"temporal.pos_embed.weight"}
    afa = {f"afa.score.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert added("meanP") == set()
    assert added("seqTransf") == temporal
    assert added("teachclip") == temporal | afa
    matrices = {f"interaction.{name}" for name in AUTHORS.values()}
    assert added("xclip") == temporal | matrices | {"interaction.logit_scale.log"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_logit_scale_exists_once(kind):
    names = [name for name in build(kind).state_dict() if "logit_scale" in name]
    assert names == (["interaction.logit_scale.log"] if kind == "xclip" else ["clip.logit_scale.log"])


def test_an_interaction_is_rebuilt_from_its_config_and_weights():
    model = build("xclip")
    ids, frames, real = batch()
    text, video = model.encode_text(ids), model.encode_video(frames, real)
    again = XClipInteraction(**model.interaction.config())
    again.load_state_dict(model.interaction.state_dict())
    assert torch.equal(again.logits(text, video), model.logits(text, video))
    assert torch.equal(again.relevance(text, video), model.interaction.relevance(text, video))


def test_xclip_refuses_features_of_another_size():
    model = build("xclip")
    ids, frames, real = batch()
    with pytest.raises(RecipeError, match="built for 8 words and 4 frames, but the features have 7 and 4"):
        model.logits(model.encode_text(ids[:, :7]), model.encode_video(frames, real))


def test_a_new_temporal_transformer_starts_from_the_text_tower():
    model = build("seqTransf")
    assert torch.equal(model.temporal.pos_embed.weight, model.clip.text.positional_embedding)
