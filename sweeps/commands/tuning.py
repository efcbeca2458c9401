"""`--tune-lr`: one peak rate for all cells, chosen before the sweep on a seed that is none of its blocks.

The rate with the lowest mean loss over the cells is taken, so that no cell is favoured; each cell's own losses stand
beside it in the report. The trials of the choice are a small sweep of their own, `<name>-lr`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Console

from lahr.errors import check
from sweeps.engine import lease, study
from sweeps.engine.design import Design
from sweeps.engine.factors import Factor
from sweeps.engine.options import StudyOptions

SEED = 1_000_003
"""The seed that rates are tried on."""


def choose(
    options: StudyOptions, has_gpu: bool, console: Console, train: Callable[[study.Study], int]
) -> tuple[int, dict[str, Any] | None]:
    """Trains every cell at every rate; the exit status, and what was found: `lr`, `seed`, `losses` by rate and cell.

    None where it was stopped, or some trials failed. A trial that diverged is the worst there is.
    """
    asked = replace(
        options, tune_lr=(), until="seeds", smallest_effect=None, seeds=1, extra=(), name=f"{options.sweep_name}-lr"
    )
    sweep = study.resolve(asked, console, has_gpu, shape=lambda design: at_rates(design, options.tune_lr))
    design = sweep.design
    if sweep.results.exists():
        sweep.results.check_code(design, sweep.code, options.allow_mixed)
    console.print(f"choosing among the learning rates {', '.join(map(str, options.tune_lr))}:")
    with lease.held(sweep.results.folder):
        status = train(sweep)
    if status:
        return status, None
    table = sweep.results.table(design)
    losses: dict[float, dict[str, float]] = {}
    for cell, lr, loss in zip(table["cell"], table["train.lr"], table["val_loss"], strict=True):
        losses.setdefault(float(lr), {})[_without_rate(cell)] = math.inf if math.isnan(loss) else float(loss)
    means = {lr: sum(of.values()) / len(of) for lr, of in losses.items()}
    best = min(means, key=lambda lr: means[lr])
    check(math.isfinite(means[best]), "--tune-lr: a cell diverged at every rate that was given; give lower ones")
    listed = ", ".join(f"{lr}: mean {mean:.4f} nats" for lr, mean in means.items())
    console.print(f"learning rate: {listed}; {best} is taken")
    plain = {
        str(lr): {cell: loss if math.isfinite(loss) else None for cell, loss in of.items()}
        for lr, of in losses.items()
    }
    return 0, {"lr": best, "seed": SEED, "losses": plain}


def at_rates(design: Design, rates: tuple[float, ...]) -> Design:
    """The cells of the effects, each at every rate, on the seed of the choice."""
    rate = Factor("lr", "train.lr", rates)

    def names(cell: str) -> list[str]:
        return [cell if not label else f"{'' if cell == 'base' else cell + '+'}{label}" for label in rate.labels]

    left_out = [cell.name for cell in design.cells() if not cell.tested and cell.extra is None]
    return replace(
        design,
        factors=(*design.factors, rate),
        extras=(),
        order=1,
        without=tuple(name for cell in (*design.without, *left_out) for name in names(cell)),
        steps={name: steps for cell, steps in design.steps.items() for name in names(cell)},
        seeds=1,
        first_seed=SEED,
    )


def _without_rate(cell: str) -> str:
    return "+".join(part for part in cell.split("+") if not part.startswith("lr=")) or "base"
