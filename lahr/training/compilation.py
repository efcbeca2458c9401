"""`torch.compile`, for the parts of a model that do the same in every training step: its blocks, core and memory.

A part is compiled for its very shapes and for training alone; evaluation, whose batches and routed tokens vary, runs
as written. A model of one's own is compiled as a whole. The code is kept in inductor's own folder on the machine, where
the next process finds it.
"""

import contextlib
import warnings
from typing import Literal

import torch
from torch import nn

from lahr.config import TrialConfig
from lahr.errors import check
from lahr.model import LAHR, Own
from lahr.model.layers import Block
from lahr.model.memory import EarlierSegments, Memory
from lahr.model.mixture_of_depths import RoutedBlock
from lahr.training.plan import planned_flops

Asked = Literal["auto", "on", "off"]
WORTH = 1e14
"""Training FLOPs of a trial on a CPU from which on compiling pays: some ten minutes of a core. It takes half a minute,
a few seconds where the code is known, and gains 5 to 15 % of a step in fp32 (docs/notebook.md). On a GPU it was never
timed."""
_VARIANTS = 64
"""Shapes that one process may compile a part for: capacities differ from trial to trial."""


def decide(asked: Asked, config: TrialConfig, device: str) -> tuple[Literal["on", "off"], str]:
    """Whether a trial is compiled, and why not if that has to be said. `ConfigError` if it was asked for in vain."""
    flops = planned_flops(config)
    if asked == "off" or (asked == "auto" and (device == "cuda" or flops < WORTH)):
        return "off", ""
    if device == "cuda" and not torch.cuda.is_available():
        return "on", ""  # a worker that cannot refuses
    why = unable(device) or ""
    check(
        not why or asked == "auto",
        f"--compile on: {why}; install a compiler (Debian: g++ and python3-dev), or leave it out",
    )
    return ("off", f"not compiled: {why}") if why else ("on", "")


def unable(device: str) -> str | None:
    """Why nothing can be compiled for `device` on this machine, in a line; None where it can."""
    x = torch.ones(8, device=device)
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.compile(_tried, dynamic=False)(x)
    except Exception as error:  # of dynamo, of inductor, or of a compiler that it calls: no common type
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None


def _tried(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def compile_parts(model: LAHR | Own, capacity_varies: bool = False) -> None:
    """Has the parts of `model` compiled when they are first called. In place, and no parameter changes its name."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = _VARIANTS
    torch._dynamo.config.optimize_ddp = False  # it would split a part where DDP's buckets end; parts are smaller
    for part in [model.inner] if isinstance(model, Own) else _parts(model, capacity_varies):
        # The method, not the module: hooks of DDP and FSDP stay outside.
        part.forward = torch.compile(part.forward, dynamic=False)  # type: ignore[method-assign, assignment]


def _parts(model: LAHR, capacity_varies: bool) -> list[nn.Module]:
    varying = _varying(model, capacity_varies)
    return [part for part in model.modules() if isinstance(part, Block | Memory) and part not in varying]


def _varying(model: LAHR, capacity_varies: bool) -> set[nn.Module]:
    """Parts that are given another number of tokens in every step, or that keep what they compute."""
    c, parts = model.config, set[nn.Module]()
    by_threshold = c.mod_router == "threshold"
    if by_threshold or capacity_varies:
        parts |= {block for block in model.blocks if isinstance(block, RoutedBlock)}
    if model.latent is not None and (c.latent_halting == "act" or (by_threshold and c.latent_capacity < 1)):
        parts |= set(model.latent.core)
    if c.thinks:
        parts |= set(model.blocks)
    if isinstance(model.memory, EarlierSegments):
        parts.add(model.blocks[c.memory_position])
    return parts


def as_written() -> contextlib.AbstractContextManager[None]:
    """Inside it nothing is compiled, and nothing compiled is run."""
    return torch.compiler.set_stance("force_eager")
