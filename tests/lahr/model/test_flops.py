"""The closed forms equal what torch's own counter sees (property 14)."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lahr.model import LAHR
from lahr.model.flops import flops_per_token, parameter_counts, training_flops_per_token
from lahr.model_config import ModelConfig
from lahr.presets import PRESETS, with_levels


def counted(config):
    """Forward FLOPs a token that torch counts in training mode, routing by top-k."""
    model = LAHR(config).train()
    tokens = torch.zeros(2, config.max_seq_len, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens)
    return counter.get_total_flops() / tokens.numel()


def test_the_formula_equals_the_counter_in_every_cell(cell):
    """Caught: the latent readout left out; half the sub-keys; attention over T keys in a routed block."""
    assert sum(flops_per_token(cell, "counter").values()) == pytest.approx(counted(cell), rel=1e-9)


@pytest.mark.parametrize("length", [100, 128, 129, 300])
@pytest.mark.parametrize("capacity", [1.0, 0.6])
def test_the_formula_follows_the_query_slices_of_long_windows(length, capacity, cells):
    """Caught: the whole square counted for sliced attention."""
    config = replace(cells["latent"], max_seq_len=length, mod_capacity=capacity)
    assert sum(flops_per_token(config, "counter").values()) == pytest.approx(counted(config), rel=1e-9)


def test_the_quick_presets_agree_with_the_counter():
    """Caught: a hidden layer wider in the model than in the formula."""
    quick = PRESETS["quick"]
    config = with_levels(quick.model, quick.on)
    assert sum(flops_per_token(config, "counter").values()) == pytest.approx(counted(config), rel=1e-9)


def test_halving_the_capacity_lowers_the_measured_cost_as_predicted(cells):
    """Caught: routed blocks that compute every token and mask afterwards."""
    half, quarter = (replace(cells["mod"], mod_capacity=c) for c in (0.5, 0.25))
    saved = counted(half) - counted(quarter)
    predicted = sum(flops_per_token(half, "counter").values()) - sum(flops_per_token(quarter, "counter").values())
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


def test_a_part_that_is_off_costs_nothing(cells):
    """Caught: the memory's cost counted whatever its slots."""
    flops, counts = flops_per_token(cells["base"]), parameter_counts(cells["base"])
    assert [flops[k] for k in ("routed_blocks", "routers", "latent", "memory")] == [0, 0, 0, 0]
    assert [counts[k] for k in ("routers", "latent", "memory")] == [0, 0, 0]
