"""How the processes of one trial share its model: a whole copy each, or a part of every parameter each.

Copies are DistributedDataParallel's. Parts are FSDP2's `fully_shard` (Zhao et al. 2023; ZeRO, Rajbhandari et al. 2020):
a process keeps 1/N of the weights, gradients and moments, and has one module's whole weights only while it runs.
"""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lahr.errors import check
from lahr.model import LAHR, Own
from lahr.model.memory import EarlierSegments
from lahr.training.runtime import Sharding

Value = TypeVar("Value")


def spread(model: LAHR | Own, device: torch.device, sharding: Sharding) -> nn.Module:
    """The model on `device`, as what every process calls to train; collective where there are several.

    `model` itself is moved, and under "shard" its parameters become DTensors split along their first dimension, so
    that it, too, is called by all processes or by none; buffers stay whole. Each was whole before, drawn by (seed,
    name), so it starts with the same numbers however many share it. Raises `ConfigError` for "shard" with nobody to
    share with.
    """
    several = dist.is_initialized() and dist.get_world_size() > 1
    if sharding == "shard":
        check(
            several,
            "sharding is 'shard' and this process is alone; start as many as the runtime's workers with "
            "torch.distributed initialised (Ray Train does), or take 'replicate'",
        )
        _shard(model, device)
        return model
    model.to(device)
    return DistributedDataParallel(model) if several else model


def _shard(model: LAHR | Own, device: torch.device) -> None:
    # Imported here: it takes a second, which runs without it, and each of their workers, need not pay.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Torch warns of blocks that return a view, since changing it in place would lose a gradient: the model never does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # The latent module as one, so that its weights are gathered once for all of its passes. A module that is still
    # on the CPU reaches the device as it is split: there is never a whole model on it. A model of one's own is split as
    # one, since nobody knows its parts: while it runs, each process holds its whole weights, not its moments.
    for part in [] if isinstance(model, Own) else [*model.blocks, model.memory, model.latent]:
        # The kNN memory is read inside a block, never called itself: its gates are the root's.
        if part is not None and not isinstance(part, EarlierSegments):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)  # what is left: the embedding, which is the head too, and the last norm


def average_after(module: nn.Module, last: bool) -> None:
    """Says whether the next backward pass is a batch's `last`, for gradients to be averaged over the processes.

    Copies are averaged once, after the last. Parts are after each: until then a process would hold whole gradients,
    which is what sharding is there to spare it.
    """
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = last


def whole(value: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be a DTensor; collective if it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def first_says(value: Value) -> Value:
    """The first process's value, on every process; collective. It is pickled on its way between them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared)
    return shared[0]


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` gives on the first process, on every process, or what it raises there; collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    made: tuple[Value | None, Exception | None] = (None, None)
    if dist.get_rank() == 0:
        try:
            made = make(), None
        except Exception as error:
            made = None, error
    value, raised = first_says(made)
    if raised is not None:
        raise raised
    return value  # type: ignore[return-value]


def lost_another(error: Exception) -> bool:
    """Whether this is what a process raises whose peer has died or ended: not a fault of what it was doing itself."""
    # gloo's errors are RuntimeErrors that begin with the place in its source.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def together(make: Callable[[], Value]) -> Value:
    """What `make` gives on this process; where it raises on one of them, what it raised there, on all; collective."""
    made: tuple[Value | None, Exception | None] = (None, None)
    try:
        made = make(), None
    except Exception as error:
        made = None, error
    raised: list[Exception | None] = [made[1]]
    if dist.is_initialized() and dist.get_world_size() > 1:
        raised = [None] * dist.get_world_size()
        dist.all_gather_object(raised, made[1])
    if any(raised):
        raise next(filter(None, raised))
    return made[0]  # type: ignore[return-value]
