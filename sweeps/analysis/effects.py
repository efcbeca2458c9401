"""The effects of a 2^k factorial in seed blocks: estimates, two intervals, one verdict each.

An effect is the mean of the metric with a factor ON minus its mean with it OFF; an interaction is half the difference
of differences (and so on), which is twice the coefficient of a ±1 regression. Two estimators share that estimate:
*blocked*, the t of `y ~ a*b*c + C(seed)` with its pooled residual, and *seed-wise*, one t over each seed's own
contrast, which holds where an effect differs from seed to seed. An effect's p is the larger of the two, then Holm
over all effects (`docs/how-it-works.md` has the simulations behind that choice). The design is balanced, so both
are closed forms of the blocks' contrasts; `tests/sweeps/analysis` holds them equal to statsmodels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lahr.errors import check
from sweeps.analysis import power

FACTORS = ("mod", "latent", "memory")
EXPLORATORY_BLOCKS = 3
"""With so few blocks no effect of a plausible size can be claimed, and every verdict is "exploratory"."""


@dataclass(frozen=True, eq=False)
class Effects:
    """What a sweep says about its factors, for one metric of which less is better."""

    table: pd.DataFrame
    """One row an effect: term, estimate, blocked_low, blocked_high, seedwise_low, seedwise_high (95 %), p_blocked,
    p_seedwise, p (the larger), p_adjusted (Holm), verdict, bound_low, bound_high (the outer 90 % limits)."""
    metric: str
    factors: tuple[str, ...]
    smallest_effect: float | None
    """The smallest effect of interest, declared beforehand, in the metric's unit."""
    blocks: tuple[int, ...]
    """Seeds whose corner cells are all finished: only these enter the estimates."""
    incomplete: tuple[int, ...]
    """Seeds left out, for a missing, failed or diverged trial."""
    missing: tuple[tuple[str, int], ...]
    """(cell, seed) with no row in the table, of the seeds that have any."""
    diverged: tuple[tuple[str, int], ...]
    """(cell, seed) that diverged, or whose metric is not finite."""
    losses: pd.DataFrame
    """The metric of the complete blocks: one row a seed, one column a corner cell."""
    contrasts: pd.DataFrame
    """Each seed's own estimate of each effect: one row a seed, one column a term."""
    sigma: float
    """Residual standard deviation of one trial within its block; NaN below two blocks."""
    smallest_detectable: float
    """The effect found with 80 % probability at the strictest Holm step, given `sigma` and the blocks."""
    checks: Mapping[str, Any]
    """normality_p (Shapiro-Wilk on the residuals), equal_variances_p (Levene by cell), outlying_seeds."""

    @property
    def withheld(self) -> bool:
        """Whether a headline is withheld: a trial diverged, so the complete blocks are a selected sample."""
        return bool(self.diverged)

    @property
    def exploratory(self) -> bool:
        """Whether there are too few blocks to claim anything."""
        return len(self.blocks) <= EXPLORATORY_BLOCKS


def terms(factors: Sequence[str] = FACTORS) -> list[str]:
    """`a`, `b`, …, `a:b`, …, `a:b:c`: main effects, then interactions by order."""
    return [":".join(term) for size in range(1, len(factors) + 1) for term in combinations(factors, size)]


def corner_cells(factors: Sequence[str] = FACTORS) -> list[str]:
    """Names of the 2^k cells: `base`, then by what is on."""
    return ["base", *(term.replace(":", "+") for term in terms(factors))]


def signs(factors: Sequence[str] = FACTORS) -> np.ndarray:
    """The ±1 matrix of shape (2^k cells, 2^k − 1 terms), in the orders of `corner_cells` and `terms`."""
    on = [set() if cell == "base" else set(cell.split("+")) for cell in corner_cells(factors)]
    return np.array(
        [[math.prod(1 if f in cell else -1 for f in t.split(":")) for t in terms(factors)] for cell in on]
    )


def contrasts(losses_SC: np.ndarray, factors: Sequence[str] = FACTORS) -> np.ndarray:
    """Each seed's own effects (…, S, T) from losses (…, S seeds, C corner cells)."""
    return losses_SC @ signs(factors) * (2 / losses_SC.shape[-1])


