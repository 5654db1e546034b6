"""Small towers of eight families that open_clip builds and that are no plain transformers, each with its own traps."""

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
BOTH_WAYS = {**TEXT, "no_causal_mask": True}
LAST = {**BOTH_WAYS, "pool_type": "last", "proj_bias": True}
PLAIN = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}
INCEPTION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def _timm(name: str, size: int, **options: Any) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": size, **options}


# family -> vision_cfg, text_cfg, preprocess_cfg, the rest of the model_cfg
FAMILIES: dict[str, tuple[dict, dict, dict, dict]] = {
    "mobileclip": (  # BatchNorm; every word sees every other
        _timm("fastvit_t8", 64, timm_pool="avg"),
        BOTH_WAYS,
        {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear"},
        {"custom_text": True},
    ),
    "siglip": (  # pooled by attention; the sentence stands at the last position, padding or not; a bias of logits
        _timm("test_vit3", 160, timm_pool="map"),
        LAST,
        {**INCEPTION, "resize_mode": "squash"},
        {"custom_text": True, "init_logit_bias": -10},
    ),
    "clipa": (  # no class token at the end, pictures squashed
        {**PLAIN, "pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True, "pos_embed_type": "sin_cos_2d"},
        {**TEXT, "pool_type": "last", "no_causal_mask": True},
        {**IMAGENET, "resize_mode": "squash"},
        {},
    ),
    "eva": (_timm("eva02_tiny_patch14_224", 224, timm_pool="token"), TEXT, {}, {"custom_text": True}),
    "pe": (  # rotary positions, a pooling that projects
        _timm("vit_pe_core_tiny_patch16_384", 384, timm_pool="map"),
        {**TEXT, "context_length": 14},
        {**INCEPTION, "interpolation": "bilinear", "resize_mode": "squash"},
        {"custom_text": True},
    ),
    "convnext": (_timm("test_convnext", 64, timm_pool="avg", timm_drop_path=0.5, timm_drop=0.5), TEXT, {}, {}),
    "vitamin": (_timm("test_efficientnet", 64, timm_pool="avg", timm_proj="mlp", timm_drop_path=0.5), TEXT, {}, {}),
    "resnet": ({"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None}, TEXT, {}, {}),
}


def model_cfg(family: str) -> dict[str, Any]:
    """Return open_clip's description of a family's small tower."""
    vision, text, _, rest = FAMILIES[family]
    return copy.deepcopy({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, **rest})


def build(family: str) -> open_clip.CustomTextCLIP:
    """Return open_clip's own model, with random weights and statistics, in evaluation mode."""
    cfg = {key: value for key, value in model_cfg(family).items() if key != "custom_text"}
    torch.manual_seed(0)
    clip = open_clip.CustomTextCLIP(**cfg)
    for name, buffer in clip.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return clip.eval()


def write(family: str, folder: Path) -> Path:
    """Write the small tower of a family as open_clip would, and return the folder."""
    folder.mkdir(parents=True)
    config = {"model_cfg": model_cfg(family), "preprocess_cfg": FAMILIES[family][2]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = {name: value.contiguous() for name, value in build(family).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
