"""CLIP's towers by name: an architecture of open_clip with random weights or those of a tag, or a folder with both.

A folder, also one that was fetched from the Hub, holds `open_clip_config.json` and `open_clip_model.safetensors`, as
open_clip writes them, and `tokenizer.json` where the tokens are not CLIP's.
"""

import difflib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import snapshot_download
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import get_pretrained_cfg
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distill import hub
from distill.config import Config, packaged
from distill.data.jsontokens import FILE, SETTINGS, JsonTokenizer, read_content, read_spelling
from distill.data.tokens import TextTokenizer, Tokenizer, read_vocabulary
from distill.errors import RecipeError, check_regular
from distill.licence import CARD
from distill.model.architecture import (
    TOKENS,
    UNBUILDABLE,
    Clip,
    check_architecture,
    is_plain,
    random_towers,
    spelling_of,
    token_rows,
    too_large,
    tried,
)
from distill.model.preprocessing import KEY, Preprocessing

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
BIAS = "logit_bias"  # in weights of towers that were trained by a sigmoid loss
HUB = "hf-hub:"
Empty = Callable[[], AbstractContextManager[Any]]  # within it parameters are made that have a shape and no memory


class ClipConfig(Config):
    """Choice of a CLIP, its weights, and how much of it is trained.

    `freeze_vision` / `freeze_text`: null trains everything; n is CLIP4Clip's rule: of that tower only the last norm,
    the projection and the blocks from the n-th on are trained (0 freezes the embeddings alone). Towers that are not
    plain transformers count from the end: of `unlocked_vision` / `unlocked_text` groups of layers, as open_clip groups
    them.
    """

    model: str  # an open_clip architecture, a folder with open_clip_config.json, or hf-hub:REPO[@REVISION]
    weights: str = "folder"  # "folder": open_clip_model.safetensors beside it; "random"; or an open_clip tag
    freeze_vision: int | None = Field(default=None, ge=0)  # first trained block of the vision tower; null: all
    freeze_text: int | None = Field(default=None, ge=0)  # the same of the text tower
    unlocked_vision: int | None = Field(default=None, ge=0)  # other vision towers: last groups trained; null: all
    unlocked_text: int | None = Field(default=None, ge=0)  # the same of the text tower

    @property
    def folder(self) -> Path:
        """Return where `model` is, if it is a folder: here, in the project itself (`recipes/demo/clip`), or, for
        `hf-hub:REPO` and `hf-hub:REPO@REVISION`, in the Hub's cache, after it was fetched."""
        return hub_folder(self.model) if self.model.startswith(HUB) else packaged(self.model)

    @property
    def trained(self) -> dict[str, Any]:
        """Return how much of the towers is trained, as `Towers` take it."""
        return {key: getattr(self, key) for key in ("freeze_vision", "freeze_text", "unlocked_vision", "unlocked_text")}


def read_architecture(config: ClipConfig) -> dict[str, Any]:
    """Return the open_clip `model_cfg` that a config names, checked; loads no weights.

    Only a repository of the Hub is fetched, unless its cache holds it.
    """
    folder = config.folder
    if folder.is_dir():
        if config.weights not in ("folder", "random"):
            raise RecipeError(
                f"clip.weights: {config.weights!r} does not go with the folder {folder}; say folder or random"
            )
        tree = _read_folder(folder, config.weights)
        if (foreign := _foreign_tokens(tree)) is not None:
            tree = {**tree, TOKENS: read_spelling(folder, foreign).model_dump(mode="json")}
        return _checked(config, tree, where=str(folder / CONFIG_FILE))
    architecture = _named(config.model)
    if config.weights == "folder":
        raise RecipeError(f"clip.weights: folder, but clip.model {config.model!r} is no folder; say random or a tag")
    if _foreign_tokens(architecture) is not None:
        raise RecipeError(
            f"clip.model: {config.model} does not read texts by CLIP's tokenizer; name its repository, hf-hub:REPO, or "
            f"a folder with {CONFIG_FILE}, {WEIGHTS_FILE}, {FILE} and {SETTINGS}"
        )
    tag = None if config.weights == "random" else _read_tag(config, architecture.get("quick_gelu", False))
    return _checked(config, architecture if tag is None else {**architecture, KEY: tag}, f"clip.model {config.model}")