def fit(contrasts_ST: np.ndarray, confidence: float = 0.95) -> dict[str, np.ndarray]:
    """Estimates, both intervals and both p of shape (…, T), and sigma of shape (…); NaN where S < 2.

    The contrasts of a block are orthogonal, so their scatter over seeds, each scaled by C/4, adds up to the residual
    sum of squares of the blocked model, with (C − 1)(S − 1) degrees of freedom.
    """
    seeds, effects = contrasts_ST.shape[-2:]
    estimate = contrasts_ST.mean(-2)
    if seeds < 2:
        empty = np.full_like(estimate, np.nan)
        names = ("blocked_low", "blocked_high", "seedwise_low", "seedwise_high", "p_blocked", "p_seedwise")
        return {"estimate": estimate, **dict.fromkeys(names, empty), "sigma": empty[..., 0]}
    variance = contrasts_ST.var(-2, ddof=1)
    sigma = np.sqrt(variance.mean(-1) * (effects + 1) / 4)
    result = {"estimate": estimate, "sigma": sigma}
    blocked_error = np.broadcast_to(np.sqrt(variance.mean(-1, keepdims=True) / seeds), estimate.shape)
    for name, error, freedom in (
        ("blocked", blocked_error, effects * (seeds - 1)),
        ("seedwise", np.sqrt(variance / seeds), seeds - 1),
    ):
        half = stats.t.isf((1 - confidence) / 2, freedom) * error
        result |= {f"{name}_low": estimate - half, f"{name}_high": estimate + half}
        result[f"p_{name}"] = paired_p(estimate, error, freedom)
    return result


def paired_p(estimate: np.ndarray, error: np.ndarray, freedom: int) -> np.ndarray:
    """Two-sided p of t = estimate/error; 1 for an estimate of exactly 0, whatever its error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(estimate) / error
    return np.where(estimate == 0, 1.0, 2 * stats.t.sf(t, freedom))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment over the last axis, one family a row; NaN stay NaN and count as no test."""
    p = np.asarray(p, float)
    order = np.argsort(p, axis=-1)  # NaN last
    tests = (~np.isnan(p)).sum(-1, keepdims=True) - np.arange(p.shape[-1])
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, -1) * tests, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), -1)
    return adjusted


def estimate(
    trials: pd.DataFrame,
    factors: Sequence[str] = FACTORS,
    metric: str = "val_loss",
    smallest_effect: float | None = None,
) -> Effects:
    """The 2^k − 1 effects of `factors` on `metric`, from one row a trial.

    `trials` has the columns `cell`, `seed`, `metric` and, where known, `status` ("finished" or "diverged"); cells
    other than the 2^k corners (`corner_cells`) are left to `comparisons`. `ConfigError` on a missing column, a
    cell that appears twice in a block, or a smallest effect that is not above 0.
    """
    factors = tuple(factors)
    check(smallest_effect is None or smallest_effect > 0, f"smallest_effect is {smallest_effect}; give it above 0")
    check("cell" in trials, "the table of trials has no column 'cell'")
    cells = corner_cells(factors)
    wide, diverged = blocks_by_cell(trials[trials["cell"].isin(cells)], metric)
    wide = wide.reindex(columns=cells)
    losses = wide.dropna()
    seeds = tuple(int(s) for s in wide.index)
    blocks = tuple(int(s) for s in losses.index)
    absent = [(cell, s) for s in seeds for cell in cells if math.isnan(float(wide.loc[s, cell]))]  # type: ignore[arg-type]
    own = contrasts(losses.to_numpy(float), factors)
    if not blocks:
        own = np.full((1, len(cells) - 1), np.nan)
    inner, outer = fit(own), fit(own, confidence=0.90)
    sigma = float(inner.pop("sigma"))
    table = pd.DataFrame({"term": terms(factors), **inner})
    table["p"] = table[["p_blocked", "p_seedwise"]].max(axis=1, skipna=False)
    table["p_adjusted"] = holm(table["p"].to_numpy())
    table["bound_low"] = np.minimum(outer["blocked_low"], outer["seedwise_low"])
    table["bound_high"] = np.maximum(outer["blocked_high"], outer["seedwise_high"])
    verdicts = [
        _verdict(row, len(blocks), smallest_effect, bool(diverged)) for row in table.to_dict(orient="records")
    ]
    table.insert(table.columns.get_loc("bound_low"), "verdict", verdicts)  # type: ignore[arg-type]
    return Effects(
        table=table,
        metric=metric,
        factors=factors,
        smallest_effect=smallest_effect,
        blocks=blocks,
        incomplete=tuple(s for s in seeds if s not in blocks),
        missing=tuple(pair for pair in absent if pair not in diverged),
        diverged=diverged,
        losses=losses,
        contrasts=pd.DataFrame(own[: len(blocks)], index=losses.index, columns=terms(factors)),
        sigma=sigma,
        smallest_detectable=power.smallest_detectable(sigma, len(blocks), len(factors)),
        checks=assumptions(losses.to_numpy(float), blocks),
    )


