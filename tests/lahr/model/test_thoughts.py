"""Thoughts are what their definition says, computed once each; the arms differ in what they should and in no more."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lahr.errors import ConfigError
from lahr.model import LAHR
from lahr.model.cache import Cache
from lahr.model.flops import flops_per_token, parameter_counts
from lahr.model.layers import Rotary, Window
from lahr.model_config import ModelConfig

THOUGHT, START = 7, 8
T = 20
PLAIN = ModelConfig(vocab_size=40, d_model=16, n_layers=2, n_heads=2, max_seq_len=24)
ARMS = {arm: replace(PLAIN, thoughts=arm, thought_token=THOUGHT) for arm in ("sequential", "recycled", "blank")}
VARIANTS = ARMS | {
    "recycled, normalised": replace(ARMS["recycled"], qk_norm=True),
    "recycled, one layer": replace(ARMS["recycled"], n_layers=1),
}
PLACES = ([5, 6, 7], [9, 10, 11], [5, 6], [], [0, 1], [2, 3, 12, 13, 14], [19])
"""Thoughts of each sequence: in other places and numbers, none, from the first token on, in two runs, at the end."""
EXACT = 1e-10


@pytest.fixture(scope="module")
def tokens_BT():
    tokens_BT = torch.randint(10, 40, (len(PLACES), T), generator=torch.Generator().manual_seed(3))
    for b, places in enumerate(PLACES):
        tokens_BT[b, places] = THOUGHT
    return tokens_BT


def build(config, seed=0):
    """In float64, with nothing at its start."""
    model, generator = LAHR(config, seed).double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def hidden(model, e_BTD, start=0):
    """The final states of those inputs, in one pass of a plain transformer, at positions from `start` on."""
    end = start + e_BTD.shape[1]
    window = Window(Rotary(model.cos[start:end], model.sin[start:end]))
    for block in model.blocks:
        e_BTD = block(e_BTD, window)
    return model.norm(e_BTD)


def naive(model, tokens_BT):
    """The definition: the whole computed again for every thought, left to right; each sequence by itself."""
    states = []
    for tokens_T in tokens_BT:
        e_TD = list(model.embedding(tokens_T))
        for t in range(1, len(e_TD)):
            if tokens_T[t] == THOUGHT:
                e_TD[t] = hidden(model, torch.stack(e_TD)[None])[0, t - 1]
        states.append(hidden(model, torch.stack(e_TD)[None])[0])
    return torch.stack(states) @ model.embedding.weight.T


def gradients(model, logits_BTV):
    """Of a fixed random sum of all logits."""
    weights = torch.randn(logits_BTV.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.autograd.grad((weights * logits_BTV).sum(), list(model.parameters()))


def same(xs, ys):
    return all(
        (x - y).abs().max() < EXACT * max(1.0, float(y.detach().abs().max())) for x, y in zip(xs, ys, strict=True)
    )


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("recycled")])
def test_recycled_thoughts_equal_their_definition_with_all_gradients(name, tokens_BT):
    """Caught: the state before the final norm; keys detached; a padded token's state taken for a thought; the state
    of the token itself for that before it."""
    model = build(VARIANTS[name])
    ours, wanted = model(tokens_BT), naive(model, tokens_BT)
    assert same([ours], [wanted])
    assert same(gradients(model, ours), gradients(model, wanted))


def test_the_loss_and_its_gradient_are_those_of_the_logits(tokens_BT):
    model = build(ARMS["recycled"]).train()
    targets_BT = tokens_BT.roll(-1, 1)
    output = model(tokens_BT, targets_BT)
    loss = F.cross_entropy(naive(model, tokens_BT).flatten(0, 1), targets_BT.flatten())
    assert float(output.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-12)
    output.loss.backward()
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    assert same([p.grad for p in model.parameters()], wanted)


def test_pause_tokens_in_passes_are_pause_tokens_in_one_pass(tokens_BT):
    """Under causal attention when a token is computed changes nothing: the sequential arm controls cost alone.
    Caught: a later pass that does not see an earlier one's keys; positions counted within the pass."""
    sequential, pause = build(ARMS["sequential"]), build(replace(PLAIN, thoughts="pause"))
    ours, wanted = sequential(tokens_BT), pause(tokens_BT)
    assert same([ours], [wanted])
    assert same(gradients(sequential, ours), gradients(pause, wanted))
    assert not same([build(ARMS["recycled"])(tokens_BT)], [wanted])


