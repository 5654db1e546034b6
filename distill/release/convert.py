"""Authors' checkpoints to what this project reads: a release of a whole model, or a folder of CLIP towers.

Shapes say everything about a model but its activation: sizes are read from the tensors as the authors' code reads
them, heads are width // 64, and the activation is QuickGELU because that code knows no other. Every tensor of the file
is converted, named as unused with a reason, or refused; every tensor of the model comes from the file. Nothing is ever
filled in.
"""

import os
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save
from torch import Tensor

from distill import __version__
from distill.catalogue import INTERACTIONS, build, parse_model_config
from distill.data.tokens import Tokenizer
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import NAME, file_sha256, published, write_json
from distill.model.clip import CLIP_MEAN, CLIP_STD, CONFIG_FILE, WEIGHTS_FILE, Clip
from distill.release.authors import MODELS, Checkpoint, read_tensors, some
from distill.release.card import model_card
from distill.release.geometry import activation_of, architecture_of, heads_of
from distill.release.release import PROVENANCE, write_release
from distill.retrieval.tokens import bytes_per_video

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


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was made of a checkpoint; `record` is what the provenance keeps of it."""

    out: Path
    kind: str
    record: dict[str, Any]
    architecture: dict[str, Any]  # of the towers
    head: Head | None  # None: towers alone

    def report(self) -> str:
        """What became of every tensor, the sizes, and the next commands."""
        counts, reasons = self.record["tensors"], {}
        for name, why in self.record["unused"].items():
            reasons.setdefault(why, []).append(name)
        lines = [f"{self.out}: {self.kind}, {counts['converted']} tensors converted, {counts['unused']} unused"]
        lines += [f"  unused, {why}: {some(names)}" for why, names in reasons.items()]
        lines += [f"  {part}: {sizes}" for part, sizes in self._geometry().items()]
        lines += [f"  activation: QuickGELU ({self.record['quickgelu']})"]
        lines += [f"  note: {note}" for note in self.record["notes"]]
        return "\n".join([*lines, "next:", *(f"  {command}" for command in self._next())])

    def _geometry(self) -> dict[str, str]:
        parts = {"vision": self.architecture["vision_cfg"], "text": self.architecture["text_cfg"]}
        parts["features"] = {"size": self.architecture["embed_dim"]}
        if self.head is not None:
            own = {"kind": self.kind, **self.head.config, "words": self.head.words, "frames": self.head.frames}
            parts["temporal"] = own.pop("temporal", {})
            parts["queries"] = own.pop("queries", {})
            parts["model"] = own
        named = {
            part: [f"{key} {size}" for key, size in sizes.items() if size is not None] for part, sizes in parts.items()
        }
        return {part: ", ".join(sizes) for part, sizes in named.items() if sizes}

    def _next(self) -> list[str]:
        if self.head is None:
            return [f"python distill/run.py RECIPE model.clip.model={self.out} model.clip.weights=folder"]
        size = self.architecture["vision_cfg"]["image_size"]
        pack = f"python tools/pack_frames.py CAPTIONS VIDEOS --out FRAMES --size {size} --frames {self.head.frames}"
        pack += f" --sampler {self.head.sampler}" if self.head.sampler != "clip4clip" else ""
        pack += f" --prompts {self.head.prompts}" if self.head.prompts else ""
        if self.kind in INTERACTIONS:
            return [pack, f"python tools/dump_soft_labels.py {self.out} FRAMES --out LABELS"]
        return [pack, f"python tools/index.py {self.out} FRAMES --out GALLERY --videos VIDEOS"]


def convert(source: Path, kind: str, out: Path, options: Options) -> Conversion:
    """Converts a checkpoint of the authors into `out`, or says in one line why it cannot be done."""
    options.check(kind)
    _check_out(out, NAME if kind in HEADS else WEIGHTS_FILE)
    checkpoint = Checkpoint(source, kind, read_tensors(source, kind, options.ema))
    checkpoint.check_kind()
    architecture = architecture_of(checkpoint)
    head = HEADS[kind](checkpoint, options, architecture) if kind in HEADS else None
    unused, sha256 = checkpoint.unused(), file_sha256(source)
    record = {
        "file": source.name,
        "sha256": sha256,
        "kind": kind,
        "tensors": {"converted": len(checkpoint.tensors) - len(unused), "unused": len(unused)},
        "unused": unused,
        "quickgelu": activation_of(checkpoint, architecture, sha256, bool(options.quickgelu)),
        "notes": [*head.notes, *_vocabulary_note(architecture)] if head else [],
    }
    provenance = {
        "name": f"{kind} from {source.name}",
        "converted": record,
        "measured": "nothing: the weights were converted, not evaluated",
        "versions": {"distill": __version__},
    }
    if head is None:
        _write_towers(checkpoint, architecture, out, provenance)
    else:
        _write_model(checkpoint, architecture, head, out, provenance)
    return Conversion(out=out, kind=kind, record=record, architecture=architecture, head=head)


def _check_out(out: Path, mark: str) -> None:
    """Refuses a place where nothing could be written, before anything is read."""
    if out.exists() and not out.is_dir():
        raise ExpectedError(f"{out}: a file; --out names a folder to make")
    if out.is_dir() and any(out.iterdir()) and not (out / mark).is_file():
        raise ExpectedError(f"{out}: holds other files (no {mark}); delete it or choose another folder")


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
    other = [name for name in checkpoint.tensors if name.startswith("pool_frames")]
    if other:
        raise ArtefactError(
            f"{checkpoint.path}: holds {some(sorted(other))}: frames pooled by a transformer for every caption; only "
            f"the mean is supported, which needs no caption"
        )
    prompts, slots, _ = checkpoint.shape("prompts.cube", 3)
    clip_frames, frames = options.clip_frames or prompts, options.frames or FRAMES
    if prompts != slots or clip_frames % prompts or frames % clip_frames:
        raise ExpectedError(
            f"{checkpoint.path}: a cube of {prompts} x {slots} prompts, {clip_frames} frames that are aggregated "
            f"together, {frames} frames of a video: the cube must be square, and each number a multiple of the one "
            f"before it; change --clip-frames or --frames"
        )
    config = {"prompts": prompts, "frames": clip_frames, "captions": None}
    guess = (
        f"the file does not show how many frames are aggregated together, the num_frames of training; taken for the "
        f"{prompts} of its prompts, as the authors' defaults are (--clip-frames)"
    )
    head = _sized(checkpoint, options, architecture, config, notes=() if options.clip_frames else (guess,))
    return replace(head, sampler="prompt_switch", prompts=prompts)


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


def _collect(checkpoint: Checkpoint, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of the model, in float32, or every reason why they cannot be had."""
    wanted = {ours: checkpoint.theirs(ours) for ours in expected}
    used = {name for names in wanted.values() for name in names}
    found = checkpoint.tensors.keys()
    problems = {
        "missing": sorted(used - found),
        "unknown": sorted(found - used - checkpoint.unused().keys()),
    }
    if not any(problems.values()):
        weights = {ours: checkpoint.tensor(ours) for ours in expected}
        problems["of another shape"] = [
            f"{', '.join(wanted[ours])} {list(tensor.shape)} for {list(expected[ours].shape)}"
            for ours, tensor in weights.items()
            if tensor.shape != expected[ours].shape
        ]
        problems["not finite"] = [wanted[ours][0] for ours, tensor in weights.items() if not tensor.isfinite().all()]
        if not any(problems.values()):
            return weights
    listed = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
    raise ArtefactError(
        f"{checkpoint.path}: not a {checkpoint.kind} checkpoint as its authors save it: {listed}; nothing is "
        f"dropped or filled in, so it is not converted"
    )


