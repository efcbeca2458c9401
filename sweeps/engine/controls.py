"""Controls beside the eight cells of LAHR's factorial: what a mechanism's gain could come from without the mechanism.

params   base@params   the baseline, its feed-forward widened to the full model's parameters
flops    base@flops    likewise to the full model's FLOPs a token
r1       latent@r1     the latent core run once: one block more, without iterating (0 → 1, then 1 → R)
frozen   mod@frozen    a router that stays as it was drawn
"""

from dataclasses import replace
from typing import Literal

from lahr.errors import check
from lahr.model.flops import flops_per_token, parameter_counts
from lahr.model_config import ModelConfig
from sweeps.engine.factors import Extra

Control = Literal["params", "flops", "r1", "frozen"]


def control(name: Control, base: ModelConfig, full: ModelConfig, full_cell: str, segments: int = 1) -> Extra:
    """The extra cell, made from the models of `base` and of the cell with everything on, which read rows of so many
    windows."""
    if name in ("params", "flops"):
        width = _matched(name, base, full, segments)
        what = "parameters" if name == "params" else "FLOPs"
        check(
            width > base.hidden_dim,
            f"--controls {name}: the full model has no more {what} than base, so no baseline can be widened to it; "
            "leave it out",
        )
        return Extra("base", (("model.d_ff", width),), f"base@{name}", (full_cell, "base"))
    if name == "r1":
        return Extra("latent", (("model.latent_iterations", 1),), "latent@r1", ("base", "latent"))
    return Extra("mod", (("model.mod_router", "random"),), "mod@frozen", ("mod", "base"))


def _matched(name: Control, base: ModelConfig, full: ModelConfig, segments: int) -> int:
    """The feed-forward's width at which base is nearest to the full model: both costs are linear in it."""

    def cost(config: ModelConfig) -> float:
        if name == "params":
            return parameter_counts(config)["total"]
        return sum(flops_per_token(config, segments=segments).values())

    wide = base.hidden_dim
    slope = cost(replace(base, d_ff=wide + 1)) - cost(replace(base, d_ff=wide))
    return wide + round((cost(full) - cost(base)) / slope)
