"""Parameter groups and optimizers."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether weight decay applies: not to biases, not to the weights of normalisations (BERT, ELECTRA)."""
    return not (name.endswith("bias") or "norm" in name.lower())


def layer_scale(depth: int, num_layers: int, decay: float, form: str) -> float:
    """Return the learning-rate factor of one depth: 0 the embeddings, 1..n the layers from below, n + 1 the head.

    `paper`: the top layer is scaled by `decay` once. `as_released`: by decay^2, and everything below once more than
    the paper's text says, left over from a pooler that was removed (google-research/electra#51).
    """
    if depth > num_layers:
        return 1.0
    return decay ** (num_layers + 1 - depth + (form == "as_released"))


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    learning_rate: float,
    weight_decay: float,
    depth_of: Callable[[str], int] | None = None,
    num_layers: int = 0,
    layer_decay: float = 1.0,
    layer_decay_form: str = "paper",
) -> list[dict]:
    """Sort trainable parameters into groups by decay and, where `depth_of` is given, by depth.

    A weight that is tied is listed once by `named_parameters()`, so it is updated once.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            scale = layer_scale(depth_of(name), num_layers, layer_decay, layer_decay_form) if depth_of else 1.0
            decay = weight_decay if is_decayed(name, parameter) else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate * scale, "peak_lr": learning_rate * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


class ReleasedAdam(Optimizer):
    """Adam as the released ELECTRA and BERT train with it: no bias correction, decay beside the update.

    update = m / (sqrt(v) + eps) + weight_decay * w;  w -= lr * update  (google-research/electra,
    model/optimization.py).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; nothing at all where `found_inf` says that one is not finite."""
        loss = None
        if getattr(self, "found_inf", None) is not None and self.found_inf.item():  # waits for the device
            return loss
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], group: dict) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        m = [self.state[p]["exp_avg"] for p in parameters]
        v = [self.state[p]["exp_avg_sq"] for p in parameters]
        grads = [p.grad for p in parameters]
        (beta1, beta2), lr = group["betas"], group["lr"]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_add_(denominator, group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, m, denominator, -lr)


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to a factor of its peak; the factor is a function of the step alone."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def build_optimizer(name: str, groups: list[dict], learning_rate: float, eps: float) -> Optimizer:
    """Build `adamw` (bias-corrected, fused) or `as_released` (ReleasedAdam) over the groups."""
    if name == "as_released":
        return ReleasedAdam(groups, lr=learning_rate, eps=eps)
    return AdamW(groups, lr=learning_rate, eps=eps, fused=True)