def test_thoughts_that_are_off_are_absent(tokens_BT):
    """To the bit, whatever the token's id; a name for the study's sake, and one identity. Caught: `pause` in passes."""
    off, pause = (replace(PLAIN, thoughts=arm, thought_token=THOUGHT) for arm in ("none", "pause"))
    plain = LAHR(PLAIN)
    for config in (off, pause):
        model = LAHR(config)
        assert torch.equal(model(tokens_BT), plain(tokens_BT))
    assert off.settled() == PLAIN
    assert pause.settled() == replace(PLAIN, thoughts="pause")
    assert ARMS["recycled"].settled() == ARMS["recycled"]
    for config in ARMS.values():  # no parameter of its own, and the same start
        state = LAHR(config).state_dict()
        assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
        assert state.keys() == plain.state_dict().keys()
        assert parameter_counts(config) == parameter_counts(PLAIN)


def without_thoughts(tokens_BT):
    return torch.where(tokens_BT == THOUGHT, 9, tokens_BT)


@pytest.mark.parametrize("arm", ARMS)
def test_text_without_thoughts_is_read_as_by_a_plain_model(arm, tokens_BT):
    """Caught: `blank` where nothing is a thought."""
    plain, thinking = build(PLAIN), build(ARMS[arm])
    assert same([thinking(without_thoughts(tokens_BT))], [plain(without_thoughts(tokens_BT))])


@torch.no_grad()
@pytest.mark.parametrize("arm", ARMS)
def test_no_logit_before_a_change_moves(arm, tokens_BT):
    """Caught: `visible` one place late; a pass's padding that is seen."""
    model = build(ARMS[arm])
    before = model(tokens_BT)
    for t in (1, 6, 12, 19):
        changed = torch.cat((tokens_BT[:, :t], torch.where(tokens_BT[:, t:] == 39, 38, 39)), 1)
        after = model(changed)
        assert (after - before)[:, :t].abs().max() < EXACT
        assert (after - before)[:, t:].abs().amax(-1).min() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("arm", ARMS)
def test_a_sequence_gives_the_same_logits_alone_and_in_any_batch(arm, tokens_BT):
    """Caught: the state that a thought takes read at the batch's longest part; padding's keys not hidden."""
    model = build(ARMS[arm])
    together = model(tokens_BT)
    order = torch.tensor([3, 0, 5])
    assert (model(tokens_BT[order]) - together[order]).abs().max() < EXACT
    for b in range(len(tokens_BT)):
        assert (model(tokens_BT[b : b + 1]) - together[b]).abs().max() < EXACT


@pytest.mark.parametrize(("arm", "carries"), [("recycled", True), ("sequential", False), ("blank", False)])
def test_what_a_thought_is_given_depends_on_the_question_where_it_is_recycled_and_nowhere_else(
    arm, carries, monkeypatch
):
    """Gradients reach the question's embeddings through the inputs of thoughts. Caught: the state detached; `blank`
    reading the whole sequence."""
    from lahr.model import lahr as module

    given = []
    real_think = module.think

    def think(stack, x_BTD, *rest):
        x_BTD = x_BTD.detach().requires_grad_()

        def noting(e_BKD, window):
            if e_BKD.shape[1] in (1, T):  # a pass of one thought; the whole of `blank`
                given.append((x_BTD, e_BKD[:, 6 if e_BKD.shape[1] == T else 0]))
            return stack(e_BKD, window)

        return real_think(noting, x_BTD, *rest)

    monkeypatch.setattr(module, "think", think)
    tokens_1T = torch.randint(10, 40, (1, T))
    tokens_1T[0, 5:8], tokens_1T[0, 4] = THOUGHT, START
    model = build(ARMS[arm])
    model(tokens_1T)
    x_BTD, e_BD = given[1] if arm != "blank" else given[-1]
    (gradient,) = torch.autograd.grad(e_BD.square().sum(), x_BTD, allow_unused=True)
    question = torch.zeros(()) if gradient is None else gradient[:, :4].abs().max()
    assert (question > 1e-6) == carries
    if arm == "blank":  # it does depend on the token before the thoughts, and is no pause token
        assert gradient[:, 4].abs().max() > 1e-6


@torch.no_grad()
def test_blank_thoughts_are_those_of_the_marker_alone(tokens_BT):
    """Written out: recycled after the token before them only, then given to the whole. Caught: the token's own
    embedding left in."""
    model = build(ARMS["blank"])
    tokens_T = tokens_BT[0]  # thoughts at 5, 6, 7
    e_TD = model.embedding(tokens_T).clone()
    short_D = [e_TD[4], *e_TD[5:8]]
    for t in (1, 2, 3):
        short_D[t] = hidden(model, torch.stack(short_D)[None], start=4)[0, t - 1]
    e_TD[5:8] = torch.stack(short_D[1:])
    wanted = hidden(model, e_TD[None])[0] @ model.embedding.weight.T
    assert same([model(tokens_BT[:1])[0]], [wanted])


