"""The authors' checkpoints: read without running them, and the names of their tensors beside ours.

A name with `*` stands for many; each `*` is the same text on both sides, and the first line that fits a name counts.
Looking up goes from our name to theirs, so that what a model needs is asked for, and what nobody asked for is left.
Hugging Face spells CLIP's towers in its own way; X-Pool's checkpoints and bare towers may come in that spelling.
"""

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.errors import ArtefactError, ExpectedError, first_few

TOWERS = {"clip.visual.*": "clip.visual.*", "clip.text.*": "clip.*"}
STUDENT = TOWERS | {"clip.logit_scale.log": "clip.logit_scale"}
TEACHER = TOWERS | {"interaction.logit_scale.log": "clip.logit_scale"}
TEMPORAL = {
    "temporal.pos_embed.weight": "frame_position_embeddings.weight",
    "temporal.blocks.*": "transformerClip.resblocks.*",
}
SELECTOR = "visual_token_selector.score_predictor"

# Ours -> theirs, by kind. The towers of `openai` keep OpenAI's names, which are open_clip's.
MODELS: dict[str, dict[str, str]] = {
    "clip4clip": STUDENT | TEMPORAL,
    "teachclip": STUDENT | TEMPORAL | {"afa.score.0.*": "frameLinear.*", "afa.score.2.*": "frameLinear2.*"},
    "eercf": STUDENT
    | TEMPORAL
    | {"global_proj.weight": "global_mat_weight", "frame_cross.weight": "frame_logit_weight"},
    "glscl": STUDENT
    | TEMPORAL
    | {
        "queries.queries": "spatial_queries",
        "queries.text_queries": "noun_queries",
        "queries.decoder.*": "transformer_decoder_noun.layers.*",
        "queries.video_decoder.*": "transformer_decoder_spatial.layers.*",
    },
    "prompt_switch": STUDENT
    | {
        "prompts.cube": "clip.visual.prompts",
        "cross.norm*": "pool_frames.layer_norm*",
        "cross.linear_proj.*": "pool_frames.linear_proj.*",
        "cross.*": "pool_frames.cross_attn.*",
    },
    "xclip": TEACHER
    | TEMPORAL
    | {
        "interaction.global_proj": "global_mat_weight",
        "interaction.local_proj": "local_mat_weight",
        "interaction.word_cross": "word_logit_weight",
        "interaction.frame_cross": "frame_logit_weight",
        "interaction.word_fine": "word_mat_weight",
        "interaction.word_fine2": "word_mat_weight2",
        "interaction.frame_fine": "frame_mat_weight",
        "interaction.frame_fine2": "frame_mat_weight2",
    },
    "ts2net": TEACHER
    | TEMPORAL
    | {
        "selector.norm.*": f"{SELECTOR}.in_conv.0.*",
        "selector.hidden.weight": f"{SELECTOR}.in_conv.1.weight",
        "selector.joint.weight": f"{SELECTOR}.out_conv.0.weight",
        "selector.score.weight": f"{SELECTOR}.out_conv.2.weight",
    },
    "xpool": TEACHER
    | {
        "interaction.pooling.norm*": "pool_frames.layer_norm*",
        "interaction.pooling.linear_proj.*": "pool_frames.linear_proj.*",
        "interaction.pooling.*": "pool_frames.cross_attn.*",
    },
    "openai": {"*": "*"},
}


def _blocks(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    ours, theirs = f"{ours}.transformer.resblocks.*".lstrip("."), f"{theirs}.encoder.layers.*"
    return {
        f"{ours}.attn.in_proj_*": tuple(f"{theirs}.self_attn.{part}_proj.*" for part in "qkv"),
        f"{ours}.attn.out_proj.*": (f"{theirs}.self_attn.out_proj.*",),
        f"{ours}.ln_1.*": (f"{theirs}.layer_norm1.*",),
        f"{ours}.ln_2.*": (f"{theirs}.layer_norm2.*",),
        f"{ours}.mlp.c_fc.*": (f"{theirs}.mlp.fc1.*",),
        f"{ours}.mlp.c_proj.*": (f"{theirs}.mlp.fc2.*",),
    }


# OpenAI's name -> Hugging Face's; several are stacked in this order.
HUGGING_FACE: dict[str, tuple[str, ...]] = {
    **_blocks("visual", "vision_model"),
    "visual.class_embedding": ("vision_model.embeddings.class_embedding",),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight",),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight",),
    "visual.ln_pre.*": ("vision_model.pre_layrnorm.*",),  # sic
    "visual.ln_post.*": ("vision_model.post_layernorm.*",),
    "visual.proj": ("visual_projection.weight",),
    **_blocks("", "text_model"),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight",),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight",),
    "ln_final.*": ("text_model.final_layer_norm.*",),
    "text_projection": ("text_projection.weight",),
    "logit_scale": ("logit_scale",),
    "visual.aggregation.attention.*": ("vision_model.attn.*",),  # this line and the next: Prompt Switch's own
    "visual.prompts": ("vision_model.encoder.prompt_embedding",),
}
TRANSPOSED = {"visual_projection.weight", "text_projection.weight"}  # linear layers there, matrices at OpenAI

