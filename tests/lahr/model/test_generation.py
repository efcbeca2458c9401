"""Decoding with caches equals the full forward pass (property 7), and how tokens are drawn."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lahr.model import LAHR
from lahr.model.cache import Cache
from lahr.model.generation import Sampling, generate, lay_out, left_padded
from tests.lahr.model.conftest import FULL, GATE, models
from tests.lahr.model.test_causality import EXACT


def in_chunks(model, tokens_BT, cuts, real_BT=None):
    """Logits of a sequence given to a cache piece by piece, and that cache."""
    cache, parts = Cache(), []
    for start, end in zip([0, *cuts], [*cuts, tokens_BT.shape[1]], strict=True):
        real = None if real_BT is None else real_BT[:, start:end]
        parts.append(model(tokens_BT[:, start:end], cache=cache, real_BT=real))
    return torch.cat(parts, 1), cache


@torch.no_grad()
@pytest.mark.parametrize("cuts", [list(range(1, 24)), [5, 6, 7, 15], [23]])
def test_decoding_with_caches_equals_the_full_forward_pass(every, cuts, awake, tokens_BT):
    """Caught: keys cached before they are turned by their positions; tokens that are not routed cached; the last keys
    of tokens that left not kept for deeper passes; one cache for all passes."""
    model = awake(every)
    assert (in_chunks(model, tokens_BT, cuts)[0] - model(tokens_BT)).abs().max() < EXACT


@torch.no_grad()
def test_left_padded_batches_decode_as_each_sequence_alone(every, awake, tokens_BT):
    """Prompts of 24, 20, 3, 11 and 1 tokens. Caught: padding cached; positions counted from the padding's start;
    padding routed."""
    model = awake(every)
    lengths = [24, 20, 3, 11, 1]
    padded_BT, real_BT = left_padded([row[:n].tolist() for row, n in zip(tokens_BT, lengths, strict=True)])
    for cuts in ([20], [4, 12, 22, 23], list(range(1, 24))):
        logits, _ = in_chunks(model, padded_BT, cuts, real_BT)
        for b, n in enumerate(lengths):
            alone = model(tokens_BT[b : b + 1, :n])[0]
            assert (logits[b, 24 - n :] - alone).abs().max() < EXACT


def test_weights_laid_out_for_decoding_are_the_same_weights(awake, tokens_BT):
    """Caught: a weight that is transposed, and one that is still laid out by rows."""
    model = awake(FULL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        logits = model(tokens_BT)
        lay_out(model)
        assert (model(tokens_BT) - logits).abs().max() < EXACT
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.blocks[0].attention.qkv.weight.t().is_contiguous()
    assert model.embedding.weight.t().is_contiguous()


@settings(max_examples=60)
@given(config=models(), lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4), data=st.data())
def test_decoding_is_exact_in_models_drawn_at_random(config, lengths, data):
    """Caught: the places of a routed chunk taken for its positions."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    model = LAHR(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for _, router in model.routers:
            router.threshold.fill_(data.draw(st.floats(-1, 1)))
        model.eval()
        sequences = [torch.randint(61, (n,)).tolist() for n in lengths]
        padded_BT, real_BT = left_padded(sequences)
        T = padded_BT.shape[1]
        cuts = sorted(data.draw(st.sets(st.integers(1, max(T - 1, 1)), max_size=6)) - {T})
        logits, _ = in_chunks(model, padded_BT, cuts, real_BT)
        for b, sequence in enumerate(sequences):
            alone = model(torch.tensor([sequence]))[0]
            assert (logits[b, T - len(sequence) :] - alone).abs().max() < EXACT


def kept(cache, name):
    """How many tokens of each sequence are in that store; its first column is for none."""
    return (cache.stores[name].k_BHME[:, :, 1:] != 0).any(-1).any(1).sum(1)


@torch.no_grad()
def test_routed_layers_cache_routed_tokens_only_and_each_pass_has_a_cache(cells, awake, tokens_BT):
    """Caught: all tokens kept in routed layers."""
    model = awake(cells["mod+latent"])
    passed = {}
    for i in (1, 3):
        model.blocks[i].router.register_forward_hook(
            lambda module, given, routed, i=i: passed.setdefault(i, []).append(routed.selected_BT.sum(1))
        )
    _, cache = in_chunks(model, tokens_BT, list(range(1, 24)))
    for i in (1, 3):
        assert torch.equal(kept(cache, f"block{i}"), torch.stack(passed[i]).sum(0))
        assert 0 < kept(cache, f"block{i}").sum() < tokens_BT.numel()
    whole = {name for name in cache.stores if torch.all(kept(cache, name) == 24)}
    assert whole == {"block0", "block2", *(f"latent/pass{t}/layer0" for t in (1, 2, 3))}
    assert cache.stores.keys() == whole | {"block1", "block3"}


