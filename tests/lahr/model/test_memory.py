"""The product-key memory finds what a search of every slot finds (property 12), the kNN memory what rows written out
by hand find, and their use is measured right."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lahr.model.layers import Rotary, Window
from lahr.model.memory import Memory, use, use_metrics


def make(d_model=16, slots=49, heads=3, top_k=4, key_dim=6, seed=0, kind="product_key"):
    torch.manual_seed(seed)
    memory = Memory(d_model, slots, heads, top_k, key_dim, kind).double()
    with torch.no_grad():
        for p in memory.parameters():
            p.copy_(torch.randn_like(p))
    return memory


@settings(max_examples=40)
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


@given(slots=st.integers(1, 40), heads=st.integers(1, 3), k=st.integers(1, 8), seed=st.integers(0, 99))
def test_whole_slots_are_all_searched(slots, heads, k, seed):
    """Caught: one head's keys for all; the lowest scores."""
    k = min(k, slots)
    memory = make(slots=slots, heads=heads, top_k=k, key_dim=5, seed=seed, kind="slots")
    q = torch.randn(2, 3, heads, 5, dtype=torch.float64)
    found, scores = memory.search(q)
    best = torch.einsum("bthk,hsk->bths", q, memory.keys).topk(k, -1)
    assert (scores - best.values).abs().max() < 1e-12
    assert torch.equal(found, best.indices)


def test_the_papers_memory_is_read_before_the_stack(cells, awake, tokens_BT):
    """128 slots, top-8. Caught: read in the middle by default."""
    config = replace(cells["base"], memory_kind="slots", memory_slots=128, memory_top_k=None)
    assert (config.memory_position, config.memory_reads) == (0, 8)
    model = awake(replace(config, memory_top_k=3))
    given = []
    model.memory.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    model(tokens_BT)
    assert torch.equal(given[0], model.embedding(tokens_BT))
    assert model.memory.keys.shape == (2, 128, 12)


def knn_by_hand(model, tokens_BT, segments):
    """Logits with the memory of block 2 written out over whole rows."""
    config, w = model.config, dict(model.named_parameters())
    B, T, H, E = *tokens_BT.shape, config.n_heads, config.head_dim
    window = Window(Rotary(model.cos[:T], model.sin[:T]))
    x = model.embedding(tokens_BT)
    for i, block in enumerate(model.blocks):
        if i != config.memory_position:
            x = block(x, window)
            continue
        qkv = block.attention.qkv(block.attention_norm(x)).view(B, T, 3, H, E)
        y = window.attend(qkv[:, :, :2], qkv[:, :, 2])
        q, k = (t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() for t in (qkv[:, :, 0], qkv[:, :, 1]))
        mixed = y.clone()
        for b in range(B):
            row, s = divmod(b, segments)
            if s == 0:
                continue
            earlier = range(row * segments, b)
            keys = torch.cat([k[j] for j in earlier]).detach()[-config.memory_slots :]
            values = torch.cat([qkv[j, :, 2] for j in earlier]).detach()[-config.memory_slots :]
            for h in range(H):
                scores = q[b, :, h] @ keys[:, h].T / E**0.5
                best = scores.topk(min(config.memory_reads, scores.shape[1]), -1)
                read = torch.einsum("tk,tke->te", best.values.softmax(-1), values[best.indices, h])
                mixed[b, :, h] = y[b, :, h] + w["memory.gate"][h].tanh() * (read - y[b, :, h])
        x = x + block.attention.out(mixed.reshape(B, T, H * E))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    return model.norm(x) @ w["embedding.weight"].T


@pytest.mark.parametrize(("segments", "slots"), [(2, 1000), (3, 1000), (3, 30), (6, 5)])
def test_the_knn_memory_reads_the_best_keys_of_earlier_segments_of_its_row(segments, slots, cells, awake):
    """Logits and gradients. Caught: the segment's own keys remembered; another row's; keys that carry a gradient; the
    newest entries dropped instead of the oldest; one gate for all heads; keys turned by their positions."""
    tokens = torch.randint(0, 61, (6, 24), generator=torch.Generator().manual_seed(5))
    config = replace(cells["base"], memory_kind="knn", memory_slots=slots, memory_top_k=5)
    model, other = awake(config), awake(config)
    with torch.no_grad():
        for m in (model, other):
            m.memory.gate.copy_(torch.tensor([0.7, -0.4, 1.3, 0.2]))
    found, expected = model(tokens, segments=segments), knn_by_hand(other, tokens, segments)
    assert (found - expected).abs().max() < 1e-10
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() < 1e-9
    assert model.memory.gate.grad.abs().min() > 1e-9


@torch.no_grad()
def test_with_the_knn_memory_a_row_depends_on_its_earlier_segments_and_on_nothing_later_or_beside(cells, awake):
    """Properties 1 and 8 over rows. Caught: keys of later segments; of another row."""
    tokens = torch.randint(0, 61, (6, 24), generator=torch.Generator().manual_seed(5))
    model = awake(replace(cells["mod"], memory_kind="knn", memory_slots=96, memory_top_k=5))
    model.memory.gate.fill_(0.8)
    before = model(tokens, segments=3)
    changed = tokens.clone()
    changed[1, 9] = (changed[1, 9] + 7) % 61
    change = (model(changed, segments=3) - before).abs().amax(-1)
    assert change[0].max() == 0
    assert change[3:].max() < 1e-10
    assert change[1, :9].max() < 1e-10
    assert change[1, 9] > 1e-6
    assert change[2].max() > 1e-6
    assert (model(tokens[3:], segments=3) - before[3:]).abs().max() < 1e-10
    alone = model(tokens[2:3])  # a segment alone has nothing to remember
    assert (alone - before[2]).abs().max() > 1e-6


@torch.no_grad()
def test_the_knn_memorys_metrics_are_its_gates_and_the_distance_of_what_it_reads(cells, awake, targets_BT):
    """Caught: the distance within the memory instead of from the query; signed gates."""
    model = awake(replace(cells["base"], memory_kind="knn", memory_slots=1000, memory_top_k=1))
    model.memory.gate.copy_(torch.tensor([0.5, -0.5, 0.5, -0.5]))
    tokens = torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(6))
    read = []
    real = model.memory.read
    model.memory.read = lambda q, k, v, s: read.append((q, k, s)) or real(q, k, v, s)
    metrics = model(tokens, tokens, segments=2).metrics
    assert metrics["memory/gate"] == pytest.approx(math.tanh(0.5))
    (q, k, s), *_ = read
    nearest = torch.einsum("the,mhe->thm", q[1], k[0]).argmax(-1)
    distance = (24 + torch.arange(24)[:, None] - nearest).double().mean()
    assert float(metrics["memory/distance"]) == pytest.approx(float(distance))
    assert s == 1
    assert not {"memory/gate", "memory/distance"} & model.train()(tokens, tokens, segments=2).metrics.keys()


def test_a_batch_that_is_no_whole_number_of_rows_is_refused(cells, awake, tokens_BT):
    """Caught: no check."""
    with pytest.raises(ValueError, match="5 sequences are no whole number of rows of 2 segments"):
        awake(cells["base"])(tokens_BT, segments=2)
