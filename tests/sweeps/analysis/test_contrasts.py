from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from lahr.errors import ConfigError
from sweeps.analysis.contrasts import Levels, crossed, grid, switches

ACT = Levels("act", ("", "act=silu", "act=relu2"))
NORM = Levels("norm", ("", "norm=post"))
HEAD = Levels("head", ("", "head=free"))
MOD, LATENT = Levels("mod", ("", "mod")), Levels("latent", ("", "latent"))
ROUTER = Levels("router", ("", "router=random", "router=threshold"), within="mod")


def weights(design, term):
    column = design.weights_CT[:, design.terms.index(term)]
    return {cell: w for cell, w in zip(design.cells, column, strict=True) if w}


def test_the_seven_effects_are_on_minus_off_over_the_eight_cells():
    design = switches("mod", "latent", "memory")
    assert design.cells == (
        "base", "mod", "latent", "memory", "mod+latent", "mod+memory", "latent+memory", "mod+latent+memory",
    )  # fmt: skip
    assert design.terms[:4] == ("mod", "latent", "memory", "mod:latent") and len(design.terms) == 7
    for cell, weight in weights(design, "mod:latent").items():
        on = set(cell.split("+"))
        assert weight == (1 if ("mod" in on) == ("latent" in on) else -1) / 4
    signs = np.sign(design.weights_CT)
    assert (signs.T @ signs == 8 * np.eye(7)).all()


def test_a_level_of_several_is_compared_with_the_first_over_all_other_cells():
    """Held to statsmodels: the same contrasts of the cell means of a saturated model."""
    design = crossed([ACT, NORM])
    assert design.terms == (
        "act=silu", "act=relu2", "norm=post", "act=silu:norm=post", "act=relu2:norm=post",
    )  # fmt: skip
    generator = np.random.default_rng(0)
    losses_SC = generator.normal(size=(6, 6))
    labels = grid([ACT, NORM])
    rows = [
        {"y": losses_SC[s, c], "seed": s, **{k: v or "first" for k, v in labels[cell].items()}}
        for s, (c, cell) in product(range(6), enumerate(design.cells))
    ]
    model = smf.ols("y ~ C(act, Sum)*C(norm, Sum) + C(seed)", pd.DataFrame(rows)).fit()
    means = {
        (a, n): model.predict(pd.DataFrame({"act": a, "norm": n, "seed": range(6)})).mean()
        for a in ("first", "act=silu", "act=relu2") for n in ("first", "norm=post")
    }  # fmt: skip
    silu = np.mean([means["act=silu", n] - means["first", n] for n in ("first", "norm=post")])
    post = np.mean([means[a, "norm=post"] - means[a, "first"] for a in ("first", "act=silu", "act=relu2")])
    both = (
        means["act=relu2", "norm=post"]
        - means["first", "norm=post"]
        - means["act=relu2", "first"]
        + means["first", "first"]
    ) / 2
    got = dict(zip(design.terms, design.own(losses_SC).mean(0), strict=True))
    assert [got[t] for t in ("act=silu", "norm=post", "act=relu2:norm=post")] == pytest.approx([silu, post, both])


def test_a_nested_factor_is_varied_and_estimated_where_its_parent_is_on():
    """Caught: cells of the nested factor with its parent off; an interaction of the two; a parent's mean over its first
    nested level alone."""
    design = crossed([MOD, ROUTER, LATENT])
    assert len(design.cells) == 2 + 3 * 2 and "router=random" not in design.cells
    assert "mod:router=random" not in design.terms and "router=random:latent" in design.terms
    assert weights(design, "router=random") == {
        "mod": -0.5, "mod+latent": -0.5, "mod+router=random": 0.5, "mod+router=random+latent": 0.5,
    }  # fmt: skip
    mod = weights(design, "mod")
    assert mod["base"] == mod["latent"] == -0.5
    assert {round(w, 12) for cell, w in mod.items() if "mod" in cell} == {round(1 / 6, 12)} and len(mod) == 8


def test_nested_levels_share_the_weight_of_their_parents_level_in_the_effects_of_others():
    """Where mod is on three cells stand for it, and where it is off one. Caught: all four weighing the same."""
    latent = weights(crossed([MOD, ROUTER, LATENT]), "latent")
    assert (latent["latent"], latent["base"]) == (pytest.approx(0.5), pytest.approx(-0.5))
    on = {cell: w for cell, w in latent.items() if "mod" in cell}
    assert len(on) == 6 and {round(abs(w), 12) for w in on.values()} == {round(1 / 6, 12)}


