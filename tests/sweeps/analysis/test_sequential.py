import math

import numpy as np
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from lahr.errors import ConfigError
from sweeps.analysis import effects, sequential
from sweeps.analysis.contrasts import switches
from sweeps.analysis.effects import Fit
from sweeps.analysis.sequential import ALPHA, decide, levels, looks, nominal, rejections, spent

SEVEN = switches("mod", "latent", "memory")
FACTORIAL = SEVEN.weights_CT
"""Weights of the seven effects over the eight cells."""
NONE = 1e-9
"""A smallest effect that no sweep is precise enough for: no effect is found equivalent, and all looks are taken."""
TWELVE = tuple(n / 12 for n in looks(12))


def simulate(sims, seeds, truth=(0,) * 7, slope_sd=0.0, sigma=0.012, rng=0):
    """Losses (sims, seeds, 8) with seed blocks, and a slope on the first factor that differs from seed to seed."""
    generator = np.random.default_rng(rng)
    losses = generator.normal(0, 0.03, (sims, seeds, 1)) + generator.normal(0, sigma, (sims, seeds, 8))
    slope = slope_sd * generator.normal(0, 1, (sims, seeds, 1))
    return losses + FACTORIAL @ np.asarray(truth) * 2 + slope * FACTORIAL[:, 0] * 2


def z(fractions, alpha=ALPHA, **how):
    return stats.norm.isf(np.array(levels(tuple(fractions), alpha, **how)) / 2)


def pocock_type(fraction, alpha):
    return alpha * math.log(1 + (math.e - 1) * fraction)


@pytest.mark.parametrize(
    "published",
    [
        (2.963, 1.969),
        (3.710, 2.511, 1.993),
        (4.333, 2.963, 2.359, 2.014),
        (4.877, 3.357, 2.680, 2.290, 2.031),
    ],
)
def test_boundaries_are_the_published_ones(published):
    """α = .05, equal looks: as R's gsDesign prints them (`sfLDOF`, .025 a side; ldbounds agrees to 1e-4)."""
    looks_ = len(published)
    assert z(k / looks_ for k in range(1, looks_ + 1)) == pytest.approx(published, abs=5.1e-4)


def test_boundaries_of_another_spending_function_are_the_published_ones():
    """Pocock-type, as ldbounds prints them: the integration is right where every look spends much."""
    published = (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)
    assert z((0.2, 0.4, 0.6, 0.8, 1.0), spending=pocock_type) == pytest.approx(published, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.1, 0.05, 0.05 / 7])
@pytest.mark.parametrize("fractions", [(0.4, 1.0), (1 / 3, 0.5, 7 / 12), (0.25, 0.7, 0.75, 1.0)])
def test_what_is_spent_is_the_probability_of_crossing(alpha, fractions):
    """By scipy's multivariate normal, which shares nothing with the recursion."""
    t, bound = np.array(fractions), z(fractions, alpha)
    correlation = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    stay = stats.multivariate_normal(cov=correlation, maxpts=2_000_000, abseps=1e-8, releps=1e-8, seed=0)
    assert 1 - stay.cdf(bound, lower_limit=-bound) == pytest.approx(spent(fractions[-1], alpha), abs=1e-6)


def test_spending_is_lan_and_demets_on_each_side():
    assert spent(1.0, 0.05) == pytest.approx(0.05) and spent(1.0, 0.1) == pytest.approx(0.1)
    one_side = 2 * (1 - stats.norm.cdf(stats.norm.isf(0.0125) / math.sqrt(0.5)))
    assert spent(0.5, 0.05) == pytest.approx(2 * one_side)
    assert levels((1.0,), 0.05) == pytest.approx((0.05,), abs=1e-12)


def test_a_look_more_changes_no_earlier_level():
    assert levels(TWELVE[:3]) == levels(TWELVE)[:3]


def test_levels_rise_with_alpha_at_every_look():
    """What Holm with recomputed levels needs (Maurer & Bretz 2013): a step never makes another effect harder."""
    by_m = np.array([levels(TWELVE, ALPHA / m) for m in range(1, 32)])
    assert (np.diff(by_m, axis=0) < 0).all() and (by_m[:, -1] < ALPHA / np.arange(1, 32)).all()


