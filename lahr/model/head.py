"""The head's loss, a slice of tokens at a time: the logits of a whole batch are never held.

At a vocabulary of 50,000 logits, their fp32 copy and their gradient take more memory than all else of a small model.
Here a slice's gradient is worked out where its logits are at hand, in the forward pass, as they could not be kept.
A target below 0 is none: that token predicts nothing, and counts in no mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

SLICE = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits at once: on a CPU about as many as its cache holds with their gradient. On a GPU, where each slice costs
launches, it was never timed."""


def cross_entropy(x: Tensor, weight_VD: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token the loss, in nats and at least in fp32, 0 without a target; and whether that is the likeliest.

    States (…, D) and targets (…) to two (N,). Carries no gradient.
    """
    with torch.no_grad():
        w_VD = weight_VD.to(_product_type(weight_VD))
        losses, right = [], []
        for x_SD, targets_S in _slices(x, targets, len(weight_VD)):
            logits_SV = x_SD.to(w_VD.dtype) @ w_VD.T
            losses.append(_losses(logits_SV, targets_S)[0])
            right.append(logits_SV.argmax(-1) == targets_S)
        return torch.cat(losses), torch.cat(right)


def mean_cross_entropy(x: Tensor, weight_VD: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of all tokens that have a target, with its gradient for states and weight."""
    if not torch.is_grad_enabled():
        return mean_of(cross_entropy(x, weight_VD, targets)[0], targets)
    mean: Tensor = _MeanCrossEntropy.apply(x, weight_VD, targets)
    return mean


def mean_of(losses_N: Tensor, targets: Tensor) -> Tensor:
    """The mean of losses over the tokens that have a target; 0 where none has."""
    return losses_N.sum() / _counted(targets)


def _counted(targets: Tensor) -> Tensor:
    return (targets >= 0).sum().clamp(min=1)


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight_VD: Tensor, targets: Tensor) -> Tensor:
        w_VD = weight_VD.to(_product_type(weight_VD))
        total = torch.zeros((), dtype=_wide(w_VD), device=x.device)
        x_grads, weight_grad_VD = [], torch.zeros_like(weight_VD)
        share = 1 / _counted(targets).to(total.dtype)
        for x_SD, targets_S in _slices(x, targets, len(weight_VD)):
            x_SD = x_SD.to(w_VD.dtype)
            losses_S, p_SV = _losses(x_SD @ w_VD.T, targets_S)
            total += losses_S.sum()
            # d(loss)/d(logits) is the softmax, less one at the target; without a target it is nothing.
            p_SV[torch.arange(len(p_SV), device=x.device), targets_S.clamp(min=0)] -= 1
            grad_SV = p_SV.mul_(((targets_S >= 0) * share)[:, None]).to(w_VD.dtype)
            x_grads.append((grad_SV @ w_VD).to(x.dtype))
            if w_VD.dtype == weight_grad_VD.dtype:
                weight_grad_VD.addmm_(grad_SV.T, x_SD)
            else:
                weight_grad_VD += grad_SV.T @ x_SD
        ctx.grads = (torch.cat(x_grads).view(x.shape), weight_grad_VD)  # type: ignore[attr-defined]
        return total / _counted(targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        # In place, since this is where a step takes the most memory: so they can be had once.
        if ctx.grads is None:  # type: ignore[attr-defined]
            raise RuntimeError("the head's gradient was taken already; run the forward pass again")
        (x_grad, weight_grad_VD), ctx.grads = ctx.grads, None  # type: ignore[attr-defined]
        return x_grad.mul_(grad.to(x_grad.dtype)), weight_grad_VD.mul_(grad.to(weight_grad_VD.dtype)), None


def _losses(logits_SV: Tensor, targets_S: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's loss, 0 without a target, and its softmax."""
    wide = _wide(logits_SV)
    p_SV = F.softmax(logits_SV, -1, dtype=wide)
    # log Σ exp by way of the likeliest, whose probability is no less than 1/V: a second pass of exponentials is saved.
    log_sum_S = logits_SV.amax(-1).to(wide) - p_SV.amax(-1).log()
    losses_S = log_sum_S - logits_SV.gather(1, targets_S.clamp(min=0)[:, None]).squeeze(1).to(wide)
    return losses_S.masked_fill(targets_S < 0, 0), p_SV


def _slices(x: Tensor, targets: Tensor, vocabulary: int) -> list[tuple[Tensor, Tensor]]:
    size = max(SLICE.get(x.device.type, SLICE["cuda"]) // vocabulary, 1)
    return list(zip(x.reshape(-1, x.shape[-1]).split(size), targets.flatten().split(size), strict=True))


def _product_type(weight: Tensor) -> torch.dtype:
    """What autocast multiplies in, where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