@torch.no_grad()
@pytest.mark.parametrize("arm", ["sequential", "recycled"])
@pytest.mark.parametrize("chunk", [1, 3, 8, T])
def test_decoding_with_caches_equals_the_full_pass(arm, chunk, tokens_BT):
    """Caught: the state before the chunk forgotten; a chunk's passes given the same positions."""
    model, cache = build(ARMS[arm]).eval(), Cache()
    pieces = [model(piece, cache=cache) for piece in tokens_BT.split(chunk, 1)]
    assert (torch.cat(pieces, 1) - model(tokens_BT)).abs().max() < EXACT


@torch.no_grad()
def test_left_padded_prompts_decode_as_alone(tokens_BT):
    """Caught: padding that is a thought counted as one; a padded sequence's state taken from its padding."""
    model = build(ARMS["recycled"]).eval()
    lengths = (12, 9, 20)
    padded_BT = torch.full((3, T), THOUGHT)
    real_BT = torch.zeros(3, T, dtype=torch.bool)
    for b, length in enumerate(lengths):
        padded_BT[b, -length:], real_BT[b, -length:] = tokens_BT[b, :length], True
    cache = Cache()
    first = model(padded_BT[:, :15], cache=cache, real_BT=real_BT[:, :15])
    more_BT, real_BT = (
        F.pad(x_BT[:, 15:], (1, 0), value=v) for x_BT, v in ((padded_BT, THOUGHT), (real_BT, False))
    )
    ours = torch.cat((first, model(more_BT, cache=cache, real_BT=real_BT)[:, 1:]), 1)
    for b, length in enumerate(lengths):
        alone = model(tokens_BT[b : b + 1, :length])[0]
        assert (ours[b, -length:] - alone).abs().max() < EXACT


def test_blank_thoughts_refuse_a_cache(tokens_BT):
    with pytest.raises(ValueError, match="'blank' know no cache"):
        build(ARMS["blank"]).eval()(tokens_BT, cache=Cache())


def test_each_token_is_computed_once():
    """The formula's cost but for attention, whose passes multiply with the keys so far. Caught: the question computed
    again in each pass; the padded batch computed in each pass."""
    config = replace(ARMS["recycled"], max_seq_len=T)
    tokens_BT = torch.full((3, T), 9)
    tokens_BT[:, 8:12] = THOUGHT
    model = LAHR(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens_BT)
    widths = (8, 1, 1, 1, T - 11)
    keys = sum(width * sum(widths[: i + 1]) for i, width in enumerate(widths))
    attention = 4 * config.d_model * config.n_layers * keys / T
    formula = sum(flops_per_token(config, "counter").values()) - 4 * config.d_model * config.n_layers * T
    assert counter.get_total_flops() / tokens_BT.numel() == pytest.approx(formula + attention, rel=1e-9)
    assert flops_per_token(config) == flops_per_token(replace(PLAIN, max_seq_len=T))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thoughts": "recycled"}, "thoughts is 'recycled' and thought_token is not given; give the id"),
        ({"thoughts": "recycled", "thought_token": 40}, "thought_token is 40; .* 0 to 39"),
        ({"thoughts": "pause", "thought_token": -1}, "thought_token is -1; .* 0 to 39"),
        (
            {"thoughts": "blank", "thought_token": 1, "mod_capacity": 0.5},
            "'blank' and mod is on; .*give mod_capacity 1",
        ),
        (
            {"thoughts": "sequential", "thought_token": 1, "latent_iterations": 2},
            "'sequential' and latent is on; .*give latent_iterations 0, or thoughts pause",
        ),
        ({"thoughts": "recycled", "thought_token": 1, "memory_slots": 64}, "memory is on; .*give memory_slots 0"),
    ],
)
def test_thoughts_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(PLAIN, **changes)


def test_pause_goes_with_every_mechanism():
    replace(PLAIN, thoughts="pause", mod_capacity=0.5, latent_iterations=2, memory_slots=64)


def test_gradients_stay_finite_in_many_passes():
    """Twelve thoughts, where one part of a pass is mostly padding."""
    config = replace(ARMS["recycled"], max_seq_len=T)
    tokens_BT = torch.full((2, T), 9)
    tokens_BT[0, 4:16], tokens_BT[1, 18:] = THOUGHT, THOUGHT
    model = LAHR(config).train()
    model(tokens_BT, tokens_BT).loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())
