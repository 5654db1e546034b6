"""BertAdam, the optimizer of the CLIP4Clip lineage, as a plain `torch.optim.Optimizer`."""

from typing import Any

import torch


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, epsilon outside the root, decoupled decay on everything its group says.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr (m / (sqrt(v) + eps) + weight_decay p). The learning rate
    of a step is the group's `lr`; the schedule is the caller's. The authors also clip every tensor's gradient to norm 1
    here, after the global clip to 1 that leaves nothing to clip. Their weights and moments are fp16; these are kept in
    the parameters' own precision.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-6, weight_decay=0.0
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure`, if any, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (beta1, beta2), eps = group["betas"], group["eps"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state.update(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(parameter.grad, 1 - beta1)
                square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                update = mean / (square.sqrt() + eps)
                if group["weight_decay"]:
                    update.add_(parameter, alpha=group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"])
        return loss
