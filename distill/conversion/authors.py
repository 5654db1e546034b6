"""A checkpoint of the papers' authors: its file, its tensors by this project's names, and what marks its kind.

Files are safetensors, torch pickles of plain tensors, and OpenAI's archives. Nothing in a file is run, except in the
TorchScript archives that OpenAI published, which are known by their sha256.
"""

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.conversion.names import HUGGING_FACE, MARKS, MODELS, PIG, REFUSED, TRANSPOSED, UNUSED, fits, translate
from distill.errors import ArtefactError, ExpectedError, first_few

# sha256 of OpenAI's TorchScript archives, as the download addresses in the CLIP repository give them. An archive is a
# program, so only these are run.
OPENAI_ARCHIVES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}
ENDS = "generator.ends"  # PIG: the last rows of its generator's token table, of which nothing else is ever read
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts save a model's weights
PREFIXES = ("module.", "_orig_mod.")  # of all names in a model that was trained in parallel, or compiled


class Checkpoint:
    """The tensors of one file by this project's names; `shifted` are TS2-Net's visual blocks with a token shift.

    Every method raises `ArtefactError` where the file lacks a tensor or holds one that cannot be meant.
    """

    def __init__(self, path: Path, kind: str, tensors: Mapping[str, Tensor]):
        self.path, self.kind = path, kind
        self.prefix = {"openai": "", "pig": PIG}.get(kind, "clip.")  # of the towers, in the file
        self.visual, self.text = ("visual.", "") if kind == "openai" else ("clip.visual.", "clip.text.")  # in our names
        self.left_out: dict[str, str] = {}  # their name -> why, where the converter's options decide what is needed
        self.tensors, self.shifted = _unwrap(path, tensors) if kind == "ts2net" else (dict(tensors), [])
        self.hugging_face = kind in ("openai", "xpool", "prompt_switch", "pig") and any(
            name.startswith((f"{self.prefix}vision_model.", f"{self.prefix}text_model.")) for name in tensors
        )

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Return the authors' names of one of our tensors: one, or three where Hugging Face keeps q, k and v apart."""
        table = {key: (value,) if isinstance(value, str) else value for key, value in MODELS[self.kind].items()}
        names = translate(ours, table)
        if not self.hugging_face or not names[0].startswith(self.prefix):
            return names
        return tuple(self.prefix + name for name in translate(names[0].removeprefix(self.prefix), HUGGING_FACE))

    def tensor(self, ours: str) -> Tensor:
        """Return one of our tensors, in float32 and in memory of its own."""
        names = self.theirs(ours)
        missing = [name for name in names if name not in self.tensors]
        if missing:
            raise ArtefactError(f"{self.path}: no {first_few(missing)}, which a {self.kind} checkpoint must hold")
        parts = [self.tensors[name] for name in names]
        integers = [f"{n} ({part.dtype})" for n, part in zip(names, parts, strict=True) if not part.is_floating_point()]
        if integers:
            raise ArtefactError(f"{self.path}: {first_few(integers)}: expected floating-point weights")
        if len({part.shape for part in parts}) > 1:
            raise ArtefactError(f"{self.path}: {', '.join(names)} differ in shape; expected the parts of one attention")
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        whole = whole[-2:] if ours == ENDS else whole
        if whole.ndim == 2 and names[0].removeprefix(self.prefix) in TRANSPOSED:
            whole = whole.T
        whole = whole.reshape(1) if whole.ndim == 0 else whole  # the logit scale is a vector of one element here
        return whole.to(torch.float32, copy=True).contiguous()

    def has(self, ours: str) -> bool:
        """Return whether the file holds one of our tensors."""
        return all(name in self.tensors for name in self.theirs(ours))

    def shape(self, ours: str, dims: int) -> torch.Size:
        """Return the shape of one of our tensors, which must have `dims` dimensions, none of them 0."""
        shape = self.tensor(ours).shape
        if len(shape) != dims or 0 in shape:
            raise ArtefactError(
                f"{self.path}: {first_few(self.theirs(ours))} is {list(shape)}, expected {dims} dimensions"
            )
        return shape

    def blocks(self, ours: str) -> int:
        """Return the number of transformer blocks below our name `ours`, which must be numbered from 0 without gaps."""
        prefix = self.theirs(f"{ours}{{}}.ln_1.weight")[0].partition("{}")[0]
        after = (name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix))
        numbers = sorted({int(number) for number in after if number.isdecimal()})
        if numbers != list(range(len(numbers))):
            gap = next(number for number in range(len(numbers)) if number not in numbers)
            raise ArtefactError(f"{self.path}: {prefix}{gap}.* is missing, but later blocks are there")
        return len(numbers)

    def unused(self) -> dict[str, str]:
        """Return the tensors that no model needs, each with the reason."""
        known = UNUSED.get(self.kind, {}) | self.left_out
        known |= {f"{self.prefix}{name}": why for name, why in UNUSED["towers"].items()}
        return {name: why for name in sorted(self.tensors) for line, why in known.items() if fits(line, name)}

    def check_kind(self) -> None:
        """Refuse a file that holds tensors of another kind, or of a model that is not supported."""
        for name in sorted(self.tensors):
            for line, why in REFUSED.items():
                if fits(line, name.removeprefix("clip.")):
                    raise ArtefactError(f"{self.path}: holds {name}: {why}")
            for line, kinds in MARKS.items():
                if fits(line, name) and self.kind not in kinds:
                    right = " or ".join(kinds)
                    raise ArtefactError(f"{self.path}: holds {name}, so it is not {self.kind}; use --kind {right}")
        prefix = "clip." if self.kind == "openai" else self.prefix
        whole = any(name.startswith(prefix) for name in self.tensors)
        if whole and self.kind == "openai":
            raise ArtefactError(
                f"{self.path}: holds clip.*, so it is a whole retrieval model; give its own --kind, and run "
                f"tools/export_clip.py on the release to get its towers"
            )
        if not whole and self.kind != "openai":
            raise ArtefactError(
                f"{self.path}: no name begins with {prefix} (found {first_few(sorted(self.tensors))}); expected the "
                f"state dict of a whole {self.kind} model. Bare CLIP towers are --kind openai"
            )


