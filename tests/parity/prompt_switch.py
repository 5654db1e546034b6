"""Prompt Switch's fixtures: a block, the tower with its cube and aggregation, a training step, and frame numbers.

Their weights bear Hugging Face's names and are of towers whose heads and MLPs are not those that the converter takes
for granted, so models are built from the sidecars; the table of names is the converter's.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from distill.conversion.authors import Checkpoint
from distill.data.sampler import PromptSwitchSampler
from distill.model.captioner import CaptionConfig
from distill.model.clip import ClipModel, real_words
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import unit
from distill.model.towers import ClipConfig, Towers
from distill.training.lossconfig import ContrastiveConfig, LossConfig
from distill.training.objective import total_loss
from parity.fixture import Fixture
from parity.modules import Outputs, Runs
from students.prompt_switch import PromptSwitch, PromptSwitchConfig

ALONE = LossConfig(contrastive=ContrastiveConfig(weight=1.0))  # the model's own losses, without labels
CAPTIONER = {  # ours -> theirs; a release has no captioner, so the converter has no names for it
    "captioner.norm_in.": "caption_prenorm.",
    "captioner.layers.": "caption_transformer.layers.",
    "captioner.norm_out.": "caption_transformer.norm.",
    "captioner.head.": "caption_head.",
}


def layer(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """One visual block, prompts switched before its attention alone."""
    fixture.switch("residual", {"un-switched": None}, "un-switched")
    model = built(fixture, fixture.hyper["frames"], dtype)
    yield "", {"hidden": model.clip.visual.transformer.resblocks[0](fixture.input("hidden", dtype))}


def tower(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """All blocks, the aggregation over one and over two cubes, the projection."""
    found: Outputs = {}
    for name, frames in zip(("one_chunk", "two_chunks"), fixture.hyper["nf"], strict=True):
        visual, prompts = (model := built(fixture, frames, dtype)).clip.visual, model.prompts
        visual.transformer.resblocks[-1].register_forward_hook(_keep(found, f"{name}.last_hidden"))
        visual.ln_post.register_forward_hook(_keep(found, f"{name}.pooled"))
        images = fixture.input(f"pixels_{name}", dtype)
        assert len(images) == frames * fixture.hyper["videos"]
        found[f"{name}.features"] = visual(images, prompts=prompts(len(images)))
    yield "", found


def training(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Features, logits and losses of a batch with their gradients; captions padded as they are, and with zeros."""
    about = fixture.hyper
    ids, frames = fixture.tensors["input.input_ids"], fixture.input("video", dtype)
    assert torch.equal(real_words(ids).long(), fixture.tensors["input.text_mask"]), "another padding"
    assert ids.max() == about["eos_id"], "the end token is the largest"
    model = built(fixture, about["frames"], dtype)
    assert model.captioner is not None
    model.captioner.word_weights[about["frequent_ids"]] = about["frequent_weight"]
    model.clip.logit_scale.log.fill_(about["logit_scale"])
    head, cube = model.captioner.head, model.prompts.cube
    for label, given in (("", ids), ("zero padding", ids * real_words(ids))):
        with torch.enable_grad():
            text, video = model.encode_text(given), model.encode_video(frames, fixture.real())
            pair = model.encode_pair(given, text, video)
            losses = total_loss(model.training_scores(text, video, pair), [], ALONE)
            gradients = torch.autograd.grad(losses["total"], (cube, head.bias))
        assert video.frames is not None
        everything = torch.ones(ids[:, 1:].shape, dtype=torch.bool)
        logits, _ = model.captioner(model.clip.text.embed(ids[:, :-1]), video.frames, everything)
        names = {"clip": "contrastive", "caption": "caption", "total": "total"}  # theirs -> ours
        found = {f"loss_{theirs}": losses[ours].detach() for theirs, ours in names.items()}
        found |= {
            f"grad.{name}": g for name, g in zip(("prompt_embedding", "caption_head_bias"), gradients, strict=True)
        }
        found |= {
            "text_features": unit(text.sentence),
            "frame_features_raw": video.frames,
            "video_pooled": video.vector,
            "caption_logits": logits.unflatten(0, everything.shape),
            "sims": model.similarity(text, video),
        }
        yield label, {name: value.detach() for name, value in found.items()}


