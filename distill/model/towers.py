"""CLIP's towers by name: an architecture of open_clip with random weights or those of a tag, or a folder with both.

Only two plain transformers are taken. A folder holds `open_clip_config.json` and `open_clip_model.safetensors`, as
open_clip writes them.
"""

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.pretrained import get_pretrained_cfg
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill.config import Config, packaged
from distill.errors import RecipeError, check_regular

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
PLAIN_TOP = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
PLAIN_VISION = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")
PLAIN_TEXT = ("context_length", "vocab_size", "width", "layers", "heads", "mlp_ratio")
# A config with sizes that contradict one another raises one of these somewhere inside torch or open_clip.
UNBUILDABLE = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
LARGEST_PICTURE = 1024  # pixels of a side


class ClipConfig(Config):
    """Choice of a CLIP, its weights, and how much of it is trained.

    `freeze_vision` / `freeze_text`: null trains everything; n is CLIP4Clip's rule: of that tower only the last norm,
    the projection and the blocks from the n-th on are trained (0 freezes the embeddings alone).
    """

    model: str  # an open_clip architecture, or a folder with open_clip_config.json
    weights: str = "folder"  # "folder": open_clip_model.safetensors beside it; "random"; or an open_clip tag
    freeze_vision: int | None = Field(default=None, ge=0)  # first trained block of the vision tower; null: all
    freeze_text: int | None = Field(default=None, ge=0)  # the same of the text tower

    @property
    def folder(self) -> Path:
        """Return where `model` is, if it is a folder: here, or in the project itself (`recipes/demo/clip`)."""
        return packaged(self.model)


def read_architecture(config: ClipConfig) -> dict[str, Any]:
    """Return the open_clip `model_cfg` that a config names, checked; loads no weights and uses no network."""
    folder = config.folder
    if folder.is_dir():
        if config.weights not in ("folder", "random"):
            raise RecipeError(
                f"clip.weights: {config.weights!r} does not go with the folder {folder}; say folder or random"
            )
        return plain_architecture(_read_folder(folder, config.weights), where=str(folder / CONFIG_FILE))
    architecture = open_clip.get_model_config(config.model) if ":" not in config.model else None
    if architecture is None:
        raise RecipeError(f"clip.model: {config.model!r} is neither a folder nor an architecture open_clip knows")
    if config.weights == "folder":
        raise RecipeError(f"clip.weights: folder, but clip.model {config.model!r} is no folder; say random or a tag")
    architecture = plain_architecture(architecture, where=f"clip.model {config.model}")
    if config.weights != "random":
        _check_tag(config, architecture["quick_gelu"])
    return architecture