CAPTIONER = "of the captioner, which only training needs"
SIZES = "a size that the other tensors show anyway"
POSITIONS = "the numbers 0, 1, 2 ..., which older versions of transformers stored"
UNUSED: dict[str, dict[str, str]] = {  # theirs -> why, by kind; `clip.` in front or not
    "glscl": {
        "weight_fc.*": "the authors' model computes it for every pair and drops the result",
        "decoder_layer_noun.*": "the layer of which the decoder's layers were copied",
        "decoder_layer_spatial.*": "the layer of which the decoder's layers were copied",
    },
    "prompt_switch": {
        "caption_prenorm.*": CAPTIONER,
        "caption_transformer.*": CAPTIONER,
        "caption_head.*": CAPTIONER,
    },
    "ts2net": {
        "text_token_selector.*": "the authors' model builds it and never calls it",
        "visual_prompt_encoder.*": "the authors' model builds it and never calls it",
    },
}
UNUSED_TOWERS = {
    "text_model.embeddings.position_ids": POSITIONS,
    "vision_model.embeddings.position_ids": POSITIONS,
    "input_resolution": SIZES,
    "context_length": SIZES,
    "vocab_size": SIZES,
}
REFUSED = {  # theirs -> why; `clip.` in front or not
    "visual.conv2.*": "linear_patch 3d, patches that span frames; only linear_patch 2d is supported",
    "visual.layer1.*": "a ResNet tower; only ViT towers are supported",
    "visual.attnpool.*": "a ResNet tower; only ViT towers are supported",
    "lstm_visual.*": "the seqLSTM head; only meanP and seqTransf are supported",
    "cross.*": "the tightTransf head; only meanP and seqTransf are supported",
    "similarity_dense.*": "the tightTransf head; only meanP and seqTransf are supported",
}
MARKS: dict[str, tuple[str, ...]] = {  # theirs -> the only kinds that have it
    "global_mat_weight": ("xclip", "eercf"),
    "local_mat_weight": ("xclip",),
    "frameLinear.*": ("teachclip",),
    "spatial_queries": ("glscl",),
    "visual_token_selector.*": ("ts2net",),
    "pool_frames.*": ("xpool", "prompt_switch"),
    "clip.vision_model.encoder.prompt_embedding": ("prompt_switch",),
    "caption_transformer.*": ("prompt_switch",),
}

# sha256 of OpenAI's TorchScript archives, as the addresses in the CLIP repository name them. An archive is a program
# and is only run if it is one of these.
OPENAI_ARCHIVES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}


