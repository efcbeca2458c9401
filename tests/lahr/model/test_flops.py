"""The closed forms equal what torch's own counter sees (property 14)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from lahr.model import LAHR
from lahr.model.flops import exit_readouts, flops_per_token, parameter_counts, training_flops_per_token
from lahr.model_config import ModelConfig
from lahr.plain import changed
from lahr.presets import PRESETS
from tests.lahr.model.conftest import models


def counted(config, batch=2, segments=1, routed_exactly=False):
    """Forward FLOPs a token that torch counts in training mode, and the passes that were run for a token."""
    model = LAHR(config).train()
    tokens = torch.randint(0, config.vocab_size, (batch, config.max_seq_len))
    if routed_exactly:  # a threshold passes as many as it has learnt to; here exactly k
        model.observe(model(tokens, tokens).causal_scores_LBT)
        for _ in range(3):  # what a layer gives the next one has changed with its own threshold
            for (_, router), scores in zip(model.routers, model(tokens, tokens).causal_scores_LBT, strict=True):
                router.observations.zero_()
                router.observe(scores)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):  # the head's gradient is made in its forward pass
        output = model(tokens, tokens, segments=segments)
    return counter.get_total_flops() / tokens.numel(), float(output.passes)


def formula(config, passes=None, segments=1):
    """The closed form in the counter's convention, with what the exit gate reads in training."""
    return sum(flops_per_token(config, "counter", passes=passes, segments=segments).values()) + exit_readouts(
        config
    )


def test_the_formula_equals_the_counter_in_every_variant(variant):
    """Caught: the latent readout left out; half the sub-keys; attention over T keys in a routed block; a routed pass
    counted over all tokens; one layer of a core of two; nominal passes under ACT; the exit gate's heads left out."""
    threshold = variant.mod_router == "threshold"
    ragged = threshold or variant.latent_halting == "act"  # sequences of a batch wait for the longest
    seen, passes = counted(variant, batch=1 if ragged else 2, routed_exactly=threshold)
    ran = passes if variant.latent_halting == "act" else None
    assert formula(variant, ran) == pytest.approx(seen, rel=1e-6)


def test_passes_that_a_step_is_given_are_the_ones_that_count(cells):
    """Caught: R passes counted whatever was run."""
    config = replace(cells["latent"], latent_mode="sampled")
    model, tokens = LAHR(config).train(), torch.zeros(2, 24, dtype=torch.int64)
    for passes in (1, 2, 5):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = model(tokens, tokens, passes=passes)
        assert output.passes == passes
        assert counter.get_total_flops() / 48 == pytest.approx(formula(config, passes), rel=1e-9)


@pytest.mark.parametrize(("slots", "segments"), [(96, 4), (40, 4), (24, 2), (5, 3)])
def test_the_knn_memorys_cost_is_that_of_the_keys_it_holds(slots, segments, cells):
    """Caught: all segments' keys counted; the bound on the entries ignored."""
    config = replace(cells["base"], memory_kind="knn", memory_slots=slots, memory_top_k=5)
    seen, _ = counted(config, batch=2 * segments, segments=segments)
    assert formula(config, segments=segments) == pytest.approx(seen, rel=1e-9)


@settings(max_examples=40)
@given(config=models())
def test_parameters_and_cost_follow_the_formulas_in_models_drawn_at_random(config):
    """Caught: a core's second layer without its outer norms; a threshold router with a predictor counted."""
    assert parameter_counts(config)["total"] == sum(p.numel() for p in LAHR(config).parameters())
    if config.mod_router == "threshold" and (config.routed_layers or config.latent_capacity < 1):
        return  # counted above, where exactly k tokens pass
    seen, passes = counted(config, batch=1)
    assert formula(config, passes if config.latent_halting == "act" else None) == pytest.approx(seen, rel=1e-6)


@pytest.mark.parametrize("length", [100, 128, 129, 300])
@pytest.mark.parametrize("capacity", [1.0, 0.6])
def test_the_formula_follows_the_query_slices_of_long_windows(length, capacity, cells):
    """Caught: the whole square counted for sliced attention."""
    config = replace(cells["latent"], max_seq_len=length, mod_capacity=capacity)
    assert formula(config) == pytest.approx(counted(config)[0], rel=1e-9)


def test_the_quick_presets_agree_with_the_counter():
    """Caught: a hidden layer wider in the model than in the formula."""
    quick = PRESETS["quick"]
    config = changed(quick.model, quick.on)
    assert formula(config) == pytest.approx(counted(config)[0], rel=1e-9)


def test_halving_the_capacity_lowers_the_measured_cost_as_predicted(cells):
    """Caught: routed blocks that compute every token and mask afterwards."""
    half, quarter = (replace(cells["mod"], mod_capacity=c) for c in (0.5, 0.25))
    saved = counted(half)[0] - counted(quarter)[0]
    predicted = formula(half) - formula(quarter)
    assert saved == pytest.approx(predicted, rel=1e-9)
    d, T = half.d_model, half.max_seq_len
    matrices = 2 * (4 * d**2 + 3 * d * half.hidden_dim)
    # Two routed blocks; the matrices halve, attention over half as many keys for half as many tokens quarters.
    assert saved == pytest.approx(2 * (0.25 * matrices + (0.5**2 - 0.25**2) * 4 * d * T), rel=1e-9)


def test_the_useful_cost_is_the_design_pages_formula():
    """Worked out by hand at d = 100. Caught: 4Td for 2Td; k² left out; 4d once and not R times."""
    config = ModelConfig(
        vocab_size=1000,
        d_model=100,
        n_layers=4,
        n_heads=5,
        max_seq_len=200,
        d_ff=300,
        mod_capacity=0.1,
        latent_iterations=3,
        memory_slots=400,
        memory_heads=2,
        memory_top_k=5,
        memory_key_dim=10,
    )
    matrices = 4 * 100**2 + 3 * 100 * 300
    assert flops_per_token(config) == {
        "head": 2 * 100 * 1000,
        "dense_blocks": 2 * (2 * matrices + 2 * 200 * 100),
        "routed_blocks": pytest.approx(2 * 0.1 * (2 * matrices + 2 * 0.1 * 200 * 100)),
        "routers": 2 * (2 * 100 + 2 * (100 * 25 + 25)),
        "latent": 3 * (2 * matrices + 2 * 200 * 100 + 4 * 100) + 2 * 100**2,
        "memory": 2 * 100 * 2 * 10 + 2 * 2 * 20 * 10 + 2 * 25 + 2 * 2 * 5 * 100 + 4 * 100**2,
    }
    assert training_flops_per_token(config) == pytest.approx(3 * sum(flops_per_token(config).values()))


def test_passes_without_a_gradient_cost_their_forward_pass_only(cells):
    """Caught: three times the forward cost for all of sixteen passes."""
    config = replace(cells["latent"], latent_iterations=16)
    forward = [sum(flops_per_token(config, passes=n).values()) for n in (16, 8)]
    assert training_flops_per_token(config) == pytest.approx(forward[0] + 2 * forward[1])
    act = replace(config, latent_halting="act")
    assert training_flops_per_token(act) == pytest.approx(3 * sum(flops_per_token(act).values()))


def test_a_part_that_is_off_costs_nothing(cells):
    """Caught: the memory's cost counted whatever its slots."""
    flops, counts = flops_per_token(cells["base"]), parameter_counts(cells["base"])
    assert [flops[k] for k in ("routed_blocks", "routers", "latent", "memory")] == [0, 0, 0, 0]
    assert [counts[k] for k in ("routers", "latent", "memory")] == [0, 0, 0]
