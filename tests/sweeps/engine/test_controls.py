from dataclasses import replace

import pytest

from lahr.errors import ConfigError
from lahr.model.flops import flops_per_token, parameter_counts
from lahr.plain import changed
from lahr.presets import preset
from sweeps.engine.controls import control

BASE = preset("quick").model
FULL = changed(BASE, preset("quick").on)


def test_the_baseline_is_widened_to_the_full_models_parameters_or_flops():
    """Within what one more column of the feed-forward costs. Caught: FLOPs of a whole training step; ΔP/(2dL)."""
    for name, cost in (
        ("params", lambda model: parameter_counts(model)["total"]),
        ("flops", lambda model: sum(flops_per_token(model).values())),
    ):
        extra = control(name, BASE, FULL, "mod+latent+memory")
        assert (extra.name, extra.compared) == (f"base@{name}", ("mod+latent+memory", "base"))
        wide = changed(BASE, {field.removeprefix("model."): value for field, value in extra.fields})
        column = cost(replace(wide, d_ff=wide.hidden_dim + 1)) - cost(wide)
        assert abs(cost(wide) - cost(FULL)) <= column / 2
    by_hand = (parameter_counts(FULL)["total"] - parameter_counts(BASE)["total"]) / (
        3 * BASE.d_model * BASE.n_layers
    )
    assert control("params", BASE, FULL, "x").fields == (("model.d_ff", BASE.hidden_dim + round(by_hand)),)


def test_a_full_model_that_costs_less_has_nothing_to_be_matched_with():
    cheap = changed(BASE, {"mod_capacity": 0.125})
    with pytest.raises(ConfigError, match="--controls flops: the full model has no more FLOPs than base"):
        control("flops", BASE, cheap, "mod")


def test_one_pass_stands_between_none_and_all_and_the_frozen_router_beside_the_learned():
    assert control("r1", BASE, FULL, "x").compared == ("base", "latent")
    assert control("frozen", BASE, FULL, "x").fields == (("model.mod_router", "random"),)
