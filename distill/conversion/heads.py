"""The heads of authors' checkpoints: for every kind, the config of the model that stands on CLIP's towers.

Sizes come from the tensors; what no tensor shows comes from the user (`Options`), or else is the authors' default.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from distill.conversion.authors import Checkpoint
from distill.conversion.geometry import temporal_of
from distill.conversion.options import FRAMES, WORDS, Options
from distill.errors import ArtefactError, ExpectedError

QUERY_HEADS, GATE_TEMPERATURE = 8, 3.0  # GLSCL: heads of the decoder; temperature of the softmax over frames (LSMDC: 5)
SELECTED, SHIFTED = 3, 2  # TS2-Net: patches kept in a frame; last blocks that shift tokens
SELECTED_PATCHES, PIG_WORDS = 16, 50  # PIG: patches that its generator is shown; tokens of a caption
NO_TEMPORAL = "no temporal transformer (transformerClip.*, frame_position_embeddings.weight)"


@dataclass(frozen=True, kw_only=True)
class Head:
    """A model's config without its towers, and how many words of a caption and frames of a video it takes."""

    config: dict[str, Any]
    words: int = WORDS
    frames: int = FRAMES
    tokens: int = 1  # of a frame, for the temporal transformer
    notes: tuple[str, ...] = ()  # stand in the provenance of the release, so their words do not change
    sampler: str = "clip4clip"  # the rule that chose the frames of training
    prompts: int | None = None  # Prompt Switch's rule needs their number


