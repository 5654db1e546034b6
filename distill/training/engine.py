"""DeepSpeed, and nothing else imports it: one optimisation step, and the full fp32 state in and out.

State leaves as whole fp32 tensors by parameter name whatever the ZeRO stage, so a checkpoint knows nothing of the
number of processes that wrote it.
"""

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from distill import comm
from distill.data.batch import Batch
from distill.errors import ArtefactError, ExpectedError, first_few
from distill.model.logit_scale import LogitScale
from distill.training.optim import OptimConfig, build_optimizer, schedule

MOMENTS = ("exp_avg", "exp_avg_sq")


def start(timeout_minutes: float) -> None:
    """Joins the process group that `deepspeed` or `torchrun` announced; a plain `python` is a group of one."""
    limit = comm.limit_waiting(timeout_minutes)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops

    if not torch.cuda.is_available():
        # Compiled at start-up otherwise, which needs a compiler and half a minute; gloo does the same work.
        getattr(deepspeed.ops, "__compatible_ops__", {})["deepspeed_shm_comm"] = False
    else:
        torch.cuda.set_device(comm.device())
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if int(os.environ["WORLD_SIZE"]) == 1 and os.environ["MASTER_PORT"] == "0":
        # Port 0 lets the system choose, so that any number of single runs share a machine.
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=limit)
    deepspeed.init_distributed(verbose=False, timeout=limit)


