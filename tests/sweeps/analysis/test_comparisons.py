import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from sweeps.analysis import comparisons
from sweeps.analysis.comparisons import extra_family, without_extras
from sweeps.analysis.contrasts import switches
from sweeps.analysis.effects import estimate

DESIGN = switches("mod", "latent", "memory")


def second_family(trials):
    return comparisons.second_family(trials, DESIGN)


def ratios(trials):
    return comparisons.ratios(trials, DESIGN)


def divergences(trials):
    return comparisons.divergences(trials, DESIGN)


def extra_levels(trials):
    extra = trials[trials["mod"]].copy()
    extra["cell"] = extra["cell"].str.replace("mod", "mod=0.25")
    return pd.concat([trials, extra], ignore_index=True)


def test_cells_and_synergy_by_hand(made):
    trials = made.trials(5)
    wide = trials.pivot(index="seed", columns="cell", values="val_loss")
    table = second_family(trials).set_index("term")
    assert list(table.index) == [
        "mod", "latent", "memory", "mod+latent", "mod+memory", "latent+memory", "mod+latent+memory", "synergy",
    ]  # fmt: skip
    base, full = wide["base"], wide["mod+latent+memory"]
    by_hand = {
        "mod+latent": wide["mod+latent"] - base,
        "synergy": full - base - sum(wide[cell] - base for cell in ("mod", "latent", "memory")),
    }
    for term, difference in by_hand.items():
        tested = stats.ttest_1samp(difference, 0)
        row = table.loc[term]
        assert row["estimate"] == pytest.approx(difference.mean(), abs=1e-12)
        assert (row["seedwise_low"], row["seedwise_high"]) == pytest.approx(
            tested.confidence_interval(0.95), abs=1e-12
        )
        assert row["p_seedwise"] == pytest.approx(tested.pvalue)
    sigma = estimate(trials, DESIGN).sigma
    for term, norm in (("mod", 2), ("synergy", 8)):
        half = stats.t.isf(0.025, 28) * sigma * np.sqrt(norm / 5)
        assert table.loc[term, "blocked_high"] - table.loc[term, "estimate"] == pytest.approx(half)


def test_the_second_family_is_adjusted_on_its_own(made):
    table = second_family(made.trials(5))
    assert (table["p"] == np.maximum(table["p_blocked"], table["p_seedwise"])).all()
    np.testing.assert_allclose(table["p_adjusted"], multipletests(table["p"], method="holm")[1])


def test_further_levels_are_compared_with_base(made):
    trials = extra_levels(made.trials(5))
    lost = (trials["cell"] == "mod=0.25") & (trials["seed"] == 0)
    table = second_family(trials[~lost]).set_index("term")
    assert len(table) == 7 + 4 + 1
    assert table.loc["mod=0.25", "blocks"] == 4 and table.loc["mod", "blocks"] == 5
    expected = second_family(made.trials(5)).set_index("term").loc["mod+latent", "estimate"]
    assert table.loc["mod=0.25+latent", "estimate"] == pytest.approx(expected)


def test_an_incomplete_block_enters_no_comparison(made):
    trials = made.trials(5)
    lost = (trials["cell"] == "memory") & (trials["seed"] == 4)
    pd.testing.assert_frame_equal(second_family(trials[~lost]), second_family(trials[trials["seed"] != 4]))


def test_one_block_gives_no_interval(made):
    table = second_family(made.trials(1))
    assert table["estimate"].notna().all() and table[["blocked_low", "seedwise_low", "p"]].isna().all(axis=None)


