"""The product-key memory finds what a search of every slot finds (property 12), and its use is measured right."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lahr.model.memory import Memory, use, use_metrics


def make(d_model=16, slots=49, heads=3, top_k=4, key_dim=6, seed=0):
    torch.manual_seed(seed)
    memory = Memory(d_model, slots, heads, top_k, key_dim).double()
    with torch.no_grad():
        for p in memory.parameters():
            p.copy_(torch.randn_like(p))
    return memory


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    k=st.integers(1, 9),
    heads=st.integers(1, 3),
    half=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_search_equals_brute_force_over_every_slot(n, k, heads, half, seed):
    """Caught: `which` of the second half times n; the same half used twice; k − 1 candidates a half."""
    k = min(k, n)
    memory = make(slots=n * n, heads=heads, top_k=k, key_dim=2 * half, seed=seed)
    q = torch.randn(2, 3, heads, 2 * half, dtype=torch.float64)
    slots, scores = memory.search(q)
    whole = torch.cat(
        (memory.keys[:, 0].repeat_interleave(n, 1), memory.keys[:, 1].repeat(1, n, 1)), -1
    )  # (H, n², K): slot i·n + j is sub-key i of the first set and j of the second
    every = torch.einsum("bthk,hsk->bths", q, whole)
    best = every.topk(k, -1)
    assert (scores - best.values).abs().max() < 1e-12
    assert torch.equal(slots.sort(-1).values, best.indices.sort(-1).values)


def test_what_is_read_is_the_weighted_sum_of_the_best_slots_through_the_gate():
    """Caught: the temperature multiplied; one softmax over all heads' reads; no gate."""
    memory = make()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    out, slots, weights = memory(x)
    assert torch.allclose(weights.sum(-1), torch.ones((), dtype=torch.float64), atol=1e-12, rtol=0)
    normed = memory.norm(x)
    q = memory.query_norm(memory.query(normed).view(2, 5, 3, 6))
    found, scores = memory.search(q)
    expected = torch.zeros(2, 5, 16, dtype=torch.float64)
    for h in range(3):
        w = (scores[:, :, h] / memory.log_temperature[h].exp()).softmax(-1)
        expected += torch.einsum("btk,btkd->btd", w, memory.values[found[:, :, h]])
    gate = normed @ memory.gate.weight.T
    expected = (expected * gate * gate.sigmoid()) @ memory.out.weight.T
    assert torch.equal(slots, found)
    assert (out - expected).abs().max() < 1e-9


def test_values_that_were_read_learn_and_the_others_have_exactly_zero_gradient():
    """Caught: a soft read of all slots; the values detached."""
    memory = make()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    out, slots, _ = memory(x)
    (out * torch.randn_like(out)).sum().backward()
    read = torch.zeros(49, dtype=torch.bool)
    read[slots.flatten()] = True
    assert 0 < read.sum() < 49
    size = memory.values.grad.abs().amax(-1)
    assert torch.all(size[~read] == 0.0)
    assert size[read].min() > 1e-9
    assert all(p.grad.abs().max() > 1e-9 for p in (memory.keys, memory.log_temperature, memory.query.weight))


def test_use_adds_up_every_weight_and_over_batches():
    """Caught: counts instead of weights; only the first head counted."""
    memory = make()
    x = torch.randn(4, 5, 16, dtype=torch.float64)
    _, slots, weights = memory(x)
    mass = use(slots, weights, 49)
    assert mass.shape == (49,)
    assert float(mass.sum()) == pytest.approx(4 * 5 * 3, abs=1e-12)
    halves = use(slots[:2], weights[:2], 49) + use(slots[2:], weights[2:], 49)
    assert (mass - halves).abs().max() < 1e-12


@given(slots=st.integers(1, 400), weight=st.floats(1e-3, 1e6))
def test_uniform_use_gives_exact_constants(slots, weight):
    """Caught: one slot more where the share is covered exactly."""
    metrics = use_metrics(torch.full((slots,), weight, dtype=torch.float64))
    assert metrics["memory/slots_used"] == 1.0
    assert metrics["memory/kl_uniform"] == pytest.approx(0.0, abs=1e-12)
    for percent in (50, 90, 99):
        assert metrics[f"memory/slots_{percent}"] == math.ceil(round(percent * slots / 100, 9)) / slots


@given(slots=st.integers(2, 400), data=st.data())
def test_use_of_one_slot_gives_exact_constants(slots, data):
    """Caught: 0·log 0 as not a number; KL in bits; the slots that cover as a share of the used ones."""
    mass = torch.zeros(slots, dtype=torch.float64)
    mass[data.draw(st.integers(0, slots - 1))] = data.draw(st.floats(1e-3, 1e6))
    metrics = use_metrics(mass)
    assert metrics["memory/kl_uniform"] == pytest.approx(math.log(slots), abs=1e-12)
    assert {v for k, v in metrics.items() if k != "memory/kl_uniform"} == {1 / slots}


def test_use_of_nothing_is_refused():
    """Caught: no check."""
    with pytest.raises(ValueError, match="sums to 0"):
        use_metrics(torch.zeros(4))