class Engine:
    """Steps one module. The module's forward returns named losses; their sum under `total` is minimised.

    Where one of them is no number, `why` (a collective) may say what in the batch is the cause.
    """

    def __init__(
        self,
        module: nn.Module,
        model: nn.Module,
        config: OptimConfig,
        zero: int,
        batch_size: int,
        why: Callable[[Batch], str | None] | None = None,
    ):
        import deepspeed

        for name, parameter in model.named_parameters():
            assert parameter.ndim > 0, f"{name} is 0-d: DeepSpeed cannot broadcast it; give it shape [1]"
            assert parameter.is_contiguous(), f"{name} is not contiguous: DeepSpeed cannot broadcast it"
        self._model, self._why = model, why
        scales = [module for module in model.modules() if isinstance(module, LogitScale)]
        self._scales = [scale for scale in scales if scale.log.requires_grad]
        self._config = config
        self._zero = zero
        optimizer = build_optimizer(model, config, fused=torch.cuda.is_available())
        self._engine: Any
        self._optimizer: Any  # torch's under ZeRO 0, DeepSpeed's wrapper around it otherwise
        settings = {
            "train_micro_batch_size_per_gpu": batch_size // comm.world_size(),
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.grad_clip if zero else 0.0,  # without ZeRO `_clipped` does it
            "zero_optimization": {"stage": zero},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 30,
            "timers": {"throughput": {"enabled": False}},  # which would wait for the device twice a step
        }
        self._engine, self._optimizer, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self._begin_moments()
        if zero == 3:
            # Attention reads the parameters of its output layer itself. DeepSpeed finds that out in a training step;
            # a run that was killed while it validated has to validate before one.
            for module in model.modules():
                if isinstance(module, nn.MultiheadAttention):
                    for parameter in module.out_proj.parameters():
                        deepspeed.zero.register_external_parameter(module, parameter)

    def step(
        self, batch: Batch, step: int, total: int, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """One optimisation step; returns the loss parts, the gradient norm before clipping, and the learning rate.

        `meanwhile` is called once the device has all of forward and backward to do. The host then waits for one copy
        from the device: the loss parts, and without ZeRO the norm. ZeRO knows the norm when weights have changed, so
        there a second copy follows, of the norm and the logit scales, beside those that DeepSpeed makes itself.

        Raises `ExpectedError` naming the part if a loss is not finite, before any weight has changed.
        """
        factor = schedule(step, total, self._config)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        parts = self._engine(batch)
        self._engine.backward(parts["total"])
        wanted = [part.detach() for part in parts.values()]
        if self._zero == 0:
            wanted.append(self._clipped())
        wanted = torch.stack(wanted)
        meanwhile()
        found = wanted.tolist()
        values = dict(zip(parts, found, strict=False))
        mend = "lower the learning rates, or look for damaged inputs (the last checkpoint is untouched)"
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            mend = (self._why and self._why(batch)) or mend
            raise ExpectedError(f"step {step + 1}: loss part {bad[0]} is {values[bad[0]]}; all parts: {values}; {mend}")
        norm = self._moved() if self._zero else found[-1]
        if not math.isfinite(norm):
            raise ExpectedError(
                f"step {step + 1}: gradient norm is {norm}, though the loss is finite: {values}; {mend}"
            )
        if self._zero == 0:
            self._engine.step()
            for scale in self._scales:
                scale.log.data.clamp_(max=scale.max_log)
        return {**values, "grad_norm": norm, "lr": self._config.lr * factor}

    def weights(self) -> dict[str, Tensor]:
        """The model's whole state on the CPU: parameters in fp32, buffers as they are (statistics of a BatchNorm).

        A collective: call it on all ranks.
        """
        found = {name: self._full(p, None).float().cpu() for name, p in self._model.named_parameters()}
        return found | {name: held.cpu() for name, held in self._model.state_dict().items() if name not in found}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments by `moment/parameter`, whole, fp32, on the CPU. A collective."""
        trainable = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        return {f"{moment}/{name}": self._full(p, moment).cpu() for moment in MOMENTS for name, p in trainable}

    def load(self, weights: dict[str, Tensor], state: dict[str, Tensor], steps: int, folder: Path) -> None:
        """Puts back what `weights` and `optimizer_state` gave after `steps` steps, on any number of processes.

        Raises `ArtefactError`, which names the `folder` that they came from, where they are not of this model.
        """
        own = self.weights()
        trained = {name for name, parameter in self._model.named_parameters() if parameter.requires_grad}
        for name, value in own.items():
            moments = {f"{moment}/{name}": state for moment in MOMENTS} if name in trained else {}
            for key, found in ({name: weights} | moments).items():
                if key not in found or found[key].shape != value.shape:
                    is_there = f"of shape {list(found[key].shape)}" if key in found else "missing"
                    raise ArtefactError(
                        f"{folder}: step {steps} is not of this model: {key} is {is_there}, expected "
                        f"{list(value.shape)}; delete the run folder and start again"
                    )
        odd = [name for name in own if name not in trained and not torch.equal(own[name], weights[name])]
        if odd:
            raise ArtefactError(
                f"{folder}: step {steps} has other frozen weights than the recipe gives now ({first_few(odd)}); put "
                f"back what model.clip.model and init named when the run began, or delete the run folder"
            )
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:  # what is frozen is there already
                self._set(parameter, weights[name], None)
                for moment in MOMENTS:
                    self._set(parameter, state[f"{moment}/{name}"], moment)
        for entry in self._adam().state.values():
            entry["step"].fill_(steps)

    def _adam(self) -> torch.optim.Optimizer:
        return self._optimizer if self._zero == 0 else self._optimizer.optimizer

    def _begin_moments(self) -> None:
        """Gives every (flat) parameter its empty Adam state at once.

        DeepSpeed links parameters to their optimizer state after the first *group's* first step, when the other groups
        have none yet, and never again; and a resumed run needs somewhere to put its moments before any step.
        """
        flat = {0: "", 1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups"}
        name = flat.get(self._zero, "fp32_partitioned_groups_flat")
        held = getattr(self._optimizer, name) if name else [p for p in self._model.parameters() if p.requires_grad]
        for parameter in held:
            state = self._adam().state[parameter]
            if not state:
                # BertAdam counts no steps; what it does not read does no harm. Fused AdamW counts on the device, the
                # others where the host reads the number.
                on = parameter.device if self._adam().defaults.get("fused") else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=on)
                state.update({moment: torch.zeros_like(parameter) for moment in MOMENTS})
        if self._zero in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _full(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        if self._zero == 0 or not parameter.requires_grad:
            if moment is not None:
                return self._optimizer.state[parameter][moment].detach().clone()
            with _gathered(parameter, changed=False):
                return parameter.detach().clone()
        from deepspeed import utils

        if moment is None:
            value = utils.safe_get_full_fp32_param(parameter)
        else:
            value = utils.safe_get_full_optimizer_state(parameter, moment)
        assert value is not None, "DeepSpeed knows every trainable parameter"
        return value.detach().reshape(getattr(parameter, "ds_shape", parameter.shape)).clone()

    def _set(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        value = value.to(comm.device())
        if self._zero == 0:
            (parameter.data if moment is None else self._optimizer.state[parameter][moment]).copy_(value)
            return
        from deepspeed import utils

        if self._zero == 3:  # DeepSpeed's setters of whole tensors know nothing of the padding of the last rank's part
            own = _own_part(parameter, value)
            if moment is not None:
                utils.safe_set_local_optimizer_state(parameter, own, moment)
                return
            utils.safe_set_local_fp32_param(parameter, own)
        elif moment is not None:
            utils.safe_set_full_optimizer_state(parameter, value, moment)
            return
        else:
            utils.safe_set_full_fp32_param(parameter, value)
        with _gathered(parameter, changed=True):  # what was set is the optimizer's copy; the module has its own
            parameter.data.copy_(value)

    def _clipped(self) -> Tensor:
        """Clip the gradients without ZeRO; return their norm before that, on the device."""
        trained = [parameter for parameter in self._model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        if self._config.grad_clip:
            nn.utils.clip_grads_with_norm_(trained, self._config.grad_clip, norm)
        return norm

    def _moved(self) -> float:
        """Move the weights under ZeRO, keep every logit scale at its limit or below; return the gradient norm."""
        self._engine.step()
        logs = [self._full(scale.log, None) for scale in self._scales]
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=comm.device())
        found, *now = torch.cat([norm.reshape(1), *logs]).tolist()
        for scale, log, value in zip(self._scales, logs, now, strict=True):
            if value > scale.max_log:
                self._set(scale.log, log.clamp(max=scale.max_log), None)
        return found


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Return this rank's share of a whole value under ZeRO 3: equal shares of the flat tensor, the last ones padded."""
    each = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    flat = F.pad(value.flatten(), (0, each * comm.world_size() - value.numel()))
    return flat[comm.rank() * each : (comm.rank() + 1) * each]


def _gathered(parameter: nn.Parameter, *, changed: bool) -> AbstractContextManager[None]:
    """The whole parameter where ZeRO 3 has taken it apart (frozen ones too); if it is changed, by all ranks alike."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changed else None)
