"""The latent core: R passes, exactly, over a state that depends on the input (property 6)."""

import math
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch

from lahr.model import LAHR
from lahr.model.latent_reasoning import LatentReasoning
from lahr.model.layers import Rotary, Window, rotary_table
from lahr.model.mixture_of_depths import Router
from tests.lahr.model.conftest import FULL, GATE


def make(iterations, seed=0, **options):
    torch.manual_seed(seed)
    latent = LatentReasoning(16, 2, 24, 0.5, iterations, **options).double()
    with torch.no_grad():
        for p in latent.parameters():
            p.copy_(0.3 * torch.randn_like(p))
    rotary = Rotary(*(t.double() for t in rotary_table(10, 8, 10_000.0)))
    return latent, torch.randn(2, 10, 16, dtype=torch.float64), Window(rotary)


@torch.no_grad()
def test_two_passes_equal_two_explicit_calls():
    """Caught: R + 1 passes; norm(e) injected in the first pass only; h started at zero."""
    latent, e, window = make(2)
    decay, injected = latent.decay_logit.sigmoid(), latent.injection * latent.input_norm(e)
    h = latent.core[0](decay * e + injected, window)
    h = latent.core[0](decay * h + injected, window)
    expected = e + latent.readout_norm(h) @ latent.readout.weight.T
    assert (latent(e, window, "causal")[0] - expected).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("iterations", [1, 3, 8])
def test_the_core_runs_as_often_as_it_is_told_and_every_pass_matters(iterations):
    """The published average was 4.04 of 4. Caught: R + 1 passes; every pass starting again from e."""
    latent, e, window = make(iterations)
    states = []
    latent.core[0].register_forward_hook(lambda module, given, h: states.append(h))
    latent(e, window, "causal")[0]
    assert len(states) == iterations
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(states))


@torch.no_grad()
def test_the_state_depends_on_the_input_at_its_token_and_on_earlier_ones():
    """The published thoughts could not. Caught: the state started from a learned constant and nothing injected."""
    latent, e, window = make(3)
    states = []
    latent.core[0].register_forward_hook(lambda module, given, h: states.append(h))
    other = e.clone()
    other[:, 4] += 1.0
    latent(e, window, "causal")[0], latent(other, window, "causal")[0]
    for h, moved in zip(states[:3], states[3:], strict=True):
        change = (h - moved).abs().amax((0, 2))
        assert change[:4].max() < 1e-12
        assert change[4:].min() > 1e-6


@torch.no_grad()
def test_the_decay_stays_between_zero_and_one_and_starts_at_one_half(cells):
    """Caught: the decay used without its sigmoid; the injection started at one."""
    started = LAHR(cells["latent"]).latent
    assert torch.all(started.decay_logit.sigmoid() == 0.5)
    assert torch.all(started.injection == 0.5)
    latent, e, window = make(1)
    given = []
    latent.core[0].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    for value, share in ((60.0, 1.0), (-60.0, 0.0)):
        latent.decay_logit.fill_(value)
        latent(e, window, "causal")[0]
        expected = share * e + latent.injection * latent.input_norm(e)
        assert (given[-1] - expected).abs().max() < 1e-12


@torch.no_grad()
def test_a_pass_adds_the_same_amount_whatever_the_size_of_the_branches_weights():
    """What the norms after the branches are for. Caught: no norm after attention."""
    latent, e, window = make(1)
    results = []
    for _ in range(2):  # both so large that the norms' epsilon is nothing beside them
        latent.core[0].attention.out.weight.mul_(1e5)
        latent.core[0].feed_forward.down.weight.mul_(1e5)
        results.append(latent(e, window, "causal")[0])
    assert (results[0] - results[1]).abs().max() < 1e-9


def states_of(latent, e, window, passes):
    """h_1 … h_R by explicit calls."""
    injected, h, states = latent.injection * latent.input_norm(e), e, []
    for _ in range(passes):
        h = latent.step(h, injected, window)
        states.append(h)
    return states


@torch.no_grad()
def test_a_core_of_several_layers_runs_through_all_of_them_in_each_pass():
    """Caught: only the first layer run."""
    latent, e, window = make(2, layers=3)
    h, injected = e, latent.injection * latent.input_norm(e)
    for _ in range(2):
        h = latent.decay_logit.sigmoid() * h + injected
        for layer in latent.core:
            h = layer(h, window)
    assert (latent(e, window, "causal")[0] - latent.read(e, h)).abs().max() < 1e-12


