"""A verdict for a tenth: CPU seconds until seven effects are settled, here and with plain Ray Tune and Welch tests.

    python benchmarks/tenth.py [--write]        after `python benchmarks/noise.py run` and `time`

Both train the same model on the same text with the same code. Here blocks are paired, and added until every effect is
settled (`--until decided`). The rival has independent seeds, as many a cell as give it the same probability of settling
all seven: found by Welch's t and Holm, or shown smaller than x by two one-sided Welch tests. Its t is of a contrast of
the eight cells, each with its own variance (Welch 1947, Biometrika 34, with Satterthwaite's degrees of freedom).

Losses are drawn from the real runs: whole blocks for the paired design, single trials of different seeds for the
rival, around the cells' means as measured or with none of the effects real. ± is the Monte-Carlo error, 95 %.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tyro
from noise import FACTORIAL, PAGE, PLAIN, Costs, losses_of
from noise import Options as Noise
from protocol import table, write_rows
from scipy import stats
from variances import drawn_blocks

from sweeps.analysis import effects
from sweeps.analysis.effects import holm, paired_p
from sweeps.analysis.sequential import ALPHA, MAX_SEEDS, decide, looks

BEGIN, END = "<!-- tenth: python benchmarks/tenth.py --write -->", "<!-- end of tenth -->"
X = 0.05
"""Smallest effect of interest, nats."""
WEIGHTS_CT = FACTORIAL.weights_CT
SLOTS = 2
BESIDE_S, ROUND_S = 0.66, 21.0
"""Of a trial beside its steps, and of every round of looks until its first trial starts, while both cores wait
(docs/benchmarks.md)."""
LAUNCH_S = 15.0
"""Processor time of a launch by Ray, of which the rival has one a trial (docs/notebook.md)."""
MOST = 60
"""Seeds a cell that are tried for a design of a fixed size."""


class Share(NamedTuple):
    """A mean over simulated sweeps, with its 95 % margin."""

    value: float
    margin: float

    @staticmethod
    def of(values: np.ndarray) -> "Share":
        """Of one value a sweep."""
        return Share(float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values)))

    def percent(self) -> str:
        """As a probability."""
        return f"{100 * self.value:.1f} ± {100 * self.margin:.1f} %"


@dataclass(frozen=True, eq=False)
class Source:
    """Where losses are drawn from."""

    real_SC: np.ndarray
    """Losses of real blocks."""
    truth_C: np.ndarray
    """The cells' true means."""

    @property
    def around_SC(self) -> np.ndarray:
        """Real losses around their cell's mean, with the variance that they have in the population."""
        seeds = len(self.real_SC)
        return (self.real_SC - self.real_SC.mean(0)) * math.sqrt(seeds / (seeds - 1))

    def blocks(self, sweeps: int, blocks: int, rng: np.random.Generator) -> np.ndarray:
        """Whole blocks, (sweeps, blocks, C): what a block has in common stays in it."""
        return self.truth_C + drawn_blocks(self.around_SC, sweeps, blocks, rng)

    def trials(self, sweeps: int, seeds: int, rng: np.random.Generator) -> np.ndarray:
        """Trials of different seeds, (sweeps, seeds, C): each cell draws its own."""
        picked = rng.integers(len(self.real_SC), size=(sweeps, seeds, self.real_SC.shape[1]))
        return self.truth_C + np.take_along_axis(self.around_SC[None], picked, axis=1)


class Verdict(NamedTuple):
    """Of each simulated sweep, bool (sweeps, T)."""

    found: np.ndarray
    small: np.ndarray

    @property
    def settled(self) -> np.ndarray:
        """(sweeps,): whether all effects are."""
        return np.asarray((self.found | self.small).all(-1))


def welch(losses_SC: np.ndarray, x: float = X) -> Verdict:
    """A t of each contrast, every cell with its own variance; Holm; and two one-sided tests against ±x."""
    seeds = losses_SC.shape[-2]
    parts = losses_SC.var(-2, ddof=1)[..., None] * WEIGHTS_CT**2 / seeds
    return _tests(losses_SC.mean(-2) @ WEIGHTS_CT, parts.sum(-2), (parts**2 / (seeds - 1)).sum(-2), x)


def welch_two_groups(losses_SC: np.ndarray, x: float = X) -> Verdict:
    """As one does it first: all trials that are ON against all that are OFF, whose other effects are noise to it."""
    signs_CT = np.sign(WEIGHTS_CT)
    flat = losses_SC.reshape(len(losses_SC), -1)
    variances, fourth, n = 0.0, 0.0, flat.shape[1] // 2
    for sign in (1, -1):
        groups = [flat[:, np.tile(signs_CT[:, t] == sign, losses_SC.shape[-2])] for t in range(signs_CT.shape[1])]
        part = np.stack([group.var(1, ddof=1) for group in groups], axis=1) / n
        variances, fourth = variances + part, fourth + part**2 / (n - 1)
    return _tests(losses_SC.mean(-2) @ WEIGHTS_CT, variances, fourth, x)


