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
from sweeps.analysis.power import EXPLORATORY_BLOCKS
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
SMALLER = {0.02: 24, 0.01: 72}
"""Smaller effects of interest, nats, and the cap on blocks that they are given."""
MOST = 1000
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


class Size(NamedTuple):
    """How far one way has to go, in simulated sweeps."""

    seeds: np.ndarray
    """Blocks, or seeds a cell, (sweeps,)."""
    looks: np.ndarray
    """Rounds of trials, (sweeps,)."""
    verdict: Verdict
    below: float = 0.0
    """Of a fixed size, how often one seed fewer settles everything; 0 where that was not tried."""

    @property
    def settled(self) -> Share:
        """How often all effects are settled."""
        return Share.of(self.verdict.settled)


def until_decided(losses_SC: np.ndarray, x: float) -> Size:
    """Adaptive replication up to as many blocks as there are."""
    cap = losses_SC.shape[-2]
    decided = decide(losses_SC, WEIGHTS_CT, x, cap)
    verdict = Verdict(decided.rejected_at > 0, decided.equivalent_at > 0)
    return Size(decided.looked_at, 1 + np.searchsorted(looks(cap), decided.looked_at), verdict)


def smallest(
    draw: Callable[[int], np.ndarray], test: Callable[[np.ndarray], Verdict], target: float, least: int = 2
) -> Size:
    """The fewest seeds, `least` or more, with which everything is settled with probability `target`."""
    tried: dict[int, Verdict] = {}

    def enough(seeds: int) -> bool:
        tried[seeds] = test(draw(seeds))
        return bool(tried[seeds].settled.mean() >= target)

    low, high = least - 1, least
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            raise ValueError(f"{low} seeds a cell settle everything in {tried[low].settled.mean():.3f} of sweeps")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    below = float(tried[low].settled.mean()) if low in tried else 0.0
    ones = np.ones(len(tried[high].found), int)
    return Size(high * ones, ones, tried[high], below)