def test_a_step_runs_the_passes_it_is_given_and_gradients_go_back_eight():
    """Caught: R passes whatever was asked for; no limit to the backpropagation; none of it."""
    latent, e, window = make(3)
    e.requires_grad_()
    for passes in (1, 5, 12):
        y, reasoned = latent(e, window, "causal", passes)
        expected = states_of(latent, e, window, passes)
        assert reasoned.passes == passes
        assert (y - latent.read(e, expected[-1])).abs().max() < 1e-12
        weight = torch.randn_like(y)
        (found,) = torch.autograd.grad((y * weight).sum(), latent.core[0].attention.out.weight)
        h, injected = e, latent.injection * latent.input_norm(e)
        for t in range(passes):
            h = latent.step(h.detach() if t == passes - 8 else h, injected, window)
        (truncated,) = torch.autograd.grad((latent.read(e, h) * weight).sum(), latent.core[0].attention.out.weight)
        assert (found - truncated).abs().max() < 1e-9 * truncated.abs().max()
    (whole,) = torch.autograd.grad(
        (latent.read(e, expected[-1]) * weight).sum(), latent.core[0].attention.out.weight
    )
    assert (found - whole).abs().max() > 1e-6 * whole.abs().max()


def leaving_by_hand(latent, e, passes, leaves):
    """Each token by itself, pass by pass: its state after each, and with which pass it left.

    The keys of a pass are those of the tokens that run it and the last ones of those that left. `leaves(t, i, h)`
    says whether token i leaves after pass t with state h (D,).
    """
    T, D = e.shape
    H, E = latent.core[0].attention.n_heads, D // latent.core[0].attention.n_heads
    table = Rotary(*(t.double() for t in rotary_table(T, E, 10_000.0)))
    h, out = e.clone(), [0] * T
    keys = [torch.zeros(T, 2, H, E, dtype=e.dtype) for _ in latent.core]
    history = []
    for t in range(1, passes + 1):
        inside = [i for i in range(T) if not out[i]]
        x = {i: latent.decay_logit.sigmoid() * h[i] + latent.injection * latent.input_norm(e[i]) for i in inside}
        for layer, kv in zip(latent.core, keys, strict=True):
            queries = {}
            for i in inside:
                qkv = layer.attention.qkv(layer.attention_norm(x[i])).view(1, 1, 3, H, E)
                turned = table.at(torch.tensor([i])).rotate(qkv[:, :, :2])[0, 0]
                queries[i], kv[i] = turned[0], torch.stack((turned[1], qkv[0, 0, 2]))
            for i in inside:
                scores = torch.einsum("he,jhe->hj", queries[i], kv[: i + 1, 0]) / E**0.5
                read = torch.einsum("hj,jhe->he", scores.softmax(-1), kv[: i + 1, 1]).flatten()
                x[i] = x[i] + layer.attention_out_norm(layer.attention.out(read))
                x[i] = x[i] + layer.feed_forward_out_norm(layer.feed_forward(layer.feed_forward_norm(x[i])))
        for i in inside:
            h[i] = x[i]
            if t == passes or leaves(t, i, h[i]):
                out[i] = t
        history.append(h.clone())
    return history, out


def wake(latent):
    """Exits that tell tokens apart."""
    with torch.no_grad():
        latent.exit.weight.copy_(8.0 * torch.randn_like(latent.exit.weight))
        latent.exit.bias.fill_(-0.5)
    return latent


def test_the_exit_reads_a_states_direction_so_that_its_gradient_stays_small():
    """Seen to cost 0.18 nats: a gradient eight times that of all the rest, and clipping by the whole norm. Caught: the
    state itself read."""
    latent, _, _ = make(2, halting="gate")
    wake(latent)
    h = torch.randn(50, 16, dtype=torch.float64)
    assert (latent.exit(h) - latent.exit(1000 * h)).abs().max() < 1e-9
    losses = tuple(torch.randn(2, 50, dtype=torch.float64))
    latent.exit_loss((1000 * h, 1000 * h), losses).backward()
    assert latent.exit.weight.grad.norm() <= 1.0


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_a_token_leaves_by_its_own_exit_and_its_last_keys_serve_the_others(layers):
    """Caught: the mean over tokens decides; keys of tokens that left computed anew; the exit's probability not
    accumulated; a token that left moved on."""
    latent, e, window = make(4, layers=layers, halting="gate", leaves_at=0.6)
    wake(latent).eval()
    y, reasoned = latent(e, window, "causal")
    total = []
    for b in range(len(e)):
        stay = [1.0] * 10

        def leaves(t, i, h, stay=stay):
            stay[i] *= 1 - float(latent.exit(h).sigmoid())
            return 1 - stay[i] >= 0.6

        history, out = leaving_by_hand(latent, e[b], 4, leaves)
        assert (y[b] - latent.read(e[b], history[-1])).abs().max() < 1e-10
        total += out
    assert len(set(total)) >= 3, "the test has to see tokens leave at different passes"
    shares = [total.count(t) / len(total) for t in (1, 2, 3, 4)]
    assert reasoned.exits_R.tolist() == pytest.approx(shares)
    assert float(reasoned.passes) == pytest.approx(sum(total) / len(total))