class Checkpoint:
    """The tensors of one file, asked for by our names; `shifted` are TS2-Net's visual blocks with a token shift."""

    def __init__(self, path: Path, kind: str, tensors: Mapping[str, Tensor]):
        self.path, self.kind = path, kind
        self.prefix = "" if kind == "openai" else "clip."  # of the towers, in the file
        self.visual, self.text = ("visual.", "") if kind == "openai" else ("clip.visual.", "clip.text.")  # and here
        self.left_out: dict[str, str] = {}  # theirs -> why, where the converter's options decide what is needed
        self.tensors, self.shifted = _unwrap(path, tensors) if kind == "ts2net" else (dict(tensors), [])
        self.hugging_face = kind in ("openai", "xpool", "prompt_switch") and any(
            name.startswith((f"{self.prefix}vision_model.", f"{self.prefix}text_model.")) for name in tensors
        )

    def theirs(self, ours: str) -> tuple[str, ...]:
        """The authors' names of one of our tensors: one, or the three that Hugging Face keeps apart."""
        name = _translate(ours, {key: (value,) for key, value in MODELS[self.kind].items()})[0]
        if not self.hugging_face or not name.startswith(self.prefix):
            return (name,)
        return tuple(self.prefix + name for name in _translate(name.removeprefix(self.prefix), HUGGING_FACE))

    def tensor(self, ours: str) -> Tensor:
        """One of our tensors, in float32 and in memory of its own."""
        names = self.theirs(ours)
        missing = [name for name in names if name not in self.tensors]
        if missing:
            raise ArtefactError(f"{self.path}: no {first_few(missing)}, which a {self.kind} checkpoint must hold")
        parts = [self.tensors[name] for name in names]
        odd = [
            f"{name} ({part.dtype})" for name, part in zip(names, parts, strict=True) if not part.is_floating_point()
        ]
        if odd:
            raise ArtefactError(f"{self.path}: {first_few(odd)}: expected floating-point weights")
        if len({part.shape for part in parts}) > 1:
            raise ArtefactError(f"{self.path}: {', '.join(names)} differ in shape; they cannot be one attention")
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if whole.ndim == 2 and names[0].removeprefix(self.prefix) in TRANSPOSED:
            whole = whole.T
        whole = whole.reshape(1) if whole.ndim == 0 else whole  # the logit scale
        return whole.to(torch.float32, copy=True).contiguous()

    def has(self, ours: str) -> bool:
        """Whether the file holds one of our tensors."""
        return all(name in self.tensors for name in self.theirs(ours))

    def shape(self, ours: str, dims: int) -> torch.Size:
        """Shape of one of our tensors, which must have so many dimensions."""
        found = self.tensor(ours).shape
        if len(found) != dims or 0 in found:
            raise ArtefactError(
                f"{self.path}: {first_few(self.theirs(ours))} is {list(found)}, expected {dims} dimensions"
            )
        return found

    def blocks(self, ours: str) -> int:
        """How many transformer blocks there are below our name `ours`, numbered from 0."""
        prefix = self.theirs(f"{ours}{{}}.ln_1.weight")[0].partition("{}")[0]
        after = (name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix))
        numbers = sorted({int(number) for number in after if number.isdecimal()})
        if numbers != list(range(len(numbers))):
            gap = next(number for number in range(len(numbers)) if number not in numbers)
            raise ArtefactError(f"{self.path}: {prefix}{gap}.* is missing, though later blocks are there")
        return len(numbers)

    def unused(self) -> dict[str, str]:
        """Tensors that no model needs, each with the reason."""
        known = UNUSED.get(self.kind, {}) | self.left_out
        known |= {f"{self.prefix}{name}": why for name, why in UNUSED_TOWERS.items()}
        return {name: why for name in sorted(self.tensors) for line, why in known.items() if _fits(line, name)}

    def check_kind(self) -> None:
        """Refuses what belongs to another kind, or to none that is supported."""
        for name in sorted(self.tensors):
            for line, why in REFUSED.items():
                if _fits(line, name.removeprefix("clip.")):
                    raise ArtefactError(f"{self.path}: holds {name}: {why}")
            for line, kinds in MARKS.items():
                if _fits(line, name) and self.kind not in kinds:
                    right = " or ".join(kinds)
                    raise ArtefactError(f"{self.path}: holds {name}, so it is not {self.kind}; say --kind {right}")
        whole = any(name.startswith("clip.") for name in self.tensors)
        if whole and self.kind == "openai":
            raise ArtefactError(
                f"{self.path}: holds clip.*, so it is a whole retrieval model; say its --kind, and let "
                f"tools/export_clip.py write the towers of what comes out"
            )
        if not whole and self.kind != "openai":
            raise ArtefactError(
                f"{self.path}: no name begins with clip. (found {first_few(sorted(self.tensors))}); expected the "
                f"state dict of a whole {self.kind} model. Bare CLIP towers are --kind openai"
            )