def compared(
    source: Source, sweeps: int, rng: np.random.Generator, x: float = X, cap: int = MAX_SEEDS, most: float = 0.99
) -> dict[str, Size]:
    """Every way to settle seven effects; those of a fixed size are asked for what `--until decided` settles, and never
    for more than `most`."""
    decided = until_decided(source.blocks(sweeps, cap, rng), x)
    target = min(decided.settled.value, most)

    def fixed(draw: Callable[..., np.ndarray], test: Callable[..., Verdict], least: int = 2) -> Size:
        return smallest(lambda n: draw(sweeps, n, rng), lambda losses: test(losses, x), target, least)

    return {
        "decided": decided,
        "capped": until_decided(source.blocks(sweeps, cap // 2, rng), x),
        "fixed": fixed(source.blocks, rule, EXPLORATORY_BLOCKS + 1),
        "welch": fixed(source.trials, welch),
        "groups": fixed(source.trials, welch_two_groups),
    }


WAYS = {
    "decided": f"here, until decided, at most {MAX_SEEDS} blocks",
    "capped": f"here, until decided, at most {MAX_SEEDS // 2} blocks",
    "fixed": "here, blocks fixed beforehand",
    "welch": "rival, Welch's t of a contrast",
    "groups": "rival, Welch's t of ON against OFF",
}
RIVALS = ("welch", "groups")


def seconds(size: Size, block_s: float, trial_s: float, round_s: float) -> np.ndarray:
    """CPU seconds, (sweeps,), where the trials of a block take `block_s`, and beside them each trial and each round."""
    return np.asarray(size.seeds * (block_s + 8 * trial_s) + size.looks * round_s)


OURS, THEIRS, NONE = (BESIDE_S, SLOTS * ROUND_S), (LAUNCH_S, 0.0), (0.0, 0.0)
"""Overheads: seconds a trial and a round."""
RATIOS = {
    "until decided ÷ rival": ("decided", OURS, "welch", THEIRS),
    "until decided ÷ rival with ON against OFF": ("decided", OURS, "groups", THEIRS),
    "until decided, half the cap ÷ rival": ("capped", OURS, "welch", THEIRS),
    "blocks fixed ÷ rival": ("fixed", OURS, "welch", THEIRS),
    "until decided ÷ rival whose start-up costs nothing": ("decided", OURS, "welch", NONE),
    "until decided ÷ rival, no overhead on either side": ("decided", NONE, "welch", NONE),
    "blocks fixed ÷ rival, no overhead on either side": ("fixed", NONE, "welch", NONE),
}
"""What is divided by what, each with its overhead."""
_NAMES = list(RATIOS)
SHORT = (_NAMES[0], _NAMES[2], _NAMES[5])
"""Those that smaller effects are shown with."""


def ratios(sizes: dict[str, Size], block_s: float) -> dict[str, Share]:
    """CPU seconds here over the rival's; the rival's are a number."""
    return {
        what: Share.of(seconds(sizes[ours], block_s, *mine) / seconds(sizes[theirs], block_s, *its).mean())
        for what, (ours, mine, theirs, its) in RATIOS.items()
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
    ways: list[list[object]] = []
    quotients: list[list[object]] = []
    smaller: list[list[object]] = []
    for what, source in sources(real_SC).items():
        null, sizes = what == "no effect real", compared(source, options.sweeps, rng)
        for key, size in sizes.items():
            overhead = THEIRS if key in RIVALS else OURS
            fewer = f" (one fewer {100 * size.below:.0f})" if size.below else ""
            wrong = Share.of(size.verdict.found.any(-1)).percent() if null else ""
            cost = Share.of(seconds(size, block_s, *overhead))
            settled = size.settled.percent() + fewer
            ways.append([what, WAYS[key], plus(Share.of(size.seeds), 2), settled, wrong, plus(cost, 0)])
        again = [drawn_again(source, block_s, rng) for _ in range(options.draws)]
        for name, ratio in ratios(sizes, block_s).items():
            low, high = np.percentile([each[name].value for each in again], (2.5, 97.5))
            quotients.append([what, name, plus(ratio, 3), f"{low:.2f} to {high:.2f}"])
        for x, cap in SMALLER.items():
            there = compared(source, options.sweeps // 4, rng, x, cap)
            found, ours = ratios(there, block_s), there["decided"]
            size, theirs = f"{plus(Share.of(ours.seeds), 1)} of at most {cap}", int(there["welch"].seeds[0])
            smaller.append(
                [what, x, size, ours.settled.percent(), theirs, *(plus(found[name], 3) for name in SHORT)]
            )
    measured = ", ".join(
        f"{term} {value:+.3f}" for term, value in zip(FACTORIAL.terms, real_SC.mean(0) @ WEIGHTS_CT, strict=True)
    )
    first = (
        f"{options.sweeps:,} simulated sweeps a figure, from {len(real_SC)} real blocks; ± is the 95 % Monte-Carlo "
        f"error. x = {X:g} nats. Measured effects, nats: {measured}. The trials of a block take {block_s:.0f} CPU "
        "seconds."
    )
    header = (
        "true effects",
        "way",
        "blocks, or seeds a cell",
        "settles all seven",
        "calls one real",
        "CPU seconds",
    )
    small_header = (
        "true effects",
        "x, nats",
        "blocks, until decided",
        "settles all seven",
        "rival's seeds",
        *SHORT,
    )
    return "\n\n".join(
        [
            first,
            table(header, ways),
            table(("true effects", "CPU seconds", "ratio", "95 % over the real blocks"), quotients),
            "Smaller effects of interest, from a quarter as many simulated sweeps:",
            table(small_header, smaller),
        ]
    )


def drawn_again(source: Source, block_s: float, rng: np.random.Generator, sweeps: int = 2000) -> dict[str, Share]:
    """The ratios, had other seeds been run: real blocks drawn anew, at least three different ones of them."""
    seeds = len(source.real_SC)
    while len(set(picked := rng.integers(seeds, size=seeds).tolist())) < 3:
        pass
    # Drawn blocks scatter less than those that they were drawn from.
    around = source.around_SC[picked]
    return ratios(compared(Source(source.real_SC.mean(0) + around, source.truth_C), sweeps, rng), block_s)


def plus(share: Share, digits: int) -> str:
    """A figure with its margin, where it has one."""
    return f"{share.value:,.{digits}f}" + (f" ± {share.margin:,.{digits}f}" if share.margin > 1e-9 else "")


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
