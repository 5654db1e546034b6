"""Authors' checkpoints: every tensor arrives, is named as unused or refused; nothing is run and nothing filled in.

The names and sizes of the authors' tensors are written out here by hand, apart from the project's tables.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from conftest import one_line_error, python
from hypothesis import given as drawn
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import distill.release
from distill.conversion.authors import OPENAI_ARCHIVES, Checkpoint
from distill.conversion.convert import convert
from distill.conversion.geometry import mlp_of
from distill.conversion.options import Options
from distill.errors import ExpectedError
from distill.model.clip import ClipModel
from distill.model.towers import ClipConfig, Towers
from tools.convert_checkpoint import main

# Two heads in the vision tower, one elsewhere; 32 pixels in 16 patches.
VISION, TEXT, DIM, PATCH, GRID, CONTEXT, VOCABULARY = 128, 64, 64, 8, 4, 20, 90
VISION_LAYERS, TEXT_LAYERS, TEMPORAL_LAYERS, POSITIONS, WORDS, FRAMES = 4, 2, 2, 40, 9, 5
WHOLE = ["clip4clip", "teachclip", "xclip", "ts2net", "xpool"]
SMALL = Options(words=WORDS, frames=FRAMES)
QUICK = Options(quickgelu=True)


def block(width):
    """Tensors of one block under OpenAI's names."""
    return {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
    }


def blocks(prefix, width, layers):
    return {f"{prefix}.{n}.{name}": shape for n in range(layers) for name, shape in block(width).items()}


def openai_shapes():
    return {
        "positional_embedding": (CONTEXT, TEXT),
        "text_projection": (TEXT, DIM),
        "logit_scale": (),
        "token_embedding.weight": (VOCABULARY, TEXT),
        "ln_final.weight": (TEXT,),
        "ln_final.bias": (TEXT,),
        "visual.class_embedding": (VISION,),
        "visual.positional_embedding": (GRID**2 + 1, VISION),
        "visual.proj": (VISION, DIM),
        "visual.conv1.weight": (VISION, 3, PATCH, PATCH),
        "visual.ln_pre.weight": (VISION,),
        "visual.ln_pre.bias": (VISION,),
        "visual.ln_post.weight": (VISION,),
        "visual.ln_post.bias": (VISION,),
        **blocks("visual.transformer.resblocks", VISION, VISION_LAYERS),
        **blocks("transformer.resblocks", TEXT, TEXT_LAYERS),
    }


