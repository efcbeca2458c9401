"""Capacity × iterations (× slots) of the full model as a response surface.

    python sweeps/capacity.py --reuse results/quick-stories        the factorial's full cell is taken over
    python sweeps/capacity.py --iterations 1 2 4 8 --slots 1024 4096

Every combination is a cell, and beside capacity 1.0 (plain blocks) stands the arm `gated`: blocks that are routed with
every token chosen, k = T. Between the two lies the gate alone, and the surface jumps there.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import pandas as pd

from lahr.config import TrialConfig
from lahr.errors import check
from lahr.plain import changed
from lahr.presets import Preset
from sweeps.analysis.effects import Effects
from sweeps.analysis.surface import coordinates, model_columns, response_surface
from sweeps.commands import main
from sweeps.engine.design import Design
from sweeps.engine.factors import Factor
from sweeps.engine.options import StudyOptions
from sweeps.reporting import surface

GATED = "gated"


@dataclass(frozen=True)
class Options(StudyOptions):
    """Capacity × iterations (× slots) of the full model as a response surface."""

    NAME: ClassVar[str] = "capacity"

    order: int | None = 1
    """The most factors of an interaction that is estimated beside the surface: 1 is each level alone."""
    capacity: tuple[float, ...] = (0.5, 0.25, 0.125)
    """Mixture-of-Depths capacities below 1; plain blocks, and routed ones with k = T, come by themselves."""
    iterations: tuple[int, ...] = (1, 2, 4)
    """Passes of the latent core, each at least 1."""
    slots: tuple[int, ...] = (4096,)
    """Memory slots, each above 0; one alone is no factor."""

    @classmethod
    def of(cls, name: str, preset: Preset) -> Self:
        """A preset's options."""
        on = preset.on
        passes = sorted({1, 2, int(on["latent_iterations"])})
        return replace(super().of(name, preset), iterations=tuple(passes), slots=(int(on["memory_slots"]),))

    def factors(self) -> tuple[Factor, ...]:
        """Capacity, iterations, and slots where there are several."""
        check(bool(self.slots) and all(self.slots), f"--slots is {self.slots}; give numbers above 0")
        check(all(self.iterations), f"--iterations is {self.iterations}; each must be at least 1")
        check(
            all(0 < c < 1 for c in self.capacity),
            f"--capacity is {self.capacity}; give some between 0 and 1: plain blocks and k = T come by themselves",
        )
        length = self.model.max_seq_len
        every = 1 - 0.5 / length  # ⌈cT⌉ is T
        capacities = (1.0, every, *self.capacity)
        chosen = [math.ceil(round(c * length, 9)) for c in capacities[1:]]
        check(
            len(set(chosen)) == len(chosen),
            f"--capacity is {' '.join(map(str, self.capacity))}; of {length} tokens routed blocks would take "
            f"{', '.join(map(str, chosen[1:]))}, and `{GATED}` takes all: give each number once, below {length}",
        )
        names = ("plain", GATED, *(f"{c:g}" for c in self.capacity))
        made = [
            Factor("capacity", "model.mod_capacity", capacities, names=names),
            Factor("iterations", "model.latent_iterations", self.iterations),
        ]
        return (*made, *([Factor("slots", "model.memory_slots", self.slots)] if len(self.slots) > 1 else []))

    def config(self) -> TrialConfig:
        """The configuration that the factors vary, with the full model's memory where it is no factor."""
        given = super().config()
        return changed(given, {"model.memory_slots": self.slots[0]} if len(self.slots) == 1 else {})

    def level_option(self, factor: Factor) -> str:
        """How one gives a factor other levels."""
        return f"give its levels with --{factor.name}"

    def design(self, config: TrialConfig, content_hash: str) -> Design:
        """The design; `ConfigError` for cells that are too few for the surface."""
        made = super().design(config, content_hash)
        model_columns(_places(made))
        return made

    def section(self, effects: Effects, design: Design) -> tuple[str, dict[str, bytes]]:
        """The surface."""
        if not effects.blocks:
            return "", {}
        return surface.section(effects, response_surface(effects, _places(design)), "capacity", "iterations")


def _places(design: Design) -> pd.DataFrame:
    """Each cell's coordinates."""
    levels = {}
    for factor in design.factors:
        if factor.name in ("capacity", "iterations", "slots"):
            numbers = [1.0 if n == GATED else float(x) for x, n in zip(factor.levels, _names(factor), strict=True)]  # type: ignore[arg-type]
            levels[factor.name] = dict(zip(factor.labels, numbers, strict=True))
    return coordinates(design.contrasts, levels, {"capacity": ""})


def _names(factor: Factor) -> tuple[str, ...]:
    return factor.names or factor.labels


if __name__ == "__main__":
    main(Options)