def test_many_looks_are_integrated_as_well(monkeypatch):
    fractions = tuple(k / 200 for k in range(4, 201, 2))
    coarse = levels(fractions)
    monkeypatch.setattr(sequential, "NODES", 400)
    assert coarse == pytest.approx(levels.__wrapped__(fractions), abs=1e-10)


@pytest.mark.parametrize("cap", [5, 8, 12])
@pytest.mark.parametrize("alpha", [0.1, 0.05])
def test_successive_ts_cross_as_often_as_alpha_says(cap, alpha):
    """Of one effect's own contrasts, exactly normal. Seen to fail: the levels of Brownian motion (1.07 to 1.09)."""
    own = np.random.default_rng(cap).standard_normal((400_000, cap))
    crossed, fractions = np.zeros(len(own), bool), tuple(n / cap for n in looks(cap))
    for k, n in enumerate(looks(cap), 1):
        t = own[:, :n].mean(1) / own[:, :n].std(1, ddof=1) * math.sqrt(n)
        crossed |= np.abs(t) > stats.t.isf(nominal(fractions[:k], alpha) / 2, n - 1)
    assert 0.95 < crossed.mean() / alpha < 1.01


def test_looks_are_after_whole_pairs_and_at_the_cap():
    assert looks() == (4, 6, 8, 10, 12) and looks(4) == (4,) and looks(7) == (4, 6, 7)
    with pytest.raises(ConfigError, match=r"max-seeds is 3; .* 4 seeds or more"):
        looks(3)


def test_estimates_are_those_of_the_factorial():
    losses = simulate(50, 6, truth=[0.01, 0, 0, 0, -0.02, 0, 0], rng=1)
    fit, other = Fit.of(losses, FACTORIAL), effects.fit(losses, FACTORIAL)
    np.testing.assert_allclose(fit.estimate, other["estimate"], atol=1e-14)
    np.testing.assert_allclose(fit.p, np.maximum(other["p_blocked"], other["p_seedwise"]), atol=1e-12)
    ends = [other[f"{name}_{end}"] for name in ("blocked", "seedwise") for end in ("low", "high")]
    np.testing.assert_allclose(fit.interval(0.05), ends, atol=1e-14)


def test_weights_need_not_be_orthogonal(made):
    """Each cell against base, by statsmodels' model of cells and seeds. Seen to fail: σ/√S without the norm."""
    trials = made.trials(6, rng=5)
    wide = trials.pivot(index="seed", columns="cell", values="val_loss")
    cells = list(wide.columns)
    weights = np.eye(8)[:, [c for c in range(8) if cells[c] != "base"]]
    weights[cells.index("base")] = -1
    fit = Fit.of(wide.to_numpy(), weights)
    model = smf.ols("val_loss ~ C(cell, Treatment('base')) + C(seed)", trials).fit()
    rows = [f"C(cell, Treatment('base'))[T.{cell}]" for cell in cells if cell != "base"]
    np.testing.assert_allclose(fit.estimate, model.params[rows], atol=1e-12)
    np.testing.assert_allclose(np.stack(fit.interval(0.05)[:2], 1), model.conf_int().loc[rows], atol=1e-12)
    seedwise = stats.ttest_1samp(wide["mod"] - wide["base"], 0).confidence_interval(0.95)
    at = [cell for cell in cells if cell != "base"].index("mod")
    assert [end[at] for end in fit.interval(0.05)[2:]] == pytest.approx(list(seedwise))


def test_rejecting_one_effect_makes_the_others_easier():
    """Seen to fail: α/7 at every step; m counted over all effects instead of those not yet rejected."""
    seen = TWELVE[:4]
    two, one = nominal(seen, ALPHA / 2), nominal(seen, ALPHA)
    between = (two + one) / 2
    assert not rejections(np.array([between, 0.9]), seen).any()
    assert rejections(np.array([between, two * 0.99]), seen).all()
    assert list(rejections(np.array([between, np.nan]), seen)) == [True, False]
    assert not rejections(np.array([two * 1.01, two * 1.02]), seen).any()  # step-down stops at the first that fails


