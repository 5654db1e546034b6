"""Checkpointing and compilation of every transformer block of a model, in the towers and the temporal transformer.

Both replace a block's `forward`, on that object alone: names of parameters, releases and checkpoints know nothing of
it. A vision tower whose last block answers for the class token alone calls that block's parts, which stay as they are.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.errors import RecipeError
from distill.model.temporal import TemporalBlock

BLOCKS = (ResidualAttentionBlock, TemporalBlock)


class _Gate(torch.autograd.Function):
    """Identity that saves a tensor: its backward asks for it, so the checkpoint first runs its forward again."""

    @staticmethod
    def forward(ctx: Any, *results: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(torch.empty(0))
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        assert len(ctx.saved_tensors) == 1
        return gradients


def recomputed(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Wrap a function so that calls keep their inputs alone; the backward repeats them with the same random numbers.

    It runs again as a whole, before the backward of any of its modules has begun. Otherwise ZeRO 3, which fetches a
    module's parameters for its backward and lets go of them after its forward, would let go of them in between.
    """

    def gated(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        gone_through = _Gate.apply(*function(*args, **kwargs))
        assert isinstance(gone_through, tuple)
        return gone_through

    def call(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return checkpoint(gated, *args, use_reentrant=False, early_stop=False, **kwargs)

    return call


def checkpoint_blocks(model: nn.Module) -> None:
    """Turn on activation checkpointing: every block keeps its input alone."""
    for block in _blocks(model):
        block.forward = _recomputed_forward(block.forward)


def require_compiler(device: torch.device) -> None:
    """Raise `RecipeError` where torch.compile has no compiler."""
    if device.type == "cuda":
        missing = "" if importlib.util.find_spec("triton") else "the package triton"
    else:
        compiler = os.environ.get("CXX", "g++")
        missing = "" if shutil.which(compiler) else f"the C++ compiler {compiler}"
    if missing:
        raise RecipeError(f"train.compile: true, but {missing} is not there; install it, or set train.compile=false")


def compile_blocks(model: nn.Module) -> None:
    """Compile block by block, so that blocks of one shape share one compilation. Call before `checkpoint_blocks`."""
    for block in _blocks(model):
        block.forward = torch.compile(block.forward)


def _recomputed_forward(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    again = recomputed(lambda *args, **kwargs: (forward(*args, **kwargs),))
    return lambda *args, **kwargs: again(*args, **kwargs)[0]


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, BLOCKS)]
