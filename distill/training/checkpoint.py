"""Checkpoints: two safetensors files and a JSON, published as one folder, independent of the number of processes.

`checkpoints/step000300/` holds `model.safetensors`, `optimizer.safetensors` and `state.json`. The folder is written
under a temporary name and renamed, so what is there under its name is whole; older ones are then removed.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.errors import ArtefactError
from distill.manifest import canonical_json


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is. `metrics_bytes` is the length of metrics.jsonl at that moment."""

    step: int
    metrics_bytes: int
    best_step: int = 0
    best_score: float = -1.0


def save(folder: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor], progress: Progress) -> None:
    """Publishes the checkpoint of `progress.step` under `folder` and removes older ones. Rank 0 only."""
    folder.mkdir(parents=True, exist_ok=True)
    part, final = folder / ".part", folder / f"step{progress.step:06d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    save_file(weights, part / "model.safetensors")
    save_file(optimizer, part / "optimizer.safetensors")
    (part / "state.json").write_bytes(canonical_json(asdict(progress)))
    for path in part.iterdir():
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    _sync(folder)
    for old in folder.glob("step*"):
        if old != final:
            shutil.rmtree(old)


def latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Progress] | None:
    """The newest checkpoint under `folder` as (weights, optimizer state, progress), or None."""
    found = sorted(folder.glob("step*"))
    if not found:
        return None
    path = found[-1]
    try:
        progress = Progress(**json.loads((path / "state.json").read_bytes()))
        return load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), progress
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ArtefactError(f"{path}: damaged checkpoint ({error}); delete the run folder and start again") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