def by_hand(losses, x, cap=12, weights=FACTORIAL):
    """One sweep, look by look, with what was decided carried along: what `decide` must equal without remembering."""
    terms = weights.shape[1]
    rejected, equivalent, fractions, stopped = [0] * terms, [0] * terms, [], None
    for look in looks(cap):
        block = losses[:look]
        block = block[np.isfinite(block).all(1)]
        n, cells = block.shape
        if look > len(losses) or stopped or n < 4 or n / cap in fractions:
            continue
        fractions.append(n / cap)
        model = block - block.mean(1, keepdims=True) - block.mean(0) + block.mean()
        sigma = math.sqrt((model**2).sum() / ((cells - 1) * (n - 1)))
        own = block @ weights
        both = [
            [(sigma * math.sqrt((weights[:, t] ** 2).sum() / n), (cells - 1) * (n - 1)),
             (own[:, t].std(ddof=1) / math.sqrt(n), n - 1)]
            for t in range(terms)
        ]  # fmt: skip
        mean = own.mean(0)
        p = [max(2 * stats.t.sf(abs(mean[t]) / se, df) for se, df in both[t]) for t in range(terms)]
        for t in sorted(range(terms), key=p.__getitem__):
            left = rejected.count(0)
            if not rejected[t] and p[t] <= nominal(tuple(fractions), ALPHA / left):
                rejected[t] = look
            elif not rejected[t]:
                break
        one_sided = nominal(tuple(fractions), 2 * ALPHA) / 2
        for t in range(terms):
            too_high = [stats.t.sf((x - mean[t]) / se, df) for se, df in both[t]]
            too_low = [stats.t.sf((mean[t] + x) / se, df) for se, df in both[t]]
            if not equivalent[t] and max(*too_high, *too_low) < one_sided:
                equivalent[t] = look
        done = all(r or e for r, e in zip(rejected, equivalent, strict=True))
        stopped = look if done else None
        level = nominal(tuple(fractions), ALPHA) / 2
        interval = [
            [m + side * stats.t.isf(level, df) * se for se, df in pair for side in (-1, 1)]
            for m, pair in zip(mean, both, strict=True)
        ]
    return rejected, equivalent, stopped, np.array(interval).T


def mixed(sims, rng=0, slope_sd=0.0):
    return simulate(sims, 12, truth=[-0.03, 0, 0.014, 0, 0, 0, 0.004], slope_sd=slope_sd, rng=rng)


@pytest.mark.parametrize("incomplete", [(), (5,), (1, 6, 7)])
def test_a_replay_equals_deciding_as_the_blocks_came_in(incomplete):
    """Also where blocks are incomplete. Seen to fail: seeds for complete blocks; no stop."""
    losses = mixed(30)
    losses[:, list(incomplete), 3] = np.nan
    all_at_once = decide(losses, FACTORIAL, 0.018)
    assert len(set(all_at_once.looked_at)) > 1 and all_at_once.settled.any()
    np.testing.assert_array_equal(all_at_once.sign != 0, all_at_once.rejected_at > 0)
    for i, sweep in enumerate(losses):
        rejected, equivalent, stopped, interval = by_hand(sweep, 0.018)
        assert list(all_at_once.rejected_at[i]) == rejected and list(all_at_once.equivalent_at[i]) == equivalent
        assert all_at_once.looked_at[i] == (stopped or 12) and all_at_once.settled[i] == bool(stopped)
        assert all_at_once.next_look[i] == 0
        ends = ("blocked_low", "blocked_high", "seedwise_low", "seedwise_high")
        np.testing.assert_allclose([getattr(all_at_once, end)[i] for end in ends], interval, atol=1e-12)