SELECTOR = "visual_token_selector.score_predictor"
HEADS = {  # of the authors, beside the towers: name -> shape
    "clip4clip": {},
    "teachclip": {
        "frameLinear.weight": (DIM, DIM),
        "frameLinear.bias": (DIM,),
        "frameLinear2.weight": (1, DIM),
        "frameLinear2.bias": (1,),
    },
    "xclip": {
        "global_mat_weight": (DIM, DIM),
        "local_mat_weight": (DIM, DIM),
        "word_logit_weight": (WORDS, WORDS),
        "word_mat_weight": (WORDS, WORDS),
        "word_mat_weight2": (WORDS, WORDS),
        "frame_logit_weight": (FRAMES, FRAMES),
        "frame_mat_weight": (FRAMES, FRAMES),
        "frame_mat_weight2": (FRAMES, FRAMES),
    },
    "ts2net": {
        f"{SELECTOR}.in_conv.0.weight": (DIM,),
        f"{SELECTOR}.in_conv.0.bias": (DIM,),
        f"{SELECTOR}.in_conv.1.weight": (DIM // 2, DIM),
        f"{SELECTOR}.out_conv.0.weight": (DIM // 2, DIM),
        f"{SELECTOR}.out_conv.2.weight": (1, DIM // 2),
        "text_token_selector.score_predictor.in_conv.0.weight": (DIM,),
        "text_token_selector.score_predictor.in_conv.1.bias": (DIM // 2,),
        "text_token_selector.score_predictor.out_conv.2.weight": (1, DIM // 2),
        "visual_prompt_encoder.positional_embedding": (4, VISION),
        "visual_prompt_encoder.conv1.weight": (VISION, 3, PATCH, PATCH),
    },
    "xpool": {
        **{f"pool_frames.cross_attn.{p}_proj.weight": (DIM, DIM) for p in ("q", "k", "v", "out")},
        **{f"pool_frames.cross_attn.{p}_proj.bias": (DIM,) for p in ("q", "k", "v", "out")},
        "pool_frames.linear_proj.weight": (DIM, DIM),
        "pool_frames.linear_proj.bias": (DIM,),
        **{f"pool_frames.layer_norm{n}.{part}": (DIM,) for n in (1, 2, 3) for part in ("weight", "bias")},
    },
}
ARRIVES = {  # the authors' name -> ours, beside the towers
    "clip4clip": {},
    "teachclip": {
        "frameLinear.weight": "afa.score.0.weight",
        "frameLinear.bias": "afa.score.0.bias",
        "frameLinear2.weight": "afa.score.2.weight",
        "frameLinear2.bias": "afa.score.2.bias",
    },
    "xclip": {
        "global_mat_weight": "interaction.global_proj",
        "local_mat_weight": "interaction.local_proj",
        "word_logit_weight": "interaction.word_cross",
        "word_mat_weight": "interaction.word_fine",
        "word_mat_weight2": "interaction.word_fine2",
        "frame_logit_weight": "interaction.frame_cross",
        "frame_mat_weight": "interaction.frame_fine",
        "frame_mat_weight2": "interaction.frame_fine2",
    },
    "ts2net": {
        f"{SELECTOR}.in_conv.0.weight": "selector.norm.weight",
        f"{SELECTOR}.in_conv.0.bias": "selector.norm.bias",
        f"{SELECTOR}.in_conv.1.weight": "selector.hidden.weight",
        f"{SELECTOR}.out_conv.0.weight": "selector.joint.weight",
        f"{SELECTOR}.out_conv.2.weight": "selector.score.weight",
    },
    "xpool": {
        **{
            f"pool_frames.cross_attn.{p}_proj.{w}": f"interaction.pooling.{p}_proj.{w}"
            for p in "qkv"
            for w in ("weight", "bias")
        },
        "pool_frames.cross_attn.out_proj.weight": "interaction.pooling.out_proj.weight",
        "pool_frames.cross_attn.out_proj.bias": "interaction.pooling.out_proj.bias",
        "pool_frames.linear_proj.weight": "interaction.pooling.linear_proj.weight",
        "pool_frames.linear_proj.bias": "interaction.pooling.linear_proj.bias",
        **{
            f"pool_frames.layer_norm{n}.{w}": f"interaction.pooling.norm{n}.{w}"
            for n in "123"
            for w in ("weight", "bias")
        },
    },
}
HALF = ("text_projection", "visual.proj", "visual.conv1.weight", "in_proj_weight", "in_proj_bias", "out_proj.weight")
HALF += ("out_proj.bias", "c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias")


def filled(shapes, seed=0):
    """Random tensors in the authors' mixed precisions: half for what CLIP's convert_weights halves."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}
    towers = ("clip.", "visual.", "transformer.", "text_projection")
    return {
        name: tensor.half() if name.startswith(towers) and name.endswith(HALF) else tensor
        for name, tensor in tensors.items()
    }


def hugging_face(state):
    """The same towers under Hugging Face's names and shapes."""
    renamed = {
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
        "logit_scale": "logit_scale",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight": "vision_model.post_layernorm.weight",
        "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    }
    inside = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    inside["attn.out_proj"] = "self_attn.out_proj"
    found = {}
    for name, tensor in state.items():
        if name in ("text_projection", "visual.proj"):
            found["text_projection.weight" if name == "text_projection" else "visual_projection.weight"] = (
                tensor.T.contiguous()
            )
        elif "resblocks." in name:
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            number, part = name.split("resblocks.")[1].split(".", 1)
            layer = f"{tower}.encoder.layers.{number}"
            if "in_proj" in part:
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{layer}.self_attn.{letter}_proj.{part.rpartition('_')[2]}"] = third.clone()
            else:
                module, _, parameter = part.rpartition(".")
                found[f"{layer}.{inside[module]}.{parameter}"] = tensor
        else:
            found[renamed[name]] = tensor
    return found


def checkpoint(kind, seed=0, net=(2, 3)):
    """A whole model as its authors save it; `net` are TS2-Net's blocks with a token shift."""
    shapes = {f"clip.{name}": shape for name, shape in openai_shapes().items()} | HEADS[kind]
    if kind != "xpool":
        shapes["frame_position_embeddings.weight"] = (POSITIONS, DIM)
        shapes |= blocks("transformerClip.resblocks", DIM, TEMPORAL_LAYERS)
    state = filled(shapes, seed)
    if kind == "xpool":
        towers = {name.removeprefix("clip."): t for name, t in state.items() if name.startswith("clip.")}
        rest = {name: t for name, t in state.items() if not name.startswith("clip.")}
        state = {f"clip.{name}": t for name, t in hugging_face(towers).items()} | rest
    if kind == "ts2net":
        for number in net:
            attention = f"clip.visual.transformer.resblocks.{number}.attn."
            state = {name.replace(attention, f"{attention}net."): tensor for name, tensor in state.items()}
    return state


def openai_names(kind, state):
    """The towers of a whole model under OpenAI's names."""
    plain = filled({f"clip.{name}": shape for name, shape in openai_shapes().items()} | HEADS[kind])
    assert state.keys() >= HEADS[kind].keys()
    return {name.removeprefix("clip."): tensor for name, tensor in plain.items() if name.startswith("clip.")}


def expected_weights(kind, state):
    """Everything that has to arrive, in float32, under our names."""
    found = {ours: state[theirs] for theirs, ours in ARRIVES[kind].items()}
    for name, tensor in openai_names(kind, state).items():
        found[f"clip.{name}" if name.startswith("visual.") else f"clip.text.{name}"] = tensor
    scale = found.pop("clip.text.logit_scale").reshape(1)
    found["clip.logit_scale.log" if kind in ("clip4clip", "teachclip") else "interaction.logit_scale.log"] = scale
    if kind != "xpool":
        found["temporal.pos_embed.weight"] = state["frame_position_embeddings.weight"]
        for name in blocks("transformerClip.resblocks", DIM, TEMPORAL_LAYERS):
            found[name.replace("transformerClip.resblocks", "temporal.blocks")] = state[name]
    return {name: tensor.float() for name, tensor in found.items()}


def saved(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def options(kind, **more):
    """Words and frames that fit the small tables; X-CLIP's are in the file."""
    return Options(**({} if kind == "xclip" else {"words": WORDS, "frames": FRAMES}), **more)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("suffix", [".pt", ".bin.4", ".safetensors"])
@pytest.mark.parametrize("kind", WHOLE)
def test_every_tensor_arrives_in_a_release_that_loads_and_encodes(kind, suffix, tmp_path):
    state = checkpoint(kind)
    source = saved(state, tmp_path / f"model{suffix}")
    done = convert(source, kind, tmp_path / "release", options(kind))
    same(load_file(tmp_path / "release" / "model.safetensors"), expected_weights(kind, state))
    release = distill.release.load(tmp_path / "release")
    assert (release.num_frames, release.size, release.dim) == (FRAMES, GRID * PATCH, DIM)
    assert (release.config.text.max_words, release.config.text.vocabulary) == (WORDS, None)
    assert release.frames_config["sampler"]["kind"] == "clip4clip"
    assert release.model.clip.visual.transformer.resblocks[0].attn.num_heads == 2
    assert (release.model.clip.text.heads, release.config.architecture["quick_gelu"]) == (1, True)
    ids = torch.zeros(2, WORDS, dtype=torch.int64)
    ids[:, :4] = torch.tensor([VOCABULARY - 2, 5, 6, VOCABULARY - 1])
    pixels = torch.randint(0, 256, (3, FRAMES, 3, GRID * PATCH, GRID * PATCH), dtype=torch.uint8)
    with torch.inference_mode():
        text = release.model.encode_text(ids)
        video = release.encode_frames(pixels, torch.ones(3, FRAMES, dtype=torch.bool))
        assert release.model.similarity(text, video).isfinite().all()
    unused = {name for name in state if name.startswith(("text_token_selector.", "visual_prompt_encoder."))}
    counts = {"converted": len(state) - len(unused), "unused": len(unused)}
    assert done.record["tensors"] == counts
    assert f"{kind}, {counts['converted']} tensors converted, {counts['unused']} unused" in done.report()


@pytest.mark.parametrize("kind", WHOLE)
def test_the_folder_says_where_the_weights_come_from_and_that_nothing_was_measured(kind, tmp_path):
    source = saved(checkpoint(kind), tmp_path / "authors.bin")
    done = convert(source, kind, tmp_path / "release", options(kind))
    text = (tmp_path / "release" / "provenance.json").read_text()
    record = json.loads(text)["converted"]
    assert record == done.record
    assert (record["file"], record["kind"]) == ("authors.bin", kind)
    assert record["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert "nothing" in json.loads(text)["measured"]
    assert str(tmp_path) not in text + (tmp_path / "release" / "config.json").read_text()
    card = (tmp_path / "release" / "README.md").read_text()
    for words in ("converted from `authors.bin`", record["sha256"], "No metrics were measured", "Not evaluated."):
        assert words in card
    assert "resolved recipe" not in card
    report = done.report()
    following = "tools/index.py" if kind in ("clip4clip", "teachclip") else "tools/dump_soft_labels.py"
    for words in ("image_size 32", "patch_size 8", f"width {VISION}", following, "--size 32", f"--frames {FRAMES}"):
        assert words in report
    assert f"{VOCABULARY} rows" in report  # CLIP's tokenizer does not fit such a table


def test_words_and_frames_of_short_videos_are_the_default_and_texts_are_tokenised(tmp_path):
    state = checkpoint("clip4clip") | {
        "clip.token_embedding.weight": torch.randn(49408, TEXT),
        "clip.positional_embedding": torch.randn(77, TEXT),
    }
    done = convert(saved(state, tmp_path / "m.pt"), "clip4clip", tmp_path / "release", Options())
    release = distill.release.load(tmp_path / "release")
    assert (release.num_frames, release.config.text.max_words) == (12, 32)
    assert release.embed_text(["a dog catches a frisbee"]).shape == (1, DIM)
    assert "rows" not in done.report()


def test_converting_draws_nothing_from_the_random_stream(tmp_path):
    source = saved(checkpoint("xclip"), tmp_path / "m.pt")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    convert(source, "xclip", tmp_path / "release", Options())
    assert torch.equal(torch.rand(4), expected)


def test_meanp_is_the_towers_alone(tmp_path):
    state = {name: tensor for name, tensor in checkpoint("clip4clip").items() if name.startswith("clip.")}
    source = saved(state, tmp_path / "m.pt")
    convert(source, "clip4clip", tmp_path / "release", options("clip4clip", head="meanP"))
    assert distill.release.load(tmp_path / "release").config.model["head"] == "meanP"
    with pytest.raises(ExpectedError, match=r"transformerClip\.\*.*--head meanP"):
        convert(source, "clip4clip", tmp_path / "other", SMALL)
    whole = saved(checkpoint("clip4clip"), tmp_path / "whole.pt")
    with pytest.raises(ExpectedError, match="holds a temporal transformer; use --head seqTransf"):
        convert(whole, "clip4clip", tmp_path / "other", options("clip4clip", head="meanP"))


def test_xpool_is_read_out_of_its_training_state(tmp_path):
    state = checkpoint("xpool")
    wrapped = {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-6}]}}
    convert(saved(wrapped, tmp_path / "m.pth"), "xpool", tmp_path / "release", SMALL)
    same(load_file(tmp_path / "release" / "model.safetensors"), expected_weights("xpool", state))


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
WRAPPERS = [(), ("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("keys", WRAPPERS, ids=".".join)
def test_a_model_is_read_out_of_what_training_scripts_wrap_around_it(keys, prefix, tmp_path):
    state = filled(openai_shapes())
    given = {prefix + name: tensor for name, tensor in state.items()}
    for key in reversed(keys):
        given = {"epoch": 3, "optimizer": {"state": {0: torch.zeros(1)}}, "config": {"lr": 1.0}, key: given}
    convert(saved(given, tmp_path / "m.pt"), "openai", tmp_path / "towers", QUICK)
    same(towers(tmp_path / "towers"), expected_towers(state))


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_prefix_is_taken_from_a_whole_model_too(suffix, tmp_path):
    state = checkpoint("ts2net")
    source = saved({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / f"m{suffix}")
    convert(source, "ts2net", tmp_path / "release", SMALL)
    same(load_file(tmp_path / "release" / "model.safetensors"), expected_weights("ts2net", state))


def test_a_prefix_that_only_some_names_have_is_kept_and_refused(tmp_path):
    state = filled(openai_shapes())
    state["module.logit_scale"] = state.pop("logit_scale")
    with pytest.raises(ExpectedError, match=r"missing: logit_scale; unknown: module\.logit_scale"):
        convert(saved(state, tmp_path / "m.pt"), "openai", tmp_path / "towers", QUICK)


@pytest.mark.parametrize("other", ["model_ema", "state_dict", "ema"])
def test_of_several_sets_of_weights_none_is_chosen(other, tmp_path):
    state = filled(openai_shapes())
    given = {"model": state, other: {f"module.{name}": tensor + 1 for name, tensor in state.items()}}
    with pytest.raises(ExpectedError, match=rf"holds several sets of weights, model, {other}, and which one is meant"):
        convert(saved(given, tmp_path / "m.pt"), "openai", tmp_path / "towers", QUICK)
    assert not (tmp_path / "towers").exists()


def with_mlps(shapes, vision, text):
    """The shapes of towers whose blocks are so wide inside."""
    sizes = {4 * VISION: vision, 4 * TEXT: text}
    return {n: tuple(sizes.get(size, size) if ".mlp." in n else size for size in shape) for n, shape in shapes.items()}


@pytest.mark.parametrize(("vision", "text"), [(3 * VISION, 4 * TEXT), (4 * VISION, 67), (101, 8 * TEXT)])
@pytest.mark.parametrize("names", ["openai", "hugging face"])
def test_the_width_inside_blocks_is_that_of_the_tensors(names, vision, text, tmp_path):
    state = filled(with_mlps(openai_shapes(), vision, text))
    given = hugging_face(state) if names == "hugging face" else state
    convert(saved(given, tmp_path / "m.pt"), "openai", tmp_path / "towers", QUICK)
    same(towers(tmp_path / "towers"), expected_towers(state))
    config = json.loads((tmp_path / "towers" / "open_clip_config.json").read_text())["model_cfg"]
    for part, inner, width in (("vision_cfg", vision, VISION), ("text_cfg", text, TEXT)):
        assert config[part].get("mlp_ratio", 4.0) == inner / width
        assert ("mlp_ratio" in config[part]) == (inner != 4 * width), "other towers are described as before"


def test_a_release_of_other_widths_inside_blocks_loads_and_encodes(tmp_path):
    wide = with_mlps({name: tensor.shape for name, tensor in checkpoint("teachclip").items()}, 5 * VISION, 2 * TEXT)
    temporal = {name: tensor for name, tensor in checkpoint("teachclip").items() if name.startswith("transformerClip")}
    state = filled(wide) | temporal
    convert(saved(state, tmp_path / "m.pt"), "teachclip", tmp_path / "release", SMALL)
    release = distill.release.load(tmp_path / "release")
    assert release.model.clip.visual.transformer.resblocks[0].mlp.c_fc.out_features == 5 * VISION
    assert release.model.clip.text.transformer.resblocks[1].mlp.c_fc.out_features == 2 * TEXT
    pixels = torch.zeros(1, FRAMES, 3, GRID * PATCH, GRID * PATCH, dtype=torch.uint8)
    assert release.encode_frames(pixels, torch.ones(1, FRAMES, dtype=torch.bool)).vector.isfinite().all()


@drawn(width=st.integers(1, 64).map(lambda heads: 64 * heads), inner=st.integers(1, 40_000))
def test_the_ratio_gives_open_clip_the_very_width_of_the_tensors(width, inner):
    tensors = {"visual.transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(inner, 1)}
    held = Checkpoint(Path("m.pt"), "openai", tensors)
    assert int(width * mlp_of(held, "visual.", width).get("mlp_ratio", 4.0)) == inner


def test_xpool_on_openais_own_towers_is_read_too(tmp_path):
    state = checkpoint("xpool")
    towers = {f"clip.{name}": tensor for name, tensor in openai_names("xpool", state).items()}
    mixed = towers | {name: tensor for name, tensor in state.items() if name.startswith("pool_frames.")}
    convert(saved(mixed, tmp_path / "m.pth"), "xpool", tmp_path / "release", SMALL)
    same(load_file(tmp_path / "release" / "model.safetensors"), expected_weights("xpool", state))


def test_position_ids_of_older_transformers_are_named_as_unused(tmp_path):
    state = checkpoint("xpool") | {
        "clip.text_model.embeddings.position_ids": torch.arange(CONTEXT)[None],
        "clip.vision_model.embeddings.position_ids": torch.arange(GRID**2 + 1)[None],
    }
    done = convert(saved(state, tmp_path / "m.pth"), "xpool", tmp_path / "release", SMALL)
    assert sorted(done.record["unused"]) == [
        f"clip.{part}_model.embeddings.position_ids" for part in ("text", "vision")
    ]
    assert "clip.text_model.embeddings.position_ids" in done.report()


@pytest.mark.parametrize(
    ("net", "shift", "layers", "note"),
    [
        ((2, 3), None, 2, ""),
        ((2, 3), "auto", 2, ""),
        ((3,), "auto", 1, ""),
        ((), "auto", 0, "was trained without the token shift"),
        ((), "on", 2, "the last 2 blocks shift tokens because --token-shift on"),
        ((2, 3), "on", 2, ""),
        ((2, 3), "off", 0, "converted without it as --token-shift off"),
        ((), "off", 0, ""),
    ],
)
def test_the_token_shift_is_known_by_the_names(net, shift, layers, note, tmp_path):
    state = checkpoint("ts2net", net=net)
    source = saved(state, tmp_path / "m.pt")
    done = convert(source, "ts2net", tmp_path / "release", options("ts2net", token_shift=shift))
    model = distill.release.load(tmp_path / "release").config.model
    assert (model["shift_layers"], model["frames"], model["selected"]) == (layers, FRAMES, 3)
    assert (model["noise"], model["mask"]) == ("seeded", "tiled")
    same(load_file(tmp_path / "release" / "model.safetensors"), expected_weights("ts2net", state))
    said = [found for found in done.record["notes"] if "shift" in found]
    assert len(said) == bool(note)
    assert all(note in found and found in done.report() for found in said)


def test_noise_and_mask_are_stored(tmp_path):
    source = saved(checkpoint("ts2net"), tmp_path / "m.pt")
    convert(source, "ts2net", tmp_path / "release", options("ts2net", noise="zero", mask="interleaved"))
    model = distill.release.load(tmp_path / "release").config.model
    assert (model["noise"], model["mask"]) == ("zero", "interleaved")


def drop(*names):
    return lambda state: {name: tensor for name, tensor in state.items() if not name.startswith(names)}


def put(**tensors):
    return lambda state: state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def renamed(old, new):
    return lambda state: {name.replace(old, new): tensor for name, tensor in state.items()}


def wide(state):
    """A vision tower of 200: three heads do not divide it."""
    resized = {name: tensor for name, tensor in state.items() if not name.startswith("clip.visual.")}
    resized["clip.visual.conv1.weight"] = torch.zeros(200, 3, PATCH, PATCH)
    resized["clip.visual.positional_embedding"] = torch.zeros(GRID**2 + 1, 200)
    resized["clip.visual.transformer.resblocks.0.ln_1.weight"] = torch.zeros(200)
    return resized


def half_wrapped(state):
    name = "clip.visual.transformer.resblocks.3.attn."
    return {key.replace(f"{name}net.out_proj", f"{name}out_proj"): tensor for key, tensor in state.items()}


ZERO = torch.zeros(1)
REFUSALS = {
    "missing": ("teachclip", drop("frameLinear2.bias"), SMALL, ["missing: frameLinear2.bias"]),
    "missing block": ("xclip", drop("clip.transformer.resblocks.0."), Options(), ["clip.transformer.resblocks.0.*"]),
    "missing conv": ("clip4clip", drop("clip.visual.conv1"), SMALL, ["no clip.visual.conv1.weight"]),
    "missing hugging face": (
        "xpool",
        drop("clip.text_model.encoder.layers.1.self_attn.k_proj.bias"),
        SMALL,
        ["missing: clip.text_model.encoder.layers.1.self_attn.k_proj.bias"],
    ),
    "unknown": ("clip4clip", put(weight_loss=ZERO, gamma=ZERO), SMALL, ["unknown: gamma, weight_loss"]),
    "unknown unused": ("xclip", put(text_token_selector__x=ZERO), Options(), ["unknown: text_token_selector.x"]),
    "shape": (
        "teachclip",
        put(frameLinear__weight=torch.zeros(DIM, DIM + 1)),
        SMALL,
        ["of another shape: frameLinear.weight [64, 65] for [64, 64]"],
    ),
    "scale": ("clip4clip", put(clip__logit_scale=torch.zeros(2)), SMALL, ["clip.logit_scale [2] for [1]"]),
    "rank": ("clip4clip", put(clip__visual__conv1__weight=torch.zeros(VISION)), SMALL, ["expected 4 dimensions"]),
    "not finite": (
        "teachclip",
        put(frameLinear2__bias=torch.full((1,), torch.nan)),
        SMALL,
        ["finite: frameLinear2.bias"],
    ),
    "integers": ("teachclip", put(frameLinear2__bias=torch.zeros(1, dtype=torch.int64)), SMALL, ["torch.int64"]),
    "uneven attention": (
        "xpool",
        put(clip__text_model__encoder__layers__0__self_attn__k_proj__weight=torch.zeros(TEXT, 2)),
        SMALL,
        ["k_proj.weight", "differ in shape"],
    ),
    "grid": (
        "clip4clip",
        put(clip__visual__positional_embedding=torch.zeros(GRID**2, VISION)),
        SMALL,
        ["16 positions", "1 + a square"],
    ),
    "patch": (
        "clip4clip",
        put(clip__visual__conv1__weight=torch.zeros(VISION, 3, 8, 4)),
        SMALL,
        ["patches of 8 x 4 pixels"],
    ),
    "heads": ("clip4clip", wide, SMALL, ["200 wide", "3 heads, which do not divide it"]),
    "words": ("teachclip", None, Options(words=CONTEXT + 1, frames=FRAMES), ["21 words", "20 positions"]),
    "frames": ("teachclip", None, Options(words=WORDS, frames=41), ["41 frames need 41", "has 40", "--frames 40"]),
    "frames of four tokens": (
        "ts2net",
        None,
        Options(words=WORDS, frames=11),
        ["11 frames of 4 tokens each need 44 positions", "has 40", "--frames 10"],
    ),
    "xclip words": ("xclip", None, Options(words=32), ["--words 32", "are of 9 words"]),
    "xclip frames": ("xclip", None, Options(frames=12), ["--frames 12", "are of 5 frames"]),
    "uneven xclip": ("xclip", put(word_mat_weight=torch.eye(3)), Options(), ["word_mat_weight [3, 3] for [9, 9]"]),
    "half temporal": ("teachclip", drop("frame_position"), SMALL, ["half a temporal", "frame_position_embeddings"]),
    "other half": ("clip4clip", drop("transformerClip."), SMALL, ["half a temporal", "transformerClip.* is missing"]),
    "no temporal": ("xclip", drop("transformerClip.", "frame_position"), Options(), ["sim_header seqTransf"]),
    "narrow temporal": (
        "clip4clip",
        put(frame_position_embeddings__weight=torch.zeros(POSITIONS, 32)),
        SMALL,
        ["32 wide", "size 64"],
    ),
    "lstm": ("clip4clip", put(lstm_visual__bias_ih_l0=ZERO), SMALL, ["lstm_visual.bias_ih_l0", "seqLSTM"]),
    "tight": ("clip4clip", put(cross__pooler__dense__bias=ZERO), SMALL, ["cross.pooler.dense.bias", "tightTransf"]),
    "tight score": ("clip4clip", put(similarity_dense__bias=ZERO), SMALL, ["similarity_dense.bias", "tightTransf"]),
    "3d patches": ("clip4clip", put(clip__visual__conv2__weight=ZERO), SMALL, ["linear_patch 3d"]),
    "resnet": ("clip4clip", put(clip__visual__layer1__0__conv1__weight=ZERO), SMALL, ["ResNet"]),
    "another kind": ("teachclip", put(global_mat_weight=ZERO), SMALL, ["use --kind xclip"]),
    "wrapped in a module": ("teachclip", renamed("clip.", "module.clip."), SMALL, ["no name begins with clip."]),
    "shift in the middle": (
        "ts2net",
        renamed("resblocks.3.attn.net.", "resblocks.3.attn."),
        SMALL,
        ["visual blocks 2 of 4", "last blocks only"],
    ),
    "half a shift": ("ts2net", half_wrapped, SMALL, ["resblocks.3.attn.out_proj", "damaged"]),
    "shift elsewhere": ("xclip", renamed("resblocks.3.attn.", "resblocks.3.attn.net."), Options(), ["missing: "]),
    "optimiser": ("clip4clip", lambda _: {"epoch": 1, "optimizer_state_dict": {}}, SMALL, ["pytorch_opt.bin"]),
    "list": ("clip4clip", lambda _: [ZERO], SMALL, ["holds list"]),
    "empty": ("clip4clip", lambda _: {}, SMALL, ["expected a dict of named tensors"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_and_leaves_nothing(case, tmp_path):
    kind, spoil, given, words = REFUSALS[case]
    state = checkpoint(kind)
    source = saved(spoil(state) if spoil else state, tmp_path / "m.pt")
    with pytest.raises(ExpectedError) as error:
        convert(source, kind, tmp_path / "out", given)
    for word in (str(source), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt"]


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("xclip", {"head": "meanP"}, "--head does not go with --kind xclip, only with clip4clip"),
        ("clip4clip", {"token_shift": "on"}, "--token-shift does not go with --kind clip4clip"),
        ("teachclip", {"noise": "zero"}, "--noise does not go with"),
        ("xpool", {"mask": "tiled"}, "--mask does not go with"),
        ("openai", {"words": 32}, "--words does not go with --kind openai"),
        ("openai", {"frames": 12}, "--frames does not go with"),
        ("teachclip", {"quickgelu": True}, "--quickgelu does not go with --kind teachclip, only with openai"),
        ("teachclip", {"words": 2}, "--words 2: expected at least 3"),
        ("teachclip", {"frames": 0}, "--frames 0: expected at least 1"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_the_file_is_read(kind, given, words, tmp_path):
    with pytest.raises(ExpectedError, match=words):
        convert(tmp_path / "not there.pt", kind, tmp_path / "out", Options(**given))


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["clip4clip", "openai"])
def test_a_malicious_pickle_is_not_run(kind, tmp_path):
    evil = {"clip.logit_scale": torch.zeros(()), "extra": Payload(f"touch {tmp_path / 'ran'}")}
    source = saved(evil, tmp_path / "m.pt")
    with pytest.raises(ExpectedError, match=r"holds more than tensors \(it asks for \w+\.system\)") as error:
        convert(source, kind, tmp_path / "out", Options())
    assert "weights_only" not in str(error.value)  # torch advises to switch the protection off
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_damaged_files_are_refused(name, tmp_path):
    source = saved(checkpoint("clip4clip"), tmp_path / name)
    for content in (source.read_bytes()[:5000], b"", b"hello " * 100):
        source.write_bytes(content)
        with pytest.raises(ExpectedError, match=r"not readable as .* download it again") as error:
            convert(source, "clip4clip", tmp_path / "out", SMALL)
        assert "\n" not in str(error.value)
    with pytest.raises(ExpectedError, match="a folder; name the checkpoint file"):
        convert(tmp_path, "clip4clip", tmp_path / "out", SMALL)
    with pytest.raises(ExpectedError, match="no such file"):
        convert(tmp_path / "nothing.pt", "clip4clip", tmp_path / "out", SMALL)


def towers(folder):
    """Everything that a recipe with `clip.model: FOLDER` starts from."""
    return ClipModel(Towers.from_config(ClipConfig(model=str(folder)))).state_dict()


def expected_towers(state):
    ours = {
        name if name.startswith("visual.") else f"text.{name}": tensor.float()
        for name, tensor in state.items()
        if name != "logit_scale"
    }
    return ours | {"logit_scale.log": state["logit_scale"].reshape(1)}


HF_CONFIG = {
    "text_config": {"hidden_act": "quick_gelu", "num_attention_heads": 1},
    "vision_config": {"num_attention_heads": 2},  # transformers leaves defaults out; its default is quick_gelu
}
OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": DIM,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": VISION_LAYERS, "width": VISION, "patch_size": PATCH},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": TEXT, "heads": 1, "layers": 2},
    }
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("names", ["openai", "hugging face"])
def test_openai_gives_towers_that_a_recipe_starts_from(names, suffix, tmp_path):
    state = filled(openai_shapes())
    extras = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(CONTEXT),
        "vocab_size": torch.tensor(9),
    }
    given = state | extras
    if names == "hugging face":
        extras = {"text_model.embeddings.position_ids": torch.arange(CONTEXT)[None]}
        given = hugging_face(state) | extras
    done = convert(saved(given, tmp_path / f"m{suffix}"), "openai", tmp_path / "towers", QUICK)
    same(towers(tmp_path / "towers"), expected_towers(state))
    assert sorted(done.record["unused"]) == sorted(extras)
    assert f"model.clip.model={tmp_path / 'towers'}" in done.report()
    config = json.loads((tmp_path / "towers" / "open_clip_config.json").read_text())["model_cfg"]
    assert config["quick_gelu"] is True
    assert config["vision_cfg"]["head_width"] == 64
    record = json.loads((tmp_path / "towers" / "provenance.json").read_text())["converted"]
    assert "--quickgelu" in record["quickgelu"]


def test_weights_cannot_tell_their_activation_so_someone_must(tmp_path):
    source = saved(filled(openai_shapes()), tmp_path / "m.pt")
    with pytest.raises(ExpectedError, match=r"config\.json or open_clip_config\.json beside.*--quickgelu"):
        convert(source, "openai", tmp_path / "towers", Options())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_act": "gelu"}))  # of something else
    with pytest.raises(ExpectedError, match="the weights cannot tell"):
        convert(source, "openai", tmp_path / "towers", Options())
    for name, config in (("config.json", HF_CONFIG), ("open_clip_config.json", OPEN_CLIP_CONFIG)):
        folder = tmp_path / f"beside {name}"
        folder.mkdir()
        (folder / name).write_text(json.dumps(config))
        done = convert(saved(filled(openai_shapes()), folder / "m.pt"), "openai", folder / "towers", Options())
        assert name in done.record["quickgelu"]


def changed(tree, path, value):
    """A copy of a config with one entry changed."""
    first, _, rest = path.partition(".")
    return tree | {first: changed(tree.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("config.json", changed(HF_CONFIG, "text_config.hidden_act", "gelu"), "plain-GELU"),
        ("config.json", changed(HF_CONFIG, "vision_config.hidden_act", "gelu"), "plain-GELU"),
        ("config.json", HF_CONFIG | {"text_config_dict": {"hidden_act": "gelu"}}, "plain-GELU"),
        ("config.json", changed(HF_CONFIG, "vision_config.num_attention_heads", 4), "4 vision heads"),
        ("open_clip_config.json", changed(OPEN_CLIP_CONFIG, "model_cfg.quick_gelu", False), "plain-GELU"),
        ("open_clip_config.json", changed(OPEN_CLIP_CONFIG, "model_cfg.vision_cfg.head_width", 32), "4 vision heads"),
        ("open_clip_config.json", changed(OPEN_CLIP_CONFIG, "model_cfg.text_cfg.heads", 2), "2 text heads"),
        ("open_clip_config.json", changed(OPEN_CLIP_CONFIG, "model_cfg.vision_cfg.width", "wide"), "cannot be read"),
        ("config.json", "{", "cannot be read"),
    ],
)
@pytest.mark.parametrize("kind", ["xpool", "teachclip", "openai"])
def test_a_config_beside_the_file_that_says_otherwise_is_an_error(kind, name, config, words, tmp_path):
    state = filled(openai_shapes()) if kind == "openai" else checkpoint(kind)
    source = saved(state, tmp_path / "m.pt")
    (tmp_path / name).write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ExpectedError, match=words) as error:
        convert(source, kind, tmp_path / "out", QUICK if kind == "openai" else SMALL)
    assert str(tmp_path / name) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_config_without_a_word_of_quick_gelu_means_plain_gelu_to_open_clip(tmp_path):
    model = {key: value for key, value in OPEN_CLIP_CONFIG["model_cfg"].items() if key != "quick_gelu"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(ExpectedError, match="plain-GELU"):
        convert(saved(filled(openai_shapes()), tmp_path / "m.pt"), "openai", tmp_path / "out", QUICK)


class Archived(nn.Module):
    """A module with these tensors under these names."""

    def __init__(self, tensors):
        super().__init__()
        children = {}
        for name, tensor in tensors.items():
            first, dot, rest = name.partition(".")
            if dot:
                children.setdefault(first, {})[rest] = tensor
            elif tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        for name, inside in children.items():
            self.add_module(name, Archived(inside))

    def forward(self, x):
        return x


def archive(state, path):
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.trace(Archived(state), torch.zeros(1)).save(str(path))
    return path


def test_openais_own_archives_are_opened_and_no_other_program_is(tmp_path, monkeypatch):
    state = filled(openai_shapes())
    source = archive(state | {"input_resolution": torch.tensor(32)}, tmp_path / "ViT.pt")
    for kind in ("openai", "clip4clip"):
        with pytest.raises(ExpectedError, match=r"TorchScript archive, which is a program.*save torch\.jit\.load"):
            convert(source, kind, tmp_path / "out", Options())
    monkeypatch.setitem(OPENAI_ARCHIVES, hashlib.sha256(source.read_bytes()).hexdigest(), "ViT-tiny")
    done = convert(source, "openai", tmp_path / "towers", Options())  # and its activation is known
    same(towers(tmp_path / "towers"), expected_towers(state))
    assert list(done.record["unused"]) == ["input_resolution"]
    assert "ViT-tiny" in done.record["quickgelu"]
    with pytest.raises(ExpectedError, match="bare CLIP towers; use --kind openai"):
        convert(source, "clip4clip", tmp_path / "out", Options())


def test_the_published_archives_are_those_that_open_clip_fetches():
    from open_clip.pretrained import get_pretrained_cfg

    names = {"ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14", "ViT-L/14@336px": "ViT-L-14-336"}
    assert {sha256: names[name] for sha256, name in OPENAI_ARCHIVES.items()} == {
        get_pretrained_cfg(name, "openai")["url"].split("/")[-2]: name for name in names.values()
    }


def test_bare_towers_and_whole_models_are_told_apart(tmp_path):
    whole = saved(checkpoint("clip4clip"), tmp_path / "whole.pt")
    with pytest.raises(ExpectedError, match=r"a whole retrieval model.*tools/export_clip\.py"):
        convert(whole, "openai", tmp_path / "out", QUICK)
    bare = saved(filled(openai_shapes()), tmp_path / "bare.pt")
    with pytest.raises(ExpectedError, match="Bare CLIP towers are --kind openai"):
        convert(bare, "clip4clip", tmp_path / "out", SMALL)


def test_a_release_in_the_way_is_kept_if_the_same_and_refused_if_not(tmp_path):
    out = tmp_path / "release"
    source = saved(checkpoint("teachclip"), tmp_path / "m.pt")
    convert(source, "teachclip", out, SMALL)
    first = (out / "manifest.json").read_bytes()
    convert(source, "teachclip", out, SMALL)
    assert (out / "manifest.json").read_bytes() == first
    other = saved(checkpoint("teachclip", seed=1), tmp_path / "m.safetensors")
    with pytest.raises(ExpectedError, match="already holds another release"):
        convert(other, "teachclip", out, SMALL)
    with pytest.raises(ExpectedError, match="already holds another release"):
        convert(source, "teachclip", out, Options(words=WORDS, frames=4))
    assert (out / "manifest.json").read_bytes() == first
    with pytest.raises(ExpectedError, match="a file; --out names a folder"):
        convert(source, "teachclip", source, SMALL)
    with pytest.raises(ExpectedError, match="holds other files"):
        convert(source, "teachclip", tmp_path, SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "m.safetensors", "release"]


def test_towers_in_the_way_are_kept_if_the_same_and_refused_if_not(tmp_path):
    out = tmp_path / "towers"
    source = saved(filled(openai_shapes()), tmp_path / "m.pt")
    for _ in range(2):
        convert(source, "openai", out, QUICK)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ExpectedError, match="already holds other towers"):
        convert(saved(filled(openai_shapes(), seed=1), tmp_path / "n.pt"), "openai", out, QUICK)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "vocabulary.json").write_text("[1, 2]")  # would change what the same weights mean
    with pytest.raises(ExpectedError, match="already holds other towers"):
        convert(source, "openai", out, QUICK)
    with pytest.raises(ExpectedError, match="holds other files"):
        convert(source, "openai", tmp_path, QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "n.pt", "towers"]


def test_the_command_says_what_became_of_every_tensor(tmp_path, capsys):
    source = saved(checkpoint("ts2net"), tmp_path / "ts2net_model.bin")
    sizes = ["--words", str(WORDS), "--frames", str(FRAMES)]
    choices = ["--token-shift", "off", "--noise", "zero", "--mask", "interleaved"]
    main([str(source), "--kind", "ts2net", "--out", str(tmp_path / "release"), *sizes, *choices])
    printed = capsys.readouterr().out
    for words in ("tensors converted, 5 unused", "never calls it", "visual_prompt_encoder.conv1.weight", "next:"):
        assert words in printed
    assert distill.release.load(tmp_path / "release").config.model["shift_layers"] == 0
    bare = saved(filled(openai_shapes()), tmp_path / "towers.pt")
    main([str(bare), "--kind", "openai", "--out", str(tmp_path / "towers"), "--quickgelu"])
    assert "python distill/run.py RECIPE" in capsys.readouterr().out


def test_the_command_says_in_one_line_why_not(tmp_path):
    source = saved(checkpoint("ts2net"), tmp_path / "ts2net_model.bin")
    command = (
        "tools/convert_checkpoint.py",
        source,
        "--kind",
        "ts2net",
        "--words",
        str(WORDS),
        "--out",
        tmp_path / "out",
    )
    one_line_error(python(*command, check=False), str(source), "12 frames of 4 tokens each need 48 positions")
    evil = saved({"x": Payload(f"touch {tmp_path / 'ran'}")}, tmp_path / "evil.bin")
    command = ("tools/convert_checkpoint.py", evil, "--kind", "xclip", "--out", tmp_path / "out")
    one_line_error(python(*command, check=False), str(evil), "more than tensors")
    assert not (tmp_path / "ran").exists()
