"""What stands on the towers of an authors' checkpoint, kind by kind: the model's config, its words and its frames.

Sizes come from the tensors; what no tensor shows comes from the user (`Options`), with the authors' default.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from distill.conversion.authors import MODELS, Checkpoint
from distill.conversion.geometry import heads_of
from distill.errors import ArtefactError, ExpectedError

KINDS = tuple(MODELS)
WHOLE = tuple(kind for kind in KINDS if kind != "openai")
WORDS, FRAMES = 32, 12  # of the authors' recipes for short videos
QUERY_HEADS, GATE_TEMPERATURE = 8, 3.0  # GLSCL: of the decoder; of the softmax over frames (LSMDC: 5)
SELECTED, SHIFTED = 3, 2  # TS2-Net: patches kept of a frame, and the last blocks that shift


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the file cannot tell; None is the default of the kind."""

    words: int | None = None  # caption length in tokens
    frames: int | None = None  # of every video
    head: str | None = None  # meanP or seqTransf
    token_shift: str | None = None  # auto, on or off
    noise: str | None = None  # seeded or zero
    mask: str | None = None  # tiled or interleaved
    shared: str | None = None  # both, queries, decoder or none
    temperature: float | None = None  # of GLSCL's weights of frames
    sampler: str | None = None  # glscl or clip4clip
    clip_frames: int | None = None  # whose prompts are aggregated together
    heads: int | None = None  # of the transformer by which Prompt Switch pools frames
    ema: str | None = None  # on: the moving average of the weights
    quickgelu: bool | None = None  # the user's word that towers without a config use QuickGELU

    def check(self, kind: str) -> None:
        """Refuses an option that does not belong to the kind."""
        for field in fields(self):
            if getattr(self, field.name) is not None and kind not in BELONGS[field.name]:
                raise ExpectedError(
                    f"--{field.name.replace('_', '-')} does not go with --kind {kind}, only with "
                    f"{', '.join(BELONGS[field.name])}; leave it out"
                )
        counts = (("words", self.words, 3), ("frames", self.frames, 1), ("clip-frames", self.clip_frames, 1))
        counts += (("heads", self.heads, 1),)
        for name, found, least in counts:
            if found is not None and found < least:
                raise ExpectedError(f"--{name} {found}: expected at least {least}")
        if self.temperature is not None and not self.temperature > 0:
            raise ExpectedError(f"--temperature {self.temperature:g}: expected a number above 0")


