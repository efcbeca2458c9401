"""How small an effect a sweep can detect, and how many seed blocks an effect takes.

The rule of `effects.estimate` calls an effect real when the larger of its blocked and its seed-wise p survives Holm
over all m effects, and claims nothing from three blocks or fewer. Power is counted at Holm's strictest step, α/m, and
with the seed-wise t: it has n − 1 degrees of freedom against the blocked one's (C − 1)(n − 1) over C cells, so it
decides. (That both must reject costs less than 0.01 of power up to 12 blocks and 0.015 beyond, by simulation.) An
effect that differs from seed to seed has more noise than σ says, and is found less often.

σ is the residual standard deviation of one trial within its block. One seed's contrast is a weighted sum over cells;
with weights of the norm w its standard deviation is wσ, and that of an effect over n blocks wσ/√n. In a 2^k factorial
w is 2/√2^k, 0.71 for three factors with their 7 effects, at 80 % power: 6.1 σ with 3 blocks, 2.0 σ with 5, 1.2 σ with
8, 0.87 σ with 12.
"""

import math
from functools import cache

from scipy import stats
from scipy.optimize import brentq

from lahr.errors import check

ALPHA = 0.05
POWER = 0.8
EXPLORATORY_BLOCKS = 3
"""With so few blocks no effect of a plausible size can be claimed, and every verdict is "exploratory"."""
MOST_BLOCKS = 1 << 20
NORM, TESTS = math.sqrt(0.5), 7
"""Of the 2³ factorial."""


def power(
    effect: float, sigma: float, blocks: int, norm: float = NORM, tests: int = TESTS, alpha: float = ALPHA
) -> float:
    """Probability that the rule finds an effect of that size, at the strictest step of Holm; NaN below 2 blocks."""
    if blocks < 2:
        return math.nan
    return _power(abs(effect) / (norm * sigma / math.sqrt(blocks)), blocks, tests, alpha)


def smallest_detectable(
    sigma: float, blocks: int, norm: float = NORM, tests: int = TESTS, alpha: float = ALPHA, target: float = POWER
) -> float:
    """The effect, in the unit of `sigma`, that the rule finds with probability `target`; NaN below 2 blocks.

    `norm` is that of the effect's weights over cells, `tests` the number of effects.
    """
    if blocks < 2 or not math.isfinite(sigma):
        return math.nan
    return _noncentrality(blocks, tests, alpha, target) * norm * sigma / math.sqrt(blocks)


@cache
def _noncentrality(blocks: int, tests: int, alpha: float, target: float) -> float:
    high = 2 * _critical(blocks, tests, alpha) + 4
    return float(brentq(lambda nc: _power(nc, blocks, tests, alpha) - target, 0.0, high))


def blocks_needed(
    effect: float, sigma: float, norm: float = NORM, tests: int = TESTS, alpha: float = ALPHA, target: float = POWER
) -> int | None:
    """Fewest seed blocks that find `effect` with probability `target`, and can claim it; None where a million do not
    suffice."""
    check(effect > 0, f"the smallest effect of interest is {effect}; it must be above 0, such as 0.02 nats")
    if not math.isfinite(sigma):
        return None

    def enough(blocks: int) -> bool:
        return smallest_detectable(sigma, blocks, norm, tests, alpha, target) <= effect

    low, high = EXPLORATORY_BLOCKS, EXPLORATORY_BLOCKS + 1
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_BLOCKS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _critical(blocks: int, tests: int, alpha: float) -> float:
    return float(stats.t.isf(alpha / tests / 2, blocks - 1))


def _power(noncentrality: float, blocks: int, tests: int, alpha: float) -> float:
    # The survival function: `nct.cdf` gives NaN in the far tail. The other tail adds nothing that matters.
    return float(stats.nct.sf(_critical(blocks, tests, alpha), blocks - 1, noncentrality))