def read_tensors(path: Path, kind: str, ema: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, in the precisions it has. Nothing in the file is run.

    `ema` says which weights to take of a Prompt Switch file that holds their moving average too: "on" is the average.
    """
    if path.is_dir():
        raise ArtefactError(f"{path}: a folder; name the checkpoint file in it")
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file; expected a checkpoint (.pt, .bin, .pth or .safetensors)")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ArtefactError(f"{path}: not readable as safetensors ({error}); download it again") from None
    if _is_torchscript(path):
        return _read_archive(path, kind)
    loaded = _read_torch(path)
    return _plain(path, _chosen(path, loaded, ema) if kind == "prompt_switch" else loaded)


def _translate(name: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What the first line that fits gives for a name."""
    for line, theirs in table.items():
        found = re.fullmatch(re.escape(line).replace(r"\*", "(.+)"), name)
        if found:
            return tuple(_filled(pattern, found.groups()) for pattern in theirs)
    raise AssertionError(f"no line for {name}")


def _filled(pattern: str, pieces: tuple[str, ...]) -> str:
    for piece in pieces:
        pattern = pattern.replace("*", piece, 1)
    return pattern


def _unwrap(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
    """Drops the `.net` that TS2-Net's token shift puts into the names of an attention; which blocks had it."""
    plain, blocks = {}, set()
    for name, tensor in tensors.items():
        wrapped = re.fullmatch(r"(clip\.visual\.transformer\.resblocks\.(\d+)\.attn\.)net\.(.+)", name)
        if wrapped:
            blocks.add(int(wrapped[2]))
            name = wrapped[1] + wrapped[3]
        if name in plain:
            raise ArtefactError(f"{path}: holds {name} with .net and without; which of the two counts is unknown")
        plain[name] = tensor
    halves = [
        name
        for number in sorted(blocks)
        for name in tensors
        if re.fullmatch(rf"clip\.visual\.transformer\.resblocks\.{number}\.attn\.(?!net\.).+", name)
    ]
    if halves:
        raise ArtefactError(f"{path}: holds {first_few(halves)} beside attn.net.* of the same block; it is damaged")
    return plain, sorted(blocks)


def _fits(line: str, name: str) -> bool:
    return name.startswith(line[:-1]) if line.endswith("*") else name == line


def _is_torchscript(path: Path) -> bool:
    """By the mark that torch itself goes by; nothing is run."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    except zipfile.BadZipFile:
        return False  # torch says what is wrong with it


def _read_archive(path: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of one of OpenAI's own archives."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 not in OPENAI_ARCHIVES:
        raise ArtefactError(
            f"{path}: a TorchScript archive, which is a program, with sha256 {sha256[:12]}: none of those that OpenAI "
            f"published ({', '.join(OPENAI_ARCHIVES.values())}), so it is not run; download it again, or where you "
            f"trust it save torch.jit.load(FILE).state_dict() with torch.save and convert that"
        )
    if kind != "openai":
        raise ArtefactError(f"{path}: OpenAI's {OPENAI_ARCHIVES[sha256]}, bare towers; say --kind openai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated; OpenAI publishes nothing else
        return dict(torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict())


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a refusal or damage: torch raises almost anything, pickle's own errors among it
        wanted = re.search(r"GLOBAL `?([\w.]+)", str(error))
        if wanted:
            raise ArtefactError(
                f"{path}: holds more than tensors (it asks for {wanted[1]}), so it is not opened; where you trust it, "
                f"save its model's state_dict() alone with torch.save, and convert that"
            ) from None
        raise ArtefactError(
            f"{path}: not readable as a torch checkpoint of plain tensors ({type(error).__name__}); if it is damaged, "
            f"download it again; if you trust it, save its model's state_dict() alone with torch.save"
        ) from None


def _chosen(path: Path, loaded: object, ema: str | None) -> object:
    """The trained weights or their moving average, which timm may keep under `module.`; which of the two, nobody
    guesses."""
    averaged = loaded.get("state_dict_ema") if isinstance(loaded, Mapping) else None
    if averaged is None:
        if ema is not None:
            raise ExpectedError(f"{path}: --ema {ema}, but the file holds no state_dict_ema; leave it out")
        return loaded
    if ema is None:
        raise ExpectedError(
            f"{path}: holds two sets of weights, state_dict and its moving average state_dict_ema; choose by --ema off "
            f"or --ema on"
        )
    if ema == "off" or not isinstance(averaged, Mapping):
        return loaded if ema == "off" else averaged
    return {str(name).removeprefix("module."): value for name, value in averaged.items()}


def _plain(path: Path, loaded: object) -> dict[str, Tensor]:
    """The flat dict of tensors, taken out of its `state_dict` where it has one."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ArtefactError(f"{path}: holds {type(loaded).__name__}, expected a dict of named tensors")
    odd = [str(name) for name, value in loaded.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if odd:
        raise ArtefactError(
            f"{path}: {first_few(odd)}: not a tensor; expected a model's state dict (the authors' pytorch_model.bin.N, "
            f"not the optimiser's pytorch_opt.bin.N), bare or under state_dict"
        )
    return dict(loaded)