BELONGS = {
    "words": WHOLE,
    "frames": WHOLE,
    "head": ("clip4clip",),
    "token_shift": ("ts2net",),
    "noise": ("ts2net",),
    "mask": ("ts2net",),
    "shared": ("glscl",),
    "temperature": ("glscl",),
    "sampler": ("glscl",),
    "clip_frames": ("prompt_switch",),
    "heads": ("prompt_switch",),
    "ema": ("prompt_switch",),
    "quickgelu": ("openai",),
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands on the towers: the model's own config, and how many words and frames it takes."""

    config: dict[str, Any]
    words: int
    frames: int
    notes: tuple[str, ...] = ()
    sampler: str = "clip4clip"  # the rule by which the frames that it was trained on were chosen
    prompts: int | None = None  # what Prompt Switch's rule also has to know


def _clip4clip(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    temporal = _temporal(checkpoint, architecture)
    if options.head == "meanP":
        if temporal is not None:
            raise ExpectedError(
                f"{checkpoint.path}: --head meanP, but the file holds a temporal transformer; say --head seqTransf"
            )
        return _sized(checkpoint, options, architecture, {"head": "meanP"})
    if temporal is None:
        raise ExpectedError(
            f"{checkpoint.path}: no temporal transformer (transformerClip.*, frame_position_embeddings.weight), which "
            f"--head seqTransf needs; a model trained with sim_header meanP is --head meanP"
        )
    return _sized(checkpoint, options, architecture, {"head": "seqTransf", "temporal": temporal})


def _teachclip(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    return _sized(checkpoint, options, architecture, {"temporal": _needed_temporal(checkpoint, architecture)})


def _eercf(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    frames = checkpoint.shape("frame_cross.weight", 2)[0]
    _same_sizes(checkpoint, frames=(options.frames, frames))
    config = {"temporal": _needed_temporal(checkpoint, architecture), "frames": frames}
    return _sized(checkpoint, Options(words=options.words, frames=frames), architecture, config)


def _xclip(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    words = checkpoint.shape("interaction.word_cross", 2)[0]
    frames = checkpoint.shape("interaction.frame_cross", 2)[0]
    _same_sizes(checkpoint, words=(options.words, words), frames=(options.frames, frames))
    config = {"temporal": _needed_temporal(checkpoint, architecture), "words": words, "frames": frames}
    return _sized(checkpoint, Options(words=words, frames=frames), architecture, config)


def _same_sizes(checkpoint: Checkpoint, **sizes: tuple[int | None, int]) -> None:
    """Refuses sizes, asked and found, that are not those of the learned matrices."""
    for name, (asked, found) in sizes.items():
        if asked not in (None, found):
            raise ExpectedError(
                f"{checkpoint.path}: --{name} {asked}, but the matrices in it are of {found} {name}; leave it out"
            )


def _ts2net(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    shift_layers, note = _token_shift(checkpoint, options.token_shift or "auto", architecture["vision_cfg"]["layers"])
    config = {
        "temporal": _needed_temporal(checkpoint, architecture),
        "frames": options.frames or FRAMES,
        "shift_layers": shift_layers,
        "selected": SELECTED,
        "noise": options.noise or "seeded",
        "mask": options.mask or "tiled",
    }
    notes = (note,) if note else ()
    return _sized(checkpoint, options, architecture, config, tokens=1 + SELECTED, notes=notes)


def _token_shift(checkpoint: Checkpoint, choice: str, layers: int) -> tuple[int, str]:
    """How many of the last blocks shift tokens, and what is worth saying about it."""
    wrapped = checkpoint.shifted
    if wrapped != list(range(layers - len(wrapped), layers)):
        raise ArtefactError(
            f"{checkpoint.path}: attn.net.* in the visual blocks {', '.join(map(str, wrapped))} of {layers}; the token "
            f"shift is supported in the last blocks only"
        )
    if wrapped and choice == "off":
        return 0, "trained with the token shift (attn.net.*), converted without it as --token-shift off says"
    if wrapped or choice == "off":
        return len(wrapped), ""
    if choice == "auto":
        return 0, "no attn.net.* in the file, so the model was trained without the token shift"
    count = min(SHIFTED, layers)
    return count, f"no attn.net.* in the file; the last {count} blocks shift tokens because --token-shift on says so"


def _glscl(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    shared = options.shared or "both"
    share_queries, share_decoder = shared in ("both", "queries"), shared in ("both", "decoder")
    notes = _shared_queries(checkpoint, share_queries), _shared_decoder(checkpoint, share_decoder)
    layers = checkpoint.blocks("queries.decoder.")
    if not layers:
        lost = "transformer_decoder_noun.layers.*"
        raise ArtefactError(f"{checkpoint.path}: no {lost}, which a glscl checkpoint must hold")
    config = {
        "temporal": _needed_temporal(checkpoint, architecture),
        "queries": {
            "count": checkpoint.shape("queries.queries", 2)[0],
            "layers": layers,
            "heads": QUERY_HEADS,
            "feed_forward": checkpoint.shape("queries.decoder.0.linear1.weight", 2)[0],
            "share_queries": share_queries,
            "share_decoder": share_decoder,
        },
        "temperature": options.temperature or GATE_TEMPERATURE,
    }
    head = _sized(checkpoint, options, architecture, config, notes=tuple(filter(None, notes)))
    return replace(head, sampler=options.sampler or "glscl")


def _shared_queries(checkpoint: Checkpoint, shared: bool) -> str:
    """Sets a text's own queries aside where they are shared; what is worth saying about it.

    The authors' model always has them; drawn from [0, 1), they stay there unless they were trained.
    """
    if shared:
        checkpoint.left_out["noun_queries"] = "of a model that does not share its queries"
    if not checkpoint.has("queries.text_queries"):
        return ""
    own = checkpoint.tensor("queries.text_queries")
    trained = not bool(((own >= 0) & (own < 1)).all())
    if trained and shared:
        return "noun_queries were trained, so texts may need queries of their own (--shared decoder or none)"
    if not trained and not shared:
        return (
            "noun_queries look as they were drawn, in [0, 1): if the model was trained with query_share 1, they were "
            "never trained, and this conversion makes the mistake of the authors' test script; say --shared queries"
        )
    return ""


def _shared_decoder(checkpoint: Checkpoint, shared: bool) -> str:
    """Sets a video's own decoder aside where it is shared; what is worth saying about it.

    The authors' model always has it; its layers are copies of `decoder_layer_spatial` until they are trained.
    """
    if shared:
        checkpoint.left_out["transformer_decoder_spatial.*"] = "of a model that does not share its decoder"
    stem, found = "transformer_decoder_spatial.layers.", checkpoint.tensors
    pairs = [(name, f"decoder_layer_spatial.{name.removeprefix(stem).partition('.')[2]}") for name in found]
    pairs = [(own, copied) for own, copied in pairs if own.startswith(stem) and copied in found]
    if not pairs:
        return ""
    trained = not all(torch.equal(found[own], found[copied]) for own, copied in pairs)
    if trained and shared:
        return "transformer_decoder_spatial was trained, so videos may need their own (--shared queries or none)"
    if not trained and not shared:
        raise ExpectedError(
            f"{checkpoint.path}: transformer_decoder_spatial was never trained, its layers equal decoder_layer_spatial "
            f"of which they were copied; the model shares its decoder: say --shared decoder or both"
        )
    return ""


def _prompt_switch(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    prompts, slots, _ = checkpoint.shape("prompts.cube", 3)
    clip_frames, frames = options.clip_frames or prompts, options.frames or FRAMES
    if prompts != slots or clip_frames % prompts or frames % clip_frames:
        raise ExpectedError(
            f"{checkpoint.path}: a cube of {prompts} x {slots} prompts, {clip_frames} frames that are aggregated "
            f"together, {frames} frames of a video: the cube must be square, and each number a multiple of the one "
            f"before it; change --clip-frames or --frames"
        )
    pooling, notes = _pooling(checkpoint, options.heads, architecture["embed_dim"])
    if not options.clip_frames:
        notes += (
            f"the file does not show how many frames are aggregated together, the num_frames of training; taken for "
            f"the {prompts} of its prompts, as the authors' defaults are (--clip-frames)",
        )
    config = {"prompts": prompts, "frames": clip_frames, **pooling, "captions": None}
    head = _sized(checkpoint, options, architecture, config, notes=notes)
    return replace(head, sampler="prompt_switch", prompts=prompts)


def _pooling(checkpoint: Checkpoint, heads: int | None, dim: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """How Prompt Switch pools frames, and what is worth saying about it.

    The authors' model has its transformer under two names, for training and for tests, and saves it twice.
    """
    stem, twin, found = "pool_frames.", "pool_frames_test.", checkpoint.tensors
    if not any(name.startswith((stem, twin)) for name in found):
        if heads is not None:
            raise ExpectedError(
                f"{checkpoint.path}: --heads {heads}, but the file holds no {stem}*: frames are pooled by their mean; "
                f"leave it out"
            )
        return {}, ()
    for name in found:
        own = name.replace(twin, stem, 1)
        if name.startswith(twin) and not (own in found and torch.equal(found[name], found[own])):
            raise ArtefactError(
                f"{checkpoint.path}: {name} is not {own}; the authors' model has one transformer under both names, so "
                f"which of the two was trained is unknown"
            )
    checkpoint.left_out[f"{twin}*"] = f"{stem}* under its second name"
    if dim % (heads or 1):
        raise ExpectedError(f"{checkpoint.path}: --heads {heads} does not divide the {dim} numbers of a frame")
    guess = "the file does not show the heads of pool_frames, num_mha_heads; taken for 1, as published (--heads)"
    return {"pooling": "transformer", "heads": heads or 1}, (() if heads else (guess,))


def _xpool(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    note = (
        "X-Pool was trained on the mid-points of equal segments of a video; here frames are sampled by CLIP4Clip's "
        "rule, as TeachCLIP feeds this teacher"
    )
    return _sized(checkpoint, options, architecture, {}, notes=(note,))


HEADS = {
    "clip4clip": _clip4clip,
    "teachclip": _teachclip,
    "eercf": _eercf,
    "glscl": _glscl,
    "prompt_switch": _prompt_switch,
    "xclip": _xclip,
    "ts2net": _ts2net,
    "xpool": _xpool,
}


def _sized(
    checkpoint: Checkpoint,
    options: Options,
    architecture: dict[str, Any],
    config: dict[str, Any],
    tokens: int = 1,
    notes: tuple[str, ...] = (),
) -> Head:
    """A head whose words and frames fit the tables of positions; a frame is so many `tokens` in the temporal one."""
    words, frames = options.words or WORDS, options.frames or FRAMES
    context = architecture["text_cfg"]["context_length"]
    if words > context:
        raise ExpectedError(
            f"{checkpoint.path}: {words} words, but the text tower has {context} positions; use --words {context} or "
            f"fewer"
        )
    positions = config["temporal"]["positions"] if "temporal" in config else frames * tokens
    if frames * tokens > positions:
        each = f" of {tokens} tokens each" if tokens > 1 else ""
        raise ExpectedError(
            f"{checkpoint.path}: {frames} frames{each} need {frames * tokens} positions, but frame_position_embeddings "
            f"has {positions}; use --frames {positions // tokens} or fewer"
        )
    return Head(config={"kind": checkpoint.kind, **config}, words=words, frames=frames, notes=notes)


def _needed_temporal(checkpoint: Checkpoint, architecture: dict[str, Any]) -> dict[str, Any]:
    temporal = _temporal(checkpoint, architecture)
    if temporal is None:
        raise ArtefactError(
            f"{checkpoint.path}: no temporal transformer (transformerClip.*, frame_position_embeddings.weight); a "
            f"{checkpoint.kind} model trained without sim_header seqTransf is not supported"
        )
    return temporal


def _temporal(checkpoint: Checkpoint, architecture: dict[str, Any]) -> dict[str, Any] | None:
    """The temporal transformer's config, or None if there is none of it."""
    layers, table = checkpoint.blocks("temporal.blocks."), "temporal.pos_embed.weight"
    if not layers and not checkpoint.has(table):
        return None
    if not layers or not checkpoint.has(table):
        lost = "frame_position_embeddings.weight" if layers else "transformerClip.*"
        raise ArtefactError(
            f"{checkpoint.path}: half a temporal transformer, {lost} is missing; the authors' code fills the gap from "
            f"CLIP in silence, but these are not the weights that were trained"
        )
    positions, width = checkpoint.shape(table, 2)
    if width != architecture["embed_dim"]:
        raise ArtefactError(
            f"{checkpoint.path}: frame_position_embeddings.weight is {width} wide, but features are of size "
            f"{architecture['embed_dim']}"
        )
    heads_of(checkpoint, "temporal transformer", width)
    return {"layers": layers, "heads": None, "positions": positions, "init": "normal"}
