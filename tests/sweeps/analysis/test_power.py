import math

import numpy as np
import pytest
from scipy import stats

from lahr.errors import ConfigError
from sweeps.analysis.contrasts import Levels, crossed, switches
from sweeps.analysis.effects import fit
from sweeps.analysis.power import blocks_needed, power, smallest_detectable


@pytest.mark.parametrize(("blocks", "sigmas", "digits"), [(3, 6.1, 1), (5, 2.0, 1), (8, 1.2, 1), (12, 0.87, 2)])
def test_the_published_figures(blocks, sigmas, digits):
    assert round(smallest_detectable(1.0, blocks), digits) == sigmas


@pytest.mark.parametrize("blocks", [5, 8])
def test_the_whole_rule_finds_the_smallest_detectable_effect_four_times_in_five(blocks):
    sims, generator = 20_000, np.random.default_rng(0)
    effect = smallest_detectable(1.0, blocks)
    losses = generator.normal(0, 1, (sims, blocks, 8)) + generator.normal(0, 3, (sims, blocks, 1))
    weights_CT = switches("mod", "latent", "memory").weights_CT
    fitted = fit(losses + np.sign(weights_CT[:, 1]) * effect / 2, weights_CT)
    p = np.maximum(fitted["p_blocked"], fitted["p_seedwise"])[:, 1]
    assert np.mean(p < 0.05 / 7) == pytest.approx(0.80, abs=0.012)


def test_power_is_that_of_a_noncentral_t():
    by_hand = stats.nct.sf(stats.t.isf(0.05 / 7 / 2, 4), 4, 0.05 / (0.04 / math.sqrt(10)))
    assert power(-0.05, 0.04, 5) == power(0.05, 0.04, 5) == pytest.approx(by_hand)
    assert math.isnan(power(0.05, 0.04, 1))


def test_an_effect_that_rests_on_fewer_trials_takes_a_larger_one_to_be_found():
    """Of a factor with three levels each is compared with a third of the cells, not with half of them."""
    design = crossed([Levels("a", ("", "a=1", "a=2")), Levels("b", ("", "b"))])
    a, _, b, *_ = design.norms_T
    assert (a, b) == pytest.approx((math.sqrt(1 / 2 + 1 / 2), math.sqrt(1 / 3 + 1 / 3)))
    assert smallest_detectable(0.04, 5, a) > smallest_detectable(0.04, 5, b)
    assert smallest_detectable(0.04, 5, tests=15) > smallest_detectable(0.04, 5, tests=7)


def test_detectable_effect_scales_with_the_noise_and_falls_with_blocks():
    assert smallest_detectable(0.04, 5) == pytest.approx(0.04 * smallest_detectable(1.0, 5))
    falling = [smallest_detectable(1.0, n) for n in (2, 3, 5, 8, 40, 1_000)]
    assert falling == sorted(falling, reverse=True)
    assert math.isnan(smallest_detectable(0.04, 1)) and math.isnan(smallest_detectable(math.nan, 5))


@pytest.mark.parametrize("effect", [0.2, 0.05, 0.02, 0.003])
def test_blocks_needed_is_the_fewest_that_detect(effect):
    blocks = blocks_needed(effect, 0.04)
    assert smallest_detectable(0.04, blocks) <= effect
    assert blocks == 4 or smallest_detectable(0.04, blocks - 1) > effect


def test_blocks_needed_at_the_ends():
    """Seen to fail: two and three blocks, from which the rule claims nothing."""
    assert blocks_needed(10.0, 0.01) == blocks_needed(0.08, 0.01) == 4
    assert blocks_needed(1e-9, 0.04) is None
    with pytest.raises(ConfigError, match="above 0"):
        blocks_needed(0.0, 0.04)
