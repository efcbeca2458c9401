"""The effects of a design in seed blocks: estimates, two intervals, one verdict each.

What an effect is, `contrasts.py` says: weights over cells; with two levels it is the mean of the metric with a factor
ON minus its mean with it OFF. Two estimators share that estimate: *blocked*, the t of `y ~ a*b*c + C(seed)` with its
pooled residual, and *seed-wise*, one t over each seed's own contrast, which holds where an effect differs from seed to
seed. An effect's p is the larger of the two, then Holm over all effects (`docs/statistics.md` has the simulations
behind that choice). Blocks are complete, so both are closed forms; `tests/sweeps/analysis` holds them equal to
statsmodels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lahr.errors import check
from sweeps.analysis import power
from sweeps.analysis.contrasts import Contrasts

_DRAWN = 2_000
UNMEASURED = "not measured"
"""The verdict on an effect whose cells are the same model under two names."""


@dataclass(frozen=True, eq=False)
class Effects:
    """What a sweep says about its factors, for one metric of which less is better."""

    table: pd.DataFrame
    """One row an effect: term, estimate, blocked_low, blocked_high, seedwise_low, seedwise_high (95 %), p_blocked,
    p_seedwise, p (the larger), p_adjusted (Holm), verdict, bound_low, bound_high (the outer 90 % limits), detectable
    (the effect found with 80 % probability at the strictest Holm step, given `sigma` and the blocks)."""
    metric: str
    design: Contrasts
    smallest_effect: float | None
    """The smallest effect of interest, declared beforehand, in the metric's unit."""
    blocks: tuple[int, ...]
    """Seeds of which every cell of the design is finished: only these enter the estimates."""
    incomplete: tuple[int, ...]
    """Seeds left out, for a missing, failed or diverged trial."""
    missing: tuple[tuple[str, int], ...]
    """(cell, seed) with no row in the table, of the seeds that have any."""
    diverged: tuple[tuple[str, int], ...]
    """(cell, seed) that diverged, or whose metric is not finite."""
    doubtful: tuple[str, ...]
    """Rows of the table that were set aside, each in a few words."""
    losses: pd.DataFrame
    """The metric of the complete blocks: one row a seed, one column a cell of the design."""
    contrasts: pd.DataFrame
    """Each seed's own estimate of each effect: one row a seed, one column a term."""
    sigma: float
    """Residual standard deviation of one trial within its block; NaN below two blocks."""
    checks: Mapping[str, Any]
    """normality_p (Shapiro-Wilk on the residuals), equal_variances_p (Levene by cell), outlying_seeds."""
    max_seeds: int | None = None
    """Where blocks are added until all is settled (`adaptive.py`): how many there may be at most. Then intervals are
    repeated ones, there is no adjusted p, and `settled_at` in the table says after how many seeds."""
    looked: int = 0
    """Seeds at the last look that was taken; 0 where none was, or where blocks are not added."""

    @property
    def smallest_detectable(self) -> float:
        """The size from which on every effect is found with 80 % probability."""
        return float(self.table["detectable"].max())

    @property
    def same(self) -> tuple[tuple[str, str], ...]:
        """Cells that are another one: equal to the bit in every complete block. (cell, the first such cell)."""
        first: dict[tuple[float, ...], str] = {}
        columns = [(str(cell), tuple(self.losses[cell])) for cell in self.losses if len(self.losses)]
        return tuple((cell, of) for cell, column in columns if (of := first.setdefault(column, cell)) != cell)

    @property
    def withheld(self) -> bool:
        """Whether a headline is withheld: a trial diverged, so the complete blocks are a selected sample."""
        return bool(self.diverged)

    @property
    def exploratory(self) -> bool:
        """Whether there are too few blocks to claim anything."""
        return len(self.blocks) <= power.EXPLORATORY_BLOCKS or (self.max_seeds is not None and not self.looked)

    @property
    def settled(self) -> bool:
        """Whether a look has settled every effect."""
        return bool(self.looked) and bool((self.table["settled_at"] > 0).all())


