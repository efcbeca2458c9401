import numpy as np
import pytest

from sweeps.analysis.adaptive import next_look, until_decided
from sweeps.analysis.contrasts import switches
from sweeps.analysis.effects import estimate
from sweeps.reporting.verdict import sentences

DESIGN = switches("mod", "latent", "memory")


def decided(trials, x=0.05, cap=8):
    return until_decided(estimate(trials, DESIGN, smallest_effect=x), cap)


def said(made, trials, effects):
    return " ".join(sentences(effects, made.info(trials, smallest_effect=effects.smallest_effect)))


def test_before_the_first_look_there_is_no_verdict_and_nothing_is_called_repeated(made):
    """Seen to fail: t-intervals called repeated, and a verdict that read "exploratory: mod, latent"."""
    trials = made.trials(5)
    few = trials[trials["seed"] < 3]
    broken = trials[(trials["seed"] > 0) | (trials["cell"] != "mod")].loc[lambda t: t["seed"] < 4]
    for part in (few, broken):
        effects = decided(part)
        assert not effects.looked and effects.exploratory and set(effects.table["verdict"]) == {"exploratory"}
        text = said(made, part, effects)
        assert (
            "repeated" not in text and "settled after" not in text and "until every effect was settled" not in text
        )


def test_a_divergence_settles_nothing(made):
    """Seen to fail: each effect said after how many seeds it was settled, in a sweep whose headline is withheld."""
    trials = made.trials(6, sigma=0.002)
    trials.loc[(trials["cell"] == "mod") & (trials["seed"] == 1), ["status", "val_loss"]] = "diverged", np.nan
    effects = decided(trials)
    assert effects.withheld and not effects.looked and (effects.table["settled_at"] == 0).all()
    assert next_look(estimate(trials, DESIGN, smallest_effect=0.05), 8) is None
    assert "settled after" not in said(made, trials, effects)


def test_what_is_equivalent_lies_within_the_interval_that_is_printed_for_it(made):
    """Seen to fail: the one-look interval of all blocks stood there, and the repeated one, which decided, nowhere."""
    trials = made.trials(8, sigma=0.01, truth={"latent": -0.1})
    effects = decided(trials, x=0.03)
    table = effects.table.set_index("term")
    none = table[table["verdict"] == "no effect larger than 0.03"]
    assert len(none) >= 4 and table.loc["latent", "verdict"] == "helps"
    assert (none["bound_low"] > -0.03).all() and (none["bound_high"] < 0.03).all()
    assert "90 % within" in said(made, trials, effects)


def test_everything_is_of_the_blocks_that_the_look_counted(made):
    """Seen to fail: σ and what could have been seen of twelve blocks beside estimates of four."""
    trials = made.trials(8, sigma=0.002)
    effects = decided(trials, x=0.5)
    four = estimate(trials[trials["seed"] < 4], DESIGN)
    assert effects.looked == 4 and effects.blocks == (0, 1, 2, 3) and effects.settled
    assert effects.sigma == pytest.approx(four.sigma) and effects.checks == four.checks
    np.testing.assert_allclose(effects.table["p"], four.table["p"])
    assert "until every effect was settled, after 4 seeds of at most 8" in said(made, trials, effects)


def test_a_cap_that_settles_nothing_says_so(made):
    trials = made.trials(8)
    effects = decided(trials, x=1e-4)
    assert effects.looked == 8 and not effects.settled
    assert "All 8 seeds that were allowed did not settle every effect" in said(made, trials, effects)
    part = trials[trials["seed"] < 6]
    assert "until all is settled: 6 seeds of at most 8 so far" in said(made, part, decided(part, x=1e-4))


def test_a_cap_whose_last_blocks_stay_incomplete_has_ended(made):
    """Seen to fail: "6 of at most 8 so far", in a sweep that had nothing left to run."""
    trials = made.trials(8)
    broken = trials[(trials["seed"] < 6) | (trials["cell"] != "mod")]
    effects = decided(broken, x=1e-4)
    assert effects.looked == 6 and effects.incomplete == (6, 7)
    assert "All 8 seeds that were allowed did not settle every effect" in said(made, broken, effects)


def test_looks_go_by_seeds_also_where_one_has_no_row_at_all(made):
    """Seen to fail: without seed 1 the four rows 0, 2, 3 and 4 made a look that nobody had planned."""
    trials = made.trials(6, sigma=0.002)
    gone = trials[trials["seed"] != 1]
    assert not decided(gone[gone["seed"] < 5], x=0.5).looked
    assert decided(gone, x=0.5).looked == 6 and decided(gone, x=0.5).blocks == (0, 2, 3, 4, 5)
    later = trials.assign(seed=trials["seed"] + 100)
    moved = until_decided(estimate(later[later["seed"] != 100], DESIGN, smallest_effect=0.5), 8, 100)
    assert moved.looked == 6 and moved.blocks == (101, 102, 103, 104, 105)
