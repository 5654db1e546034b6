"""`python tests/reads.py RECIPE[,section.key=value ...][,METHOD] ...`: train, and count what steps read and gather.

A read is anything for which the host would have to wait for a GPU: a number, a list, an array or a tensor on the host
made of a tensor, or a shape that follows from a tensor's values. No GPU is needed to see them. Reads of tensors that
are the host's anyway do not count: those of the loader, and of an optimizer that is not fused, as it is on a GPU. Of
every training the command prints a line of JSON: its steps, and their reads and collectives by place, which is the
innermost function of the project, or DeepSpeed. A METHOD of `SPOILT` adds a read to every step, and `late` fetches
every batch when it is due.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_stack
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
MOVES = {"tolist", "numpy", "cpu", "__array__"}  # methods that no operator shows
BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_"}  # the host needs the number of a mask's hits
HOST = ("distill/data/loader.py", "torch/optim/")  # what reads tensors of the host
BETWEEN = {"_validate", "_save"}  # what the loop does between steps
OWN = {"found", "__torch_dispatch__", "__torch_function__"}  # of this file
AROUND = "cost.py"  # counts operations while it calls them
COLLECTIVES = ("allreduce", "allgather", "broadcast", "reduce", "gather", "scatter", "alltoall", "barrier")
SPOILT = {
    "item": lambda loss: loss.item(),
    "float": float,
    "if": bool,
    "tolist": lambda loss: loss.tolist(),
    "numpy": lambda loss: loss.detach().numpy(),
    "cpu": lambda loss: loss.cpu(),
    "to": lambda loss: loss.to("cpu"),
    "mask": lambda loss: loss[loss > 0],
    "nonzero": lambda loss: loss.nonzero(),
}


class Watch:
    """Counts reads and collectives by the innermost place that is of the project, or by DeepSpeed."""

    def __init__(self, within: str = ""):
        self.reads: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()
        self._within = within  # a function; nothing else counts

    @contextmanager
    def looking(self) -> Iterator["Watch"]:
        """Count within the block, in this thread."""
        with _Methods(self), _Operators(self):
            yield self

    def found(self, counts: Counter[str]) -> None:
        """Count one more, at the place where it happens."""
        frames = [(frame.f_code.co_filename, frame.f_code.co_name) for frame, _ in walk_stack(sys._getframe())]
        functions = {function for _, function in frames}
        if BETWEEN & functions or (self._within and self._within not in functions):
            return
        if any(part in name for name, _ in frames for part in HOST):
            return
        for name, function in frames:
            if "/deepspeed/" in name:
                counts["deepspeed"] += 1
                return
            if _ours(name) and function not in OWN and Path(name).name != AROUND:
                counts[f"{Path(name).name}:{function}"] += 1
                return


def _ours(name: str) -> bool:
    """Return whether a file is of the project, whose folder may hold the environment too."""
    path = Path(name).resolve()
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts


class _Operators(TorchDispatchMode):
    def __init__(self, watch: Watch):
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            if any(name in func._opname for name in COLLECTIVES):
                self._watch.found(self._watch.collectives)
        elif func._opname in BY_MASK:
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self._watch.found(self._watch.reads)
        elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            self._watch.found(self._watch.reads)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, watch: Watch):
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        to_host = name == "to" and any(isinstance(v, str) and v == "cpu" for v in (*args[1:], *given.values()))
        if name in MOVES or to_host:
            self._watch.found(self._watch.reads)
        return func(*args, **given)


def main(*wanted: str) -> None:
    """Train each, and print what its steps read."""
    from distill import comm
    from distill.config import read_recipe
    from distill.experiment import prepare
    from distill.recipe import Recipe
    from distill.training import engine, loop
    from distill.training.objective import Objective

    engine.start(timeout_minutes=5)
    forward, step = Objective.forward, engine.Engine.step
    for path, *given in (each.split(",") for each in wanted):
        overrides = [value for value in given if "=" in value]
        methods = [SPOILT[value] for value in given if value in SPOILT]

        def spoilt(self: Objective, batch: Any, methods: list[Any] = methods) -> dict[str, Tensor]:
            parts = forward(self, batch)
            for method in methods:
                method(parts["total"])
            return parts

        Objective.forward = spoilt

        def late(self: engine.Engine, *args: Any, meanwhile: Any) -> dict[str, float]:
            return step(self, *args)

        engine.Engine.step = late if "late" in given else step
        job, _ = prepare(read_recipe(path, overrides, Recipe))
        job.folder.mkdir(parents=True, exist_ok=True)
        with Watch("to_the_end").looking() as watch:
            loop.train(job)
        if comm.rank() == 0:
            rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
            steps = sum("total" in row for row in rows)
            print(json.dumps({"steps": steps, "reads": watch.reads, "collectives": watch.collectives}), flush=True)
    comm.close()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main(*sys.argv[1:])
