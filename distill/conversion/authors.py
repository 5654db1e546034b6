"""A checkpoint of the papers' authors: its tensors, asked for by this project's names, and what marks its kind."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from distill.conversion.names import HUGGING_FACE, MARKS, MODELS, REFUSED, TRANSPOSED, UNUSED, fits, translate
from distill.errors import ArtefactError, first_few


class Checkpoint:
    """The tensors of one file by this project's names; `shifted` are TS2-Net's visual blocks with a token shift.

    Every method raises `ArtefactError` where the file lacks a tensor or holds one that cannot be meant.
    """

    def __init__(self, path: Path, kind: str, tensors: Mapping[str, Tensor]):
        self.path, self.kind = path, kind
        self.prefix = "" if kind == "openai" else "clip."  # of the towers, in the file
        self.visual, self.text = ("visual.", "") if kind == "openai" else ("clip.visual.", "clip.text.")  # in our names
        self.left_out: dict[str, str] = {}  # their name -> why, where the converter's options decide what is needed
        self.tensors, self.shifted = _unwrap(path, tensors) if kind == "ts2net" else (dict(tensors), [])
        self.hugging_face = kind in ("openai", "xpool", "prompt_switch") and any(
            name.startswith((f"{self.prefix}vision_model.", f"{self.prefix}text_model.")) for name in tensors
        )

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Return the authors' names of one of our tensors: one, or three where Hugging Face keeps q, k and v apart."""
        name = translate(ours, {key: (value,) for key, value in MODELS[self.kind].items()})[0]
        if not self.hugging_face or not name.startswith(self.prefix):
            return (name,)
        return tuple(self.prefix + name for name in translate(name.removeprefix(self.prefix), HUGGING_FACE))

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
        whole = any(name.startswith("clip.") for name in self.tensors)
        if whole and self.kind == "openai":
            raise ArtefactError(
                f"{self.path}: holds clip.*, so it is a whole retrieval model; give its own --kind, and run "
                f"tools/export_clip.py on the release to get its towers"
            )
        if not whole and self.kind != "openai":
            raise ArtefactError(
                f"{self.path}: no name begins with clip. (found {first_few(sorted(self.tensors))}); expected the state "
                f"dict of a whole {self.kind} model. Bare CLIP towers are --kind openai"
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