def test_a_sweep_that_is_resumed_decides_the_same():
    """Whatever was run at the time, no earlier look decides otherwise, and one that stopped stays stopped."""
    for sweep in mixed(20, rng=1):
        last = decide(sweep, FACTORIAL, 0.018)
        for seeds in range(13):
            then = decide(sweep[:seeds], FACTORIAL, 0.018)
            if seeds >= last.looked_at:
                for field in ("estimate", "rejected_at", "equivalent_at", "looked_at", "blocked_low", "verdict"):
                    np.testing.assert_array_equal(getattr(then, field), getattr(last, field))
                assert then.next_look == 0
            else:
                assert then.next_look == min(look for look in looks() if look > seeds) and not then.settled
                for field in ("rejected_at", "equivalent_at"):
                    now, later = getattr(then, field), getattr(last, field)
                    np.testing.assert_array_equal(now, np.where(later <= seeds, later, 0))


def test_nothing_is_known_before_the_first_look():
    early = decide(mixed(1)[0][:3], FACTORIAL, 0.01)
    assert np.isnan(early.estimate).all() and (early.looked_at, early.blocks, early.next_look) == (0, 0, 4)
    assert set(early.verdict) == {"undecided"} and not early.settled
    three_of_four = mixed(1)[0][:4]
    three_of_four[2, 0] = np.inf  # diverged
    assert decide(three_of_four, FACTORIAL, 0.01).looked_at == 0
    assert decide(three_of_four, FACTORIAL, 0.01).next_look == 6


def test_no_look_is_taken_where_no_block_was_added():
    losses = mixed(1)[0]
    losses[4:6] = np.nan
    losses[10:] = np.nan
    found = decide(losses, FACTORIAL, NONE)
    assert (found.looked_at, found.blocks, found.next_look) == (10, 8, 0)


def test_what_was_rejected_stays_rejected():
    losses = np.random.default_rng(0).normal(0, 0.01, (12, 8))
    losses[:8] += FACTORIAL[:, 0] * -0.4  # eight blocks of a large effect, then its opposite
    losses[8:] += FACTORIAL[:, 0] * 0.8
    found = decide(losses, FACTORIAL, NONE)
    assert 0 < found.rejected_at[0] <= 8 and found.looked_at == 12
    assert found.verdict[0] == "helps" and effects.fit(losses, FACTORIAL)["p_blocked"][0] > 0.05


def test_verdicts_are_those_of_the_report():
    losses = simulate(1, 12, truth=[-0.05, 0.05, 0.012, 0, 0, 0, 0], sigma=0.004, rng=3)[0]
    table = decide(losses, FACTORIAL, 0.02).table(SEVEN.terms).set_index("term")
    assert list(table.loc[["mod", "latent", "mod:latent"], "verdict"]) == [
        "helps",
        "hurts",
        "no effect larger than 0.02",
    ]
    assert table.loc["memory", "verdict"] == "hurts, but by less than 0.02"
    assert (table["settled_at"] > 0).all()
    row = table.loc["memory"]
    assert row["settled_at"] == min(row["rejected_at"], row["equivalent_at"])
    assert row["blocked_low"] < row["estimate"] < row["seedwise_high"]


def test_an_effect_is_equivalent_where_both_repeated_90_percent_intervals_are_within():
    losses = simulate(1, 12, rng=2)[0]
    fit = Fit.of(losses, FACTORIAL)
    edge = np.max(np.abs(fit.interval(nominal(TWELVE, 0.1))), axis=0)
    for term in range(7):
        assert decide(losses, FACTORIAL, edge[term] * 1.0001).equivalent_at[term] > 0
        assert decide(losses, FACTORIAL, edge[term] * 0.9999).equivalent_at[term] != 12


def test_without_any_noise_all_is_settled_at_the_first_look():
    losses = np.arange(5.0)[:, None] + FACTORIAL[:, 0] * 4
    found = decide(losses, FACTORIAL, 0.5)
    assert (found.looked_at, found.next_look) == (4, 0) and found.settled
    assert list(found.verdict) == ["hurts", *["no effect larger than 0.5"] * 6]


def uncorrected(monkeypatch):
    monkeypatch.setattr(sequential, "nominal", lambda fractions, alpha=ALPHA: alpha)


def familywise():
    return (decide(simulate(4_000, 12, rng=0), FACTORIAL, NONE).rejected_at > 0).any(-1).mean()