@dataclass(frozen=True, eq=False)
class Fit:
    """Estimates (…, T) from complete blocks, with the standard error and the degrees of freedom of both estimators.

    Blocked, a term whose weights have the norm w has the error w·sigma/√S, sigma being that of `residual_sd`; seed-wise
    it is the scatter of the seeds' own contrasts over √S.
    """

    estimate: np.ndarray
    blocked: tuple[np.ndarray, int]
    seedwise: tuple[np.ndarray, int]

    @staticmethod
    def of(losses_SC: np.ndarray, weights_CT: np.ndarray) -> "Fit":
        """From losses (…, S, C) without gaps, and weights (C, T)."""
        seeds, cells = losses_SC.shape[-2:]
        own, root = losses_SC @ weights_CT, math.sqrt(seeds)
        blocked = residual_sd(losses_SC)[..., None] * np.linalg.norm(weights_CT, axis=0) / root
        return Fit(
            own.mean(-2),
            (blocked, (cells - 1) * (seeds - 1)),
            (own.std(-2, ddof=1) / root, seeds - 1),
        )

    @property
    def p(self) -> np.ndarray:
        """The larger of the blocked and the seed-wise."""
        return np.maximum(paired_p(self.estimate, *self.blocked), paired_p(self.estimate, *self.seedwise))

    def halves(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Half the widths of the blocked and of the seed-wise interval that belong to tests at a two-sided level."""
        blocked, seedwise = (stats.t.isf(level / 2, n) * error for error, n in (self.blocked, self.seedwise))
        return blocked, seedwise

    def interval(self, level: float) -> tuple[np.ndarray, ...]:
        """blocked_low, blocked_high, seedwise_low, seedwise_high."""
        return tuple(end for half in self.halves(level) for end in (self.estimate - half, self.estimate + half))


def fit(losses_SC: np.ndarray, weights_CT: np.ndarray, confidence: float = 0.95) -> dict[str, np.ndarray]:
    """Estimates, both intervals and both p of shape (…, T), and sigma of shape (…), from losses (…, S seeds, C cells);
    NaN where S < 2."""
    own = losses_SC @ weights_CT
    if losses_SC.shape[-2] < 2:
        empty = np.full_like(own.mean(-2), np.nan)
        names = ("blocked_low", "blocked_high", "seedwise_low", "seedwise_high", "p_blocked", "p_seedwise")
        return {"estimate": own.mean(-2), **dict.fromkeys(names, empty), "sigma": empty[..., 0]}
    fitted = Fit.of(losses_SC, weights_CT)
    ends = fitted.interval(1 - confidence)
    p = {f"p_{name}": paired_p(fitted.estimate, *getattr(fitted, name)) for name in ("blocked", "seedwise")}
    named = dict(zip(("blocked_low", "blocked_high", "seedwise_low", "seedwise_high"), ends, strict=True))
    return {"estimate": fitted.estimate, **named, **p, "sigma": residual_sd(losses_SC)}


def residual_sd(losses_SC: np.ndarray) -> np.ndarray:
    """Residual standard deviation of a trial within its block, (…), from losses (…, S ≥ 2, C)."""
    seeds, cells = losses_SC.shape[-2:]
    centred = losses_SC - losses_SC.mean(-1, keepdims=True)
    residuals = centred - centred.mean(-2, keepdims=True)
    return np.sqrt((residuals**2).sum((-2, -1)) / ((seeds - 1) * (cells - 1)))


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis, (…), with its 95 % interval by one t; NaN where there are too few."""
    n = len(values)
    mean = values.mean(0) if n else np.full(values.shape[1:], np.nan)
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.isf(0.025, n - 1) * values.std(0, ddof=1) / math.sqrt(n)
    return mean, mean - half, mean + half


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
    design: Contrasts,
    metric: str = "val_loss",
    smallest_effect: float | None = None,
) -> Effects:
    """The effects of `design` on `metric`, from one row a trial.

    `trials` has the columns `cell`, `seed`, `metric` and, where known, `status` ("finished" or "diverged"); cells
    that are not of the design are left to `comparisons`. A row that cannot be believed is set aside and named.
    `ConfigError` on a missing column, or a smallest effect that is not above 0.
    """
    check(smallest_effect is None or smallest_effect > 0, f"smallest_effect is {smallest_effect}; give it above 0")
    check("cell" in trials, "the table of trials has no column 'cell'")
    cells = list(design.cells)
    wide, diverged, doubtful = blocks_by_cell(trials[trials["cell"].isin(cells)], metric)
    wide = wide.reindex(columns=cells)
    losses = wide.dropna()
    seeds = tuple(int(s) for s in wide.index)
    blocks = tuple(int(s) for s in losses.index)
    absent = [(cell, s) for s in seeds for cell in cells if math.isnan(float(wide.loc[s, cell]))]  # type: ignore[arg-type]
    known = losses.to_numpy(float) if blocks else np.full((1, len(cells)), np.nan)
    inner, outer = fit(known, design.weights_CT), fit(known, design.weights_CT, confidence=0.90)
    sigma = float(inner.pop("sigma"))
    table = pd.DataFrame({"term": design.terms, **inner})
    table["p"] = table[["p_blocked", "p_seedwise"]].max(axis=1, skipna=False)
    table["p_adjusted"] = holm(table["p"].to_numpy())
    table["bound_low"] = np.minimum(outer["blocked_low"], outer["seedwise_low"])
    table["bound_high"] = np.maximum(outer["blocked_high"], outer["seedwise_high"])
    table["detectable"] = [power.smallest_detectable(sigma, len(blocks), w, len(table)) for w in design.norms_T]
    verdicts = [
        verdict(row, len(blocks), smallest_effect, bool(diverged)) for row in table.to_dict(orient="records")
    ]
    own = design.own(losses.to_numpy(float))
    if not diverged and len(blocks) > power.EXPLORATORY_BLOCKS:
        verdicts = list(np.where(unmoved(own), UNMEASURED, verdicts))
    table.insert(table.columns.get_loc("bound_low"), "verdict", verdicts)  # type: ignore[arg-type]
    return Effects(
        table=table,
        metric=metric,
        design=design,
        smallest_effect=smallest_effect,
        blocks=blocks,
        incomplete=tuple(s for s in seeds if s not in blocks),
        missing=tuple(pair for pair in absent if pair not in diverged),
        diverged=diverged,
        doubtful=doubtful,
        losses=losses,
        contrasts=pd.DataFrame(own, index=losses.index, columns=list(design.terms)),
        sigma=sigma,
        checks=assumptions(losses.to_numpy(float), blocks),
    )


