import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lahr.errors import ConfigError
from sweeps.analysis.adaptive import until_decided
from sweeps.analysis.contrasts import switches
from sweeps.analysis.effects import assumptions, fit, holm
from sweeps.analysis.effects import estimate as estimate_any

DESIGN = switches("mod", "latent", "memory")
SIGNS = np.sign(DESIGN.weights_CT)

SEVEN = ["mod", "latent", "memory", "mod:latent", "mod:memory", "latent:memory", "mod:latent:memory"]


def estimate(trials, design=DESIGN, **given):
    return estimate_any(trials, design, **given)


def simulate(sims, seeds, truth=None, slope_sd=0.0, sigma=0.012, rng=0):
    """Losses (sims, seeds, 8) with seed blocks, and a slope on `mod` that differs from seed to seed."""
    generator = np.random.default_rng(rng)
    losses = generator.normal(0, 0.03, (sims, seeds, 1)) + generator.normal(0, sigma, (sims, seeds, 8))
    losses += (SIGNS * (np.zeros(7) if truth is None else np.asarray(truth)) / 2).sum(1)
    return losses + slope_sd * generator.normal(0, 1, (sims, seeds, 1)) * SIGNS[:, 0] / 2


def rule_p(fitted):
    return np.maximum(fitted["p_blocked"], fitted["p_seedwise"])


def test_the_seven_effects_come_in_one_order_and_are_on_minus_off(made):
    trials = made.trials(5)
    effects = estimate(trials)
    assert list(effects.table["term"]) == list(DESIGN.terms) == SEVEN
    y = trials.set_index(["seed", "mod", "latent", "memory"])["val_loss"]
    main = y.xs(True, level="latent").mean() - y.xs(False, level="latent").mean()
    of = {(a, b): y.xs((a, b), level=("mod", "memory")).mean() for a in (False, True) for b in (False, True)}
    two_way = ((of[True, True] - of[False, True]) - (of[True, False] - of[False, False])) / 2
    third = [
        (y.xs(c, level="memory").xs((True, True), level=("mod", "latent")).mean()
         - y.xs(c, level="memory").xs((True, False), level=("mod", "latent")).mean()
         - y.xs(c, level="memory").xs((False, True), level=("mod", "latent")).mean()
         + y.xs(c, level="memory").xs((False, False), level=("mod", "latent")).mean())
        for c in (False, True)
    ]  # fmt: skip
    got = effects.table.set_index("term")["estimate"]
    assert got["latent"] == pytest.approx(main, abs=1e-12)
    assert got["mod:memory"] == pytest.approx(two_way, abs=1e-12)
    assert got["mod:latent:memory"] == pytest.approx((third[1] - third[0]) / 4, abs=1e-12)


def test_blocked_estimates_equal_statsmodels(made):
    trials = made.trials(5, rng=3)
    effects = estimate(trials)
    coded = trials.assign(**{f: trials[f].map({False: -1, True: 1}) for f in ("mod", "latent", "memory")})
    model = smf.ols("val_loss ~ mod*latent*memory + C(seed)", coded).fit()
    table = effects.table.set_index("term")
    np.testing.assert_allclose(table["estimate"], 2 * model.params[SEVEN], atol=1e-12)
    np.testing.assert_allclose(table[["blocked_low", "blocked_high"]], 2 * model.conf_int().loc[SEVEN], atol=1e-12)
    np.testing.assert_allclose(table["p_blocked"], model.pvalues[SEVEN], atol=1e-12)
    assert effects.sigma == pytest.approx(np.sqrt(model.scale), abs=1e-12)


def test_seedwise_estimates_equal_a_t_test_of_each_seeds_contrast(made):
    effects = estimate(made.trials(6, rng=4))
    for term, row in effects.table.set_index("term").iterrows():
        tested = stats.ttest_1samp(effects.contrasts[term], 0)
        low, high = tested.confidence_interval(0.95)
        assert (row["seedwise_low"], row["seedwise_high"]) == pytest.approx((low, high), abs=1e-12)
        assert row["p_seedwise"] == pytest.approx(tested.pvalue, abs=1e-12)


def test_p_is_the_larger_then_holm(made):
    table = estimate(made.trials(5)).table
    assert (table["p"] == np.maximum(table["p_blocked"], table["p_seedwise"])).all()
    assert {"p_blocked", "p_seedwise"} == set(table[["p_blocked", "p_seedwise"]].idxmax(axis=1))
    np.testing.assert_allclose(table["p_adjusted"], multipletests(table["p"], method="holm")[1])


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, np.nan, 0.03])), [0.06, 0.03, np.nan, 0.06])
    families = np.random.default_rng(0).uniform(0, 0.2, (3, 7))
    for family, adjusted in zip(families, holm(families), strict=True):
        np.testing.assert_allclose(adjusted, multipletests(family, method="holm")[1])