def blocks_by_cell(trials: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, tuple[tuple[str, int], ...]]:
    """`metric` with one row a seed and one column a cell (NaN where there is none), and the diverged (cell, seed)."""
    for column in ("cell", "seed", metric):
        check(column in trials, f"the table of trials has no column {column!r}; it has {', '.join(trials.columns)}")
    for cell, seed in trials.loc[trials.duplicated(["cell", "seed"]), ["cell", "seed"]].itertuples(index=False):
        check(False, f"cell {cell!r} appears twice at seed {seed} in the table of trials; keep one of them")
    value = trials[metric].astype(float)
    bad = ~np.isfinite(value)
    if "status" in trials:
        bad |= trials["status"] == "diverged"
    wide = trials.assign(**{metric: value.mask(bad)}).pivot(index="seed", columns="cell", values=metric)
    return wide, tuple((str(c), int(s)) for c, s in zip(trials["cell"][bad], trials["seed"][bad], strict=True))


def assumptions(losses_SC: np.ndarray, blocks: Sequence[int]) -> dict[str, Any]:
    """Whether the residuals look normal and equally wide, and which seeds scatter more than the others.

    The last is called for a seed at the level 0.05/S, so about one sound sweep in twenty has one. Below three blocks
    there is nothing to check, and both p are NaN.
    """
    seeds, cells = losses_SC.shape
    if seeds < 3:
        return {"normality_p": math.nan, "equal_variances_p": math.nan, "outlying_seeds": ()}
    centred = losses_SC - losses_SC.mean(1, keepdims=True)
    residuals = centred - centred.mean(0)
    if np.ptp(residuals) < 1e-12:
        return {"normality_p": math.nan, "equal_variances_p": math.nan, "outlying_seeds": ()}
    # A seed against the others, exactly F: its distance from their mean, over their own scatter.
    total, outlying = (residuals**2).sum(), []
    for seed, row in zip(blocks, residuals, strict=True):
        own = (row**2).sum() * seeds / (seeds - 1)
        f = own / (cells - 1) / max((total - own) / ((cells - 1) * (seeds - 2)), 1e-30)
        if stats.f.sf(f, cells - 1, (cells - 1) * (seeds - 2)) < power.ALPHA / seeds:
            outlying.append(seed)
    return {
        "normality_p": float(stats.shapiro(residuals.ravel()).pvalue),
        "equal_variances_p": float(stats.levene(*residuals.T).pvalue),
        "outlying_seeds": tuple(outlying),
    }


def _verdict(row: Mapping[Any, Any], blocks: int, smallest_effect: float | None, withheld: bool) -> str:
    if withheld:
        return "withheld"
    if blocks <= EXPLORATORY_BLOCKS:
        return "exploratory"
    x = smallest_effect
    small = x is not None and -x < row["bound_low"] and row["bound_high"] < x
    if row["p_adjusted"] < power.ALPHA:
        return ("helps" if row["estimate"] < 0 else "hurts") + (f", but by less than {x:g}" if small else "")
    return f"no effect larger than {x:g}" if small else "undecided"
