"""Adaptive replication: seed blocks are added until every effect is settled, with looks whose error is paid for.

A group-sequential design (Jennison & Turnbull 2000, "Group Sequential Methods"). Looks are taken after 4, 6, 8, …
blocks up to a cap. At each, an effect is *rejected* (it helps or hurts) or *equivalent* (no effect larger than the
smallest effect of interest x), and is settled when it is either; the sweep stops when all are settled, or at the cap.

- Levels: α is spent as O'Brien & Fleming's boundary would (Lan & DeMets 1983, Biometrika 70), each side spending α/2,
  so looks may fall anywhere. The levels are those of Brownian motion, applied to the p of a t (Jennison & Turnbull,
  section 4.4) and corrected for it (`T_EXCESS`).
- Many effects: Holm, whose every step recomputes the levels of all looks at α/m, m being the effects not yet rejected
  (Ye et al. 2013, Statistics in Medicine 32; Maurer & Bretz 2013). p is the larger of the blocked and the seed-wise.
- Equivalence: two one-sided tests, each spending α of its own, by both estimators: the repeated 90 % intervals of both
  lie within ±x.
- Intervals are repeated confidence intervals (Jennison & Turnbull 1989, JRSS B 51): they cover at all looks together,
  and so at the one where a sweep stopped.

Nothing is remembered between looks. `decide` takes all earlier ones again from the losses, so that a sweep that is
resumed decides the same. x and the cap must stand before the first look: with another cap all looks had other levels.
`docs/statistics.md` has the simulations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from lahr.errors import check
from sweeps.analysis.effects import Fit
from sweeps.analysis.power import ALPHA

FIRST_LOOK, BETWEEN_LOOKS = 4, 2
MAX_SEEDS = 12
NODES = 200
"""Of the quadrature; with twice as many, no level of up to 500 looks changes by more than 1e-11."""
FARTHEST = 9.0
"""Standard deviations beyond which Brownian motion is not followed; what is lost there is below 1e-18."""
T_EXCESS = 1.1
"""How much more often than Brownian motion the t's of a few seeds cross, since they resemble each other less from look
to look: simulated, 1.05 to 1.10 over caps and α (`docs/statistics.md`). α is divided by it."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What one sweep's looks decided, or those of many; arrays of shape (…, T terms) or (…)."""

    estimate: np.ndarray
    """(…, T), from the blocks that were complete at the last look taken; NaN where none was taken yet."""
    blocked_low: np.ndarray
    blocked_high: np.ndarray
    """(…, T): repeated 95 % interval at that look, from the pooled residual."""
    seedwise_low: np.ndarray
    seedwise_high: np.ndarray
    """(…, T): the same, from each seed's own contrast."""
    bound_low: np.ndarray
    bound_high: np.ndarray
    """(…, T): the outer limits of both repeated 90 % intervals; of an effect that is equivalent, at the look that found
    it so, where they lie within ±x."""
    rejected_at: np.ndarray
    """(…, T): seeds at the look where the effect was found to help or hurt; 0 where it was not."""
    sign: np.ndarray
    """(…, T): −1 where it was found to help (less of the metric), +1 to hurt, 0 neither."""
    equivalent_at: np.ndarray
    """(…, T): seeds at the look where the effect was found smaller than `smallest_effect`; 0 where it was not."""
    looked_at: np.ndarray
    """(…): seeds at the last look taken, where the estimates are from; 0 before the first."""
    blocks: np.ndarray
    """(…): complete blocks at that look."""
    next_look: np.ndarray
    """(…): seeds to have run by the next look; 0 where the sweep stops, because all is settled or at the cap."""
    smallest_effect: float
    max_seeds: int

    @property
    def settled_at(self) -> np.ndarray:
        """(…, T): seeds at the look where each effect was settled, either way; 0 where it was not."""
        return _first(self.rejected_at, self.equivalent_at)

    @property
    def settled(self) -> np.ndarray:
        """(…): whether all effects are."""
        return np.asarray((self.settled_at > 0).all(-1))

    @property
    def verdict(self) -> np.ndarray:
        """(…, T), in the words of `effects.estimate`."""
        small = np.where(self.equivalent_at > 0, f", but by less than {self.smallest_effect:g}", "")
        none = np.where(self.equivalent_at > 0, f"no effect larger than {self.smallest_effect:g}", "undecided")
        found = np.char.add(np.where(self.sign < 0, "helps", "hurts"), small)
        return np.where(self.rejected_at > 0, found, none)

    def table(self, terms: Sequence[str]) -> pd.DataFrame:
        """Of one sweep: one row a term, with the fields above that have one value a term."""
        check(
            self.estimate.shape == (len(terms),), f"{len(terms)} terms for decisions of shape {self.estimate.shape}"
        )
        ends = ("blocked_low", "blocked_high", "seedwise_low", "seedwise_high", "bound_low", "bound_high")
        columns = ("estimate", *ends, "rejected_at", "equivalent_at", "settled_at", "verdict")
        return pd.DataFrame({"term": list(terms), **{name: getattr(self, name) for name in columns}})