def test_one_factor_of_the_table(made):
    trials = made.trials(4)
    one = estimate(trials[~trials["latent"] & ~trials["memory"]], switches("mod"))
    wide = trials.pivot(index="seed", columns="cell", values="val_loss")
    assert list(one.table["term"]) == ["mod"]
    assert one.table["estimate"].item() == pytest.approx((wide["mod"] - wide["base"]).mean())
    paired = stats.ttest_rel(wide["mod"], wide["base"]).pvalue
    assert one.table["p_blocked"].item() == one.table["p_seedwise"].item() == pytest.approx(paired)


@pytest.mark.parametrize("seeds", [3, 5])
def test_both_95_percent_intervals_cover_the_truth(seeds):
    truth = [0.01, -0.02, 0, 0.005, 0, 0, -0.01]
    fitted = fit(simulate(4_000, seeds, truth), DESIGN.weights_CT)
    for name in ("blocked", "seedwise"):
        inside = (fitted[f"{name}_low"] <= truth) & (truth <= fitted[f"{name}_high"])
        assert 0.94 < inside.mean() < 0.96
        assert (inside.mean(0) > 0.93).all() and (inside.mean(0) < 0.97).all()


def test_familywise_error_holds_where_a_slope_differs_between_seeds():
    fitted = fit(simulate(4_000, 5, slope_sd=0.03), DESIGN.weights_CT)
    blocked = (holm(fitted["p_blocked"]) < 0.05).any(-1).mean()
    rule = (holm(rule_p(fitted)) < 0.05).any(-1).mean()
    assert blocked > 0.12  # why the rule needs the seed-wise p
    assert rule < 0.02  # 0.008 in docs/statistics.md
    inside = (fitted["seedwise_low"] <= 0) & (fitted["seedwise_high"] >= 0)
    assert 0.93 < inside[:, 0].mean() < 0.97


def test_familywise_error_under_the_null():
    fitted = fit(simulate(4_000, 5), DESIGN.weights_CT)
    rule, blocked = ((holm(p) < 0.05).any(-1).mean() for p in (rule_p(fitted), fitted["p_blocked"]))
    assert 0.003 < rule < 0.02 and 0.035 < blocked < 0.06  # 0.009 and 0.048 in docs/statistics.md


def test_a_missing_trial_takes_its_block_out_of_everything(made):
    trials = made.trials(5)
    missing = trials[(trials["cell"] != "mod+latent") | (trials["seed"] != 2)]
    effects = estimate(missing)
    assert effects.blocks == (0, 1, 3, 4) and effects.incomplete == (2,)
    assert effects.missing == (("mod+latent", 2),) and effects.diverged == ()
    pd.testing.assert_frame_equal(effects.table, estimate(trials[trials["seed"] != 2]).table)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_divergence_withholds_every_verdict(made, value):
    trials = made.trials(6, sigma=0.005)
    assert "helps" in set(estimate(trials).table["verdict"])
    trials.loc[(trials["cell"] == "mod") & (trials["seed"] == 1), ["status", "val_loss"]] = "diverged", value
    effects = estimate(trials)
    assert effects.withheld and effects.diverged == (("mod", 1),) and effects.missing == ()
    assert 1 not in effects.blocks and len(effects.blocks) == 5
    assert set(effects.table["verdict"]) == {"withheld"}


def test_a_row_that_cannot_be_believed_is_set_aside_and_named(made):
    """Seen to fail: a finished trial without a figure counted as diverged; of two figures for one trial the first was
    taken; two equal rows, which say nothing doubtful, cost the block."""
    trials = made.trials(6)
    trials.loc[0, "val_loss"] = np.nan
    assert estimate(trials.drop(columns="status")).diverged == (("base", 0),)
    second = trials[(trials["cell"] == "mod") & (trials["seed"] == 1)]
    same = trials[(trials["cell"] == "mod") & (trials["seed"] == 2)]
    effects = estimate(pd.concat([trials, second.assign(val_loss=1.25), same]))
    assert effects.diverged == () and effects.blocks == (2, 3, 4, 5)
    none, twice = effects.doubtful
    assert none == "base at seed 0 is finished and has no val_loss"
    assert twice.startswith("mod at seed 1 stands 2 times in the table, with ") and "1.25" in twice


def test_one_block_has_estimates_and_no_intervals(made):
    table = estimate(made.trials(1)).table
    assert table["estimate"].notna().all() and set(table["verdict"]) == {"exploratory"}
    assert table[["blocked_low", "seedwise_high", "p", "p_adjusted", "bound_low"]].isna().all(axis=None)


@pytest.mark.parametrize(("seeds", "exploratory"), [(2, True), (3, True), (4, False)])
def test_three_blocks_claim_nothing(made, seeds, exploratory):
    effects = estimate(made.trials(seeds, sigma=1e-4))
    assert effects.exploratory == exploratory
    assert (set(effects.table["verdict"]) == {"exploratory"}) == exploratory
    assert np.isfinite(effects.table["p_adjusted"]).all()


