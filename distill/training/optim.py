"""The optimizers of the papers, their parameter groups, and their warm-up cosine schedules as pure functions."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.config import Config

Rate = Annotated[float, Field(ge=0, le=100)]  # 0 leaves that part as it is
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """Learning rates per part of the model (CLIP4Clip, TeachCLIP), and by which rule weights follow the gradient.

    `adamw`: bias correction, no decay on vectors (norms, biases, scales), warm-up then a cosine over the rest.
    `bertadam`: the authors' optimizer: no bias correction, decay on all but biases, a cosine that counts from the
    first step, so the rate starts its decay below the peak; the first step has rate 0. The authors also keep weights
    and moments in fp16, where small squares vanish, so that a CLIP rate of 1e-7 acts like a far larger one; fp32
    needs 1e-6 to 1e-5.
    `hf_adamw`: PIG's, the AdamW that Hugging Face's transformers had: bias correction, but `eps` joins the root before
    it; decay after the step, on all but biases and the logit scale; whole steps of warm-up, of which the first is not
    at rate 0, and a cosine over the rest.
    """

    kind: Literal["adamw", "bertadam", "hf_adamw"] = "adamw"  # update rule and schedule
    lr: Rate  # of modules added to CLIP (temporal head, interaction)
    clip_lr: Rate  # of the pretrained towers and the logit scale
    head_lr: Rate  # of the frame aggregation (10 x lr in TeachCLIP)
    weight_decay: float = Field(default=0.2, ge=0, le=10)  # decoupled
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.98)  # YAML has lists, not tuples
    eps: float = Field(default=1e-6, gt=0, le=1)  # added to the root of the second moment
    warmup: float = Field(default=0.1, ge=0, le=1)  # fraction of all steps
    grad_clip: float = Field(default=1.0, gt=0)  # largest global norm of the gradient


class _Adam(torch.optim.Optimizer, ABC):
    """The moments of both optimizers, in the parameters' own precision.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2. The learning rate of a step is the group's `lr`; the schedule is
    the caller's.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-6, weight_decay=0.0
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        assert closure is None, "the loss is computed once"
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state.update(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
                state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                self._move(parameter, group, state)

    @abstractmethod
    def _move(self, parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Change a parameter by its moments."""


class BertAdam(_Adam):
    """The lineage's Adam: no bias correction, epsilon outside the root, decoupled decay on all that its group says.

    p -= lr (m / (sqrt(v) + eps) + weight_decay p). The authors also clip every tensor's gradient to norm 1 here, after
    the global clip to 1 that leaves nothing to clip.
    """

    def _move(self, parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
        parameter.sub_(update, alpha=group["lr"])


class HfAdamW(_Adam):
    """The AdamW of transformers: epsilon joins the root before bias correction, and weights decay after they moved.

    p -= lr sqrt(1 - b2^s) / (1 - b1^s) m / (sqrt(v) + eps), with s counted from 1;  p -= lr weight_decay p.
    """

    def _move(self, parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        state.setdefault("step", torch.zeros(()))
        state["step"] += 1
        (beta1, beta2), step = group["betas"], float(state["step"])
        rate = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-rate)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])


RULES = {"bertadam": BertAdam, "hf_adamw": HfAdamW}  # whose groups follow names; torch's own is AdamW


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool) -> torch.optim.Optimizer:
    """Return the optimizer with one group per (learning rate, decay); the schedule scales a group's `peak_lr`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1
            if config.kind in RULES:  # the authors decide by name, so norms (ln_*) and embeddings decay too
                decays = "bias" not in name and (config.kind == "bertadam" or "logit_scale" not in name)
            groups.setdefault((_peak(name, config), config.weight_decay * decays), []).append(parameter)
    rows = [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay), p in sorted(groups.items())]
    if config.kind in RULES:
        return RULES[config.kind](rows, lr=config.lr, betas=config.betas, eps=config.eps)
    return torch.optim.AdamW(rows, betas=config.betas, eps=config.eps, fused=fused)


def schedule(step: int, total: int, config: OptimConfig) -> float:
    """Return the factor on every group's peak rate at `step` (from 0) of `total`.

    `adamw`: linear warm-up to 1, then half a cosine from 1 to 0 over what remains. `bertadam`: linear warm-up from 0,
    then the half cosine of the whole run, whose start falls into the warm-up. `hf_adamw`: as `adamw`, but the steps of
    warm-up are rounded down and the cosine begins to fall one step earlier, so the last step has rate 0 (PIG's 1e-8).
    """
    if config.kind == "bertadam":
        done = step / total
        return done / config.warmup if done < config.warmup else 0.5 * (1 + math.cos(math.pi * done))
    if config.kind == "hf_adamw":
        ramp = int(config.warmup * total)
        return (
            (step + 1) / ramp if step + 1 < ramp else 0.5 * (1 + math.cos(math.pi * (step + 1 - ramp) / (total - ramp)))
        )
    ramp = max(1, round(config.warmup * total))
    if step < ramp:
        return (step + 1) / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total - ramp)))


def _peak(name: str, config: OptimConfig) -> float:
    parts = name.split(".")
    if "clip" in parts or "logit_scale" in parts:  # a teacher's scoring head holds CLIP's logit scale
        return config.clip_lr
    return config.head_lr if "afa" in parts else config.lr