def named_architecture(name: str) -> dict[str, Any]:
    """Return an architecture of open_clip by its name, checked; without weights it has no tokenizer of its own."""
    return check_architecture(_named(name), where=f"clip.model {name}")


def _named(name: str) -> dict[str, Any]:
    architecture = open_clip.get_model_config(name) if ":" not in name else None
    if architecture is None:
        near = difflib.get_close_matches(name.lower(), known := {one.lower(): one for one in open_clip.list_models()})
        mean = f"; did you mean {known[near[0]]}?" if near else ""
        raise RecipeError(f"clip.model: {name!r} is neither a folder nor an architecture of open_clip{mean}")
    return architecture


def _checked(config: ClipConfig, model_cfg: dict[str, Any], where: str) -> dict[str, Any]:
    """Check an architecture, and that a config freezes it in the way that its kind of tower knows."""
    architecture = check_architecture(model_cfg, where=where)
    plain = is_plain(architecture)
    for tower in ("vision", "text"):
        foreign, own = (f"unlocked_{tower}", f"freeze_{tower}") if plain else (f"freeze_{tower}", f"unlocked_{tower}")
        if getattr(config, foreign) is not None:
            kind = "is a plain transformer" if plain else "is not a plain transformer"
            raise RecipeError(f"clip.{foreign}: {where} {kind}; use clip.{own}")
    return architecture


def hub_folder(model: str) -> Path:
    """Return the folder of a repository of the Hub that holds towers; raise `RecipeError` if it cannot be had."""
    repository, _, revision = model.removeprefix(HUB).partition("@")
    wanted = [CONFIG_FILE, WEIGHTS_FILE, FILE, SETTINGS, CARD]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise RecipeError(f"clip.model: {model!r} cannot be fetched: {hub.reason(error)}; or name a folder") from None


def open_tokenizer(config: ClipConfig, architecture: dict[str, Any], max_words: int) -> TextTokenizer:
    """Return the tokenizer of towers whose architecture was read."""
    spelling, folder = spelling_of(architecture), config.folder
    if spelling is None:
        return Tokenizer(max_words, read_vocabulary(folder))
    return JsonTokenizer(max_words, read_content(folder), spelling, str(folder / FILE), token_rows(architecture))


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
    given = tree.get(KEY) or {}
    if not isinstance(given, dict):
        raise RecipeError(f"{path}: {KEY}: expected a mapping, found {type(given).__name__}")
    return {**tree["model_cfg"], KEY: given}


def _foreign_tokens(model_cfg: dict[str, Any]) -> dict[str, Any] | None:
    """Return open_clip's options of a tokenizer that is not CLIP's; None where it is CLIP's."""
    text = model_cfg.get("text_cfg")
    if not isinstance(text, dict) or not text.get("hf_tokenizer_name"):
        return None
    options = text.get("tokenizer_kwargs") or {}
    return options if isinstance(options, dict) else {"tokenizer_kwargs": options}


def _read_tag(config: ClipConfig, quick_gelu: bool) -> dict[str, Any]:
    """Return the preprocessing of a tag.

    Raises `RecipeError` unless the tag exists and has the same activation, of which open_clip loads the wrong one
    silently, and says how its pictures are made.
    """
    tag = get_pretrained_cfg(config.model, config.weights)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.model)) or "none"
        raise RecipeError(f"clip.weights: {config.model} has no weights {config.weights!r}; open_clip knows: {tags}")
    if tag.get("quick_gelu", False) != quick_gelu:
        other = f"{config.model}-quickgelu" if not quick_gelu else config.model.removesuffix("-quickgelu")
        raise RecipeError(f"clip.model: {config.weights!r} was trained with another activation; use {other}")
    if missing := [key for key in Preprocessing.model_fields if tag.get(key) is None]:
        raise RecipeError(
            f"clip.weights: open_clip does not say {missing[0]} of {config.weights!r}; export its towers to a folder "
            f"with a {KEY} in {CONFIG_FILE}, and name that"
        )
    told = {key: tag[key] for key in Preprocessing.model_fields}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}