def _unwrap(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
    """Drop the `.net` that TS2-Net's token shift puts into names of attention; return also the blocks that had it."""
    plain, shifted, bare = {}, set(), {}
    for name, tensor in tensors.items():
        attention = re.fullmatch(r"(clip\.visual\.transformer\.resblocks\.(\d+)\.attn\.)(net\.)?(.+)", name)
        if attention and attention[3]:
            shifted.add(int(attention[2]))
            name = attention[1] + attention[4]
        elif attention:
            bare[name] = int(attention[2])
        if name in plain:
            raise ArtefactError(f"{path}: holds {name} with .net and without; which of the two was trained is unknown")
        plain[name] = tensor
    halves = [name for name, block in bare.items() if block in shifted]
    if halves:
        raise ArtefactError(f"{path}: holds {first_few(halves)} beside attn.net.* of the same block; it is damaged")
    return plain, sorted(shifted)


def read_tensors(path: Path, kind: str, ema: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file, in the precisions that the file has.

    `ema` selects between the two sets of weights that a Prompt Switch file may hold: "on" takes the moving average,
    "off" the trained weights. Raises `ArtefactError` for a file that is missing, damaged, or holds more than tensors,
    and `ExpectedError` for an `ema` that does not go with the file.
    """
    if path.is_dir():
        raise ArtefactError(f"{path}: a folder; name the checkpoint file in it")
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file; expected a checkpoint (.pt, .bin, .pth or .safetensors)")
    if path.suffix == ".safetensors":
        try:
            return _without_prefix(load_file(path))
        except (OSError, SafetensorError) as error:
            raise ArtefactError(f"{path}: not readable as safetensors ({error}); download it again") from None
    if _is_torchscript(path):
        return _read_archive(path, kind)
    loaded = _read_torch(path)
    return _plain(path, _chosen(path, loaded, ema) if kind == "prompt_switch" else loaded)


def _is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, by the entry that torch itself looks for. Nothing is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False  # torch.load reports any damage


def _read_archive(path: Path, kind: str) -> dict[str, Tensor]:
    """Run one of OpenAI's published archives and return its tensors; any other archive is an error."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 not in OPENAI_ARCHIVES:
        raise ArtefactError(
            f"{path}: a TorchScript archive, which is a program, with sha256 {sha256[:12]}: none of those that OpenAI "
            f"published ({', '.join(OPENAI_ARCHIVES.values())}), so it is not run; download it again, or if you trust "
            f"it, save torch.jit.load(FILE).state_dict() with torch.save and convert that"
        )
    if kind != "openai":
        raise ArtefactError(f"{path}: OpenAI's {OPENAI_ARCHIVES[sha256]}, bare CLIP towers; use --kind openai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, but OpenAI publishes nothing else
        # From the bytes that were hashed: the file could be exchanged between hashing and loading.
        return dict(torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict())


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files, pickle's among them
        refused = re.search(r"GLOBAL `?([\w.]+)", str(error))
        if refused:
            raise ArtefactError(
                f"{path}: holds more than tensors (it asks for {refused[1]}), so it is not opened; if you trust it, "
                f"save its model's state_dict() alone with torch.save, and convert that"
            ) from None
        raise ArtefactError(
            f"{path}: not readable as a torch checkpoint of plain tensors ({type(error).__name__}); if it is damaged, "
            f"download it again; if you trust it, save its model's state_dict() alone with torch.save"
        ) from None


def _chosen(path: Path, loaded: object, ema: str | None) -> object:
    """Return the trained weights or their moving average, as `ema` says; neither is a default."""
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
    assert isinstance(loaded, Mapping), "it holds state_dict_ema"
    return averaged if ema == "on" else {key: value for key, value in loaded.items() if key != "state_dict_ema"}


def _plain(path: Path, loaded: object) -> dict[str, Tensor]:
    """Return the flat dict of tensors by the model's own names: without wrappers around the dict or the model."""
    for _ in range(2):
        loaded = _inside(path, loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise ArtefactError(
            f"{path}: holds {type(loaded).__name__}, expected a dict of named tensors; convert a model's state dict"
        )
    others = [str(name) for name, value in loaded.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise ArtefactError(
            f"{path}: {first_few(others)}: not a tensor; expected a model's state dict (the authors' "
            f"pytorch_model.bin.N, not the optimiser's pytorch_opt.bin.N), bare or under {' or '.join(WRAPPERS)}"
        )
    return _without_prefix(loaded)


def _inside(path: Path, loaded: object) -> object:
    """Return what a training script has saved under one of `WRAPPERS`, or `loaded` itself if there is none.

    Raises `ArtefactError` where a second set of the same weights (a moving average) is beside it.
    """
    if not isinstance(loaded, Mapping):
        return loaded
    held = {key: value for key, value in loaded.items() if key in WRAPPERS and _holds_weights(value)}
    if not held:
        return loaded
    inside = next(iter(held.values()))
    names = _without_prefix(inside).keys()
    twins = [str(k) for k, v in loaded.items() if isinstance(v, Mapping) and v and _without_prefix(v).keys() == names]
    if len({*held, *twins}) > 1:
        raise ArtefactError(
            f"{path}: holds several sets of weights, {', '.join(dict.fromkeys([*held, *twins]))}, and which one is "
            f"meant is unknown; save the one alone with torch.save"
        )
    return inside


def _holds_weights(found: object) -> bool:
    """Return whether a dict holds tensors, or a dict under one of `WRAPPERS` that may."""
    if not isinstance(found, Mapping):
        return False
    return any(isinstance(v, Tensor) or (k in WRAPPERS and isinstance(v, Mapping)) for k, v in found.items())


def _without_prefix(tensors: Mapping[Any, Any]) -> dict[str, Any]:
    """Return tensors without the prefixes that all their names begin with, in any order, of two wrappers at most."""
    for prefix in PREFIXES * 2:
        if all(str(name).startswith(prefix) for name in tensors):
            tensors = {str(name).removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)
