"""The CLIP towers of a release in open_clip's local-dir layout, for other programs and as a start for other recipes."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from distill.data.tokens import VOCABULARY
from distill.model.clip import CLIP_MEAN, CLIP_STD
from distill.model.towers import CONFIG_FILE, WEIGHTS_FILE
from distill.publishing import publish
from distill.records import write_json
from distill.release.release import Release

PROMPTED = "visual.aggregation."  # Prompt Switch's, in its tower, and no part of CLIP


def export_clip(release: Release, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Writes the towers of a release and, for a pruned token table, vocabulary.json."""
    clip = release.model.clip.state_dict()
    weights = {
        "logit_scale" if name == "logit_scale.log" else name.removeprefix("text."): value.to("cpu", dtype).contiguous()
        for name, value in clip.items()
        if not name.startswith(PROMPTED)
    }
    if release.tokenizer.vocabulary is not None:
        publish(folder / VOCABULARY, json.dumps(release.tokenizer.vocabulary).encode() + b"\n")
    write_towers(folder, release.config.architecture, weights)


def write_towers(
    folder: Path, architecture: dict[str, Any], weights: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes open_clip_model.safetensors, with the weights by open_clip's names, and open_clip_config.json."""
    publish(folder / WEIGHTS_FILE, save(weights, metadata))
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(folder / CONFIG_FILE, {"model_cfg": architecture, "preprocess_cfg": preprocess})