def test_a_mean_at_levels_of_a_nested_factor_is_over_cells_where_it_is_varied():
    """What the interaction figure shows. Seen to fail: its first level took in the cells where its parent is off."""
    design = crossed([MOD, ROUTER, LATENT])

    def at(**chosen):
        return {c: w for c, w in zip(design.cells, design.mean_at(chosen), strict=True) if w}

    assert at(router="", latent="") == {"mod": 1.0}
    assert at(mod="mod", latent="") == pytest.approx(
        {"mod": 1 / 3, "mod+router=random": 1 / 3, "mod+router=threshold": 1 / 3}
    )
    assert at(mod="", router="router=random") == {}


def test_every_effect_of_cells_that_are_equal_is_nothing_and_of_one_level_is_its_own():
    for factors in ([ACT, NORM, HEAD], [MOD, ROUTER, LATENT], [ACT, MOD, ROUTER]):
        design = crossed(factors)
        assert np.abs(design.weights_CT.sum(0)).max() < 1e-12
        for factor in factors:
            for label in factor.labels[1:]:
                losses = np.array([float(label in cell.split("+")) for cell in design.cells])
                got = dict(zip(design.terms, losses @ design.weights_CT, strict=True))
                assert got.pop(label) == pytest.approx(1)
                if factor.within:  # a part of what its parent is on average
                    assert got.pop(factor.within) == pytest.approx(1 / len(factor.labels))
                assert max(map(abs, got.values())) < 1e-12


def test_an_order_leaves_higher_interactions_out():
    assert len(crossed([MOD, LATENT, NORM, HEAD], order=2).terms) == 4 + 6
    with pytest.raises(ConfigError, match="--order is 0"):
        crossed([MOD], order=0)


def test_half_of_the_cells_give_all_main_effects():
    """A half fraction of 2⁴, the cells with an even number on (relation ABCD). Caught: weights of the whole."""
    factors = [Levels(n, ("", n)) for n in "abcd"]
    odd = [cell for cell, labels in grid(factors).items() if sum(map(bool, labels.values())) % 2]
    design = crossed(factors, order=1, without=odd)
    assert len(design.cells) == 8 and design.terms == ("a", "b", "c", "d")
    assert np.abs(design.weights_CT) == pytest.approx(np.full((8, 4), 1 / 4))
    losses = np.array([2.0 * ("a" in c) - 1.0 * ("c" in c) for c in (cell.split("+") for cell in design.cells)])
    assert losses @ design.weights_CT == pytest.approx([2, 0, -1, 0])


def test_effects_that_cannot_be_estimated_are_named_with_the_cells_that_would_mend_it():
    factors = [Levels(n, ("", n)) for n in ("mod", "latent", "memory")]
    five = ["mod", "latent", "memory", "mod+latent", "mod+memory"]
    with pytest.raises(ConfigError) as raised:  # the three cells that the paper ran
        crossed(factors, without=[*five, "latent+memory"])
    assert "cannot be estimated: mod, latent, memory, mod:latent" in str(raised.value)
    assert "--order 1" not in str(
        raised.value
    )  # which would tell one of them at most. Seen to fail: it was advised
    with pytest.raises(ConfigError, match=r"or ask for interactions of a lower order \(--order 1: none\)"):
        crossed(factors, without=[*five[3:], "mod+latent+memory"])
    with pytest.raises(ConfigError) as raised:
        crossed(factors, order=1, without=["mod", *five[3:], "mod+latent+memory"])
    assert "these effects cannot be estimated: mod; put back the trials of mod" in str(raised.value)
    assert crossed(factors, order=1, without=[*five[3:], "mod+latent+memory"]).terms == ("mod", "latent", "memory")


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ([Levels("router", ("", "router=random"), within="mod"), LATENT], "nested in 'mod', which is no factor"),
        ([Levels("a", ("", "a"), within="b"), Levels("b", ("", "b"), within="a")], "itself nested in it"),
        ([Levels("a", ("", "a"), within="a")], "itself nested in it"),
    ],
)
def test_a_factor_that_is_nested_in_nothing_is_refused(factors, said):
    with pytest.raises(ConfigError, match=said):
        crossed(factors)


def test_a_cell_that_there_is_none_of_cannot_be_left_out():
    with pytest.raises(ConfigError, match="there is no cell 'mood' to leave out"):
        crossed([MOD, LATENT], without=["mood"])
