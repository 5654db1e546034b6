"""AdamW with fp32 master weights, the lineage's parameter groups, and a warm-up cosine schedule as a pure function."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from distill.config import Config


class OptimConfig(Config):
    """Learning rates per part of the model (CLIP4Clip, TeachCLIP). Vectors (norms, biases) are never decayed."""

    lr: float  # of modules added to CLIP (temporal head, interaction)
    clip_lr: float  # of the pretrained towers
    head_lr: float  # of the frame aggregation (10 x lr in TeachCLIP)
    weight_decay: float = 0.2
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)  # YAML has lists, not tuples
    eps: float = 1e-6
    warmup: float = 0.1  # fraction of all steps
    grad_clip: float = 1.0  # largest global norm of the gradient


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool) -> torch.optim.AdamW:
    """One group per (learning rate, decay); a group's `peak_lr` is what the schedule scales."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((_peak(name, config), decay), []).append(parameter)
    rows = [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay), p in sorted(groups.items())]
    return torch.optim.AdamW(rows, betas=config.betas, eps=config.eps, fused=fused)


def schedule(step: int, total: int, warmup: float) -> float:
    """Factor on every group's peak rate at `step` (from 0) of `total`: linear warm-up, then half a cosine to zero."""
    ramp = max(1, round(warmup * total))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total - ramp)))


def _peak(name: str, config: OptimConfig) -> float:
    parts = name.split(".")
    if "clip" in parts:
        return config.clip_lr
    return config.head_lr if "afa" in parts else config.lr