def falsely_equivalent():
    """Truth exactly x, for an effect that differs between seeds: there the seed-wise t alone holds the error."""
    x = 0.02
    found = decide(simulate(4_000, 12, truth=[x, 0, 0, 0, 0, 0, 0], slope_sd=0.03, rng=1), FACTORIAL, x)
    return (found.equivalent_at[:, 0] > 0).mean()


def covered():
    """Share of repeated intervals that hold the truth at the look where the sweep stopped."""
    truth = np.array([0, -0.018, 0, 0, 0, 0, 0])
    found = decide(simulate(4_000, 12, truth=truth, rng=2), FACTORIAL, 0.012)
    return [
        ((getattr(found, f"{name}_low") <= truth) & (truth <= getattr(found, f"{name}_high"))).mean()
        for name in ("blocked", "seedwise")
    ]


def test_error_rates_hold_over_all_looks():
    assert familywise() < 0.027
    assert falsely_equivalent() < 0.053
    assert min(covered()) > 0.96


def test_the_bounds_above_are_missed_by_uncorrected_looks(monkeypatch):
    uncorrected(monkeypatch)
    assert familywise() > 0.04
    assert falsely_equivalent() > 0.08
    assert max(covered()) < 0.955


def test_a_real_effect_is_found_and_the_others_are_found_small():
    sigma = 0.012
    found = decide(simulate(2_000, 12, truth=[0, -1.5 * sigma, 0, 0, 0, 0, 0], rng=3), FACTORIAL, sigma)
    assert (found.sign[:, 1] == -1).mean() > 0.99
    assert (np.delete(found.equivalent_at, 1, axis=1) > 0).mean() > 0.98
    assert 9.5 < found.blocks.mean() < 10.7


def test_unusable_input_is_refused():
    losses = mixed(1)[0]
    with pytest.raises(ConfigError, match="--until decided needs --smallest-effect"):
        decide(losses, FACTORIAL, None)
    for x in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="give it above 0"):
            decide(losses, FACTORIAL, x)
    with pytest.raises(ConfigError, match="max-seeds is 3"):
        decide(losses[:3], FACTORIAL, 0.01, max_seeds=3)
    with pytest.raises(ConfigError, match="12 seeds have run, but the cap is 10"):
        decide(losses, FACTORIAL, 0.01, max_seeds=10)
    with pytest.raises(ConfigError, match="weights are for 8 cells, losses of 7"):
        decide(losses[:, :7], FACTORIAL, 0.01)
    with pytest.raises(ConfigError, match=r"term \[2\] do not add up to 0"):
        decide(losses, FACTORIAL + 0.1 * (np.arange(7) == 2), 0.01)
    with pytest.raises(ConfigError, match="losses are of one cell"):
        decide(losses[:, :1], np.zeros((1, 1)), 0.01)
    both = np.stack([losses, losses])
    both[0, 2, 2] = np.nan
    with pytest.raises(ConfigError, match="lack different blocks"):
        decide(both, FACTORIAL, 0.01)
    with pytest.raises(ConfigError, match="2 terms for decisions of shape"):
        decide(losses, FACTORIAL, 0.01).table(["a", "b"])


def test_the_bound_of_what_is_equivalent_is_that_of_the_look_that_found_it_so():
    """Seen to fail: that of the last look, which in some sweeps lies outside ±x again."""
    x, losses = 0.012, simulate(3_000, 12, (0.009, -0.009, 0.009, 0, 0, 0, 0))
    made = decide(losses, FACTORIAL, x)
    equivalent = made.equivalent_at > 0
    assert equivalent.any(-1).mean() > 0.5
    assert (made.bound_low[equivalent] > -x).all() and (made.bound_high[equivalent] < x).all()
    # The others' are those of the sweep's last look, which the repeated 90 % intervals of a replay up to it have.
    part = decide(losses[:50], FACTORIAL, x)
    late = (part.looked_at == 12)[:, None] & (part.equivalent_at == 0)
    alone = decide(losses[:50], FACTORIAL, NONE)
    assert late.any()
    np.testing.assert_allclose(part.bound_low[late], alone.bound_low[late])