def _clip4clip(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    temporal = temporal_of(checkpoint, architecture)
    if options.head == "meanP":
        if temporal is not None:
            raise ExpectedError(
                f"{checkpoint.path}: --head meanP, but the file holds a temporal transformer; use --head seqTransf"
            )
        return Head(config={"head": "meanP"})
    if temporal is None:
        raise ExpectedError(
            f"{checkpoint.path}: {NO_TEMPORAL}, which --head seqTransf needs; for a model trained with "
            f"sim_header meanP, use --head meanP"
        )
    return Head(config={"head": "seqTransf", "temporal": temporal})


def _teachclip(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    return Head(config={"temporal": _needed_temporal(checkpoint, architecture)})


def _eercf(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    sizes = _learned_sizes(checkpoint, options, frames="frame_cross.weight")
    return Head(config={"temporal": _needed_temporal(checkpoint, architecture), **sizes}, frames=sizes["frames"])


def _xclip(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    matrices = {"words": "interaction.word_cross", "frames": "interaction.frame_cross"}
    sizes = _learned_sizes(checkpoint, options, **matrices)
    config = {"temporal": _needed_temporal(checkpoint, architecture), **sizes}
    return Head(config=config, words=sizes["words"], frames=sizes["frames"])


def _learned_sizes(checkpoint: Checkpoint, options: Options, **matrices: str) -> dict[str, int]:
    """Return the sizes of learned matrices by the option that says the same; refuse an option that says another."""
    sizes = {name: checkpoint.shape(matrix, 2)[0] for name, matrix in matrices.items()}
    for name, stored in sizes.items():
        asked = getattr(options, name)
        if asked not in (None, stored):
            raise ExpectedError(
                f"{checkpoint.path}: --{name} {asked}, but its matrices are of {stored} {name}; leave it out"
            )
    return sizes


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
    return Head(config=config, tokens=1 + SELECTED, notes=(note,))


def _token_shift(checkpoint: Checkpoint, choice: str, layers: int) -> tuple[int, str]:
    """Return how many of the last blocks shift tokens, and a note for the user or ""."""
    wrapped = checkpoint.shifted  # the blocks whose names have .net, which only the token shift adds
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
        raise ArtefactError(
            f"{checkpoint.path}: no transformer_decoder_noun.layers.*, which a glscl checkpoint must hold"
        )
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
    return Head(config=config, notes=notes, sampler=options.sampler or "glscl")


def _shared_queries(checkpoint: Checkpoint, shared: bool) -> str:
    """Leave out the texts' own queries where they are shared with videos; return a note for the user or "".

    The authors' model always has them. They are drawn from [0, 1), so values outside show that they were trained.
    """
    if shared:
        checkpoint.left_out["noun_queries"] = "of a model that does not share its queries"
    if not checkpoint.has("queries.text_queries"):
        return ""
    queries = checkpoint.tensor("queries.text_queries")
    trained = not bool(((queries >= 0) & (queries < 1)).all())
    if trained and shared:
        return "noun_queries were trained, so texts may need queries of their own (--shared decoder or none)"
    if not trained and not shared:
        return (
            "noun_queries look as they were drawn, in [0, 1): if the model was trained with query_share 1, they were "
            "never trained, and this conversion makes the mistake of the authors' test script; say --shared queries"
        )
    return ""


def _shared_decoder(checkpoint: Checkpoint, shared: bool) -> str:
    """Leave out the videos' own decoder where it is shared with texts; return a note for the user or "".

    The authors' model always has it. Its layers start as copies of `decoder_layer_spatial`, so equality shows that they
    were never trained.
    """
    if shared:
        checkpoint.left_out["transformer_decoder_spatial.*"] = "of a model that does not share its decoder"
    stem, tensors = "transformer_decoder_spatial.layers.", checkpoint.tensors
    pairs = [(name, f"decoder_layer_spatial.{name.removeprefix(stem).partition('.')[2]}") for name in tensors]
    pairs = [(name, origin) for name, origin in pairs if name.startswith(stem) and origin in tensors]
    if not pairs:
        return ""
    trained = not all(torch.equal(tensors[name], tensors[origin]) for name, origin in pairs)
    if trained and shared:
        return "transformer_decoder_spatial was trained, so videos may need their own (--shared queries or none)"
    if not trained and not shared:
        raise ExpectedError(
            f"{checkpoint.path}: transformer_decoder_spatial was never trained, its layers equal decoder_layer_spatial "
            f"from which they were copied; the model shares its decoder: use --shared decoder or both"
        )
    return ""


def _prompt_switch(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    prompts, slots, _ = checkpoint.shape("prompts.cube", 3)
    clip_frames, frames = options.clip_frames or prompts, options.frames or FRAMES
    if prompts != slots or clip_frames % prompts or frames % clip_frames:
        raise ExpectedError(
            f"{checkpoint.path}: {prompts} x {slots} prompts, {clip_frames} frames that are aggregated together, "
            f"{frames} frames of a video: expected as many rows as columns of prompts, and each number a multiple of "
            f"the one before it; change --clip-frames or --frames"
        )
    pooling, notes = _pooling(checkpoint, options.heads, architecture["embed_dim"])
    if not options.clip_frames:
        notes += (
            f"the file does not show how many frames are aggregated together, the num_frames of training; taken for "
            f"the {prompts} of its prompts, as the authors' defaults are (--clip-frames)",
        )
    config = {"prompts": prompts, "frames": clip_frames, **pooling, "captions": None}  # no captioner: for training only
    return Head(config=config, notes=notes, sampler="prompt_switch", prompts=prompts)


def _pooling(checkpoint: Checkpoint, heads: int | None, dim: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the config of Prompt Switch's pooling of frames, and notes for the user.

    The authors' model keeps one pooling transformer under two names, for training and for tests, and saves it twice.
    """
    stem, twin, tensors = "pool_frames.", "pool_frames_test.", checkpoint.tensors
    if not any(name.startswith((stem, twin)) for name in tensors):
        if heads is not None:
            raise ExpectedError(
                f"{checkpoint.path}: --heads {heads}, but the file holds no {stem}*: frames are pooled by their mean; "
                f"leave it out"
            )
        return {}, ()
    for name in tensors:
        first = name.replace(twin, stem, 1)
        if name.startswith(twin) and not (first in tensors and torch.equal(tensors[name], tensors[first])):
            raise ArtefactError(
                f"{checkpoint.path}: {name} is not {first}; the authors' model has one transformer under both names, "
                f"so which of the two was trained is unknown"
            )
    checkpoint.left_out[f"{twin}*"] = f"{stem}* under its second name"
    if dim % (heads or 1):
        raise ExpectedError(f"{checkpoint.path}: --heads {heads} does not divide the {dim} numbers of a frame")
    guess = "the file does not show the heads of pool_frames, num_mha_heads; taken for 1, as published (--heads)"
    return {"pooling": "transformer", "heads": heads or 1}, (() if heads else (guess,))


def _pig(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    frames, selected = checkpoint.shape("proxies.temporal", 3)[1], options.selected or SELECTED_PATCHES
    if options.frames not in (None, frames):
        raise ExpectedError(
            f"{checkpoint.path}: --frames {options.frames}, but its positions in time are {frames}; leave it out"
        )
    rows = "start and end of the generator are the last two rows of its token table, which is not trained"
    guess = (
        f"the file does not show how many patches are selected, num_selected_tokens; taken for {selected} (--selected)"
    )
    config = {
        "proxies": checkpoint.shape("proxies.added", 2)[0],
        "frames": frames,
        "generator": {"selected": selected},
    }
    notes = (rows, "" if options.selected else guess)
    return Head(config=config, words=PIG_WORDS, frames=frames, notes=notes, sampler="pig")


def _xpool(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head:
    note = (
        "X-Pool was trained on the mid-points of equal segments of a video; here frames are sampled by CLIP4Clip's "
        "rule, as TeachCLIP feeds this teacher"
    )
    return Head(config={}, notes=(note,))


HEADS: dict[str, Callable[[Checkpoint, Options, dict[str, Any]], Head]] = {
    "clip4clip": _clip4clip,
    "teachclip": _teachclip,
    "eercf": _eercf,
    "glscl": _glscl,
    "prompt_switch": _prompt_switch,
    "pig": _pig,
    "xclip": _xclip,
    "ts2net": _ts2net,
    "xpool": _xpool,
}


def head_of(checkpoint: Checkpoint, options: Options, architecture: dict[str, Any]) -> Head | None:
    """Return the head of a checkpoint, whose words and frames fit the tables of positions; None for bare towers."""
    if checkpoint.kind not in HEADS:
        return None
    head = HEADS[checkpoint.kind](checkpoint, options, architecture)
    words, frames, tokens = options.words or head.words, options.frames or head.frames, head.tokens
    context = architecture["text_cfg"]["context_length"]
    if words > context:
        raise ExpectedError(
            f"{checkpoint.path}: {words} words, but the text tower has {context} positions; use --words {context} or "
            f"fewer"
        )
    positions = head.config["temporal"]["positions"] if "temporal" in head.config else frames * tokens
    if frames * tokens > positions:
        each = f" of {tokens} tokens each" if tokens > 1 else ""
        raise ExpectedError(
            f"{checkpoint.path}: {frames} frames{each} need {frames * tokens} positions, but frame_position_embeddings "
            f"has {positions}; use --frames {positions // tokens} or fewer"
        )
    config, notes = {"kind": checkpoint.kind, **head.config}, tuple(filter(None, head.notes))
    return replace(head, config=config, words=words, frames=frames, notes=notes)


def _needed_temporal(checkpoint: Checkpoint, architecture: dict[str, Any]) -> dict[str, Any]:
    temporal = temporal_of(checkpoint, architecture)
    if temporal is None:
        raise ArtefactError(
            f"{checkpoint.path}: {NO_TEMPORAL}; a {checkpoint.kind} model trained without sim_header "
            f"seqTransf is not supported"
        )
    return temporal