def _tests(estimate: np.ndarray, variance: np.ndarray, fourth: np.ndarray, x: float) -> Verdict:
    with np.errstate(divide="ignore", invalid="ignore"):
        error, freedom = np.sqrt(variance), np.where(fourth > 0, variance**2 / fourth, 1.0)
    found = holm(paired_p(estimate, error, freedom)) < ALPHA
    return Verdict(found, abs(estimate) + stats.t.isf(ALPHA, freedom) * error < x)


def rule(losses_SC: np.ndarray, x: float = X) -> Verdict:
    """The project's rule at a fixed number of blocks."""
    fit, outer = effects.fit(losses_SC, WEIGHTS_CT), effects.fit(losses_SC, WEIGHTS_CT, confidence=0.90)
    inside = [(outer[f"{name}_low"] > -x) & (outer[f"{name}_high"] < x) for name in ("blocked", "seedwise")]
    return Verdict(holm(np.maximum(fit["p_blocked"], fit["p_seedwise"])) < ALPHA, inside[0] & inside[1])


class Fixed(NamedTuple):
    """The smallest design of a fixed size that settles everything often enough."""

    seeds: int
    settled: Share
    found: np.ndarray
    """(sweeps, T)."""
    below: float
    """How often one seed fewer settles everything."""


def smallest(draw: Callable[[int], np.ndarray], test: Callable[[np.ndarray], Verdict], target: float) -> Fixed:
    """The fewest seeds with which everything is settled with probability `target`."""
    below = 0.0
    for seeds in range(2, MOST + 1):
        verdict = test(draw(seeds))
        settled = Share.of(verdict.settled)
        if settled.value >= target:
            return Fixed(seeds, settled, verdict.found, below)
        below = settled.value
    raise ValueError(f"{MOST} seeds a cell settle everything in {below:.3f} of sweeps, and not in {target:.3f}")


class Comparison(NamedTuple):
    """Both ways to settle seven effects, on one truth."""

    ours: np.ndarray
    """Blocks at which each simulated sweep stopped, (sweeps,)."""
    looks: np.ndarray
    """Looks it took."""
    settled: Share
    found: np.ndarray
    """(sweeps, T): called real."""
    fixed: Fixed
    """Blocks without looks between."""
    rival: Fixed
    naive: Fixed

    @staticmethod
    def of(source: Source, sweeps: int, rng: np.random.Generator, x: float = X, most: float = 0.99) -> "Comparison":
        """The rivals are asked for what `--until decided` settles, and never for more than `most`."""
        decided = decide(source.blocks(sweeps, MAX_SEEDS, rng), WEIGHTS_CT, x, MAX_SEEDS)
        settled, planned = Share.of(decided.settled), np.array(looks())
        target = min(settled.value, most)

        def fixed(draw: Callable[..., np.ndarray], test: Callable[[np.ndarray, float], Verdict]) -> Fixed:
            return smallest(lambda n: draw(sweeps, n, rng), lambda losses: test(losses, x), target)

        return Comparison(
            decided.looked_at,
            1 + np.searchsorted(planned, decided.looked_at),
            settled,
            decided.rejected_at > 0,
            fixed(source.blocks, rule),
            fixed(source.trials, welch),
            fixed(source.trials, welch_two_groups),
        )

    def seconds(self, block_s: float) -> dict[str, Share]:
        """CPU seconds of each way, where a block's trials take `block_s`, and the ratios of ours to the rival's."""
        trials = 8
        ours = self.ours * (block_s + trials * BESIDE_S) + self.looks * SLOTS * ROUND_S
        fixed = self.fixed.seeds * (block_s + trials * BESIDE_S) + SLOTS * ROUND_S
        rival, naive = (of.seeds * (block_s + trials * LAUNCH_S) for of in (self.rival, self.naive))
        bare = self.rival.seeds * block_s
        return {
            "ours": Share.of(ours),
            "fixed": Share(fixed, 0),
            "rival": Share(rival, 0),
            "naive": Share(naive, 0),
            "ours ÷ rival": Share.of(ours / rival),
            "ours ÷ naive": Share.of(ours / naive),
            "no start-up there": Share.of(ours / bare),
            "none on either side": Share.of(self.ours * block_s / bare),
            "fixed here": Share(fixed / rival, 0),
            "fixed here, none on either side": Share(self.fixed.seeds / self.rival.seeds, 0),
        }


