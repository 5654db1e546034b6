"""Places a teacher that does not fit its device: some layers there, others in memory, the rest on disk (accelerate).

Each layer is brought to the device when its turn comes, so labels are the same, and slower.
"""

import math
import tempfile
import warnings
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import get_max_memory
from torch import nn

from distill.errors import ExpectedError

M = TypeVar("M", bound=nn.Module)
# Modules that read weights of their parts without calling them.
READERS = {"AttentionPool2d", "ClassTokenAttention", "MultiheadAttention", "TokenAttention"}
IN_PARTS = {"ResidualAttentionBlock"}  # of which plain towers call the parts themselves


def limits(device: torch.device, gigabytes: float) -> dict[int | str, int | str]:
    """Return the bytes that may lie on the device and, for a GPU, in the memory of this machine."""
    if not 0 < gigabytes < math.inf:
        raise ExpectedError(f"--memory: {gigabytes:g} GB, expected more than 0, and a number that ends")
    most = int(gigabytes * 1e9)
    if device.type == "cpu":
        return {"cpu": most}
    return {device.index or 0: most, "cpu": get_max_memory()["cpu"]}


def offload_folder() -> str:
    """Make a folder for layers on disk, which goes with the process."""
    folder = tempfile.TemporaryDirectory(prefix="distill-offload-")
    _KEPT.append(folder)
    return folder.name


_KEPT: list[tempfile.TemporaryDirectory] = []  # deleted when the process ends


def empty_weights() -> AbstractContextManager[None]:
    """Make parameters without memory for the time of the context, to be replaced by stored ones; buffers as usual."""
    return init_empty_weights(include_buffers=False)


def placed(model: M, device: torch.device, gigabytes: float) -> M:
    """Divide a model in evaluation mode among device, memory and disk, of which the device holds at most so much."""
    whole = sorted(READERS | _repeated(model) - IN_PARTS)
    places: Any = infer_auto_device_map(model, max_memory=limits(device, gigabytes), no_split_module_classes=whole)
    if "" in places:  # all of it in one place, which the library cannot write to disk under no name
        places = {name: places[""] for name, _ in model.named_children()}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of places that are parameters, no modules
        dispatch_model(model, places, main_device=device, offload_dir=offload_folder(), preload_module_classes=whole)
    return model


def _repeated(model: nn.Module) -> set[str]:
    """Return the classes of a tower's layers: what stands in lists of modules."""
    lists = (part for part in model.modules() if isinstance(part, nn.ModuleList | nn.Sequential))
    return {type(layer).__name__ for part in lists for layer in part if any(True for _ in layer.parameters())}
