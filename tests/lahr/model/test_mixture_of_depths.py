"""Routing: which tokens pass, that skipping equals the dense masked form, and the causal threshold (property 2)."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lahr.model import LAHR
from lahr.model.layers import Block, Rotary, Window, rotary_table
from lahr.model.mixture_of_depths import Routed, RoutedBlock, Router, capacity_tokens, pack, top_k_places
from tests.lahr.model.conftest import OPTIONS

D, H, T = 16, 2, 12


def make(capacity=0.25, gate="sigmoid", seed=0, kind="top_k"):
    """A routed block, the plain block of the same weights, inputs and positions, in float64."""
    torch.manual_seed(seed)
    routed = RoutedBlock(D, H, 24, 1.0, Router(D, capacity, kind, gate, False, False)).double()
    with torch.no_grad():
        for p in routed.parameters():
            p.copy_(0.4 * torch.randn_like(p))
    plain = Block(D, H, 24, 1.0).double()
    plain.load_state_dict({k: v for k, v in routed.state_dict().items() if "router" not in k})  # same names
    rotary = Rotary(*(t.double() for t in rotary_table(T, D // H, 10_000.0)))
    return routed, plain, torch.randn(3, T, D, dtype=torch.float64), rotary


def gate_of(routed, x):
    r = (x @ routed.router.weight.T).squeeze(-1)
    return r.sigmoid() if routed.router.gate == "sigmoid" else r


@torch.no_grad()
@pytest.mark.parametrize("gate", ["sigmoid", "raw"])
@pytest.mark.parametrize("kind", ["top_k", "threshold", "random"])
@pytest.mark.parametrize("routing", ["topk", "causal"])
def test_with_every_token_chosen_it_equals_the_plain_block_scaled_by_the_gate(gate, kind, routing):
    """Caught: the gate left out; the block's whole output scaled and added instead of its branch."""
    routed, plain, x, rotary = make(0.99, gate, kind=kind)
    routed.router.threshold.fill_(-torch.inf)
    y, record = routed(x, Window(rotary), routing)
    assert record.selected_BT.all()
    expected = x + gate_of(routed, x)[..., None] * (plain(x, Window(rotary)) - x)
    assert (y - expected).abs().max() < 1e-12


class Scaled(torch.nn.Module):
    """A plain block whose branch is scaled by the gate of the router that it had."""

    def __init__(self, routed):
        super().__init__()
        self.routed = routed

    def forward(self, x, window):
        return x + gate_of(self.routed, x)[..., None] * (Block.forward(self.routed, x, window) - x)


