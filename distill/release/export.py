"""The CLIP towers of a release in open_clip's local-dir layout, for other programs and as a start for other recipes."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from distill.data.jsontokens import FILE, SETTINGS, JsonTokenizer
from distill.data.tokens import VOCABULARY
from distill.model.architecture import TOKENS, is_plain
from distill.model.preprocessing import KEY, preprocessing_of
from distill.model.towers import CONFIG_FILE, WEIGHTS_FILE
from distill.publishing import publish
from distill.records import write_json
from distill.release.release import Release

PROMPTED = "visual.aggregation."  # Prompt Switch's, in its tower, and no part of CLIP


def export_clip(release: Release, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes the towers of a release and, for a pruned token table, vocabulary.json."""
    clip, plain = release.model.clip.state_dict(), is_plain(release.config.architecture)
    weights = {
        _name(name, plain): (value.to("cpu", dtype) if value.is_floating_point() else value.cpu()).contiguous()
        for name, value in clip.items()
        if not name.startswith(PROMPTED)
    }
    if release.tokenizer.vocabulary is not None:
        publish(folder / VOCABULARY, json.dumps(release.tokenizer.vocabulary).encode() + b"\n")
    if isinstance(release.tokenizer, JsonTokenizer):
        publish(folder / FILE, release.tokenizer.content.encode())
        write_json(folder / SETTINGS, release.tokenizer.settings())
    write_towers(folder, release.config.architecture, weights)


def _name(name: str, plain: bool) -> str:
    """Return open_clip's name of a weight."""
    if name == "logit_scale.log":
        return "logit_scale"
    return name.removeprefix("text.") if plain else name.replace(".tower.", ".", 1)


def write_towers(
    folder: Path, architecture: dict[str, Any], weights: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes open_clip_model.safetensors, with the weights by open_clip's names, and open_clip_config.json."""
    publish(folder / WEIGHTS_FILE, save(weights, metadata))
    told = preprocessing_of(architecture).model_dump(mode="json")
    model_cfg = {key: value for key, value in architecture.items() if key not in (KEY, TOKENS)}
    write_json(folder / CONFIG_FILE, {"model_cfg": model_cfg, KEY: told})
