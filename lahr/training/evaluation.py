"""Validation loss: the same windows every time, all of them, under causal routing; top-k beside it at the end."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from lahr.model import LAHR, Own
from lahr.model.memory import use_metrics
from lahr.model.mixture_of_depths import Routing


@torch.no_grad()
def evaluate(
    model: LAHR | Own,
    inputs_NT: torch.Tensor,
    targets_NT: torch.Tensor,
    *,
    micro_batch: int,
    autocast: torch.autocast,
    bytes_per_token: float,
    with_topk: bool,
    segments: int = 1,
    alive: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`val_loss` in nats a token (causal routing, mean over all windows), `bits_per_byte` and the mechanisms' metrics.

    `with_topk` adds `val_loss_topk` and `router_gap` (causal minus top-k) where something is routed. Every rank
    evaluates its share of the windows, in as many forward passes as every other, and gets the whole mean. With
    `segments` the windows are rows of so many, which stay whole: `micro_batch` is a multiple, and there is a row for
    each rank. `alive` is called after every forward pass.
    """
    was_training = model.training
    model.eval()
    try:
        metrics = _mean_over_windows(model, inputs_NT, targets_NT, micro_batch, autocast, "causal", segments, alive)
        if with_topk:
            routed = any(name.startswith("mod/") for name in metrics)
            topk = (
                _mean_over_windows(model, inputs_NT, targets_NT, micro_batch, autocast, "topk", segments, alive)
                if routed
                else metrics
            )
            metrics["val_loss_topk"] = topk["val_loss"]
            metrics["router_gap"] = metrics["val_loss"] - topk["val_loss"]
    finally:
        model.train(was_training)
    metrics["bits_per_byte"] = metrics["val_loss"] / math.log(2) / bytes_per_token
    return metrics


def _mean_over_windows(
    model: nn.Module,
    inputs_NT: torch.Tensor,
    targets_NT: torch.Tensor,
    micro_batch: int,
    autocast: torch.autocast,
    routing: Routing,
    segments: int,
    alive: Callable[[], None],
) -> dict[str, float]:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    sums: dict[str, torch.Tensor] = {}
    memory_use: torch.Tensor | None = None
    rows_RS = torch.arange(len(inputs_NT)).view(-1, segments)
    share = rows_RS[rank::world].flatten()
    # Where the model is sharded a forward pass takes all ranks, so each makes as many as the first, which has the most
    # windows; one that has run out repeats a row, and counts it for nothing.
    for start in range(0, rows_RS[::world].numel(), micro_batch):
        rows = share[start : start + micro_batch]
        weight, rows = len(rows), rows if len(rows) else rows_RS[0]
        with autocast:
            output = model(
                inputs_NT[rows].to(device), targets_NT[rows].to(device), routing=routing, segments=segments
            )
        for name, value in {"val_loss": output.lm_loss, **output.metrics}.items():
            # Weighted by windows, so that a last smaller batch counts for what it holds.
            sums[name] = sums.get(name, 0.0) + value.double() * weight  # type: ignore[assignment]
        alive()
        if output.memory_use is not None:
            use = output.memory_use.double() * (weight > 0)
            memory_use = use if memory_use is None else memory_use + use
    if world > 1:
        for value in [*sums.values(), *([] if memory_use is None else [memory_use])]:
            dist.all_reduce(value)
    metrics = {name: value.item() / len(inputs_NT) for name, value in sums.items()}
    if memory_use is not None:
        metrics.update(use_metrics(memory_use))
    return metrics
