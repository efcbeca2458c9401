"""Does each mechanism do what it is for? A probe, with the mechanism on, off, and its control, in seed blocks.

    python sweeps/probes.py --preset facts --equal flops        memory, on a table of facts
    python sweeps/probes.py --preset segments                   the kNN memory, on pairs of earlier segments
    python sweeps/probes.py --preset swaps                      latent iterations; likewise hops, trees
    python sweeps/probes.py --preset selective                  a learned router beside one that stays as it was drawn
    python sweeps/probes.py plan --preset swaps                 what it costs and could see

A probe's preset is a small model on a task with a known answer (docs/probes.md). Any other study takes them too:
`python sweeps/factorial.py --preset swaps`.
"""

from typing import ClassVar

from lahr.errors import check
from lahr.plain import changed
from lahr.presets import preset
from sweeps.commands import main
from sweeps.engine.controls import Control, control
from sweeps.engine.factors import Extra, Factor
from sweeps.engine.options import StudyOptions

SWITCHES = {
    "mod": ("model.mod_capacity", 1.0),
    "latent": ("model.latent_iterations", 0),
    "memory": ("model.memory_slots", 0),
}
"""Mechanism → the field that turns it on, and its value when it is off."""
ASKED: dict[str, tuple[str, Control]] = {
    "facts": ("memory", "params"),
    "segments": ("memory", "flops"),
    "swaps": ("latent", "r1"),
    "hops": ("latent", "r1"),
    "trees": ("latent", "r1"),
    "selective": ("mod", "frozen"),
}
"""Probe → the mechanism that it is for, and what its gain could come from without it."""


class Options(StudyOptions):
    """One mechanism on the probe that it is for."""

    NAME: ClassVar[str] = "probe"
    PRESET: ClassVar[str] = "swaps"

    def __post_init__(self) -> None:
        check(
            self.preset in ASKED,
            f"--preset is {self.preset}; a probe's is one of {', '.join(ASKED)}",
        )
        super().__post_init__()

    def factors(self) -> tuple[Factor, ...]:
        """The mechanism that the probe is for."""
        mechanism, _ = ASKED[self.preset]
        field, off = SWITCHES[mechanism]
        return (Factor(mechanism, field, (off, preset(self.preset).on[field.removeprefix("model.")]), switch=True),)

    def extras(self) -> tuple[Extra, ...]:
        """Its control, then what else was asked for."""
        mechanism, name = ASKED[self.preset]
        (factor,) = self.factors()
        field = factor.field.removeprefix("model.")
        off, on = (changed(self.model, {field: level}) for level in factor.levels)
        return (control(name, off, on, mechanism, self.data.segments), *super().extras())


if __name__ == "__main__":
    main(Options)
