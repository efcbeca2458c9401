"""How often the statistics of a sweep are wrong: sweeps are simulated of which the truth is known.

    python benchmarks/simulation.py [--sweeps 50000] [--write]

Losses of the eight cells come from seed blocks (sd 0.03 nats) and noise (sd 0.012) in three ways: the same noise in all
cells; half of it in the cells where the first factor is OFF and twice where it is ON; or a slope on the first factor
that differs from seed to seed (sd 0.025). σ is the residual sd of a trial within its block, which each way has its own.
Four tables: one look at a fixed number of blocks; adaptive replication; what was tried to stop it earlier; how often a
t crosses levels made for Brownian motion. ± is the 95 % margin of the simulation. `--write` puts them into
docs/statistics.md. Two or three minutes on one core.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from numpy.typing import ArrayLike
from protocol import Goal, table, write_rows
from scipy import stats

from sweeps.analysis import effects, sequential
from sweeps.analysis.contrasts import switches
from sweeps.analysis.effects import Fit
from sweeps.analysis.sequential import ALPHA, Decisions, decide, levels, looks, rejections

PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
BEGIN, END = "<!-- rows: python benchmarks/simulation.py --write -->", "<!-- end of rows -->"
NOISE, SEED, SLOPE, EFFECT = 0.012, 0.03, 0.025, 0.010
WEIGHTS_CT = switches("mod", "latent", "memory").weights_CT
SIGNS_CT = np.sign(WEIGHTS_CT)
FIRST, OTHER = 0, 1
"""The factor that the second and the third way treat apart, and one that none does."""
CAP = 12
NONE = 1e-9
"""An x, in nats, that no sweep is precise enough for: all looks are taken."""
NAMES = {"blocked": "blocked", "seedwise": "seed-wise"}
ESTIMATORS = tuple(NAMES)


@dataclass(frozen=True)
class Way:
    """How losses come about."""

    name: str
    off: float = 1.0
    on: float = 1.0
    """Noise, in `NOISE`, of the cells where the first factor is OFF and ON."""
    slope: float = 0.0
    """Standard deviation over seeds of the first factor's effect, in nats."""

    @property
    def sigma(self) -> float:
        """Residual standard deviation of a trial within its block: the slope is one of the seven contrasts."""
        return math.sqrt(NOISE**2 * (self.off**2 + self.on**2) / 2 + 2 / 7 * self.slope**2)

    def losses(self, sweeps: int, blocks: int, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(sweeps, blocks, 8 cells), where the seven effects are `truth`."""
        noise = NOISE * np.where(SIGNS_CT[:, FIRST] > 0, self.on, self.off)
        own = self.slope * rng.standard_normal((sweeps, blocks, 1)) * SIGNS_CT[:, FIRST] / 2
        seed = SEED * rng.standard_normal((sweeps, blocks, 1))
        return SIGNS_CT @ truth / 2 + seed + own + noise * rng.standard_normal((sweeps, blocks, 8))


WAYS = (Way("same noise"), Way("0.5×/2× by cell", off=0.5, on=2.0), Way("slope by seed", slope=SLOPE))


class Share(NamedTuple):
    """A mean over simulated sweeps, with its 95 % margin."""

    value: float
    margin: float

    @staticmethod
    def of(hits: ArrayLike) -> "Share":
        """Of (sweeps,) or (sweeps, T): effects of one sweep are not independent, so their mean counts once."""
        each = np.asarray(hits, float)
        each = each.reshape(len(each), -1).mean(1)
        return Share(float(each.mean()), 1.96 * float(each.std()) / math.sqrt(len(each)))

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ± {100 * self.margin:.1f} %"


def alone(effect: float, term: int) -> np.ndarray:
    """A truth in which one effect is not 0."""
    return effect * (np.arange(7) == term)


def one_look(sweeps: int, rng: np.random.Generator) -> tuple[str, list[Goal]]:
    """The rule of `effects.estimate` at five and at eight blocks."""
    rows, goals = [], []
    for blocks, way in product((5, 8), WAYS):
        at = f"{blocks} blocks, {way.name}"
        null = way.losses(sweeps, blocks, np.zeros(7), rng)
        fit = effects.fit(null, WEIGHTS_CT)
        covers = {name: (fit[f"{name}_low"] <= 0) & (fit[f"{name}_high"] >= 0) for name in ESTIMATORS}
        covers["unpaired"] = unpaired_p(null) >= ALPHA
        wrong = Share.of((effects.holm(np.maximum(fit["p_blocked"], fit["p_seedwise"])) < ALPHA).any(-1))
        blocked_wrong = Share.of((effects.holm(fit["p_blocked"]) < ALPHA).any(-1))

        real = way.losses(sweeps, blocks, alone(EFFECT, OTHER), rng)
        fit = effects.fit(real, WEIGHTS_CT)
        p = [fit["p_blocked"], fit["p_seedwise"], unpaired_p(real)]
        found = " / ".join(f"{100 * (each[:, OTHER] < ALPHA).mean():.0f}" for each in p)
        ruled = effects.holm(np.maximum(p[0], p[1]))[:, OTHER] < ALPHA
        shares = [f"{Share.of(hits)} ({100 * hits[:, FIRST].mean():.1f})" for hits in covers.values()]
        rows.append([at, *shares, blocked_wrong, wrong, found, Share.of(ruled)])

        for name in ESTIMATORS if way.slope == 0 else ("seedwise",):
            worst = Share.of(covers[name][:, covers[name].mean(0).argmin()])
            goals.append(goal(f"{NAMES[name]} 95 % interval, worst effect, {at}", "93 to 97 %", worst, 0.93, 0.97))
        goals.append(goal(f"familywise error, {at}", "at most 6 %", wrong, high=0.06))
    header = (
        "one look", "blocked 95 % interval covers (of the first factor)", "seed-wise", "unpaired",
        "familywise error, blocked alone", "familywise error, the rule",
        f"p < .05 at {EFFECT:.3f} nats: blocked / seed-wise / unpaired, %", "found by the rule",
    )  # fmt: skip
    return table(header, rows), goals


def unpaired_p(losses_SC: np.ndarray) -> np.ndarray:
    """Two-sample t of the trials that are ON against those OFF, as if seeds were no blocks; (…, 7)."""
    seeds, cells = losses_SC.shape[-2:]
    trials, difference = seeds * cells, (losses_SC @ WEIGHTS_CT).mean(-2)
    total = ((losses_SC - losses_SC.mean((-2, -1), keepdims=True)) ** 2).sum((-2, -1))
    within = total[..., None] - trials * difference**2 / 4
    return effects.paired_p(difference, np.sqrt(within / (trials - 2) * 4 / trials), trials - 2)


def adaptive(sweeps: int, rng: np.random.Generator) -> tuple[str, list[Goal]]:
    """`sequential.decide` with a cap of twelve blocks: one column a way, one row a figure."""
    columns, goals = [], []
    for way in WAYS:
        figures, found = adaptive_column(way, sweeps, rng)
        columns.append(figures)
        goals += found
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    header = (f"adaptive, at most {CAP} blocks (in brackets: the first factor)", *(way.name for way in WAYS))
    return table(header, rows), goals


def adaptive_column(way: Way, sweeps: int, rng: np.random.Generator) -> tuple[dict[str, object], list[Goal]]:
    """Its figures and goals in one way; x, the smallest effect of interest, is σ unless it is said otherwise."""
    sigma = way.sigma

    def run(truth: np.ndarray) -> np.ndarray:
        return way.losses(sweeps, CAP, truth, rng)

    def decided(losses: np.ndarray, x: float = sigma) -> Decisions:
        return decide(losses, WEIGHTS_CT, x, CAP)

    def equivalent(truth: np.ndarray, term: int, x: float = sigma) -> Share:
        return Share.of(decided(run(truth), x).equivalent_at[:, term] > 0)

    null, one, at_x = run(np.zeros(7)), alone(-1.5 * sigma, OTHER), run(alone(sigma, FIRST))
    stopped, to_cap, real = decided(null), decided(null, NONE), decided(run(one))
    others = [term for term in range(7) if term != OTHER]
    wrong = {
        "familywise error: no effect": Share.of((stopped.rejected_at > 0).any(-1)),
        "familywise error: no effect, x too small to stop": Share.of((to_cap.rejected_at > 0).any(-1)),
        "familywise error: one real effect of 1.5 σ": Share.of((real.rejected_at[:, others] > 0).any(-1)),
        "falsely equivalent: the first factor is x": Share.of(decided(at_x).equivalent_at[:, FIRST] > 0),
        "falsely equivalent: the first is 1.1 x": equivalent(alone(1.1 * sigma, FIRST), FIRST),
        "falsely equivalent: the first is x = 2 σ": equivalent(alone(2 * sigma, FIRST), FIRST, 2 * sigma),
        "falsely equivalent: another is x": equivalent(alone(sigma, OTHER), OTHER),
        "falsely equivalent: all seven are x": equivalent(np.full(7, sigma), FIRST),
    }
    cover = {
        f"{NAMES[name]} repeated 95 % interval covers: {what}": covered(found, name, truth)
        for what, found, truth in (
            ("no effect", stopped, np.zeros(7)),
            ("no effect, at the cap", to_cap, np.zeros(7)),
            ("one of 1.5 σ", real, one),
        )
        for name in ESTIMATORS
    }
    power = Share.of(real.sign[:, OTHER] < 0)
    uncorrected = [variant(at_x, sigma, use=use, level=lambda _: 2 * ALPHA) for use in (ESTIMATORS, ("seedwise",))]
    figures: dict[str, object] = {
        "σ, nats": f"{sigma:.4f}",
        **wrong,
        **{name: f"{Share.of(hits)} ({100 * hits[:, FIRST].mean():.1f})" for name, hits in cover.items()},
        "an effect of 1.5 σ is found": power,
        "… after so many blocks": mean(np.where(real.rejected_at > 0, real.rejected_at, CAP)[:, OTHER]),
        "the six others are found smaller than σ": Share.of(real.equivalent_at[:, others] > 0),
        "… and the sweep stops after so many blocks": mean(real.blocks),
        "… with everything settled": Share.of(real.settled),
        "uncorrected at every look: familywise error": Share.of(naive_rejections(null)),
        "uncorrected: falsely equivalent, the first is x": Share.of(uncorrected[0].equivalent[:, FIRST]),
        "uncorrected, seed-wise alone: falsely equivalent": Share.of(uncorrected[1].equivalent[:, FIRST]),
    }
    goals = [goal(f"{name}, {way.name}", "at most 5 %", share, high=0.05) for name, share in wrong.items()]
    for name, hits in cover.items():
        if way.slope == 0 or NAMES["seedwise"] in name:
            worst = Share.of(hits[:, hits.mean(0).argmin()])
            goals.append(goal(f"{name}, worst effect, {way.name}", "at least 95 %", worst, low=0.95))
    goals.append(goal(f"an effect of 1.5 σ is found, {way.name}", "at least 95 %", power, low=0.95))
    enough = bool(real.blocks.mean() <= 9.5)
    goals.append(Goal(f"blocks until all is settled, {way.name}", "at most 9.5", mean(real.blocks), enough))
    return figures, goals


def covered(found: Decisions, name: str, truth: np.ndarray) -> np.ndarray:
    """(sweeps, 7): whether the repeated interval at the look where a sweep stopped holds the truth."""
    return (getattr(found, f"{name}_low") <= truth) & (truth <= getattr(found, f"{name}_high"))


def naive_rejections(losses_SC: np.ndarray) -> np.ndarray:
    """(sweeps,): whether Holm at .05 rejects anything at any of the looks."""
    fits = (Fit.of(losses_SC[:, :look], WEIGHTS_CT) for look in looks(CAP))
    return np.any([(effects.holm(fit.p) < ALPHA).any(-1) for fit in fits], axis=0)


class Variant(NamedTuple):
    """Of each sweep: which effects were found equivalent, and after how many blocks it stopped."""

    equivalent: np.ndarray
    blocks: np.ndarray


def corrected(fractions: tuple[float, ...], spending: sequential.Spending = sequential.spent) -> float:
    """The two-sided level of equivalence at the last of these looks, for any spending."""
    return levels(fractions, 2 * ALPHA / sequential.T_EXCESS, spending)[-1]


def variant(
    losses_SC: np.ndarray,
    x: float,
    planned: Sequence[int] = looks(CAP),
    level: Callable[[tuple[float, ...]], float] = corrected,
    use: Sequence[str] = ESTIMATORS,
) -> Variant:
    """`decide`, and with other looks, another level of equivalence, or not both estimators in it."""
    shape = (len(losses_SC), WEIGHTS_CT.shape[1])
    rejected, equivalent, blocks = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(len(losses_SC), int)
    for k, look in enumerate(planned, 1):
        fractions, going = tuple(n / CAP for n in planned[:k]), blocks == 0
        fit = Fit.of(losses_SC[:, :look], WEIGHTS_CT)
        half = dict(zip(ESTIMATORS, fit.halves(level(fractions)), strict=True))
        widest = np.max([half[name] for name in use], axis=0)
        rejected |= rejections(np.where(rejected, np.nan, fit.p), fractions) & going[:, None]
        equivalent |= (abs(fit.estimate) + widest < x) & going[:, None]
        stops = going & ((rejected | equivalent).all(-1) | (look == CAP))
        blocks = np.where(stops, look, blocks)
    return Variant(equivalent, blocks)


def tried(sweeps: int, rng: np.random.Generator) -> str:
    """What would make a sweep stop earlier, and what becomes of the error of equivalence."""
    even, slope = WAYS[0], WAYS[-1]
    real = even.losses(sweeps, CAP, alone(-1.5 * even.sigma, OTHER), rng)
    wrong = {
        f"falsely equivalent: {way.name}, the first is x = {times:g} σ": (
            way.losses(sweeps, CAP, alone(times * way.sigma, FIRST), rng),
            times * way.sigma,
        )
        for way, times in ((even, 1), (slope, 1), (slope, 2))
    }
    variants: dict[str, dict[str, Any]] = {
        "as it is": {},
        "levels of Brownian motion, not corrected for t": {"level": lambda t: levels(t, 2 * ALPHA)[-1]},
        "a look at every block from the 8th": {"planned": (4, 6, 8, 9, 10, 11, 12)},
        "a look at every block from the 4th": {"planned": tuple(range(4, CAP + 1))},
        "equivalence spends α t^1.5 (Kim & DeMets 1987)": {
            "level": lambda t: corrected(t, lambda u, a: a * u**1.5)
        },
        "equivalence spends α t": {"level": lambda t: corrected(t, lambda u, a: a * u)},
        "equivalence by the seed-wise t alone": {"use": ("seedwise",)},
        "equivalence by the blocked t alone": {"use": ("blocked",)},
    }
    rows = [
        [
            name,
            mean(variant(real, even.sigma, **how).blocks),
            *(Share.of(variant(losses, x, **how).equivalent[:, FIRST]) for losses, x in wrong.values()),
        ]
        for name, how in variants.items()
    ]
    return table(("tried", f"blocks until all is settled, {even.name}, one of 1.5 σ", *wrong), rows)


def crossings(sweeps: int, rng: np.random.Generator, parts: int = 20) -> str:
    """How often the t of one effect's own contrasts crosses over all looks, in units of α: what `T_EXCESS` is for."""
    rows, alphas = [], (2 * ALPHA, ALPHA, ALPHA / 7)
    for cap in (6, 8, 12, 16, 24):
        fractions = tuple(n / cap for n in looks(cap))
        at = [np.array(levels(fractions, a / divisor)) for divisor in (1, sequential.T_EXCESS) for a in alphas]
        crossed = np.zeros(len(at))
        for _ in range(parts):
            own = rng.standard_normal((sweeps, cap))
            p = np.stack([stats.ttest_1samp(own[:, :n], 0, axis=1).pvalue for n in looks(cap)], axis=1)
            crossed += [(p <= level).any(1).mean() / parts for level in at]
        rows.append([f"{cap} blocks", *(f"{share / a:.2f}" for share, a in zip(crossed, alphas * 2, strict=True))])
    of = [f"{what}, α = {a}" for what in ("levels of Brownian motion", "corrected") for a in (".1", ".05", ".05/7")]
    return table(("seed-wise t alone crosses, times α", *of), rows)


def mean(values: np.ndarray) -> str:
    """With its 95 % margin."""
    return f"{values.mean():.2f} ± {1.96 * values.std() / math.sqrt(len(values)):.2f}"


def goal(what: str, wanted: str, share: Share, low: float = 0.0, high: float = 1.0) -> Goal:
    """Met where the share itself, without its margin, is from `low` to `high`."""
    return Goal(what, wanted, str(share), low <= share.value <= high)


@dataclass(frozen=True)
class Options:
    """Simulates, and prints Markdown."""

    sweeps: int = 50_000
    """Simulated sweeps a figure."""
    write: bool = False
    """Into docs/statistics.md, too."""
    seed: int = 0


def main(options: Options) -> None:
    """Prints the tables, and how the goals fare."""
    began, rng = time.monotonic(), np.random.default_rng(options.seed)
    first, goals = one_look(options.sweeps, rng)
    second, more = adaptive(options.sweeps, rng)
    third, fourth = tried(options.sweeps, rng), crossings(options.sweeps, rng)
    goals += more
    missed = [f"- {g.what}: {g.got}, goal {g.goal}" for g in goals if not g.met]
    text = "\n\n".join(
        [
            f"{options.sweeps:,} simulated sweeps a figure, ± its 95 % margin.",
            first,
            second,
            third,
            fourth,
            f"Goals: {len(goals) - len(missed)} of {len(goals)} are met." + (" Missed:" if missed else ""),
            *(["\n".join(missed)] if missed else []),
        ]
    )
    print(text, f"\n\n{time.monotonic() - began:.0f} s")
    if options.write:
        write_rows(PAGE, BEGIN, END, text)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
