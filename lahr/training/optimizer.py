"""AdamW in its parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from lahr.config import TrainConfig
from lahr.model import LAHR

_STATE = ("step", "exp_avg", "exp_avg_sq")
VALUES_RATE = 10 / 3
"""The memory's values learn faster (Memory Layers at Scale, Berges et al. 2024; Lample et al. 2019)."""


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over three groups: matrices, the rest without decay, LAHR's memory values.

    Embeddings are of the rest, by their module or their name, a head that is tied to one too.
    Each group carries `scale`, what its rate is of the schedule's, and `names`, its parameters' names. A parameter
    that is frozen (`requires_grad` is False) is in none: it has no gradient and would never have moments to save.
    """
    matrices: list[str] = []
    others: list[str] = []
    values: list[str] = []
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in parameters.items():
        if name == "memory.values" and isinstance(model, LAHR):
            values.append(name)
        elif parameter.ndim >= 2 and "embedding" not in name and id(parameter) not in embeddings:
            matrices.append(name)
        else:
            others.append(name)
    return torch.optim.AdamW(
        [
            {"params": [parameters[name] for name in names], "names": names, "weight_decay": decay, "scale": scale}
            for names, decay, scale in (
                (matrices, config.weight_decay, 1.0),
                (others, 0.0, 1.0),
                (values, 0.0, VALUES_RATE),
            )
            if names
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: a linear rise over the warm-up, then down to `final_lr`.

    `cosine` falls over all that is left. `wsd` stays at the peak and falls over its last steps as 1 - √x, x being the
    share of the decay that is done (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed
    Training Durations"). In both, `final_lr` itself would be that of step `steps`, which is not taken.
    """
    warmup = config.warmup_steps(steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "wsd":
        decay = config.decay_steps(steps)
        height = 1 - math.sqrt(max(0, step - (steps - decay)) / decay)
    else:
        height = 0.5 * (1 + math.cos(math.pi * ((step - warmup) / max(1, steps - warmup))))
    return config.lr * (config.final_lr + (1 - config.final_lr) * height)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as `optimizer.<parameter>.<what>` → tensor."""
    return {
        f"optimizer.{name}.{what}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for what, value in optimizer.state[parameter].items()
    }


def empty_optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Zeros in the shapes, types and parts of what `optimizer_tensors` gives after a step: room to read it into."""
    return {
        f"optimizer.{name}.{what}": torch.zeros(()) if what == "step" else torch.zeros_like(parameter)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for what in _STATE
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave; `KeyError` if a part of a parameter's moments is missing.

    One that has none at all has had no gradient yet: a model of one's own may not use all of itself in every step.
    """
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if not any(f"optimizer.{name}.{what}" in tensors for what in _STATE):
                optimizer.state.pop(parameter, None)
                continue
            optimizer.state[parameter] = {
                what: tensors[f"optimizer.{name}.{what}"].to(parameter.device) for what in _STATE
            }
