"""The 2³ factorial of Mixture-of-Depths × latent reasoning × memory, in seed blocks, to a verdict.

    python sweeps/factorial.py                                  run the `quick` preset, or carry on with it
    python sweeps/factorial.py plan --preset small              trials, FLOPs, time, the smallest effect it could see
    python sweeps/factorial.py --data text.txt --seeds 8        one's own text, more blocks
    python sweeps/factorial.py --equal flops --controls params flops r1 frozen
    python sweeps/factorial.py --until decided --smallest-effect 0.05
    python sweeps/factorial.py status | report                  where it stands; the report again

What is run, and in which order, is in `sweeps/commands`.
"""

from dataclasses import dataclass, replace
from typing import Self

from lahr.errors import check
from lahr.plain import changed
from lahr.presets import Preset
from sweeps.commands import main
from sweeps.engine.controls import Control, control
from sweeps.engine.factors import Extra, Factor
from sweeps.engine.options import StudyOptions

OFF = {"mod_capacity": 1.0, "latent_iterations": 0, "memory_slots": 0}


@dataclass(frozen=True)
class Options(StudyOptions):
    """Mixture-of-Depths × latent reasoning × memory, each on or off, in seed blocks."""

    capacity: tuple[float, ...] = (0.125,)
    """Mixture-of-Depths capacities when it is on; the first is the factorial's, others are levels beside it."""
    iterations: tuple[int, ...] = (4,)
    """Latent iterations when they are on, likewise."""
    slots: tuple[int, ...] = (4096,)
    """Memory slots when it is on, likewise; square numbers."""
    controls: tuple[Control, ...] = ()
    """Cells that say what a gain is due to: base widened to the full model's `params` or `flops`, the latent core run
    once (`r1`), a router that stays as it was drawn (`frozen`)."""

    @classmethod
    def of(cls, name: str, preset: Preset) -> Self:
        """A preset's options."""
        return replace(
            super().of(name, preset),
            capacity=(float(preset.on["mod_capacity"]),),
            iterations=(int(preset.on["latent_iterations"]),),
            slots=(int(preset.on["memory_slots"]),),
        )

    def factors(self) -> tuple[Factor, ...]:
        """The three factors at the levels that were asked for."""
        return (
            Factor("mod", "model.mod_capacity", (OFF["mod_capacity"], *self.capacity), switch=True),
            Factor("latent", "model.latent_iterations", (OFF["latent_iterations"], *self.iterations), switch=True),
            Factor("memory", "model.memory_slots", (OFF["memory_slots"], *self.slots), switch=True),
        )

    def extras(self) -> tuple[Extra, ...]:
        """The controls, then what else was asked for."""
        check(
            len(set(self.controls)) == len(self.controls), f"--controls names one twice: {' '.join(self.controls)}"
        )
        base = changed(self.model, OFF)
        full = changed(base, {f.field.removeprefix("model."): f.levels[1] for f in self.factors()})
        cell, segments = "mod+latent+memory", self.data.segments
        return (*(control(name, base, full, cell, segments) for name in self.controls), *super().extras())

    def level_option(self, factor: Factor) -> str:
        """How one gives a factor other levels."""
        option = {"mod": "--capacity", "latent": "--iterations", "memory": "--slots"}[factor.name]
        return f"give its level with {option}"


if __name__ == "__main__":
    main(Options)
