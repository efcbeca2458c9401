"""At equal what cells are compared: how many steps each takes, worked out before the sweep.

All cells read one stream of data and see prefixes of it; a cell's schedule stretches to its own number of steps.
`base` takes the steps of the configuration, and what it spends in them is what every other cell spends.
"""

from collections.abc import Mapping
from dataclasses import replace

from lahr.errors import check
from sweeps.engine.design import Design


def at_equal_flops(design: Design) -> Design:
    """The design with every cell given the training FLOPs of `base`, to the nearest step, by the closed form."""
    cost = {trial.cell: trial.flops / trial.config.steps for trial in replace(design, steps={}).one_block()}
    return _spending(replace(design, equal="flops"), cost)


def at_equal_time(design: Design, seconds_per_step: Mapping[str, float]) -> Design:
    """The design with every cell given the training time of `base`, to the nearest step: cell → seconds of a step,
    measured on hardware that did nothing else, the cells in turn."""
    return _spending(replace(design, equal="time"), seconds_per_step)


def _spending(design: Design, cost: Mapping[str, float]) -> Design:
    """Steps from what a step costs in each cell."""
    check("base" in cost, "cells are given what `base` spends, and base is left out; leave it in")
    steps = design.config.steps
    return replace(design, steps={cell: max(1, round(steps * cost["base"] / each)) for cell, each in cost.items()})
