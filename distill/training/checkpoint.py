"""Checkpoints: two safetensors files and a JSON, published as one folder, independent of the number of processes.

`checkpoints/step000300/` holds `model.safetensors`, `optimizer.safetensors` and `state.json`. The folder is written
under a temporary name and renamed, so what is there under its name is whole; older ones are then removed.
"""

import errno
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.disk import check_room, writing
from distill.errors import ArtefactError, check_regular
from distill.manifest import write_json


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is. `metrics_bytes` is the length of metrics.jsonl at that moment."""

    step: int
    metrics_bytes: int
    processes: int = 1  # that wrote it
    best_step: int = 0
    best_score: float = -1.0


def save(folder: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor], progress: Progress) -> None:
    """Publishes the checkpoint of `progress.step` under `folder` and removes older ones. Rank 0 only.

    Raises `ExpectedError` where the disk has no room for it; the older one is then still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part, final = folder / ".part", folder / f"step{progress.step:06d}"
    check_room(final, sum(tensor.nbytes for tensor in [*weights.values(), *optimizer.values()]))
    part.mkdir()
    try:
        _write(weights, part / "model.safetensors")
        _write(optimizer, part / "optimizer.safetensors")
        write_json(part / "state.json", asdict(progress))
        os.replace(part, final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _sync(folder)
    tidy(folder)


def tidy(folder: Path) -> None:
    """Leaves the newest checkpoint alone. Rank 0 only; for what was killed before it could."""
    shutil.rmtree(folder / ".part", ignore_errors=True)
    for old in _published(folder)[:-1]:
        shutil.rmtree(old)


def latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Progress] | None:
    """The newest checkpoint under `folder` as (weights, optimizer state, progress), or None."""
    found = _published(folder)
    if not found:
        return None
    path = found[-1]
    for name in ("state.json", "model.safetensors", "optimizer.safetensors"):
        check_regular(path / name)
    try:
        progress = Progress(**json.loads((path / "state.json").read_bytes()))
        numbers = asdict(progress)
        if any(type(value) not in (int, float) or not math.isfinite(value) for value in numbers.values()):
            raise ValueError("state.json holds what is no number")
        if type(progress.step) is not int or progress.step < 0 or progress.metrics_bytes < 0:
            raise ValueError(f"step {progress.step} with {progress.metrics_bytes} bytes of metrics")
        return load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), progress
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise ArtefactError(f"{path}: damaged checkpoint ({error}); delete the run folder and start again") from None


def _published(folder: Path) -> list[Path]:
    return sorted(folder.glob("step*"), key=lambda path: int(path.name.removeprefix("step")))


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    with writing(path, path, sum(tensor.nbytes for tensor in tensors.values())):
        try:
            save_file(tensors, path)
        except SafetensorError as error:  # it has no error number, only the system's words
            full = os.strerror(errno.ENOSPC) in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from None
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
