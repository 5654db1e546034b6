"""The reader of authors' checkpoint files: safetensors, torch pickles of plain tensors, and OpenAI's archives.

Nothing in a file is run, except in the TorchScript archives that OpenAI published, which are known by their sha256.
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

# sha256 of OpenAI's TorchScript archives, as the download addresses in the CLIP repository give them. An archive is a
# program, so only these are run.
OPENAI_ARCHIVES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}


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
            return load_file(path)
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
    if ema == "off" or not isinstance(averaged, Mapping):
        return loaded if ema == "off" else averaged
    return {str(name).removeprefix("module."): value for name, value in averaged.items()}  # timm may wrap the model


def _plain(path: Path, loaded: object) -> dict[str, Tensor]:
    """Return the flat dict of tensors, from under `state_dict` where the file has that key."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ArtefactError(
            f"{path}: holds {type(loaded).__name__}, expected a dict of named tensors; convert a model's state dict"
        )
    others = [str(name) for name, value in loaded.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise ArtefactError(
            f"{path}: {first_few(others)}: not a tensor; expected a model's state dict (the authors' "
            f"pytorch_model.bin.N, not the optimiser's pytorch_opt.bin.N), bare or under state_dict"
        )
    return dict(loaded)
