"""The towers equal open_clip's own, with a frozen stem or without; recipes that cannot work are refused."""

import copy
import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from distill.errors import RecipeError
from distill.model.clip import ClipModel
from distill.model.logit_scale import LogitScale
from distill.model.preprocessing import OPENAI
from distill.model.towers import ClipConfig, Towers, read_architecture

ARCHITECTURE = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "layers": 3, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 200, "width": 64, "heads": 2, "layers": 3},
}


def open_clip_model(architecture=ARCHITECTURE, seed=0):
    torch.manual_seed(seed)
    model = open_clip.CLIP(**architecture, nonscalar_logit_scale=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def clip_like(model, **freeze):
    clip = ClipModel(Towers(copy.deepcopy(model), ARCHITECTURE, freeze.get("vision"), freeze.get("text")))
    return clip.eval()


def captions(num=5, words=12, vocab=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocab - 2, (num, words), generator=generator)
    for row, length in enumerate(torch.randint(2, words, (num,), generator=generator)):
        ids[row, length] = vocab - 1
        ids[row, length + 1 :] = 0
    return ids


def pixels(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3, 32, 32), dtype=torch.uint8, generator=generator)


def write_folder(path, model_cfg=ARCHITECTURE, weights=True):
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    model = open_clip_model()
    if weights:
        state = model.state_dict()
        state["logit_scale"] = state["logit_scale"].reshape(())  # as open_clip writes it
        save_file({key: value.contiguous() for key, value in state.items()}, path / "open_clip_model.safetensors")
    return model


@pytest.mark.parametrize("freeze", [None, 0, 1, 2, 3])
def test_image_features_equal_open_clip(freeze):
    model = open_clip_model()
    images = OPENAI.normalise(pixels(4))
    with torch.no_grad():
        expected = model.encode_image(images)
        found = clip_like(model, vision=freeze).visual(images)
    assert (found - expected).abs().max() < 3e-6


def test_text_features_equal_open_clip_on_padded_ids():
    model = open_clip_model()
    ids = captions()
    padded = torch.zeros(len(ids), 77, dtype=torch.long)
    padded[:, : ids.shape[1]] = ids
    with torch.no_grad():
        sentence, words = clip_like(model).text(ids)
        assert (sentence - model.encode_text(padded)).abs().max() < 3e-6
    assert words.shape == (5, 12, 48)
    assert torch.equal(sentence, words[torch.arange(5), ids.argmax(-1)])