def test_verdicts(made):
    truth = {"mod": 0.05, "latent": -0.10, "memory": 0.0}
    trials = made.trials(8, sigma=0.004, truth=truth)
    plain = estimate(trials).table.set_index("term")["verdict"]
    assert (plain["mod"], plain["latent"], plain["memory"]) == ("hurts", "helps", "undecided")
    small = estimate(trials, smallest_effect=0.07).table.set_index("term")["verdict"]
    assert small["mod"] == "hurts, but by less than 0.07"
    assert (small["latent"], small["memory"]) == ("helps", "no effect larger than 0.07")
    tight = estimate(trials, smallest_effect=1e-5).table.set_index("term")["verdict"]
    assert tight["memory"] == "undecided"


def test_equivalence_needs_both_90_percent_intervals_inside(made):
    trials = made.trials(5, truth={})
    effects = estimate(trials)
    inner = fit(effects.losses.to_numpy(), DESIGN.weights_CT, confidence=0.90)
    lows, highs = ([inner[f"{name}_{end}"] for name in ("blocked", "seedwise")] for end in ("low", "high"))
    np.testing.assert_allclose(effects.table["bound_low"], np.minimum(*lows))
    np.testing.assert_allclose(effects.table["bound_high"], np.maximum(*highs))
    outer = max(abs(lows[0][2]), abs(lows[1][2]), abs(highs[0][2]), abs(highs[1][2]))
    for x, verdict in ((outer * 1.001, "no effect larger than"), (outer * 0.999, "undecided")):
        assert (
            estimate(trials, smallest_effect=x).table.set_index("term").loc["memory", "verdict"].startswith(verdict)
        )


def test_extra_levels_stay_out_of_the_seven(made):
    trials = made.trials(4)
    extra = trials[trials["mod"]].assign(cell=lambda t: t["cell"].str.replace("mod", "mod=0.25"), corner=False)
    extra["val_loss"] += 5
    pd.testing.assert_frame_equal(estimate(pd.concat([trials, extra])).table, estimate(trials).table)


def test_cells_that_are_one_to_the_bit_measure_nothing(made):
    """Seen to fail: a mistyped level trained one model twice, and that was "no effect larger than 0.02"."""
    trials = made.trials(6).set_index(["seed", "cell"])
    for cell in ("latent", "memory", "latent+memory", "base"):
        name = "mod" if cell == "base" else f"mod+{cell}"
        for seed in range(6):
            trials.loc[(seed, name), "val_loss"] = trials.loc[(seed, cell), "val_loss"]
    effects = estimate(trials.reset_index(), smallest_effect=0.02)
    assert effects.same == (
        ("mod", "base"), ("mod+latent", "latent"), ("mod+memory", "memory"), ("mod+latent+memory", "latent+memory"),
    )  # fmt: skip
    table = effects.table.set_index("term")["verdict"]
    assert set(table[["mod", "mod:latent", "mod:memory", "mod:latent:memory"]]) == {"not measured"}
    assert "not measured" not in set(table[["latent", "memory", "latent:memory"]])
    decided = until_decided(effects, 6).table.set_index("term")["verdict"]
    assert decided["mod"] == "not measured" != decided["latent"]
    assert estimate(made.trials(6)).same == ()


def test_no_trials_at_all(made):
    effects = estimate(made.trials(1)[:0])
    assert effects.blocks == () and effects.table["estimate"].isna().all() and len(effects.table) == 7


def test_checks_find_what_is_wrong(made):
    sound = estimate(made.trials(8, rng=2)).checks
    assert sound["normality_p"] > 0.05 and sound["equal_variances_p"] > 0.05 and sound["outlying_seeds"] == ()
    generator = np.random.default_rng(0)
    wild = made.trials(8, rng=2)
    wild.loc[wild["seed"] == 3, "val_loss"] += generator.normal(0, 0.3, 8)
    assert estimate(wild).checks["outlying_seeds"] == (3,)
    assert estimate(wild).checks["normality_p"] < 0.01
    unequal = made.trials(12, rng=2)
    unequal.loc[unequal["cell"] == "mod", "val_loss"] += generator.normal(0, 0.4, 12)
    assert estimate(unequal).checks["equal_variances_p"] < 0.01


def test_unequal_variances_are_called_as_often_as_they_should_be_and_seen_where_they_are():
    """Seen to fail: with the p of an F, which at five blocks is hardly ever below .05."""
    sound = simulate(200, 5)
    noisy = simulate(200, 5, sigma=0) + np.random.default_rng(5).normal(0, 0.012, (200, 5, 8)) * np.where(
        SIGNS[:, 0] > 0, 2, 0.5
    )
    called, seen = ([assumptions(y, range(5))["equal_variances_p"] for y in of] for of in (sound, noisy))
    assert 0.02 < np.mean(np.array(called) < 0.05) < 0.085
    assert np.mean(np.array(seen) < 0.05) > 0.5


def test_outlying_seeds_are_rarely_called_where_there_are_none():
    called = np.mean([bool(assumptions(losses, range(5))["outlying_seeds"]) for losses in simulate(600, 5)])
    assert 0.03 < called < 0.07


def test_unusable_tables_are_refused(made):
    trials = made.trials(2)
    with pytest.raises(ConfigError, match="no column 'loss'"):
        estimate(trials, metric="loss")
    with pytest.raises(ConfigError, match="above 0"):
        estimate(trials, smallest_effect=0.0)