def _write_model(
    checkpoint: Checkpoint, architecture: dict[str, Any], head: Head, out: Path, provenance: dict[str, Any]
) -> None:
    # The towers' origin is the file; `weights` and `model` say nothing to whoever loads a release.
    clip = {"model": checkpoint.path.stem, "weights": "folder"}
    config = parse_model_config({**head.config, "clip": clip}, str(checkpoint.path))
    with torch.random.fork_rng(devices=[]):  # building draws weights that are all replaced
        model = build(config, Clip.from_architecture(architecture))
    stored = None
    if config.kind not in INTERACTIONS:
        stored = bytes_per_video(model, head.frames, architecture["vision_cfg"]["image_size"])
    write_release(
        out,
        model=model,
        model_config=config,
        weights=_collect(checkpoint, model.state_dict()),
        text={"max_words": head.words, "vocabulary": None},
        frames_config={
            "sampler": {"kind": head.sampler, "num_frames": head.frames}
            | ({"prompts": head.prompts} if head.prompts else {}),
            "size": architecture["vision_cfg"]["image_size"],
        },
        provenance=provenance,
        card=model_card(config, None, provenance, stored),
    )


def _write_towers(checkpoint: Checkpoint, architecture: dict[str, Any], out: Path, provenance: dict[str, Any]) -> None:
    """Publishes the folder with one rename; the same towers are kept where they stand, others are refused."""
    with torch.random.fork_rng(devices=[]):
        towers = open_clip.CLIP(**architecture, nonscalar_logit_scale=True)
    weights = _collect(checkpoint, towers.state_dict())
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    part = out.with_name(f".{out.name}.part")
    if part.exists():  # left by a killed process
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        with published(part / WEIGHTS_FILE) as file:
            file.write(save(weights, {"format": f"retrieval-distill {__version__}"}))
        write_json(part / CONFIG_FILE, {"model_cfg": architecture, "preprocess_cfg": preprocess})
        write_json(part / PROVENANCE, provenance)
        if not out.is_dir() or not any(out.iterdir()):
            os.rename(part, out)
        elif _towers_sha256(out) != _towers_sha256(part):
            raise ArtefactError(f"{out}: already holds other towers; delete it or choose another folder")
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _towers_sha256(folder: Path) -> dict[str, str]:
    """Hashes of all that decides what towers compute; a foreign file counts, it may be a vocabulary."""
    others = (path for path in folder.iterdir() if path.name != PROVENANCE)
    return {path.name: file_sha256(path) if path.is_file() else "a folder" for path in others}


def _vocabulary_note(architecture: dict[str, Any]) -> list[str]:
    found, stock = architecture["text_cfg"]["vocab_size"], Tokenizer(WORDS).end + 1
    if found == stock:
        return []
    return [f"the token table has {found} rows, CLIP's tokenizer has {stock} tokens: this model takes ids, not text"]
