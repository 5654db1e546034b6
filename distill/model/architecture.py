"""Architectures of towers: open_clip's `model_cfg`, checked before anything is built of it.

Two plain transformers are rebuilt layer by layer (distill/model/clip.py); other towers are used as open_clip builds
them (distill/model/adapter.py), and have `custom_text` in their architecture. Beside that it carries the tower's
`preprocess_cfg`, unless that is OpenAI's, and how its `tokenizer.json` is used, if it has one.
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

from distill.config import validate
from distill.data.jsontokens import Spelling
from distill.errors import RecipeError
from distill.model.preprocessing import KEY, OPENAI, image_size, read_preprocessing

Clip = open_clip.CLIP | open_clip.CustomTextCLIP

PLAIN_TOP = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
PLAIN_VISION = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")
PLAIN_TEXT = ("context_length", "vocab_size", "width", "layers", "heads", "mlp_ratio")
OTHER_TOP = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias")
# Text towers of transformers would need the Hub each time, and CoCa's word features are not those of its sentences.
FOREIGN_TEXT = ("hf_model_name", "embed_cls")
# A config with sizes that contradict one another raises one of these somewhere inside torch or open_clip.
UNBUILDABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
TOKENS = "tokenizer"  # of an architecture: how its `tokenizer.json` is used
SIZES = ("embed_dim", "image_size", "patch_size", "width", "layers", "head_width", "heads")
SIZES += ("context_length", "vocab_size")
LARGEST_PICTURE = 1024  # pixels of a side


def spelling_of(architecture: dict[str, Any]) -> Spelling | None:
    """Return how the towers' own tokenizer is used; None where it is CLIP's."""
    return Spelling(**architecture[TOKENS]) if TOKENS in architecture else None


def token_rows(architecture: dict[str, Any]) -> int:
    """Return how many tokens a text tower knows."""
    return architecture["text_cfg"].get("vocab_size", CLIPTextCfg.vocab_size)


def is_plain(architecture: dict[str, Any]) -> bool:
    """Return whether an architecture that was checked is two plain transformers."""
    return not architecture.get("custom_text")


def check_architecture(model_cfg: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Copy an open_clip `model_cfg` of any tower; raise `RecipeError`, naming the key, for what cannot be taken."""
    if not isinstance(told := model_cfg.get(KEY, {}), dict):
        raise RecipeError(f"{where}: {KEY}: expected a mapping, found {type(told).__name__}")
    preprocessing = read_preprocessing(told, where=f"{where}: {KEY}")
    carried: dict[str, Any] = {} if preprocessing == OPENAI else {KEY: preprocessing.model_dump(mode="json")}
    if TOKENS in model_cfg:
        carried[TOKENS] = validate(model_cfg[TOKENS], Spelling, where=f"{where}: {TOKENS}").model_dump(mode="json")
    model_cfg = {key: value for key, value in model_cfg.items() if key not in (KEY, TOKENS)}
    plain, odd = _plain(model_cfg, where)
    found = _other(model_cfg, where) if odd else plain
    if isinstance(size := found["vision_cfg"].get("image_size"), list | tuple):
        raise RecipeError(f"{where}: vision_cfg.image_size: {size}: only square pictures are taken")
    for part, table in (("", found), ("vision_cfg.", found["vision_cfg"]), ("text_cfg.", found["text_cfg"])):
        for key, size in table.items():
            if key in SIZES and not isinstance(size, list | None) and (type(size) is not int or size < 1):
                raise RecipeError(f"{where}: {part}{key}: {size!r}: expected a whole number from 1 on")
    return {**found, **carried}


def _plain(model_cfg: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Return what plain transformers have of a `model_cfg`, and the keys that they do not have."""
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
    if not isinstance(plain["vision_cfg"].get("layers", 12), int):
        odd.append("vision_cfg.layers")  # a ResNet's are a list
    return plain, odd


def _other(model_cfg: dict[str, Any], where: str) -> dict[str, Any]:
    """Copy the `model_cfg` of a tower that is not plain; nothing of it fetches weights or drops at random."""
    odd = [key for key in model_cfg if key not in OTHER_TOP]
    odd += [f"vision_cfg.{key}" for key in model_cfg["vision_cfg"] if key not in asdict(CLIPVisionCfg())]
    odd += [f"text_cfg.{key}" for key in model_cfg["text_cfg"] if key not in asdict(CLIPTextCfg())]
    odd += [f"text_cfg.{key}" for key in FOREIGN_TEXT if model_cfg["text_cfg"].get(key)]
    if odd:
        raise RecipeError(f"{where}: {', '.join(odd)}: a kind of tower that is not supported; take one without")
    found: dict[str, Any] = {"quick_gelu": False, **copy.deepcopy(model_cfg), "custom_text": True}
    found.pop("init_logit_bias", None)  # of a sigmoid loss; it changes no ranking
    vision = found["vision_cfg"]
    if (name := vision.get("timm_model_name")) is not None:
        if not isinstance(name, str) or not timm.is_model(name):
            raise RecipeError(f"{where}: vision_cfg.timm_model_name: {name!r} is no model of timm's")
        vision.update({"timm_model_pretrained": False, "timm_drop_path": 0.0})
    return found


def random_towers(architecture: dict[str, Any]) -> Clip:
    """Build the towers of a checked architecture with random weights."""
    build = open_clip.CLIP if is_plain(architecture) else open_clip.CustomTextCLIP
    given = {key: value for key, value in architecture.items() if key not in (KEY, TOKENS, "custom_text")}
    return build(**given, nonscalar_logit_scale=True)


def too_large(architecture: dict[str, Any], weights: dict[str, Tensor]) -> int | float | None:
    """Return a size of the architecture that is larger than every axis of the weights, which do not fit it then.

    Raises one of `UNBUILDABLE` where sizes contradict one another.
    """
    largest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
    # A picture's side is no axis of a weight: its patches are.
    odd = next((number for number in _numbers(architecture) if not 0 <= number <= max(largest, LARGEST_PICTURE)), None)
    if odd is not None:
        return odd
    layers = [number for part in ("vision_cfg", "text_cfg") for number in _numbers(architecture[part].get("layers"))]
    if sum(layers) > len(weights):
        return sum(layers)
    needed = tried(architecture)  # a name of timm's may stand for any size
    # Where a part of the weights is missing, names say more than a sum: twice as much is no danger.
    return needed if needed > 2 * sum(tensor.numel() for tensor in weights.values()) else None


def tried(architecture: dict[str, Any]) -> int:
    """Return how many parameters towers of an architecture have; no memory is taken for them.

    Raises one of `UNBUILDABLE` where they cannot be built, or do not take pictures and texts of their own sizes.
    """
    side, words = image_size(architecture), architecture["text_cfg"].get("context_length", CLIPTextCfg.context_length)
    with torch.device("meta"), torch.no_grad():
        clip = random_towers(architecture).eval()
        clip(torch.empty(1, 3, side, side), torch.zeros(1, words, dtype=torch.int64))
    return sum(parameter.numel() for parameter in clip.parameters())


def _numbers(value: Any) -> Iterator[int | float]:
    """Yield the numbers in a value of JSON."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