def believed(trials: pd.DataFrame, metric: str = "val_loss") -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows that can be believed, one a cell and seed, and what was set aside: a cell that stands at a seed with two
    figures, a row that is finished without a figure. Of equal rows one is kept."""
    for column in ("cell", "seed", metric):
        check(column in trials, f"the table of trials has no column {column!r}; it has {', '.join(trials.columns)}")
    trials = trials.assign(**{metric: pd.to_numeric(trials[metric], errors="coerce").astype(float)})
    known = trials["status"] if "status" in trials else pd.Series("", index=trials.index)
    empty = ~np.isfinite(trials[metric]) & (known != "diverged") & (known != "")
    doubtful = [f"{cell} at seed {seed} is finished and has no {metric}" for cell, seed in _names(trials[empty])]
    kept = trials[~empty].drop_duplicates(["cell", "seed", metric])
    twice = kept.duplicated(["cell", "seed"], keep=False)
    for (cell, seed), rows in kept[twice].groupby(["cell", "seed"]):
        figures = " and ".join("none" if math.isnan(v) else f"{v:.6g}" for v in rows[metric])
        doubtful.append(f"{cell} at seed {seed} stands {len(rows)} times in the table, with {figures}")
    return kept[~twice], tuple(doubtful)


def blocks_by_cell(
    trials: pd.DataFrame, metric: str
) -> tuple[pd.DataFrame, tuple[tuple[str, int], ...], tuple[str, ...]]:
    """`metric` with one row a seed and one column a cell (NaN where there is none), the diverged (cell, seed), and what
    was set aside. A seed of which nothing can be believed keeps its row."""
    seeds = sorted(trials["seed"].unique()) if "seed" in trials else []
    kept, doubtful = believed(trials, metric)
    bad = ~np.isfinite(kept[metric]) | (kept["status"] == "diverged" if "status" in kept else False)
    wide = kept.assign(**{metric: kept[metric].mask(bad)}).pivot(index="seed", columns="cell", values=metric)
    return wide.reindex(seeds), tuple((str(c), int(s)) for c, s in _names(kept[bad])), doubtful


def _names(trials: pd.DataFrame) -> list[tuple[Any, Any]]:
    return list(zip(trials["cell"], trials["seed"], strict=True))


def _equal_variances_p(residuals_SC: np.ndarray) -> float:
    """Levene's test about the medians (Brown & Forsythe 1974) between cells, its p from 2,000 draws of normal noise.

    Residuals of blocks are not independent, and with few blocks the F that Levene's statistic is compared with is far
    from what it has then: simulated, it is never below .01 at five.
    """
    drawn = np.random.default_rng(0).standard_normal((_DRAWN, *residuals_SC.shape))
    drawn -= drawn.mean(-1, keepdims=True)
    drawn -= drawn.mean(-2, keepdims=True)
    seen, normal = (
        stats.f_oneway(*np.moveaxis(abs(of - np.median(of, axis=-2, keepdims=True)), -1, 0), axis=-1).statistic
        for of in (residuals_SC, drawn)
    )
    return float((1 + (normal >= seen).sum()) / (1 + _DRAWN))


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
        "equal_variances_p": _equal_variances_p(residuals),
        "outlying_seeds": tuple(outlying),
    }


def unmoved(contrasts_ST: np.ndarray) -> np.ndarray:
    """Which effects are 0 in every seed, (T,): they are of cells that are one, and nothing was measured."""
    return np.asarray((np.abs(contrasts_ST) < 1e-12).all(0)) & bool(len(contrasts_ST))


def verdict(row: Mapping[Any, Any], blocks: int, smallest_effect: float | None, withheld: bool) -> str:
    """The rule's word for one row with estimate, p_adjusted, bound_low and bound_high, from so many blocks."""
    if withheld:
        return "withheld"
    if blocks <= power.EXPLORATORY_BLOCKS:
        return "exploratory"
    x = smallest_effect
    small = x is not None and -x < row["bound_low"] and row["bound_high"] < x
    if row["p_adjusted"] < power.ALPHA:
        return ("helps" if row["estimate"] < 0 else "hurts") + (f", but by less than {x:g}" if small else "")
    return f"no effect larger than {x:g}" if small else "undecided"