def sources(real_SC: np.ndarray) -> dict[str, Source]:
    """The true effects that are assumed."""
    return {
        "effects as measured": Source(real_SC, real_SC.mean(0)),
        "no effect real": Source(real_SC, np.zeros(real_SC.shape[1])),
    }


@dataclass(frozen=True)
class Options:
    """Simulates, and prints Markdown."""

    sweeps: int = 20_000
    """Simulated sweeps a figure."""
    draws: int = 100
    """How often the real blocks are drawn anew, for what their small number leaves open."""
    write: bool = False
    """Into docs/statistics.md, too."""
    results: str = Noise("write").results
    seed: int = 0


def page(options: Options, real_SC: np.ndarray, block_s: float) -> str:
    """What the page says."""
    rng = np.random.default_rng(options.seed)
    ways, ratios = [], []
    for what, source in sources(real_SC).items():
        here = Comparison.of(source, options.sweeps, rng)
        cost = here.seconds(block_s)
        null = what == "no effect real"
        ways += [
            [what, "here, until decided", f"{plus(Share.of(here.ours), 2)} blocks", here.settled.percent(),
             wrong(here.found, null), plus(cost["ours"], 0)],
            *(
                [what, name, f"{of.seeds} {unit}", f"{of.settled.percent()} (one fewer {100 * of.below:.1f})",
                 wrong(of.found, null), plus(cost[key], 0)]
                for name, key, of, unit in (
                    ("here, blocks fixed beforehand", "fixed", here.fixed, "blocks"),
                    ("rival, Welch's t of a contrast", "rival", here.rival, "seeds"),
                    ("rival, Welch's t of ON against OFF", "naive", here.naive, "seeds"),
                )
            ),
        ]  # fmt: skip
        again = [drawn_again(source, block_s, rng) for _ in range(options.draws)]
        for key in ("ours ÷ rival", "ours ÷ naive", "no start-up there", "none on either side", "fixed here",
                    "fixed here, none on either side"):  # fmt: skip
            low, high = np.percentile([each[key].value for each in again], (2.5, 97.5))
            ratios.append([what, key, plus(cost[key], 3), f"{low:.2f} to {high:.2f}"])
    effects_T = real_SC.mean(0) @ WEIGHTS_CT
    measured = ", ".join(f"{term} {value:+.3f}" for term, value in zip(FACTORIAL.terms, effects_T, strict=True))
    return "\n\n".join(
        [
            f"{options.sweeps:,} simulated sweeps a figure, from {len(real_SC)} real blocks; ± is the 95 % "
            f"Monte-Carlo error. x = {X:g} nats. Measured effects, nats: {measured}. The trials of a block take "
            f"{block_s:.0f} CPU seconds.",
            table(("true effects", "way", "size", "settles all seven", "calls one real", "CPU seconds"), ways),
            table(("true effects", "CPU seconds here ÷ there", "ratio", "95 % over the real blocks"), ratios),
        ]
    )


def drawn_again(source: Source, block_s: float, rng: np.random.Generator, sweeps: int = 2000) -> dict[str, Share]:
    """The ratios, had other seeds been run: real blocks drawn anew, at least three different ones of them."""
    seeds = len(source.real_SC)
    while len(set(picked := rng.integers(seeds, size=seeds).tolist())) < 3:
        pass
    # Drawn blocks scatter less than those that they were drawn from.
    real = source.real_SC.mean(0) + (source.real_SC[picked] - source.real_SC.mean(0)) * math.sqrt(
        seeds / (seeds - 1)
    )
    return Comparison.of(Source(real, source.truth_C), sweeps, rng).seconds(block_s)


def plus(share: Share, digits: int) -> str:
    """A figure with its margin, where it has one."""
    return f"{share.value:,.{digits}f}" + (f" ± {share.margin:,.{digits}f}" if share.margin else "")


def wrong(found: np.ndarray, null: bool) -> str:
    """How often anything is called real where nothing is."""
    return Share.of(found.any(-1)).percent() if null else ""


def main(options: Options) -> None:
    """Prints the tables."""
    began, results = time.monotonic(), Noise("write", results=options.results).of(PLAIN)
    config = results.design().config
    block_s = float(np.median(Costs.kept().trials(config).sum(1)))
    text = page(options, losses_of(results).to_numpy(), block_s)
    print(text, f"\n\n{time.monotonic() - began:.0f} s")
    if options.write:
        write_rows(PAGE, BEGIN, END, text)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