@pytest.mark.parametrize("routing", ["topk", "causal"])
@pytest.mark.parametrize(("gate", "kind"), [("sigmoid", "top_k"), ("raw", "random"), ("sigmoid", "threshold")])
@pytest.mark.parametrize("cell", ["mod", "mod+latent+memory"])
def test_a_capacity_just_below_one_gates_and_skips_nothing(
    cell, gate, kind, routing, cells, awake, tokens_BT, targets_BT
):
    """In the whole model: logits and gradients. Seen to fail under causal routing while the lowest score of a batch was
    the threshold, which itself and now and then another one do not exceed."""
    length = cells[cell].max_seq_len
    capacity = 1 - 1 / (2 * length)
    assert capacity < 1 and capacity_tokens(capacity, length) == length
    config = replace(cells[cell], mod_capacity=capacity, mod_gate=gate, mod_router=kind)
    model, plain = awake(config), awake(config)
    for i in config.routed_layers:
        plain.blocks[i] = Scaled(plain.blocks[i])
    other_BT = (tokens_BT * 7 + 3) % 61  # tokens that no threshold has seen
    for tokens in (tokens_BT, other_BT):
        metrics = model(tokens, targets_BT, routing=routing).metrics
        assert [metrics[f"mod/capacity_layer{i}"] for i in (1, 3)] == [1.0, 1.0]
        assert (model(tokens, routing=routing) - plain(tokens)).abs().max() < 1e-12
    for m in (model, plain):
        m(other_BT, targets_BT, routing=routing).lm_loss.backward()
    ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    theirs = {n.replace(".routed", ""): p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert all((ours[n] - theirs[n]).abs().max() < 1e-12 for n in ours)


@torch.no_grad()
@pytest.mark.parametrize("routing", ["topk", "causal"])
def test_gathering_equals_the_dense_form_with_a_mask_over_the_positions(routing):
    """Caught: places not sorted; rotary positions of the places instead of the tokens; padding not masked;
    gates of the first places instead of the chosen tokens."""
    routed, plain, x, rotary = make(0.4)
    logits = routed.router(x, "causal").causal_BT
    routed.router.threshold.copy_(logits.flatten().median())
    y, record = routed(x, Window(rotary), routing)
    chosen = record.selected_BT
    assert 0 < chosen.sum() < chosen.numel()

    qkv = plain.attention.qkv(plain.attention_norm(x)).view(3, T, 3, H, D // H)
    q, k, v = rotary.rotate(qkv[:, :, 0]), rotary.rotate(qkv[:, :, 1]), qkv[:, :, 2]
    visible = torch.ones(T, T, dtype=torch.bool).tril() & chosen[:, None, :]
    visible = visible | torch.eye(T, dtype=torch.bool)  # a token not chosen must see something; it is thrown away
    attended = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=visible[:, None]
    )
    a = x + plain.attention.out(attended.transpose(1, 2).reshape(3, T, D))
    delta = a + plain.feed_forward(plain.feed_forward_norm(a)) - x
    expected = x + (gate_of(routed, x) * chosen)[..., None] * delta
    assert (y - expected).abs().max() < 1e-12


@torch.no_grad()
def test_a_token_that_is_not_chosen_passes_unchanged_to_the_bit():
    """Caught: padding places added with a weight; the residual scaled for all tokens."""
    routed, _, x, rotary = make(0.25)
    for threshold in (torch.inf, float(routed.router(x, "causal").causal_BT.median())):
        routed.router.threshold.fill_(threshold)
        y, record = routed(x, Window(rotary), "causal")
        assert torch.equal(y[~record.selected_BT], x[~record.selected_BT])
        moved = (y != x).any(-1)
        assert torch.equal(moved, record.selected_BT)


@given(length=st.integers(1, 40), capacity=st.floats(0.01, 0.99), seed=st.integers(0, 999))
def test_exactly_k_tokens_of_the_highest_scores_are_chosen_and_packed_in_order(length, capacity, seed):
    """Caught: floor for ceiling; the lowest scores; places in a random order."""
    k = capacity_tokens(capacity, length)
    assert 1 <= k <= length
    assert k - 1 < capacity * length <= k + 1e-8
    scores = torch.rand(3, length, generator=torch.Generator().manual_seed(seed))
    places = top_k_places(scores, k)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, True)
    assert torch.equal(mask.sum(1), torch.full((3,), k))
    assert all(scores[b][mask[b]].min() >= scores[b][~mask[b]].max() for b in range(3) if k < length)
    assert torch.equal(places, mask.nonzero()[:, 1].view(3, k))
    packed, real = pack(mask, k)
    assert real.all() and torch.equal(packed, places)


def test_the_capacity_is_not_fooled_by_rounding():
    """Caught: a plain ⌈c·T⌉, which gives 8 for 0.07 of 100."""
    assert [capacity_tokens(c, 100) for c in (0.07, 0.29, 0.125, 0.01)] == [7, 29, 13, 1]


@given(mask=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4))
def test_packing_puts_the_chosen_first_and_says_which_they_are(mask):
    """Caught: the places' truth read before sorting."""
    chosen = torch.tensor(mask)
    width = max(int(chosen.sum(1).max()), 1)
    places, real = pack(chosen, width)
    for b in range(len(mask)):
        assert places[b][real[b]].tolist() == chosen[b].nonzero()[:, 0].tolist()
        assert real[b].tolist() == sorted(real[b].tolist(), reverse=True)