def plain_architecture(model_cfg: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Copy an open_clip `model_cfg`; raise `RecipeError`, naming the key, unless it is two plain transformers."""
    parts = {"vision_cfg": (PLAIN_VISION, asdict(CLIPVisionCfg())), "text_cfg": (PLAIN_TEXT, asdict(CLIPTextCfg()))}
    missing = [key for key in ("embed_dim", *parts) if key not in model_cfg]
    if missing:
        raise RecipeError(f"{where}: {missing[0]} is missing; expected an open_clip model_cfg")
    odd = [part for part in parts if not isinstance(model_cfg[part], dict)]
    if odd:
        raise RecipeError(f"{where}: {odd[0]}: expected a mapping, found {type(model_cfg[odd[0]]).__name__}")
    odd = [key for key, value in model_cfg.items() if key not in PLAIN_TOP and value]
    plain: dict[str, Any] = {"quick_gelu": False} | {
        key: copy.deepcopy(model_cfg[key]) for key in PLAIN_TOP if key in model_cfg
    }
    for part, (names, defaults) in parts.items():
        table = plain[part]
        odd += [f"{part}.{key}" for key, value in table.items() if key not in names and value != defaults.get(key)]
        plain[part] = {key: table[key] for key in names if key in table}
    if odd:
        raise RecipeError(f"{where}: {', '.join(odd)}: only plain ViT and text transformers are supported")
    if not isinstance(plain["vision_cfg"].get("layers", 12), int):
        raise RecipeError(
            f"{where}: vision_cfg.layers is a list, that is a ResNet; only plain ViT towers are supported"
        )
    return plain


def _read_folder(folder: Path, weights: str) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if weights == "folder" and not (folder / WEIGHTS_FILE).is_file():
        raise RecipeError(f"clip.model: {folder} holds no {WEIGHTS_FILE}; add it, or say clip.weights: random")
    check_regular(path)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"clip.model: {folder} holds no {CONFIG_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("model_cfg"), dict):
        raise RecipeError(f"{path}: expected a mapping with a model_cfg")
    return tree["model_cfg"]


def _check_tag(config: ClipConfig, quick_gelu: bool) -> None:
    """Raise `RecipeError` unless the tag exists and has the same activation: open_clip loads the wrong one silently."""
    tag = get_pretrained_cfg(config.model, config.weights)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.model)) or "none"
        raise RecipeError(f"clip.weights: {config.model} has no weights {config.weights!r}; open_clip knows: {tags}")
    if tag.get("quick_gelu", False) != quick_gelu:
        other = f"{config.model}-quickgelu" if not quick_gelu else config.model.removesuffix("-quickgelu")
        raise RecipeError(f"clip.model: {config.weights!r} was trained with another activation; use {other}")


@dataclass(frozen=True)
class Towers:
    """open_clip's model of an architecture, and how much of it is trained; a model's `ClipModel` is made of it."""

    clip: open_clip.CLIP
    architecture: dict[str, Any]
    freeze_vision: int | None = None
    freeze_text: int | None = None

    @classmethod
    def from_config(cls, config: ClipConfig) -> "Towers":
        """Load the towers that a recipe names, with their weights."""
        architecture = read_architecture(config)
        if config.weights == "folder":
            clip = _load(config.folder, architecture)
        else:
            clip = _random(architecture) if config.weights == "random" else _fetch(config, architecture)
        return cls(clip, architecture, config.freeze_vision, config.freeze_text)

    @classmethod
    def from_architecture(
        cls, model_cfg: dict[str, Any], freeze_vision: int | None = None, freeze_text: int | None = None
    ) -> "Towers":
        """Build towers of an architecture with random weights, to be filled from a state dict."""
        architecture = plain_architecture(model_cfg, where="architecture")
        return cls(_random(architecture), architecture, freeze_vision, freeze_text)


def _random(architecture: dict[str, Any]) -> open_clip.CLIP:
    return open_clip.CLIP(**architecture, nonscalar_logit_scale=True)


def _load(folder: Path, architecture: dict[str, Any]) -> open_clip.CLIP:
    """Load the towers of a folder. Nothing is built that its weights cannot fill."""
    path = folder / WEIGHTS_FILE
    check_regular(path)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    odd = too_large(architecture, state)
    if odd is not None:
        raise RecipeError(f"{folder / CONFIG_FILE}: {odd}, but no weight beside it is so large; restore either")
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise RecipeError(f"{path}: {broken[0]} is not finite; restore it")
    state = {key: value.reshape(-1) if value.ndim == 0 else value for key, value in state.items()}
    try:
        clip = _random(architecture)
    except UNBUILDABLE as error:
        raise RecipeError(f"{folder / CONFIG_FILE}: not towers that can be built ({error}); restore it") from None
    try:
        clip.load_state_dict(state)
    except RuntimeError as error:
        raise RecipeError(f"{path}: does not fit {CONFIG_FILE} beside it: {error}") from None
    return clip


def too_large(architecture: dict[str, Any], weights: dict[str, Tensor]) -> int | float | None:
    """Return a size of the architecture that is larger than every axis of the weights, which do not fit it then."""
    largest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
    parts = [part for part in architecture.values() if isinstance(part, dict)]
    numbers = [value for part in (architecture, *parts) for value in part.values() if type(value) in (int, float)]
    # A picture's side is no axis of a weight: its patches are.
    return next((number for number in numbers if not 0 <= number <= max(largest, LARGEST_PICTURE)), None)


def _fetch(config: ClipConfig, architecture: dict[str, Any]) -> open_clip.CLIP:
    try:
        fetched = open_clip.create_model(config.model, pretrained=config.weights, nonscalar_logit_scale=True)
    except (RuntimeError, OSError) as error:
        raise RecipeError(f"clip.weights: {config.weights!r} of {config.model} cannot be fetched: {error}") from None
    clip = _random(architecture)
    clip.load_state_dict(fetched.state_dict())
    return clip