@dataclass(frozen=True)
class Towers:
    """open_clip's model of an architecture, and how much of it is trained; a model's `ClipModel` is made of it."""

    clip: Clip
    architecture: dict[str, Any]
    freeze_vision: int | None = None
    freeze_text: int | None = None
    unlocked_vision: int | None = None
    unlocked_text: int | None = None

    @classmethod
    def from_config(cls, config: ClipConfig, empty: Empty | None = None) -> "Towers":
        """Load the towers that a recipe names, with their weights.

        Within `empty` parameters take no memory. Where it is given, those of a folder are its file, mapped: only what
        is read of it is in memory, and no longer than there is room.
        """
        architecture = read_architecture(config)
        if config.weights == "folder":
            clip = _load(config.folder, architecture, empty)
        else:
            clip = _random(config, architecture) if config.weights == "random" else _fetch(config, architecture, empty)
        return cls(clip, architecture, **config.trained)

    @classmethod
    def from_architecture(
        cls,
        model_cfg: dict[str, Any],
        freeze_vision: int | None = None,
        freeze_text: int | None = None,
        unlocked_vision: int | None = None,
        unlocked_text: int | None = None,
    ) -> "Towers":
        """Build towers of an architecture with random weights, to be filled from a state dict."""
        architecture = check_architecture(model_cfg, where="architecture")
        return cls(
            random_towers(architecture), architecture, freeze_vision, freeze_text, unlocked_vision, unlocked_text
        )


def _random(config: ClipConfig, architecture: dict[str, Any]) -> Clip:
    try:
        tried(architecture)
        return random_towers(architecture)
    except UNBUILDABLE as error:
        raise RecipeError(
            f"clip.model {config.model}: not towers that can be built ({error}); mend its sizes"
        ) from None


def _load(folder: Path, architecture: dict[str, Any], empty: Empty | None) -> Clip:
    """Load the towers of a folder. Nothing is built that its weights cannot fill."""
    path = folder / WEIGHTS_FILE
    check_regular(path)
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        odd = too_large(architecture, state)
    except UNBUILDABLE as error:
        raise RecipeError(f"{folder / CONFIG_FILE}: not towers that can be built ({error}); restore it") from None
    if odd is not None:
        raise RecipeError(f"{folder / CONFIG_FILE}: {odd}, but no weight beside it is so large; restore either")
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise RecipeError(f"{path}: {broken[0]} is not finite; restore it")
    state = {key: value.reshape(-1) if value.ndim == 0 else value for key, value in state.items() if key != BIAS}
    try:
        return _filled(
            architecture, state if is_plain(architecture) else convert_to_custom_text_state_dict(state), empty
        )
    except RuntimeError as error:
        raise RecipeError(f"{path}: does not fit {CONFIG_FILE} beside it: {error}") from None


def _filled(architecture: dict[str, Any], state: dict[str, Tensor], empty: Empty | None) -> Clip:
    """Build towers with these weights: copies of them in float32 or, if they were built empty, themselves."""
    if empty is None:
        clip = random_towers(architecture)
        clip.load_state_dict(state)
        return clip
    with empty():
        clip = random_towers(architecture)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    clip.load_state_dict(state, assign=True)
    return clip


def _fetch(config: ClipConfig, architecture: dict[str, Any], empty: Empty | None) -> Clip:
    try:
        fetched = open_clip.create_model(
            config.model,
            pretrained=config.weights,
            nonscalar_logit_scale=True,
            force_custom_text=not is_plain(architecture),
        )
    except (RuntimeError, OSError) as error:
        raise RecipeError(f"clip.weights: {config.weights!r} of {config.model} cannot be fetched: {error}") from None
    state = {key: value for key, value in fetched.state_dict().items() if key != BIAS}
    return _filled(architecture, state, empty)