@given(batch=st.integers(1, 5), length=st.integers(2, 30), capacity=st.floats(0.05, 0.9), seed=st.integers(0, 999))
def test_an_observed_batch_passes_its_threshold_at_the_capacity_in_any_order(batch, length, capacity, seed):
    """Caught: the c quantile for 1 − c; the quantile of the first sequence alone; the start averaged in."""
    logits = torch.randn(batch, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    router, shuffled = (Router(D, capacity, "top_k", "sigmoid", False, False).double() for _ in range(2))
    router.observe(logits)
    passing = batch * capacity_tokens(capacity, length)
    assert int((logits > router.threshold).sum()) == passing
    order = torch.randperm(batch * length, generator=torch.Generator().manual_seed(seed))
    shuffled.observe(logits.flatten()[order].view(batch, length))
    assert torch.equal(router.threshold, shuffled.threshold)


def test_the_threshold_is_a_running_average():
    """Caught: momentum on the new value; the counter never raised."""
    router = Router(D, 0.5, "top_k", "sigmoid", False, False).double()
    start = router.threshold.clone()
    assert start == pytest.approx(0.0, abs=1e-12)  # the base rate of one half, as a logit
    expected = None
    for step in range(5):
        logits = torch.arange(10, dtype=torch.float64).view(2, 5) + 10 * step  # the 4th of ten is exceeded by six
        router.observe(logits)
        seen = 10 * step + 3.0
        expected = seen if expected is None else 0.9 * expected + 0.1 * seen
        assert float(router.threshold) == pytest.approx(expected, abs=1e-9)
    assert int(router.observations) == 5


def test_the_model_hands_each_layer_its_own_logits(cells, awake, tokens_BT, targets_BT):
    """Caught: all layers observing the first one's logits; thresholds not in the state."""
    model = awake(cells["mod"])
    output = model.train()(tokens_BT, targets_BT)
    assert output.causal_scores_LBT.shape == (2, *tokens_BT.shape)
    assert not output.causal_scores_LBT.requires_grad
    offsets = torch.tensor([100.0, -100.0], dtype=torch.float64)[:, None, None]
    for _ in range(60):
        model.observe(output.causal_scores_LBT + offsets)
    state = model.state_dict()
    assert 80 < state["blocks.1.router.threshold"] < 120
    assert -120 < state["blocks.3.router.threshold"] < -80


def record(causal_BT, scores_BT, selected_BT, top_k_BT, threshold):
    none = torch.zeros(())
    return Routed(selected_BT, none, none, none, {}, scores_BT, causal_BT, top_k_BT, torch.tensor(threshold))


def test_metrics_of_constant_inputs_are_exact():
    """Caught: a sum over each sequence for the mean; entropy in bits; the scores compared with the threshold."""
    some = torch.arange(8).view(2, 4) % 4 == 0
    zero = torch.zeros(2, 4)
    half = record(zero, zero, some, some, 1.0).metrics()
    assert half["capacity"] == 0.25
    assert half["agreement"] == 0.75  # nothing exceeds the threshold, a quarter should
    assert half["entropy"] == pytest.approx(math.log(2), abs=1e-7)
    sure = record(some.float(), zero + 100.0, some | True, some, 0.5).metrics()
    assert [float(sure[k]) for k in ("capacity", "agreement")] == [1.0, 1.0]
    assert sure["entropy"] < 1e-40


def test_the_model_reports_the_capacity_of_the_routing_used(cells, awake, tokens_BT, targets_BT):
    """Caught: the top-k share reported under causal routing; metrics summed over layers."""
    model = awake(cells["mod"])
    top_k = model(tokens_BT, targets_BT, routing="topk").metrics
    assert top_k["mod/capacity_layer1"] == top_k["mod/capacity_layer3"] == 0.25
    model.blocks[1].router.threshold.fill_(-torch.inf)
    model.blocks[3].router.threshold.fill_(torch.inf)
    causal = model(tokens_BT, targets_BT).metrics
    assert (causal["mod/capacity_layer1"], causal["mod/capacity_layer3"]) == (1.0, 0.0)
    assert causal["mod/agreement"] == 0.5  # all pass where a quarter should, none where a quarter should


def test_a_threshold_router_chooses_by_its_own_score_in_training_and_at_evaluation(cells, awake, tokens_BT):
    """Caught: top-k in training; a predictor built all the same; the threshold never observed."""
    model = awake(replace(cells["mod"], mod_router="threshold"))
    assert not any("predictor" in name for name, _ in model.named_parameters())
    chosen = []
    for block in (model.blocks[1], model.blocks[3]):
        block.router.register_forward_hook(lambda module, given, routed: chosen.append((module, given[0], routed)))
    for mode in (model.train(), model.eval()):
        mode(tokens_BT)
    for router, x, routed in chosen:
        scores = (x @ router.weight.T).squeeze(-1)
        assert torch.equal(routed.selected_BT, scores > router.threshold)
        assert torch.equal(routed.causal_BT, scores)
        assert 0 < routed.selected_BT.sum() < tokens_BT.numel()
    assert torch.equal(chosen[0][2].selected_BT, chosen[2][2].selected_BT)


def test_a_threshold_router_keeps_to_its_capacity_as_the_scores_move(cells, tokens_BT, targets_BT):
    """Caught: the threshold left where it started; the c quantile for 1 − c."""
    model = LAHR(replace(cells["mod"], mod_router="threshold"), seed=1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    shares = []
    for _ in range(30):
        seen = []
        handle = model.blocks[1].router.register_forward_hook(
            lambda module, given, routed, seen=seen: seen.append(float(routed.selected_BT.float().mean()))
        )
        output = model(tokens_BT, targets_BT)
        handle.remove()
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        model.observe(output.causal_scores_LBT)
        shares += seen
    assert abs(sum(shares[-10:]) / 10 - 0.25) < 0.05
    assert abs(shares[0] - 0.25) > 0.05, "the start must be off, or nothing was learnt"


def test_a_random_router_chooses_and_stays_as_it_started(cells, awake, tokens_BT, targets_BT):
    """The control. Caught: a weight that learns; a start other than the learned router's."""
    random, learned = (LAHR(replace(cells["mod"], mod_router=kind), 3).train() for kind in ("random", "top_k"))
    assert torch.equal(random.blocks[1].router.weight, learned.blocks[1].router.weight)
    assert torch.equal(random(tokens_BT), learned(tokens_BT))
    random(tokens_BT, targets_BT).loss.backward()
    assert random.blocks[1].router.weight.grad is None
    assert all(p.grad is not None for n, p in random.named_parameters() if not n.endswith("router.weight"))


@given(
    scores=st.lists(st.lists(st.floats(-9, 9), min_size=6, max_size=6), min_size=1, max_size=3),
    capacity=st.sampled_from([0.125, 0.5, 0.7]),
)
def test_balance_and_z_losses_are_those_of_a_softmax_over_two_experts(scores, capacity):
    """Fedus et al. 2021, eq. 4; Zoph et al. 2022, eq. 5. Caught: counts of the k chosen, which are constant; shares
    over the batch; log Z not squared."""
    router = Router(D, capacity, "top_k", "sigmoid", True, True).double()
    r = torch.tensor(scores, dtype=torch.float64)
    found = router._score_losses(r)
    balance, z = [], []
    for row in scores:
        block = [math.exp(x / 2) / (math.exp(x / 2) + math.exp(-x / 2)) for x in row]
        f = sum(x > 0 for x in row) / 6
        p = sum(block) / 6
        balance.append(f * p / capacity + (1 - f) * (1 - p) / (1 - capacity))
        z += [math.log(math.exp(x / 2) + math.exp(-x / 2)) ** 2 for x in row]
    assert float(found["balance"]) == pytest.approx(sum(balance) / len(balance), rel=1e-9)
    assert float(found["z"]) == pytest.approx(sum(z) / len(z), rel=1e-9)


def test_the_balance_loss_pulls_the_share_towards_the_capacity_and_the_z_loss_the_scores_to_zero():
    """Caught: the weights c and 1 − c exchanged; the sign."""
    router = Router(D, 0.125, "top_k", "sigmoid", True, True).double()
    for offset, sign in ((2.0, 1), (-9.0, -1)):
        r = (torch.linspace(-1, 1, 16, dtype=torch.float64) + offset)[None].requires_grad_()
        losses = router._score_losses(r)
        (balance,) = torch.autograd.grad(losses["balance"], r, retain_graph=True)
        (z,) = torch.autograd.grad(losses["z"], r)
        assert balance.sign().eq(sign).all()
        assert z.sign().eq(sign).all()


def test_the_model_adds_the_router_losses_with_their_weights(cells, awake, tokens_BT, targets_BT):
    """Caught: a loss of one layer alone; the weights exchanged; added at weight 0."""
    config = replace(cells["mod"], mod_balance_loss=0.3, mod_z_loss=0.02)
    model = awake(config).train()
    output = model(tokens_BT, targets_BT)
    own = [model.blocks[i].router for i in (1, 3)]
    losses = []
    for router in own:
        router.register_forward_hook(lambda module, given, routed: losses.append(routed.losses))
    model(tokens_BT, targets_BT)
    expected = sum(x["predictor"] + 0.3 * x["balance"] + 0.02 * x["z"] for x in losses)
    assert float(output.loss - output.lm_loss) == pytest.approx(float(expected), rel=1e-12)
    assert float(output.metrics["mod/z_loss"]) == pytest.approx(float(sum(x["z"] for x in losses)) / 2)
    plain = awake(cells["mod"]).train()(tokens_BT, targets_BT)
    assert not {"mod/z_loss", "mod/balance_loss"} & plain.metrics.keys()


def test_two_expert_losses_are_the_same_however_a_batch_is_split(awake, tokens_BT, targets_BT):
    """So that ranks and micro-batches agree. Caught: f and P over the whole batch."""
    model = awake(OPTIONS["router losses"]).train()
    whole = model(tokens_BT, targets_BT).loss
    parts = [model(tokens_BT[b : b + 1], targets_BT[b : b + 1]).loss for b in range(5)]
    assert float(whole) == pytest.approx(float(sum(parts)) / 5, abs=1e-12)


def noisy(noise: float, kind="top_k", gate="sigmoid") -> Router:
    """A router that has the same weights whatever its noise."""
    torch.manual_seed(3)
    router = Router(D, 0.25, kind, gate, False, False, noise).double()
    with torch.no_grad():
        for p in router.parameters():
            p.copy_(torch.randn_like(p))
    return router


@pytest.mark.parametrize("gate", ["sigmoid", "raw"])
def test_noise_decides_who_passes_in_training_and_nothing_else(gate):
    """Gates, scores and their losses have none, and the predictor learns what was picked. Caught: a gate of the noisy
    score; noise in evaluation; noise in units of nats."""
    router, plain = noisy(1.0, gate=gate), noisy(0.0, gate=gate)
    x_BTD = torch.randn(8, 40, D, dtype=torch.float64)
    expected = plain(x_BTD, "topk")
    picked = [router(x_BTD, "topk") for _ in range(4)]
    assert len({tuple(routed.selected_BT.flatten().tolist()) for routed in picked}) == 4
    for routed in picked:
        assert (routed.selected_BT.sum(1) == 10).all() and torch.equal(routed.selected_BT, routed.top_k_BT)
        assert not torch.equal(routed.selected_BT, expected.selected_BT)
        assert torch.equal(routed.scores_BT, expected.scores_BT)
        gates = expected.scores_BT.sigmoid() if gate == "sigmoid" else expected.scores_BT
        assert torch.equal(routed.gate_BK, gates.gather(1, routed.places_BK))
        target = routed.selected_BT.double()
        loss = F.binary_cross_entropy_with_logits(routed.causal_BT, target)
        assert torch.allclose(routed.losses["predictor"], loss, rtol=1e-12)
    for routing in ("topk", "causal"):
        ours, theirs = router.eval()(x_BTD, routing), plain.eval()(x_BTD, routing)
        assert torch.equal(ours.selected_BT, theirs.selected_BT) and torch.equal(ours.gate_BK, theirs.gate_BK)
    # In units of the scores' own spread: the size of the scores does not change how many are picked otherwise.
    with torch.no_grad():
        router.train().weight.mul_(1000)
    torch.manual_seed(5)
    large = router(x_BTD, "topk").selected_BT
    with torch.no_grad():
        router.weight.div_(1000)
    torch.manual_seed(5)
    assert (router(x_BTD, "topk").selected_BT != large).sum() <= 4  # rounding may swap two


def test_little_noise_swaps_only_neighbours_and_much_picks_at_random():
    x_BTD = torch.randn(50, 40, D, dtype=torch.float64)
    expected = noisy(0.0)(x_BTD, "topk").selected_BT
    shared = {noise: (noisy(noise)(x_BTD, "topk").selected_BT & expected).sum() / 500 for noise in (0.01, 0.5, 1e6)}
    assert shared[0.01] > 0.97 > shared[0.5] > 0.5
    assert abs(shared[1e6] - 0.25) < 0.06


def test_no_noise_draws_nothing():
    """To the bit what there was without the option, and no random number is taken for it."""
    state = torch.get_rng_state()
    router = noisy(0.0)
    x_BTD = torch.randn(3, 12, D, dtype=torch.float64)
    torch.set_rng_state(state)
    routed = router(x_BTD, "topk")
    assert torch.equal(torch.get_rng_state(), state)
    scores_BT = F.linear(x_BTD, router.weight).squeeze(-1)
    assert torch.equal(routed.places_BK, top_k_places(scores_BT, 3))
    router = noisy(1.0).eval()
    torch.set_rng_state(state)
    router(x_BTD, "topk")
    assert torch.equal(torch.get_rng_state(), state)