@torch.no_grad()
def test_with_a_latent_capacity_the_deeper_passes_cache_the_picked_tokens_only(awake, tokens_BT):
    """Caught: the second pass's keys kept for all."""
    model = awake(replace(FULL, latent_capacity=0.3))
    _, cache = in_chunks(model, tokens_BT, [7, 20])
    counts = [int(kept(cache, f"latent/pass{t}/layer0").sum()) for t in (1, 2, 3)]
    assert counts[0] == tokens_BT.numel() > counts[1] == counts[2] > 0


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, GATE, {"latent_halting": "act"}], ids=["none", "gate", "act"])
def test_greedy_text_is_what_recomputing_everything_gives(options, awake, tokens_BT):
    """Caught: the logits of the first place taken; a finished sequence that goes on; the stop token swallowed."""
    model = awake(replace(FULL, **options))
    prompts = [row[:n].tolist() for row, n in zip(tokens_BT, (4, 9, 1), strict=False)]
    expected = []
    for prompt in prompts:
        sequence = list(prompt)
        while len(sequence) < len(prompt) + 8:
            sequence.append(int(model(torch.tensor([sequence]))[0, -1].argmax()))
        expected.append(sequence[len(prompt) :])
    made = list(generate(model, prompts, 8, Sampling(temperature=0)))
    assert [list(column) for column in zip(*made, strict=True)] == expected
    stop = expected[0][2]
    stopped = zip(*generate(model, prompts, 8, Sampling(0), stop), strict=True)
    cut = [[token for token in column if token is not None] for column in stopped]
    assert cut == [seq[: seq.index(stop) + 1] if stop in seq else seq for seq in expected]


def test_a_sequence_draws_the_same_in_any_batch_and_another_seed_draws_others(awake, tokens_BT):
    """Caught: one generator for the batch."""
    model = awake(FULL)
    prompts = [row[:5].tolist() for row in tokens_BT[:3]]

    def text(prompts, seed=0):
        return list(zip(*generate(model, prompts, 10, Sampling(seed=seed)), strict=True))

    together = text(prompts)
    assert text(prompts[:1]) == together[:1]
    assert text([*prompts, prompts[0]])[:3] == together
    assert text(prompts, seed=1) != together


def test_draws_follow_the_probabilities():
    """Caught: uniform noise for Gumbel's; the temperature multiplied."""
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125])).expand(4000, 4)
    generators = [torch.Generator().manual_seed(i) for i in range(4000)]
    for temperature in (1.0, 0.5):
        share = torch.bincount(Sampling(temperature).draw(logits, generators), minlength=4) / 4000
        expected = (logits[0] / temperature).softmax(0)
        assert (share - expected).abs().max() < 0.03  # four standard deviations


@given(
    logits=st.lists(st.integers(-500, 500).map(lambda n: n / 100), min_size=2, max_size=12, unique=True),
    k=st.integers(1, 12),
    p=st.floats(0.05, 1.0),
)
def test_only_the_likeliest_are_kept(logits, k, p):
    """Caught: top-p that leaves out the token which crosses p; top-k of the smallest; top-p before top-k."""
    scores = torch.tensor([logits], dtype=torch.float64)
    order = scores[0].argsort(descending=True).tolist()
    keep = order[:k]
    probability = scores[0, keep].softmax(0)
    needed = next((n for n in range(1, len(keep) + 1) if probability[:n].sum() >= p - 1e-12), len(keep))
    kept = torch.isfinite(Sampling(top_k=k, top_p=p).kept(scores)[0]).nonzero()[:, 0].tolist()
    if abs(float(probability[:needed].sum()) - p) > 1e-9:  # a tie is decided by rounding
        assert sorted(kept) == sorted(keep[:needed])
    assert order[0] in kept


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 0.0])
def test_a_temperature_near_zero_takes_the_likeliest_token(temperature):
    """Caught: logits over a tiny temperature overflow, and the first token is drawn."""
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert Sampling(temperature).draw(logits, [torch.Generator().manual_seed(0)]) == 1


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_settings_that_draw_nothing_are_refused(settings_, said):
    """Caught: no check."""
    with pytest.raises(ValueError, match=said):
        Sampling(**settings_)


@pytest.mark.parametrize(
    ("prompts", "new", "said"),
    [
        ([], 1, "a prompt is empty"),
        ([[1], []], 1, "a prompt is empty"),
        ([[61]], 1, "0 to 60"),
        ([[1] * 25], 1, "25 tokens.*takes 24 .*shorten the prompt$"),
        ([[1] * 20], 6, "20 tokens and 6 new.*ask for at most 5"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, new, said, awake):
    """Caught: each of the checks removed in turn."""
    with pytest.raises(ValueError, match=said):
        next(generate(awake(FULL), prompts, new))


def test_the_context_can_be_filled_to_its_end(awake):
    """Caught: one token too few allowed; the last drawn token read, which has no place."""
    assert len(list(generate(awake(FULL), [[1] * 20], 5))) == 5


def test_a_cache_is_for_decoding_only(awake, tokens_BT):
    """Caught: top-k routing with a cache, which would look at later tokens."""
    model = awake(FULL)
    for call in (
        lambda: model(tokens_BT, routing="topk", cache=Cache()),
        lambda: model(tokens_BT, tokens_BT, cache=Cache()),
        lambda: model.train()(tokens_BT, cache=Cache()),
    ):
        with pytest.raises(ValueError, match="a cache is for decoding"):
            call()
    with pytest.raises(ValueError, match="give it with a cache"):
        model(tokens_BT, real_BT=tokens_BT > 0)
    model.eval()
    cache = Cache()
    model(tokens_BT[:, :20], cache=cache)
    with pytest.raises(ValueError, match="grows to 25 tokens; this model takes 24"):
        model(tokens_BT[:, :5], cache=cache)