@torch.no_grad()
def test_act_averages_the_states_of_a_token_by_its_own_halting():
    """Graves 2016. Caught: the last state for the mean; the remainder left out; ε the wrong way round."""
    latent, e, window = make(4, halting="act")
    wake(latent)
    for mode in (latent.train(), latent.eval()):
        y, reasoned = mode(e, window, "causal")
        ponder = []
        for b in range(len(e)):
            sums = [0.0] * 10

            def leaves(t, i, h, sums=sums):
                sums[i] += float(latent.exit(h).sigmoid())
                return sums[i] >= 0.99

            history, out = leaving_by_hand(latent, e[b], 4, leaves)
            assert len(set(out)) >= 2
            for i, n in enumerate(out):
                p = [float(latent.exit(history[t][i]).sigmoid()) for t in range(n)]
                p[-1] = 1 - sum(p[:-1])
                mean = sum(w * history[t][i] for t, w in enumerate(p))
                assert (y[b, i] - latent.read(e[b, i], mean)).abs().max() < 1e-10
                ponder.append(n + p[-1])
        assert float(reasoned.loss) == pytest.approx(sum(ponder) / len(ponder))


def test_acts_ponder_cost_pulls_towards_fewer_passes():
    """Caught: the ponder cost detached, or of the wrong sign."""
    latent, e, window = make(4, halting="act")
    wake(latent)
    latent(e, window, "causal")[1].loss.backward()
    assert latent.exit.bias.grad < 0  # a larger bias leaves earlier, which costs less


def test_the_model_adds_the_ponder_cost_with_its_weight(awake, tokens_BT, targets_BT):
    """Caught: weight 1 whatever was asked for."""
    losses = []
    for weight in (0.0, 0.01, 0.5):
        model = awake(replace(FULL, mod_capacity=1.0, latent_halting="act", latent_ponder=weight)).train()
        given = []
        model.latent.register_forward_hook(
            lambda module, args, result, given=given: given.append(result[1].loss.detach())
        )
        output = model(tokens_BT, targets_BT)
        assert float((output.loss - output.lm_loss).detach()) == pytest.approx(weight * float(given[0]), abs=1e-12)
        losses.append(float(given[0]))
    assert losses[0] > 1


@torch.no_grad()
def test_a_token_leaves_alone_as_it_does_in_a_batch(awake, tokens_BT):
    """Property 6. Caught: the batch's mean probability decides, as in the published code."""
    for options in (GATE, {"latent_halting": "act"}):
        model = awake(replace(FULL, **options))
        together = model(tokens_BT, tokens_BT).metrics
        alone = [model(row[None], row[None]).metrics for row in tokens_BT]
        for name in ("latent/passes", "latent/exit_1", "latent/exit_2", "latent/exit_3"):
            assert float(together[name]) == pytest.approx(sum(float(m[name]) for m in alone) / 5, abs=1e-12)
        assert 1 < together["latent/passes"] < 3


