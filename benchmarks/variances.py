"""How variances of sweeps are compared, and what they cost in seeds: the arithmetic of `noise.py` and `tenth.py`.

σ² is the residual variance of a trial within its block. Sweeps with the same seeds are compared paired (Morgan 1939 and
Pitman 1939, Biometrika 31), by F as if they had nothing in common, and by drawing seed blocks anew.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from protocol import Figure
from scipy import stats
from scipy.optimize import brentq

from sweeps.analysis import power
from sweeps.analysis.effects import residual_sd

DRAWS = 10_000


def residuals(losses_SC: np.ndarray) -> np.ndarray:
    """What is left of losses (…, S, C) without blocks and cells."""
    centred = losses_SC - losses_SC.mean(-1, keepdims=True)
    return np.asarray(centred - centred.mean(-2, keepdims=True))


def freedom(losses_SC: np.ndarray) -> int:
    """Degrees of freedom of σ²."""
    seeds, cells = losses_SC.shape[-2:]
    return int((seeds - 1) * (cells - 1))


def variance_ratio(one_SC: np.ndarray, other_SC: np.ndarray) -> Figure:
    """σ² of `one` over that of `other`, of the same seeds, with the 95 % interval that inverts the Pitman-Morgan test.

    With r the correlation of the residuals, ν = (C − 1)(S − 1) and K = 1 + 2(1 − r²)t²/(ν − 1), it is
    ratio·(K ± √(K² − 1)), exact where residuals are normal.
    """
    a, b = residuals(one_SC).ravel(), residuals(other_SC).ravel()
    ratio, r, nu = (a @ a) / (b @ b), (a @ b) / np.sqrt((a @ a) * (b @ b)), freedom(one_SC)
    k = 1 + 2 * (1 - r**2) * stats.t.isf(0.025, nu - 1) ** 2 / (nu - 1)
    root = np.sqrt(k**2 - 1)
    return Figure(float(ratio), float(ratio * (k - root)), float(ratio * (k + root)))


def variance_ratio_p(one_SC: np.ndarray, other_SC: np.ndarray) -> float:
    """Two-sided p of Pitman's and Morgan's test that both are equal; below 0.05 where the interval leaves 1 out."""
    a, b = residuals(one_SC).ravel(), residuals(other_SC).ravel()
    ratio, r, nu = (a @ a) / (b @ b), (a @ b) / np.sqrt((a @ a) * (b @ b)), freedom(one_SC)
    t = (ratio - 1) * math.sqrt(nu - 1) / (2 * math.sqrt(ratio * (1 - r**2)))
    return float(2 * stats.t.sf(abs(t), nu - 1))


def variance_ratio_f(one_SC: np.ndarray, other_SC: np.ndarray) -> Figure:
    """The same by F, as if the sweeps had nothing in common; they may have different seeds."""
    ratio = float(residual_sd(one_SC) ** 2 / residual_sd(other_SC) ** 2)
    n, m = freedom(one_SC), freedom(other_SC)
    return Figure(ratio, ratio / float(stats.f.isf(0.025, n, m)), ratio / float(stats.f.ppf(0.025, n, m)))


def drawn_blocks(losses_SC: np.ndarray, draws: int, blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Losses (draws, blocks, C) of whole blocks drawn with replacement."""
    return np.asarray(losses_SC[rng.integers(len(losses_SC), size=(draws, blocks))])


def variance_ratio_drawn(one_SC: np.ndarray, other_SC: np.ndarray, rng: np.random.Generator) -> Figure:
    """The same by drawing seeds anew, for both sweeps the same ones: percentiles, which need many seeds to be right."""
    both = drawn_blocks(np.concatenate((one_SC, other_SC), axis=1), DRAWS, len(one_SC), rng)
    cells = one_SC.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (residual_sd(both[..., :cells]) / residual_sd(both[..., cells:])) ** 2
    low, high = np.nanpercentile(ratios, (2.5, 97.5))
    return Figure(float(residual_sd(one_SC) ** 2 / residual_sd(other_SC) ** 2), float(low), float(high))