@pytest.mark.parametrize("freeze", [0, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_pixels_and_their_stem_tokens_give_the_same_features_and_gradients(freeze, training):
    tower = clip_like(open_clip_model(), vision=freeze).visual.train(training)
    images = pixels(4)
    stem = tower.stem(images)
    assert stem.shape == (4, 17, 128) and not stem.requires_grad
    from_pixels = tower(images)
    from_stem = tower(stem)
    assert torch.equal(from_pixels, from_stem)
    trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    for a, b in zip(
        torch.autograd.grad(from_pixels.sum(), trained), torch.autograd.grad(from_stem.sum(), trained), strict=True
    ):
        assert torch.equal(a, b)


def test_a_tower_without_frozen_layers_has_no_stem():
    with pytest.raises(AssertionError):
        clip_like(open_clip_model()).visual.stem(pixels(1))


def test_uint8_pixels_are_normalised_as_clip_expects():
    images = pixels(2)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    assert torch.allclose(OPENAI.normalise(images), (images / 255 - mean) / std, atol=1e-6)
    visual = clip_like(open_clip_model()).visual
    assert torch.equal(visual(images), visual(OPENAI.normalise(images)))


def test_padded_frames_are_images_of_zeros_after_normalisation():
    clip = clip_like(open_clip_model(), vision=1)
    frames = pixels(2, 3)
    real = torch.tensor([[True, True, False], [True, False, False]])
    blank = OPENAI.normalise(frames) * real[..., None, None, None]
    expected = clip.visual(blank.flatten(0, 1)).unflatten(0, (2, 3))
    for given in (frames, OPENAI.normalise(frames), clip.frames_to_stem(frames, real)):
        assert torch.equal(clip.encode_frames(given, real), expected)


def test_state_dict_has_the_released_keys():
    keys = set(ClipModel(Towers.from_architecture(ARCHITECTURE)).state_dict())
    block = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"]
    block += [f"{part}.{kind}" for part in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") for kind in ("weight", "bias")]
    expected = {
        f"{tower}.transformer.resblocks.{n}.{key}" for tower in ("visual", "text") for n in range(3) for key in block
    }
    expected |= {f"visual.{norm}.{kind}" for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    expected |= {"visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding", "visual.proj"}
    expected |= {"text.token_embedding.weight", "text.positional_embedding", "text.text_projection"}
    expected |= {"text.ln_final.weight", "text.ln_final.bias", "logit_scale.log"}
    assert keys == expected


def test_every_parameter_is_contiguous_and_has_an_axis():
    clip = ClipModel(Towers.from_architecture(ARCHITECTURE))
    assert all(parameter.is_contiguous() and parameter.ndim >= 1 for parameter in clip.parameters())
    assert clip.logit_scale.log.shape == (1,)


def test_freezing_follows_clip4clip():
    """With 12 + 12 blocks, n = 0 freezes the embeddings alone, n = 12 leaves seven tensors trainable."""
    deep = {**ARCHITECTURE, "vision_cfg": {**ARCHITECTURE["vision_cfg"], "layers": 12}}
    deep["text_cfg"] = {**ARCHITECTURE["text_cfg"], "layers": 12}

    def frozen(n):
        clip = ClipModel(Towers.from_architecture(deep, n, n))
        return {name for name, parameter in clip.named_parameters() if not parameter.requires_grad}

    stems = ["conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias"]
    stems = {f"visual.{name}" for name in stems} | {"text.token_embedding.weight", "text.positional_embedding"}
    assert frozen(0) == stems
    assert (len(frozen(6)), len(frozen(12))) == (151, 295)
    assert not frozen(None)


@pytest.mark.parametrize("tower", ["freeze_vision", "freeze_text"])
def test_freezing_more_layers_than_there_are_is_an_error(tower):
    with pytest.raises(RecipeError, match=rf"clip\.{tower}: 4 is more than the tower's 3 layers"):
        ClipModel(Towers.from_architecture(ARCHITECTURE, **{tower: 4}))


def test_logit_scale_multiplies_by_its_exponential():
    scale = LogitScale(2.0)
    similarity = torch.randn(3, 4)
    assert torch.allclose(scale(similarity), similarity * torch.tensor(2.0).exp())
    assert abs(LogitScale.MAX_LOG - 4.6051702) < 1e-7
    assert scale.bfloat16()(similarity).dtype == torch.float32


@pytest.mark.parametrize("mode", ["bf16 parameters", "autocast"])
def test_towers_run_in_half_precision(mode):
    clip = clip_like(open_clip_model(), vision=2)
    images, ids = pixels(3), captions(3)
    expected = clip.visual(images), clip.text(ids)[0]
    if mode == "bf16 parameters":
        clip = clip.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        found = clip.visual(images), clip.text(ids)[0]
        again = clip.visual(clip.visual.stem(images))
    assert torch.equal(found[0], again)
    for a, b in zip(found, expected, strict=True):
        assert torch.cosine_similarity(a.float(), b, dim=-1).min() > 0.995


def test_a_folder_gives_its_weights(tmp_path):
    model = write_folder(tmp_path)
    clip = ClipModel(Towers.from_config(ClipConfig(model=str(tmp_path), freeze_vision=1))).eval()
    images = OPENAI.normalise(pixels(2))
    with torch.no_grad():
        assert (clip.visual(images) - model.encode_image(images)).abs().max() < 3e-6
    assert clip.logit_scale.log.item() == pytest.approx(model.logit_scale.item())
    again = ClipModel(Towers.from_architecture(json.loads(json.dumps(clip.architecture)), freeze_vision=1)).eval()
    again.load_state_dict(clip.state_dict())
    assert torch.equal(again.visual(images), clip.visual(images))


def test_random_weights_need_only_the_config(tmp_path):
    write_folder(tmp_path, weights=False)
    clip = ClipModel(Towers.from_config(ClipConfig(model=str(tmp_path), weights="random")))
    assert clip.dim == 48 and clip.text.context == 77


def test_a_builtin_architecture_is_known_without_network():
    architecture = read_architecture(ClipConfig(model="ViT-B-32-quickgelu", weights="openai"))
    assert architecture["quick_gelu"] and architecture["embed_dim"] == 512


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ClipConfig(model="ViT-B-32", weights="openai"), "another activation; use ViT-B-32-quickgelu"),
        (ClipConfig(model="ViT-B-32-quickgelu", weights="opnai"), "has no weights 'opnai'; open_clip knows: openai"),
        (ClipConfig(model="ViT-B-32"), "is no folder; say random or a tag"),
        (ClipConfig(model="no/such/folder"), "neither a folder nor an architecture"),
        (ClipConfig(model="someone:something", weights="random"), "neither a folder nor an architecture"),
        (ClipConfig(model="roberta-ViT-B-32", weights="random"), "does not read texts by CLIP's tokenizer"),
        (ClipConfig(model="ViT-B-16-SigLIP", weights="random"), "does not read texts by CLIP's tokenizer"),
        (ClipConfig(model="coca_ViT-B-32", weights="random"), "multimodal_cfg, .* a kind of tower"),
    ],
)
def test_impossible_configs_are_refused(config, message):
    with pytest.raises(RecipeError, match=message):
        ClipModel(Towers.from_config(config))


def test_damaged_folders_are_refused(tmp_path):
    config = ClipConfig(model=str(tmp_path))
    with pytest.raises(RecipeError, match=r"holds no open_clip_model\.safetensors"):
        ClipModel(Towers.from_config(config))
    with pytest.raises(RecipeError, match=r"holds no open_clip_config\.json"):
        ClipModel(Towers.from_config(ClipConfig(model=str(tmp_path), weights="random")))
    with pytest.raises(RecipeError, match="does not go with the folder"):
        ClipModel(Towers.from_config(ClipConfig(model=str(tmp_path), weights="openai")))
    wider = {**ARCHITECTURE, "embed_dim": 64}
    write_folder(tmp_path, wider)
    with pytest.raises(RecipeError, match="does not fit"):
        ClipModel(Towers.from_config(config))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RecipeError, match="cannot be read"):
        ClipModel(Towers.from_config(config))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(RecipeError, match="model_cfg"):
        ClipModel(Towers.from_config(config))


def test_captions_longer_than_the_context_are_refused():
    with pytest.raises(RecipeError, match="captions of 78 tokens"):
        clip_like(open_clip_model()).text(torch.ones(1, 78, dtype=torch.long))
