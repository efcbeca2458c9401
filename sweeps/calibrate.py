"""Is the instrument calibrated? Sweeps of real training runs whose truth is known, judged by the sweep's own rule.

    python sweeps/calibrate.py                     ten sweeps of five blocks at `smoke`: a quarter of an hour
    python sweeps/calibrate.py report              the result again

Cells that are the same would be equal to the bit under this pairing, so the factors `b` and `c` are null by re-keying:
they enter nothing but the seed of initialisation and data order. `steps` has a known effect, a quarter fewer steps:
its truth is the mean over 40 other seeds. The report is `calibration.md` beside the sweep's own.
"""

import logging
from dataclasses import dataclass, replace
from typing import ClassVar

from rich.console import Console

from lahr.config import TrialConfig
from lahr.errors import check
from lahr.options import parse
from lahr.options import run as run_main
from sweeps.analysis.calibration import judge
from sweeps.commands import COMMANDS
from sweeps.commands.report import shown
from sweeps.engine.factors import Factor
from sweeps.engine.options import StudyOptions
from sweeps.engine.results import Results
from sweeps.reporting import calibration

FEWER = 0.75
TRUTH_SEEDS = 40


@dataclass(frozen=True)
class Options(StudyOptions):
    """Sweeps whose truth is known: `steps` has an effect that other seeds tell, `b` and `c` have none."""

    NAME: ClassVar[str] = "calibration"

    preset: str = "smoke"
    """The size to calibrate at."""
    sweeps: int = 10
    """Sweeps to judge, each of --blocks seed blocks."""
    blocks: int = 5
    """Seed blocks of each of them."""

    def steps(self) -> Factor:
        """The factor with an effect."""
        config = self.config()
        fewer = round(FEWER * config.steps) * config.tokens_per_step
        return Factor("steps", "train.tokens", (self.train.tokens, fewer), names=("all", "fewer"))

    def factors(self) -> tuple[Factor, ...]:
        """One factor with an effect, two without."""
        return self.steps(), Factor("b", "keys.b", (0, 1)), Factor("c", "keys.c", (0, 1))

    def design(self, config: TrialConfig, content_hash: str):  # type: ignore[no-untyped-def]
        """All sweeps' blocks as one design."""
        check(
            self.sweeps >= 2 and self.blocks >= 2,
            f"--sweeps is {self.sweeps} and --blocks {self.blocks}; each must be at least 2",
        )
        usual = 2 if self.preset == "smoke" else 5
        check(
            self.until == "seeds" and self.seeds == usual and not self.tune_lr,
            "seeds are those of --sweeps and --blocks here; leave --seeds, --until and --tune-lr out",
        )
        return replace(super().design(config, content_hash), seeds=self.sweeps * self.blocks)


@dataclass(frozen=True)
class Truth(Options):
    """The effect of `steps` on seeds that no sweep has."""

    NAME: ClassVar[str] = "calibration-truth"
    FIRST_SEED: ClassVar[int] = 1_000

    def factors(self) -> tuple[Factor, ...]:
        """The factor with an effect alone."""
        return (self.steps(),)

    def design(self, config: TrialConfig, content_hash: str):  # type: ignore[no-untyped-def]
        """Its own seeds, keyed as the sweeps' reference level is."""
        made = super().design(replace(config, keys={"b": 0, "c": 0}), content_hash)
        return replace(made, seeds=TRUTH_SEEDS)


def main(argv: list[str]) -> int:
    """Runs both, then judges."""
    console = Console()
    options = parse(Options, ["--preset", "smoke", *argv], Options.of, "python sweeps/calibrate.py")
    truth = parse(Truth, ["--preset", "smoke", *argv], Truth.of, "python sweeps/calibrate.py")
    truth = replace(truth, name=f"{truth.name}-truth" if truth.name else None)
    for each in (truth, options):
        if status := COMMANDS[options.command](each, console):
            return status
    if options.command in ("run", "report"):
        results = Results.at(options.results, options.sweep_name)
        others = Results.at(truth.results, truth.sweep_name)
        judged = judge(
            results.table(results.design()),
            others.table(others.design()),
            results.design().contrasts,
            others.design().contrasts,
            options.blocks,
        )
        text, picture = calibration.render(judged)
        results.folder.write("report/calibration.md", text.encode())
        results.folder.write("report/calibration.png", picture)
        console.print(text, highlight=False, markup=False)
        console.print(f"calibration: {shown(results, 'report/calibration.md')}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    run_main(main, "stopped; the same command carries on")