def test_ratios_are_geometric_and_paired(made):
    trials = made.trials(5)
    # A block that is three times as slow in every cell changes no ratio.
    slow = trials["seed"] == 2
    trials.loc[slow, "tokens_per_second"] /= 3
    table = ratios(trials).set_index(["measure", "cell"])
    wide = trials.pivot(index="seed", columns="cell", values="tokens_per_second")
    logs = np.log(wide["latent"] / wide["base"])
    row = table.loc[("tokens_per_second", "latent")]
    assert row["ratio"] == pytest.approx(stats.gmean(wide["latent"] / wide["base"]))
    assert np.log([row["low"], row["high"]]) == pytest.approx(stats.ttest_1samp(logs, 0).confidence_interval(0.95))
    assert row["high"] / row["low"] < 1.2
    flops = table.loc[("flops", "latent")]
    assert flops["ratio"] == pytest.approx(8.2 / 6) and flops["high"] - flops["low"] < 1e-9


def test_a_diverged_trial_has_no_ratio(made):
    trials = made.trials(3)
    trials.loc[(trials["cell"] == "mod") & (trials["seed"] == 0), "status"] = "diverged"
    assert ratios(trials).set_index(["measure", "cell"]).loc[("flops", "mod"), "seeds"] == 2


def test_divergences_are_compared_on_the_seeds_where_one_of_the_two_diverged(made):
    trials = made.trials(10)
    for cell, seeds in (("mod", range(8)), ("latent", (0, 1)), ("base", (0,))):
        trials.loc[(trials["cell"] == cell) & trials["seed"].isin(seeds), ["status", "val_loss"]] = (
            "diverged",
            np.nan,
        )
    table = divergences(trials).set_index("cell")
    assert list(table.loc[["base", "mod", "latent", "memory"], "diverged"]) == [1, 8, 2, 0]
    assert table.loc["mod", "p"] == pytest.approx(2 * 0.5**7)  # seven discordant seeds, all the cell's
    assert table.loc["latent", "p"] == 1.0  # one discordant seed
    assert table.loc["mod", "p_adjusted"] == pytest.approx(7 * 2 * 0.5**7)
    assert np.isnan(table.loc["base", "p"])


def test_an_extra_cell_is_compared_with_its_own_corner_and_enters_nothing_else(made):
    """Caught: compared with base; unpaired; extra cells in the second family; ratios not as logs."""
    trials = made.trials()
    trials["extra_of"] = None
    mine = trials[trials["cell"] == "mod"].copy()
    steps = np.array([0.01, 0.02, 0.03, 0.04, 0.05])
    mine["cell"], mine["extra_of"] = "mod~mod_gate=raw", "mod"
    mine["val_loss"] += steps
    mine["tokens_per_second"] *= np.array([2.0, 2.0, 2.0, 2.0, 0.5])
    both = pd.concat([trials, mine])
    (row,) = extra_family(both).to_dict(orient="records")
    half = stats.t.isf(0.025, 4) * steps.std(ddof=1) / math.sqrt(5)
    assert (row["cell"], row["of"], row["blocks"]) == ("mod~mod_gate=raw", "mod", 5)
    assert [row["estimate"], row["low"], row["high"]] == pytest.approx([0.03, 0.03 - half, 0.03 + half])
    assert row["p"] == pytest.approx(stats.ttest_1samp(steps, 0).pvalue)
    assert row["tokens_per_second"] == pytest.approx(2 ** (3 / 5))
    assert row["flops"] == pytest.approx(1.0)
    assert without_extras(both).equals(trials)
    assert extra_family(trials).empty
    lost = both.copy()
    lost.loc[(lost["cell"] == "mod") & (lost["seed"] == 4), "status"] = "diverged"
    (row,) = extra_family(lost).to_dict(orient="records")
    assert (row["blocks"], row["estimate"]) == (4, pytest.approx(0.025))


def test_an_extra_cell_may_be_compared_with_several(made):
    trials = made.trials().assign(extra_of=None)
    mine = trials[trials["cell"] == "latent"].assign(cell="latent@R1", extra_of="base latent")
    table = extra_family(pd.concat([trials, mine])).set_index("of")
    assert list(table.index) == ["base", "latent"]
    base = trials[trials["cell"] == "base"].set_index("seed")["val_loss"]
    assert table.loc["base", "estimate"] == pytest.approx((mine.set_index("seed")["val_loss"] - base).mean())
    assert table.loc["latent", "estimate"] == 0