def whole(model: PromptSwitch, fixture: Fixture, text: TextFeatures, video: VideoFeatures) -> Outputs:
    """Return what a converted model gives; its scores are cosines, without the logit scale."""
    fixture.switch("nf_at_test", {r"num_frames of training.*": None}, "num_frames of training")
    frames, real = fixture.input("video", text.sentence.dtype), fixture.real()
    assert video.frames is not None
    first = model.encode_video(frames[:, : model.frames], real[:, : model.frames])
    return {
        "text_embedding": text.sentence,
        "text_embedding_unit": unit(text.sentence),
        "frame_embedding": video.frames,
        "video_embedding": video.vector,
        "similarity": model.similarity(text, video),
        "similarity_first_chunk_only": model.similarity(text, first),
    }


def frames(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """Frame numbers, -1 where a short video has none; and the table that the sidecar prints."""
    fixture.switch("sampling", {"uniform": None}, "uniform")
    found = {}
    for name, expected in fixture.outputs().items():
        rows = [sampled(count, name.removeprefix("promptswitch.")) for count in fixture.tensors["input.num_frames"]]
        found[name] = torch.tensor([row + [-1] * (expected.shape[1] - len(row)) for row in rows])
    for row in fixture.sidecar.get("table", []):
        for name in row.keys() - {"num_frames"}:
            assert sampled(row["num_frames"], name) == row[name], f"table: {row}"
    yield "", found


def sampled(count: int | Tensor, name: str) -> list[int]:
    """The frames of a video of so many, by the sizes in a name such as F12_P6."""
    sizes = re.fullmatch(r"F(\d+)_P(\d+)", name)
    assert sizes, f"{name}: no sizes"
    sampler = PromptSwitchSampler(kind="prompt_switch", num_frames=int(sizes[1]), prompts=int(sizes[2]))
    return sampler.indices(int(count), 25.0)


def clip_frames(fixture: Fixture) -> int:
    """How many frames are aggregated together, which no weight shows."""
    return fixture.hyper["nf"]


def check_towers(fixture: Fixture, clip: ClipModel) -> None:
    """Check that the converter read from the shapes of the towers what the sidecar says."""
    given, made = architecture(fixture), clip.architecture
    defaults: dict[str, Any] = {"mlp_ratio": 4.0}
    for part in ("vision_cfg", "text_cfg"):
        for name, size in given[part].items():
            found = made[part].get(name, defaults.get(name))
            assert found == size, f"{part}.{name}: the model has {found}, the sidecar says {size}"
    assert made["embed_dim"] == given["embed_dim"]


def built(fixture: Fixture, frames: int, dtype: torch.dtype) -> PromptSwitch:
    """The model of the sidecar, with all weights of the fixture in their places; what it has none for stays random."""
    about = fixture.hyper
    fixture.constant("ln_eps", nn.LayerNorm(1).eps)
    captions = None
    if "caption_heads" in about:
        captions = CaptionConfig(
            weight=float(about["caption_mult"]),
            layers=about["caption_layers"],
            heads=about["caption_heads"],
            feed_forward=about["caption_ffn"],
            light_words=[],
        )
    config = PromptSwitchConfig(
        kind="prompt_switch",
        clip=ClipConfig(model="unused"),
        prompts=about["prompts"],
        frames=frames,
        captions=captions,
    )
    model = PromptSwitch(config, Towers.from_architecture(architecture(fixture)))
    load(model, fixture.path, fixture.part("weight"))
    return model.to(dtype).eval()


def architecture(fixture: Fixture) -> dict[str, Any]:
    """An open_clip `model_cfg` of what the sidecar says in Hugging Face's words."""
    text, vision = fixture.hyper["text"], fixture.hyper["vision"]
    assert {text["hidden_act"], vision["hidden_act"]} == {"quick_gelu"}
    return {
        "embed_dim": fixture.hyper["proj"],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }


def load(model: PromptSwitch, path: Any, weights: dict[str, Tensor]) -> None:
    """Every one of the authors' weights to its place in the model."""
    checkpoint = Checkpoint(path, "prompt_switch", weights)
    state, used = {}, set()
    for ours in model.state_dict():
        stem = next((stem for stem in CAPTIONER if ours.startswith(stem)), None)
        names = (ours.replace(stem, CAPTIONER[stem]),) if stem else checkpoint.theirs(ours)
        if not all(name in weights for name in names):
            continue
        state[ours] = weights[names[0]] if stem else checkpoint.tensor(ours)
        used |= set(names)
    assert used == weights.keys(), f"weights that no part of the model has: {sorted(weights.keys() - used)}"
    model.load_state_dict(state, strict=False)


def _keep(found: Outputs, name: str):
    """A hook that keeps what a part of the model gives."""
    return lambda module, given, out: found.__setitem__(name, out)
