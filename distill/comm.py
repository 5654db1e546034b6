"""The process group: who am I, and one gather whose gradient is the true one.

Works the same with one process (no group at all) and under `deepspeed` or `torchrun`.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from distill.errors import ExpectedError

# What gloo, NCCL and the rendezvous store say when another process is gone, and when it does not answer.
GONE = re.compile(
    "closed by peer|reset by peer|connection refused|connection was likely closed|broken pipe|remote ?error|"
    "ncclsystemerror|communicator was aborted|connectfullmesh failed",
    re.IGNORECASE,
)
SILENT = re.compile("timed out|timeout", re.IGNORECASE)


def rank() -> int:
    """This process's number over all hosts."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def device() -> torch.device:
    """This process's GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


class _Gather(torch.autograd.Function):
    """Concatenates along the first axis; each rank gets back the sum over ranks of the gradient of its own rows.

    After the mean over ranks that data-parallel training applies, gradients equal those of one process that saw the
    whole batch and computed the same full loss (the lineage's gather keeps only its own slice: 1/world_size of it).
    Only what needs a gradient takes part in that sum, which is computed in the precision of what comes out.
    """

    @staticmethod
    def forward(ctx, *own: Tensor) -> tuple[Tensor, ...]:
        sent = torch.cat([rows.detach().contiguous().flatten().view(torch.uint8) for rows in own])
        received = sent.new_empty(dist.get_world_size() * len(sent))
        dist.all_gather_into_tensor(received, sent)
        pieces = received.view(dist.get_world_size(), -1).split([rows.nbytes for rows in own], dim=1)
        found = tuple(
            # a clone begins where its type may begin
            _precise(piece.clone(memory_format=torch.contiguous_format).view(rows.dtype).reshape(-1, *rows.shape[1:]))
            for rows, piece in zip(own, pieces, strict=True)
        )
        ctx.lengths = [len(rows) for rows in own]
        ctx.mark_non_differentiable(*(w for w, needed in zip(found, ctx.needs_input_grad, strict=True) if not needed))
        return found

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        world = dist.get_world_size()
        asked = [gradient for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=True) if needed]
        shares = torch.cat([gradient.reshape(world, -1) for gradient in asked], dim=1)  # of each rank's rows
        own = shares.new_empty(shares.shape[1])
        dist.reduce_scatter_tensor(own, shares.flatten())
        pieces = iter(own.split([gradient.numel() // world for gradient in asked]))
        return tuple(
            next(pieces).reshape(length, *gradient.shape[1:]) if needed else None
            for gradient, length, needed in zip(gradients, ctx.lengths, ctx.needs_input_grad, strict=True)
        )


def gather(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return all ranks' rows of every named tensor (equal shapes on every rank), in one collective.

    Everything travels in its own precision, as bytes. Floats come out in float32 or better and have a true gradient,
    which is rounded to their own precision once, after the sum over ranks.
    """
    if world_size() == 1:
        return {name: _precise(rows) for name, rows in tensors.items()}
    return dict(zip(tensors, _Gather.apply(*tensors.values()), strict=True))


def _precise(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32)) if rows.is_floating_point() else rows


def gather_rows(rows: Tensor, total: int) -> Tensor:
    """The whole table from shares made by `share`: rank r holds rows r, r + world, ... (padded to equal length)."""
    if world_size() == 1:
        return rows[:total]
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)[:total]


def share(total: int) -> list[int]:
    """The row numbers that this rank works on; every rank gets equally many (the last row repeats as padding)."""
    world = world_size()
    each = -(-total // world)
    return [min(i * world + rank(), total - 1) for i in range(each)]


def largest(number: int) -> int:
    """The largest of all ranks' numbers."""
    if world_size() == 1:
        return number
    value = torch.tensor([number])
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_hosts())
    return int(value)


def total(number: float) -> float:
    """The sum of all ranks' numbers; whole ones below 2^53 stay exact."""
    if world_size() == 1:
        return number
    value = torch.tensor([number], dtype=torch.float64)
    dist.all_reduce(value, group=_hosts())
    return float(value)


@cache
def _hosts() -> dist.ProcessGroup | None:
    """Return the group in which hosts agree on numbers of their own, so that no device waits for them.

    None, the group of all collectives, where that group's tensors are the host's. A collective, the first time.
    """
    if dist.get_backend() == "gloo":
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "this process is of the group of all"
    return group


def limit_waiting(minutes: float) -> timedelta:
    """Limit how long a collective waits for another rank; call it before any group is made."""
    limit = timedelta(minutes=minutes)
    # DeepSpeed makes groups of its own, which would have torch's default.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = limit
    return limit


@contextmanager
def reporting_lost_ranks(minutes: float) -> Iterator[None]:
    """Turns a collective that failed because of another process into an `ExpectedError`; our own bugs pass."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        about_others = isinstance(error, dist.DistError) or "gloo" in text.lower()
        if not about_others or not (GONE.search(text) or SILENT.search(text)):
            raise
        said = re.sub(r"^\[[^]]*\] ", "", text.splitlines()[0]).partition(". This is")[0]  # without gloo's line number
        what = "was lost" if GONE.search(text) else f"did not answer within {minutes:g} minutes"
        raise ExpectedError(
            f"rank {rank()}: another process {what} ({said}); unless it said why itself, it was killed or "
            f"stopped; run the same command again, it continues with what is finished"
        ) from error


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier(device_ids=[device().index] if torch.cuda.is_available() else None)


def close() -> None:
    """Ends the group in order: leaving without it aborts now and then."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()
        _hosts.cache_clear()
