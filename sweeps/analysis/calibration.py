"""Known truths against what sweeps say of them: coverage, false alarms, familywise error on real noise."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lahr.errors import check
from sweeps.analysis.contrasts import Contrasts
from sweeps.analysis.effects import Effects, blocks_by_cell, estimate, fit, holm
from sweeps.analysis.power import ALPHA

RELABELLED = 4_000


@dataclass(frozen=True, eq=False)
class Judged:
    """What came of it."""

    effects: pd.DataFrame
    """One row a sweep and term: sweep, term, truth, estimate, both intervals, both p, p (the larger), p_adjusted."""
    known: str
    """The term with an effect."""
    truth: float
    truth_error: float
    """Its standard error, from the other seeds."""
    truth_seeds: int
    pool: int
    """Null trials that were relabelled."""
    familywise: dict[str, float]
    """Share of relabelled sweeps with any effect at .05, by rule: `blocked`, `seedwise`, and `both`, the larger p."""
    sigma: float
    """Residual standard deviation, all sweeps together."""
    left_out: tuple[str, ...]
    """Why trials entered nothing, each in a few words: those that diverged or are missing, and rows set aside."""

    @property
    def nulls(self) -> pd.DataFrame:
        """Rows of effects that are none."""
        return self.effects[self.effects["term"] != self.known]

    @property
    def found(self) -> pd.DataFrame:
        """Rows of the effect that is one."""
        return self.effects[self.effects["term"] == self.known]


def judge(
    trials: pd.DataFrame,
    others: pd.DataFrame,
    design: Contrasts,
    others_design: Contrasts,
    blocks: int,
    relabelled: int = RELABELLED,
) -> Judged:
    """Every run of `blocks` seeds of `trials` as a sweep of its own, against the truth that `others` tell.

    The first factor has an effect, which `others_design` has alone and whose truth is the mean over the seeds of
    `others`; all else is null. The null trials at its first level are then relabelled: as many sweeps drawn from them,
    without a block or a cell to their name.
    """
    whole, other = estimate(trials, design), estimate(others, others_design)
    losses_SC = whole.losses.to_numpy(float)
    check(
        len(losses_SC) >= 2 * blocks,
        f"{len(losses_SC)} seed blocks are complete, which is not two sweeps of {blocks}; run it again to finish more",
    )
    known = design.terms[0]
    differences = other.contrasts[known].to_numpy(float)
    check(len(differences) >= 2, f"{len(differences)} of the other seeds are complete; run it again to finish more")
    rows = []
    for sweep in range(len(losses_SC) // blocks):
        fitted = fit(losses_SC[sweep * blocks : (sweep + 1) * blocks], design.weights_CT)
        sigma = fitted.pop("sigma")
        table = pd.DataFrame({"sweep": sweep, "term": design.terms, **fitted, "sigma": float(sigma)})
        table["p"] = table[["p_blocked", "p_seedwise"]].max(axis=1)
        table["p_adjusted"] = holm(table["p"].to_numpy())
        table["truth"] = np.where(table["term"] == known, differences.mean(), 0.0)
        rows.append(table)
    effects = pd.concat(rows, ignore_index=True)
    null = [cell for cell in design.cells if known not in cell.split("+")]
    wide, *_ = blocks_by_cell(trials, "val_loss")  # of blocks that are not complete, too
    pool = wide.reindex(columns=null).to_numpy(float).ravel()
    pool = pool[np.isfinite(pool)]
    generator = np.random.default_rng(0)
    size = blocks * len(design.cells)
    drawn = np.stack([generator.permutation(pool)[:size] for _ in range(relabelled)])
    fitted = fit(drawn.reshape(relabelled, blocks, len(design.cells)), design.weights_CT)
    ps = {"blocked": fitted["p_blocked"], "seedwise": fitted["p_seedwise"]}
    ps["both"] = np.maximum(*ps.values())
    return Judged(
        effects=effects,
        known=known,
        truth=float(differences.mean()),
        truth_error=float(differences.std(ddof=1) / np.sqrt(len(differences))),
        truth_seeds=len(differences),
        pool=len(pool),
        familywise={name: float((holm(p) < ALPHA).any(-1).mean()) for name, p in ps.items()},
        sigma=float(np.sqrt((effects.drop_duplicates("sweep")["sigma"] ** 2).mean())),
        left_out=(*_left_out(whole), *_left_out(other)),
    )


def _left_out(effects: Effects) -> tuple[str, ...]:
    diverged = [f"{cell} at seed {seed} diverged" for cell, seed in effects.diverged]
    missing = [f"{cell} at seed {seed} is missing" for cell, seed in effects.missing]
    return (*diverged, *missing, *effects.doubtful)