def test_the_exit_learns_to_leave_where_the_next_pass_gains_less_than_gamma():
    """Caught: the gain's sign; the last pass compared; a gradient into the states."""
    latent, _, _ = make(3, halting="gate")
    h = [torch.randn(4, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    losses = tuple(
        torch.tensor(x, dtype=torch.float64) for x in ([3.0, 1, 2, 1], [2.0, 1, 2, 1.02], [2.0, 0.9, 2, 1])
    )
    loss = latent.exit_loss(tuple(h), losses)
    targets = [
        [1 / (1 + math.exp(-50 * (0.005 - (float(a) - float(b))))) for a, b in zip(x, y, strict=True)]
        for x, y in ((losses[0], losses[1]), (losses[1], losses[2]))
    ]
    expected = torch.stack(
        [
            torch.nn.functional.binary_cross_entropy_with_logits(
                latent.exit(x), torch.tensor(t, dtype=torch.float64)
            )
            for x, t in zip(h, targets, strict=False)
        ]
    ).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    loss.backward()
    assert all(x.grad is None for x in h)
    assert latent.exit.weight.grad.abs().max() > 1e-9
    one = latent.exit_loss(tuple(h[:1]), losses[:1])
    assert float(one) == 0.0 and one.requires_grad


def test_the_model_trains_the_exit_by_the_losses_of_its_own_readouts(awake, tokens_BT, targets_BT):
    """Of every eighth token. Caught: the losses of other tokens; the head without its norm; R passes for those run."""
    model = awake(replace(FULL, **GATE, mod_capacity=1.0)).train()
    given = []
    model.latent.register_forward_hook(lambda module, args, result: given.append((args[0], result[1])))
    for passes in (1, 4):
        output = model(tokens_BT, targets_BT, passes=passes)
        e, reasoned = given[-1]
        window = Window(Rotary(model.cos, model.sin))
        states = [h[:, 7::8] for h in states_of(model.latent, e, window, passes)]
        losses = [
            torch.nn.functional.cross_entropy(
                model.norm(model.latent.read(e[:, 7::8], h)).flatten(0, 1) @ model.embedding.weight.T,
                targets_BT[:, 7::8].flatten(),
                reduction="none",
            )
            for h in states
        ]
        expected = model.latent.exit_loss(tuple(h.flatten(0, 1) for h in states), tuple(losses))
        assert float(reasoned.loss) == pytest.approx(float(expected), abs=1e-12)
        assert float(output.loss - output.lm_loss) == pytest.approx(float(expected), abs=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("routing", ["topk", "causal"])
def test_with_a_capacity_only_the_picked_tokens_run_the_deeper_passes(routing):
    """Caught: the second pass from e; the gate on the whole state; the picked tokens seeing those that stayed."""
    router = Router(16, 0.4, "top_k", "sigmoid", False, False)
    latent, e, window = make(3, router=router)
    scores = router.double()(e, "topk").causal_BT
    router.threshold.copy_(scores.median())
    y, reasoned = latent(e, window, routing)
    (first,) = states_of(latent, e, window, 1)
    chosen = reasoned.routed.selected_BT
    assert 0 < chosen.sum() < chosen.numel()
    gate = (first @ router.weight.T).squeeze(-1).sigmoid()
    for b in range(len(e)):
        at = chosen[b].nonzero()[:, 0]
        some = Window(window.rotary.at(at))
        injected, h = latent.injection * latent.input_norm(e[b, at]), first[b, at]
        for _ in range(2):
            h = latent.step(h[None], injected[None], some)[0]
        expected = first[b].clone()
        expected[at] += gate[b, at, None] * (h - first[b, at])
        assert (y[b] - latent.read(e[b], expected)).abs().max() < 1e-12
    assert float(reasoned.passes) == pytest.approx(1 + 2 * float(chosen.double().mean()))


@torch.no_grad()
def test_the_core_stands_where_it_is_told(cells, awake, tokens_BT):
    """Caught: the position ignored; the core run twice."""
    models = [awake(replace(cells["latent"], latent_layer=i)) for i in (None, 0, 1, 2, 3, 4)]
    logits = [model(tokens_BT) for model in models]
    assert torch.equal(logits[0], logits[5])
    assert all((a - b).abs().max() > 1e-6 for a, b in combinations(logits[1:], 2))


@torch.no_grad()
def test_without_blocks_it_is_a_universal_transformer(cells, awake, tokens_BT):
    """Caught: a block built all the same; the core's input not the embedding."""
    model = awake(replace(cells["latent"], n_layers=0))
    assert len(model.blocks) == 0
    e = model.embedding(tokens_BT)
    window = Window(Rotary(model.cos, model.sin))
    h = states_of(model.latent, e, window, 3)[-1]
    expected = model.norm(model.latent.read(e, h)) @ model.embedding.weight.T
    assert (model(tokens_BT) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("passes", [0, -1])
def test_no_passes_at_all_are_refused(passes, awake, cells, tokens_BT):
    """Caught: no check."""
    with pytest.raises(ValueError, match=f"passes is {passes}"):
        awake(cells["latent"])(tokens_BT, passes=passes)
    with pytest.raises(ValueError, match="only for a model with a latent core"):
        awake(cells["base"])(tokens_BT, passes=2)
