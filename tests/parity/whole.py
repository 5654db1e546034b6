"""The outputs of whole models: the authors' checkpoint, converted, loaded, and fed with pixels and token ids."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distill.conversion.convert import convert
from distill.conversion.options import Options
from distill.model.attention import SHIFT_DIVISOR
from distill.model.contract import RetrievalModel
from distill.model.similarity import unit
from distill.release.release import Release
from distill.release.release import load as load_release
from parity import eercf, glscl, prompt_switch
from parity.fixture import Fixture
from parity.modules import Outputs, Runs, paired_relevance
from students.eercf import Eercf
from students.glscl import Glscl
from students.prompt_switch import PromptSwitch

MARKS = {  # a part of a name that only one kind of checkpoint has
    "frameLinear.": "teachclip",
    "local_mat_weight": "xclip",
    "visual_token_selector.": "ts2net",
    "pool_frames.": "xpool",
    "spatial_queries": "glscl",
    "prompt_embedding": "prompt_switch",
}


def whole(fixture: Fixture, dtype: torch.dtype) -> Runs:
    """A model end to end, from the stored weights and from the torch file beside them if there is one."""
    fixture.switch("afa_mask", {"off.*": None}, "off")
    kind, shift = kind_of(fixture), fixture.switch("ts2_shift", {"on": "on", "off": "off"}, "on")
    softened = fixture.number("softlabel_temp", 1.0)
    options = convert_options(fixture, kind, shift)
    beside = torch_file(fixture)
    for label, source in (("", None), (".pt", beside))[: 2 if beside else 1]:
        release = converted(fixture, kind, options, source)
        check_hyper(fixture, release)
        found = run(release.model.to(dtype), fixture, dtype, softened)
        if any(name.endswith("_shift_off") for name in fixture.outputs()):
            still = converted(fixture, kind, replace(options, token_shift="off"), source)
            plain = run(still.model.to(dtype), fixture, dtype, softened)
            found |= {f"{name}_shift_off": value for name, value in plain.items()}
        yield label, found


def kind_of(fixture: Fixture) -> str:
    """Whose checkpoint the weights are."""
    kinds = {kind for name in fixture.part("weight") for mark, kind in MARKS.items() if mark in name}
    assert len(kinds) < 2, f"weights of {' and '.join(sorted(kinds))} at once"
    plain = "eercf" if "global_mat_weight" in fixture.part("weight") else "clip4clip"
    return kinds.pop() if kinds else plain


def torch_file(fixture: Fixture) -> Path | None:
    """The authors' checkpoint file beside a fixture, if there is one; it must hold the fixture's weights."""
    beside, weights = fixture.path.with_suffix(".pt"), fixture.part("weight")
    if not beside.is_file():
        return None
    held = torch.load(beside, weights_only=True)
    same = held.keys() == weights.keys() and all(
        held[name].dtype == weights[name].dtype and torch.equal(held[name], weights[name]) for name in held
    )
    assert same, f"{beside}: other weights than the fixture"
    return beside


def convert_options(fixture: Fixture, kind: str, shift: str) -> Options:
    """Return what the converter must be told, from the switches and the inputs."""
    words = fixture.tensors["input.input_ids"].shape[-1]
    frames = fixture.real().shape[1]
    options: dict[str, Any] = {}
    if kind == "clip4clip":
        temporal = "frame_position_embeddings.weight" in fixture.part("weight")
        options["head"] = "seqTransf" if temporal else "meanP"
    if kind == "ts2net":
        named = any(".attn.net." in name for name in fixture.part("weight"))
        options["token_shift"] = "auto" if named and shift == "on" else shift
        options["noise"] = fixture.switch("ts2_noise", {"zero": "zero"}, "zero")
        masks = {"tiled.*": "tiled", "interleaved.*": "interleaved", "irrelevant.*": "tiled"}
        options["mask"] = fixture.switch("ts2_mask", masks, "tiled")
    if kind == "glscl":
        shares = {name: fixture.switch(name, glscl.YES, "1") for name in ("query_share", "cross_att_share")}
        names = {(True, True): "both", (True, False): "queries", (False, True): "decoder", (False, False): "none"}
        options["shared"] = names[shares["query_share"], shares["cross_att_share"]]
        options["temperature"] = float(fixture.hyper["temp"])
    if kind == "prompt_switch":
        options["clip_frames"] = prompt_switch.clip_frames(fixture)
    return Options(words=words, frames=frames, **options)


def converted(fixture: Fixture, kind: str, options: Options, source: Path | None = None) -> Release:
    """The release that the converter makes of a checkpoint file, or of the stored weights in one."""
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        written, out = Path(folder) / "pytorch_model.bin", Path(folder) / "release"
        if source is None:
            torch.save(fixture.part("weight"), written)
        convert(source or written, kind, out, options)
        return load_release(out)


def check_hyper(fixture: Fixture, release: Release) -> None:
    """Check that the converter read from the shapes what the sidecar says."""
    config, towers = release.config.model, release.config.architecture
    vision, text = towers["vision_cfg"], towers["text_cfg"]
    temporal = config.get("temporal", {})
    found = {
        "image": vision["image_size"],
        "patch": vision["patch_size"],
        "vision_width": vision["width"],
        "vision_heads": vision["width"] // vision["head_width"],
        "vision_layers": vision["layers"],
        "text_width": text["width"],
        "text_heads": text["heads"],
        "text_layers": text["layers"],
        "embed": towers["embed_dim"],
        "context": text["context_length"],
        "vocab": text["vocab_size"],
        "activation": "QuickGELU" if towers["quick_gelu"] else "GELU",
        "temporal_layers": temporal.get("layers"),
        "temporal_heads": temporal and release.model.temporal.num_heads,
    }
    if config["kind"] == "teachclip":
        found["pool_temperature"] = config["afa"]["pool_temperature"]
    if config["kind"] == "xclip":
        found["tau"] = config["temperature"]
    if config["kind"] == "ts2net":
        found |= {"n_div": SHIFT_DIVISOR, "topk": config["selected"]}
        found["shift_layers"] = list(range(vision["layers"] - config["shift_layers"], vision["layers"]))
    if config["kind"] == "glscl":
        names = {"queries": "count", "decoder_layers": "layers", "decoder_heads": "heads", "ffn": "feed_forward"}
        found |= {theirs: config["queries"][ours] for theirs, ours in names.items()}
        found |= {"temp": config["temperature"], "loss2_weight": config["local_weight"]}
    if config["kind"] == "prompt_switch":
        prompt_switch.check_towers(fixture, release.model.clip)
        found |= {"prompts": config["prompts"], "nf": config["frames"], "test_frames": release.num_frames}
    odd = {name: value for name, value in found.items() if fixture.hyper.get(name, value) != value}
    assert not odd, f"the model has {odd}, the sidecar says {[fixture.hyper[name] for name in odd]}"


def run(model: RetrievalModel, fixture: Fixture, dtype: torch.dtype, softened: float) -> Outputs:
    """Every feature and score of a model."""
    frames, real = fixture.input("video", dtype), fixture.real()
    text = model.encode_text(fixture.tensors["input.input_ids"])
    video = model.encode_video(frames, real)
    kind = kind_of(fixture)
    if isinstance(model, Eercf):
        return eercf.whole(model, fixture, text, video)
    if isinstance(model, Glscl):
        return glscl.whole(model, fixture, text, video)
    if isinstance(model, PromptSwitch):
        return prompt_switch.whole(model, fixture, text, video)
    encoded = model.clip.encode_frames(frames, real)
    found = {
        "text_embedding": text.sentence,
        "frame_embedding": encoded,
        "video_embedding": unit(video.vector) if kind == "clip4clip" else video.vector,
        "similarity": model.logits(text, video),
    }
    if text.words is not None:
        found["word_embedding"] = text.words
    if kind == "teachclip":
        assert video.relevance is not None
        found["weights_T1"] = video.relevance.softmax(-1)
    if kind == "ts2net":
        tokens = encoded.flatten(0, 1)
        found["cls_frame_embedding"] = encoded[:, :, 0]
        found["token_scores"] = model.selector.scores(tokens).unflatten(0, real.shape)
        found["selected_tokens"] = model.selector(tokens).unflatten(0, real.shape).flatten(1, 2)
    if kind in ("xclip", "ts2net", "xpool"):
        found["relevance"] = paired_relevance(model, text, video, softened)
    return found
