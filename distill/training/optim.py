"""Two optimizers of the lineage, its parameter groups, and their warm-up cosine schedules as pure functions."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from distill.config import Config
from distill.training.bertadam import BertAdam


class OptimConfig(Config):
    """Learning rates per part of the model (CLIP4Clip, TeachCLIP), and by which rule weights follow the gradient.

    `adamw`: bias correction, no decay on vectors (norms, biases, scales), warm-up then a cosine over the rest.
    `bertadam`: the authors' optimizer: no bias correction, decay on all but biases, a cosine that counts from the
    first step, so the rate starts its decay below the peak; the first step has rate 0. The authors also keep weights
    and moments in fp16, where small squares vanish, so that a CLIP rate of 1e-7 acts like a far larger one; fp32
    needs 1e-6 to 1e-5.
    """

    kind: Literal["adamw", "bertadam"] = "adamw"  # update rule and schedule
    lr: float  # of modules added to CLIP (temporal head, interaction)
    clip_lr: float  # of the pretrained towers and the logit scale
    head_lr: float  # of the frame aggregation (10 x lr in TeachCLIP)
    weight_decay: float = 0.2  # decoupled
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)  # YAML has lists, not tuples
    eps: float = 1e-6  # added to the root of the second moment
    warmup: float = 0.1  # fraction of all steps
    grad_clip: float = 1.0  # largest global norm of the gradient


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool) -> torch.optim.Optimizer:
    """Return the optimizer with one group per (learning rate, decay); the schedule scales a group's `peak_lr`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if _decays(name, parameter, config) else 0.0
            groups.setdefault((_peak(name, config), decay), []).append(parameter)
    rows = [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay), p in sorted(groups.items())]
    if config.kind == "bertadam":
        return BertAdam(rows, lr=config.lr, betas=config.betas, eps=config.eps)
    return torch.optim.AdamW(rows, betas=config.betas, eps=config.eps, fused=fused)


def schedule(step: int, total: int, config: OptimConfig) -> float:
    """Return the factor on every group's peak rate at `step` (from 0) of `total`."""
    shape = authors_cosine if config.kind == "bertadam" else warmup_cosine
    return shape(step, total, config.warmup)


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """Linear warm-up to 1, then half a cosine from 1 to 0 over what remains."""
    ramp = max(1, round(warmup * total))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total - ramp)))


def authors_cosine(step: int, total: int, warmup: float) -> float:
    """Linear warm-up from 0, then the half cosine of the whole run, whose start falls into the warm-up."""
    done = step / total
    return done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * done))


def _decays(name: str, parameter: nn.Parameter, config: OptimConfig) -> bool:
    """Return whether a parameter decays; the authors decide by name, so norms (ln_*), embeddings and scale do."""
    return "bias" not in name if config.kind == "bertadam" else parameter.ndim > 1


def _peak(name: str, config: OptimConfig) -> float:
    parts = name.split(".")
    if "clip" in parts or "logit_scale" in parts:  # a teacher's scoring head holds CLIP's logit scale
        return config.clip_lr
    return config.head_lr if "afa" in parts else config.lr