def looks(max_seeds: int = MAX_SEEDS) -> tuple[int, ...]:
    """Seeds at each look: 4, 6, 8, … and the cap. `ConfigError` for a cap below the first."""
    check(
        max_seeds >= FIRST_LOOK,
        f"--max-seeds is {max_seeds}; replicating until decided needs a cap of {FIRST_LOOK} seeds or more, such as 12",
    )
    return (*range(FIRST_LOOK, max_seeds, BETWEEN_LOOKS), max_seeds)


def spent(fraction: float, alpha: float = ALPHA) -> float:
    """Two-sided α spent by an information fraction in (0, 1]: 4(1 − Φ(z_{α/4}/√t)).

    That is 2(1 − Φ(z_{a/2}/√t)), Lan & DeMets' α₁*, for each side's a = α/2, which is what tables are made with.
    """
    return float(4 * stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(fraction)))


Spending = Callable[[float, float], float]
"""(information fraction in (0, 1], α) → two-sided α spent by then."""


@lru_cache(maxsize=4096)
def levels(fractions: tuple[float, ...], alpha: float = ALPHA, spending: Spending = spent) -> tuple[float, ...]:
    """Two-sided nominal level of each look, at increasing information fractions in (0, 1].

    |B(t)| first leaves its bound c√t at look k with the probability that is spent between looks k − 1 and k. The
    density of what has not left yet is carried from look to look (Armitage, McPherson & Rowe 1969; Jennison & Turnbull
    2000, chapter 19), by Gauss-Legendre quadrature.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    at, mass = np.zeros(1), np.ones(1)  # where B may be that has not left yet, and how likely
    result, before, paid = [], 0.0, 0.0
    for fraction in fractions:
        root, step = math.sqrt(fraction), math.sqrt(fraction - before)
        before, due, paid = fraction, spending(fraction, alpha) - paid, spending(fraction, alpha)
        bound = _bound(at / step, mass, root / step, due)
        result.append(2 * float(stats.norm.sf(bound)))
        edge = min(bound, FARTHEST) * root
        here = edge * nodes
        mass = (stats.norm.pdf((here[:, None] - at) / step) / step) @ mass * edge * weights
        at = here
    return tuple(result)


def nominal(fractions: tuple[float, ...], alpha: float = ALPHA) -> float:
    """Two-sided level of the last of these looks, for the p of a t."""
    return levels(fractions, alpha / T_EXCESS)[-1]


def _bound(at: np.ndarray, mass: np.ndarray, scale: float, due: float) -> float:
    """The c for which the mass at `at`, after a standard normal step, lies beyond ±c·scale with probability `due`."""

    def excess(c: float) -> float:
        return float(mass @ (stats.norm.sf(c * scale - at) + stats.norm.cdf(-c * scale - at))) - due

    return float(brentq(excess, 0.0, 40.0, xtol=1e-12)) if due > 1e-300 else math.inf


def decide(
    losses_SC: np.ndarray, weights_CT: np.ndarray, smallest_effect: float | None, max_seeds: int = MAX_SEEDS
) -> Decisions:
    """The decisions of every look that the losses so far allow, up to the one where the sweep stops.

    `losses_SC` (…, S seeds, C cells), of which less is better, holds every seed whose trials have ended, in the order
    in which seeds were run; a row with a NaN is a block that is incomplete for good, and enters nothing. A look is
    taken after the first 4, 6, 8, … rows, with the blocks that are complete among them (four at least); its
    information fraction is complete blocks over `max_seeds`. Effects are `losses_SC @ weights_CT`, with weights (C
    cells, T terms) that add up to 0 over cells; the blocked error is that of the model cells + seeds, σ‖w‖/√S with
    (C − 1)(S − 1) degrees of freedom. `ConfigError` for no smallest effect, a cap below 4 or below S, and
    weights that do not fit.
    """
    planned = looks(max_seeds)
    check(
        smallest_effect is not None,
        "--until decided needs --smallest-effect, the smallest effect of interest in the metric's unit, such as 0.02",
    )
    x = float(smallest_effect)  # type: ignore[arg-type]
    check(0 < x < math.inf, f"smallest_effect is {x}; give it above 0, such as 0.02 nats")
    losses, weights = np.asarray(losses_SC, float), np.asarray(weights_CT, float)
    complete_S = _complete(losses, weights, max_seeds)
    seeds, shape = len(complete_S), (*losses.shape[:-2], weights.shape[1])

    rejected, equivalent, sign = (np.zeros(shape, int) for _ in range(3))
    taken, found = [0], [np.full((7, *shape), np.nan)]  # before the first look nothing is known
    fractions: tuple[float, ...] = ()
    for look in (look for look in planned if look <= seeds):
        blocks = int(complete_S[:look].sum())
        if blocks < FIRST_LOOK or (fractions and blocks / max_seeds == fractions[-1]):
            continue
        taken, fractions = [*taken, look], (*fractions, blocks / max_seeds)
        fit = Fit.of(losses[..., :look, :][..., complete_S[:look], :], weights)
        now = rejections(np.where(rejected > 0, np.nan, fit.p), fractions)
        rejected, sign = np.where(now, look, rejected), np.where(now, np.sign(fit.estimate).astype(int), sign)
        bound = np.maximum(*fit.halves(nominal(fractions, 2 * ALPHA)))
        within = abs(fit.estimate) + bound < x
        equivalent = np.where(within & (equivalent == 0), look, equivalent)
        ends = (*fit.interval(nominal(fractions)), fit.estimate - bound, fit.estimate + bound)
        found.append(np.stack((fit.estimate, *ends)))

    # Looks after the one where the last effect was settled are not taken: what they found is dropped again.
    settled = _first(rejected, equivalent)
    done = (settled > 0).all(-1)
    stop = np.where(done, settled.max(-1), taken[-1])
    late = rejected > stop[..., None]
    at = np.searchsorted(taken, stop)
    figures = np.take_along_axis(np.stack(found), at[None, None, ..., None], axis=0)[0]
    equivalent = np.where(equivalent > stop[..., None], 0, equivalent)
    at_bounds = np.where(equivalent > 0, np.searchsorted(taken, equivalent), at[..., None])
    figures[-2:] = np.take_along_axis(np.stack(found)[:, -2:], at_bounds[None, None], axis=0)[0]
    names = ("estimate", *(f"{name}_{end}" for name in ("blocked", "seedwise", "bound") for end in ("low", "high")))
    return Decisions(
        **dict(zip(names, figures, strict=True)),
        rejected_at=np.where(late, 0, rejected),
        sign=np.where(late, 0, sign),
        equivalent_at=equivalent,
        looked_at=stop,
        blocks=np.concatenate(([0], np.cumsum(complete_S)))[stop],
        next_look=np.where(done, 0, next((look for look in planned if look > seeds), 0)),
        smallest_effect=x,
        max_seeds=max_seeds,
    )


def _complete(losses_SC: np.ndarray, weights_CT: np.ndarray, max_seeds: int) -> np.ndarray:
    """Whether each seed's block is complete, bool (S,); `ConfigError` for losses or weights that do not fit."""
    seeds, cells = losses_SC.shape[-2:]
    check(
        weights_CT.shape[0] == cells,
        f"weights are for {weights_CT.shape[0]} cells, losses of {cells}; they must agree",
    )
    check(cells > 1, "losses are of one cell; an effect needs two or more")
    uneven = np.flatnonzero(abs(weights_CT.sum(0)) > 1e-9 * abs(weights_CT).sum(0))
    check(not uneven.size, f"the weights of term {uneven.tolist()} do not add up to 0 over cells; an effect's must")
    check(seeds <= max_seeds, f"{seeds} seeds have run, but the cap is {max_seeds}; raise it to {seeds} or more")
    complete = np.isfinite(losses_SC).all(-1)
    of_all = complete.all(tuple(range(complete.ndim - 1)))
    check(bool((complete == of_all).all()), "sweeps decided together lack different blocks; decide each alone")
    return of_all


def _first(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The earlier of two looks, where 0 means never."""
    return np.where((one > 0) & (other > 0), np.minimum(one, other), np.maximum(one, other))


def rejections(p: np.ndarray, fractions: tuple[float, ...]) -> np.ndarray:
    """Which of p (…, T) Holm rejects at the last of the looks; NaN, for what is rejected already, stays False."""
    terms = p.shape[-1]
    level_by_m = np.array([0.0, *(nominal(fractions, ALPHA / m) for m in range(1, terms + 1))])
    order = np.argsort(p, axis=-1)  # NaN last
    m = np.maximum((~np.isnan(p)).sum(-1, keepdims=True) - np.arange(terms), 0)
    passed = np.logical_and.accumulate(np.take_along_axis(p, order, -1) <= level_by_m[m], axis=-1)
    result = np.empty(p.shape, bool)
    np.put_along_axis(result, order, passed, -1)
    return result
