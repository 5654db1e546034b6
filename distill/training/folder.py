"""The folder of a run: which one a recipe gets, what of an unfinished run is continued, and one job at a time in it."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from distill import comm
from distill.config import Config, dump_recipe, read_tree, validate
from distill.errors import ExpectedError, RecipeError
from distill.locks import UnlockableError, acquired, open_lock
from distill.publishing import publish, sweep
from distill.records import changed

log = logging.getLogger(__name__)
RECIPE = "recipe.yaml"
RELEASE = "release"
TEST, TEST_RANKS = "test.json", "test_ranks.safetensors"  # metrics and ranks of the test, beside the release
LOCK = ".lock"
# Keys that say how a run is carried out, not what it computes. ROUNDING changes the order of sums: fp32 losses agree to
# 1e-5 (as on another number of processes), those of bf16 only to its own, far coarser, rounding.
EXACT = {"data.workers", "data.memory_gb", "data.cache", "data.cache_gb", "train.activation_checkpointing"}
EXACT |= {
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.timeout_minutes",
    "train.log_every",
    "train.track",
}
ROUNDING = {"train.zero", "train.accumulate", "train.compile", "train.stem_cache_gb"}


def choose_folder(first: Path, recipe: Config) -> Path:
    """Return the first of FIRST, FIRST-2, ... that is free or holds an unfinished run of this recipe. A collective."""
    chosen = [str(_choose(first, recipe)) if comm.rank() == 0 else ""]
    if comm.world_size() > 1:
        dist.broadcast_object_list(chosen, src=0)
    return Path(chosen[0])


@contextmanager
def alone_in(folder: Path, recipe: Config) -> Iterator[None]:
    """Refuse a folder into which another job trains, else write the recipe into it.

    The lock ends with the process of rank 0, however that ends. What is refused has changed nothing in the folder.
    """
    if comm.rank():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock, how = folder / LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB
    with open_lock(lock) as file:
        try:  # not `flock`: worker processes, which may outlive a killed run for a moment, would hold that too
            if not acquired(lock, lambda: fcntl.lockf(file, how)):
                raise ExpectedError(
                    f"{folder}: the same command is running already and trains into it; wait for it, or stop it first"
                )
        except UnlockableError as error:
            log.warning(f"{error}; until then see to it that nothing else trains into it")
        sweep(folder)
        text = dump_recipe(recipe).encode()
        if not (folder / RECIPE).is_file() or (folder / RECIPE).read_bytes() != text:
            publish(folder / RECIPE, text)
        yield


def kept_apart(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The changes between two recipe trees with which an unfinished run of the old one would end in other numbers."""
    harmless = EXACT | (ROUNDING if new["train"]["precision"] == "fp32" else set())
    return [key for key in changed(old, new) if key not in harmless]


def _choose(first: Path, recipe: Config) -> Path:
    text, number = dump_recipe(recipe).encode(), 1
    while True:
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        old = (folder / RECIPE).read_bytes() if (folder / RECIPE).is_file() else None
        released = (folder / RELEASE).is_dir()
        if old == text and not released:
            return folder
        if old is None or not (released or _begun_otherwise(folder, recipe)):
            return folder
        number += 1


def _begun_otherwise(folder: Path, recipe: Config) -> bool:
    """Whether the unfinished run in the folder must be left as it is; logs why, or what has changed."""
    new = recipe.model_dump(mode="json")
    try:
        # Keys that it lacks were added since; their defaults are what was done before.
        tree = read_tree(folder / RECIPE, recipe.old_keys)
        old = validate(tree, type(recipe), where=str(folder / RECIPE)).model_dump(mode="json")
    except RecipeError as error:
        log.info(f"{folder}: left as it is: {error}")
        return True
    apart = kept_apart(old, new)
    if apart:
        log.info(f"{folder}: left as it is, an unfinished run with another {', '.join(apart)}")
    elif different := changed(old, new):  # none where only names of keys have changed since
        log.info(f"{folder}: continued with another {', '.join(different)}")
    return bool(apart)
