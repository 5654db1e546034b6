"""Checkpoints: two safetensors files and a JSON, published as one folder, independent of the number of processes.

`checkpoints/step000300/` holds `model.safetensors`, `optimizer.safetensors` and `state.json`. The folder is written
under a temporary name and renamed, so what is there under its name is whole; older ones are then removed.
"""

import errno
import os
import re
import shutil
from pathlib import Path

from pydantic import NonNegativeInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.data.plan import VERSION
from distill.errors import ArtefactError, ExpectedError, check_free_space, check_regular, writing
from distill.publishing import published_folder, sync
from distill.records import View, read_json, write_json

NAME = re.compile("step([0-9]{6,})")


class Progress(View):
    """How far a run is. `metrics_bytes` is the length of metrics.jsonl at that moment."""

    step: NonNegativeInt
    metrics_bytes: NonNegativeInt
    processes: int = 1  # that wrote it
    best_score: float = -1.0
    best: dict[str, dict[str, float]] | None = None  # its metrics by direction; None: written before they were kept
    seconds: float = 0.0  # of training until then
    joules: float | None = None  # as far as counters told them all along
    flops: NonNegativeInt | None = None  # of one step
    plan: int = 1  # version of the order of batches; the first one was not recorded


def save(folder: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor], progress: Progress) -> None:
    """Publishes the checkpoint of `progress.step` under `folder` and removes older ones. Rank 0 only.

    Raises `ExpectedError` where the disk has no room for it; the older one is then still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step{progress.step:06d}"
    check_free_space(final, sum(tensor.nbytes for tensor in [*weights.values(), *optimizer.values()]))
    with published_folder(final) as part:
        _write(weights, part / "model.safetensors")
        _write(optimizer, part / "optimizer.safetensors")
        write_json(part / "state.json", progress.model_dump() | {"plan": VERSION})
    tidy(folder)


def tidy(folder: Path) -> None:
    """Leaves the newest checkpoint alone. Rank 0 only; for what was killed before it could."""
    for old in [*folder.glob(".*part"), *_published(folder)[:-1]]:
        shutil.rmtree(old)


def latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Progress] | None:
    """Return the newest checkpoint under `folder` as (weights, optimizer state, progress), or None.

    Raises `ArtefactError` where it is damaged, and `ExpectedError` where its run has batches in another order.
    """
    found = _published(folder)
    if not found:
        return None
    path = found[-1]
    mend = "delete the run folder and start again"
    progress = read_json(path / "state.json", Progress, mend)
    if progress.plan != VERSION:
        raise ExpectedError(
            f"{path}: written by a version with another order of batches (plan {progress.plan}, here {VERSION}), so "
            f"this run cannot go on as it began; finish it with that version, or delete {folder.parent} to begin anew"
        )
    for name in ("model.safetensors", "optimizer.safetensors"):
        check_regular(path / name)
    try:
        return load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), progress
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: damaged checkpoint ({error}); {mend}") from None


def _published(folder: Path) -> list[Path]:
    numbered = [(path, NAME.fullmatch(path.name)) for path in folder.glob("step*")]
    found = [(int(name[1]), path) for path, name in numbered if name is not None]  # beside what users have put there
    return [path for _, path in sorted(found)]


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    with writing(path, path, sum(tensor.nbytes for tensor in tensors.values())):
        try:
            save_file(tensors, path)
        except SafetensorError as error:  # it has no error number, only the system's words
            full = os.strerror(errno.ENOSPC) in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from None
        sync(path)
