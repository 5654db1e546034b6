"""A fixture: NAME.safetensors (inputs, weights and outputs of the authors' code) and NAME.json, which says what it is.

The sidecar's `hyper` holds sizes and rates, `compat` the switches under which the authors' code ran, `tolerance` how
close is close enough. Nothing goes by file names.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

Setting = TypeVar("Setting")
FIXED = {  # compat -> the only value that this project can reproduce, because it has no such switch
    "residual": r"double",
    "key_mask": r"additive -1e6, keys only",
    "word_mask": r"off",
    "frame_mask": r"off.*",
    "frame_features": r"original CLIP",
    "dropout": r"off",
    "ties": r"none present",
    "fps": r"int truncation",
    "text_length": r"the first max_words positions.*",
    "eot": r"argmax id",
    "pad_id": r"0",
    "gather": r"single process",
    "optim": r"bertadam, full[- ]precision \w+ \(not the fp16 variant\)",
    "decay_ln": r"reference.*",
}


class Fixture:
    """One fixture, checked against its sidecar when it is opened."""

    def __init__(self, path: Path):
        self.path = path
        self.sidecar: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        content = path.with_suffix(".safetensors").read_bytes()
        found = (len(content), hashlib.sha256(content).hexdigest())
        assert found == (self.sidecar["bytes"], self.sidecar["sha256"]), f"{path}: not the tensors of its sidecar"
        self.tensors = load_file(path.with_suffix(".safetensors"))
        described = {name: (about["shape"], about["dtype"]) for name, about in self.sidecar["shapes"].items()}
        stored = {name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in self.tensors.items()}
        assert stored == described, f"{path}: its sidecar describes other tensors"
        self.hyper: dict[str, Any] = self.sidecar["hyper"]
        self._unread = dict(self.sidecar["compat"])

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `input`, `weight` or `output`, without that word."""
        prefix = f"{prefix}."
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def input(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of an input; real numbers in this precision."""
        found = self.tensors[f"input.{name}"].clone()
        return found.to(dtype) if found.is_floating_point() else found

    def real(self) -> Tensor:
        """Which frames exist: all, where nothing says so."""
        if "input.video_mask" not in self:
            return torch.ones(self.tensors["input.video"].shape[:2], dtype=torch.bool)
        return self.tensors["input.video_mask"].bool()

    def outputs(self) -> dict[str, Tensor]:
        """Return the expected output; a checksum (sum, sum of magnitudes, first numbers) as the two things it is."""
        found = self.part("output")
        for name in [name for name in found if name.startswith("checksum.")]:
            rows = found.pop(name)
            found |= {f"{name}.sums": rows[..., :2], f"{name}.first8": rows[..., 2:]}
        return found

    def switch(self, name: str, settings: Mapping[str, Setting], default: str) -> Setting:
        """The setting whose pattern fits the switch `name` of `compat`; one that fits none cannot be reproduced."""
        value = str(self._unread.pop(name, self.sidecar["compat"].get(name, default)))
        for pattern, setting in settings.items():
            if re.fullmatch(pattern, value):
                return setting
        raise AssertionError(f"compat.{name}: {value!r} cannot be reproduced; known: {', '.join(settings)}")

    def number(self, name: str, default: float) -> float:
        """A switch of `compat` that is a number."""
        return float(self._unread.pop(name, self.sidecar["compat"].get(name, default)))

    def constant(self, name: str, value: float) -> None:
        """A number of `hyper`, if it is there, must be the one that this project has built in."""
        assert self.hyper.get(name, value) == value, f"hyper.{name}: {self.hyper[name]}, but the code has {value}"

    def check_switches(self) -> None:
        """Every switch was read, or has the only value there is."""
        for name, value in self._unread.items():
            assert name in FIXED, f"compat.{name}: an unknown switch, so nobody knows whether {value!r} was reproduced"
            assert re.fullmatch(FIXED[name], str(value)), f"compat.{name}: {value!r} cannot be reproduced"


def find(folder: Path) -> list[Path]:
    """The fixtures of a folder, by name; one without its tensors or its sidecar is listed, and fails when opened."""
    files = [path for kind in ("json", "safetensors") for path in folder.glob(f"*.{kind}")]
    others = ("MANIFEST.json", "golden_")  # golden rows are read by the tests of their models
    return sorted({path.with_suffix("") for path in files if not path.name.startswith(others)})