def unpaired_ratio(losses_SC: np.ndarray) -> Figure:
    """Variance of a cell's trials over seeds, over σ²: what blocks take away, with its exact 95 % interval.

    With F the mean square of blocks over that of residuals the ratio is (F + C − 1)/C.
    """
    seeds, cells = losses_SC.shape
    f = cells * losses_SC.mean(1).var(ddof=1) / residual_sd(losses_SC) ** 2
    ends = [f / stats.f.isf(p, seeds - 1, freedom(losses_SC)) for p in (0.025, 0.975)]
    return Figure(*(float(g + cells - 1) / cells for g in (f, *ends)))


DEGREES = {"paired": 1, "blocked": 7, "unpaired": 8}
"""Degrees of freedom of a t that every seed beyond the first adds: by the project's rule, whose seed-wise t decides; by
the blocked t; by Welch's t over the cells' own variances, all trials independent, where the cells scatter alike."""


@cache
def detectable(seeds: int, way: str) -> float:
    """Effect of the 2³ factorial, in standard deviations of a trial, that `seeds` a cell find with 80 % probability at
    Holm's strictest step; `way` is one of `DEGREES`."""
    nu = DEGREES[way] * (seeds - 1)
    critical = stats.t.isf(power.ALPHA / power.TESTS / 2, nu)
    noncentrality = brentq(lambda nc: stats.nct.sf(critical, nu, nc) - power.POWER, 0, 2 * critical + 4)
    return float(noncentrality * power.NORM / math.sqrt(seeds))


def needed(effect: float, sd: ArrayLike, way: str, most: int = 400) -> np.ndarray:
    """Fewest seeds a cell, two at least, that find `effect` where a trial scatters by `sd`; `most` + 1 for none."""
    sizes = np.array([detectable(n, way) for n in range(2, most + 1)])
    with np.errstate(divide="ignore"):  # blocks that were drawn may all be one
        return np.asarray(2 + np.searchsorted(-sizes, -effect / np.asarray(sd, float)))


def trial_sd(losses_SC: np.ndarray) -> np.ndarray:
    """Standard deviation of a cell's trials over seeds, all cells together, (…), from losses (…, S, C)."""
    return np.asarray(np.sqrt(losses_SC.var(-2, ddof=1).mean(-1)))


class Adjusted(NamedTuple):
    """A sweep analysed with a covariate."""

    correlation: float
    """Of the covariate's residuals with the loss's."""
    ratio: float
    """σ² with it over σ² without."""
    worst: float
    """Variance of the effect that it serves worst, likewise: an effect on the covariate is multiplied by a slope that
    is not known exactly."""
    shift: float
    """The most that an effect changes, nats: how much of it the covariate takes for its own."""


def adjusted(losses_SC: np.ndarray, covariate_SC: np.ndarray, weights_CT: np.ndarray) -> Adjusted:
    """Analysis of covariance within blocks, one slope for all cells."""
    y, x, nu = residuals(losses_SC).ravel(), residuals(covariate_SC).ravel(), freedom(losses_SC)
    slope, left = (x @ y) / (x @ x), (y @ y - (x @ y) ** 2 / (x @ x)) / (nu - 1)
    ratio = left / (y @ y / nu)
    own_T = covariate_SC.mean(0) @ weights_CT
    norm_T = (weights_CT**2).sum(0) / len(losses_SC)
    worst = ratio * (1 + own_T**2 / (x @ x) / norm_T).max()
    return Adjusted(
        float((x @ y) / np.sqrt((x @ x) * (y @ y))), ratio, float(worst), float(abs(slope * own_T).max())
    )


def paired_difference(one_SC: np.ndarray, other_SC: np.ndarray) -> Figure:
    """Mean loss over the cells of `one` minus that of `other`, of the same seeds, with its 95 % interval."""
    own = (one_SC - other_SC).mean(1)
    half = stats.t.isf(0.025, len(own) - 1) * own.std(ddof=1) / np.sqrt(len(own))
    return Figure(float(own.mean()), float(own.mean() - half), float(own.mean() + half))
