"""No logit depends on a later token, nor on the other sequences of its batch (properties 1 and 8)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lahr.model import LAHR, mixture_of_depths
from tests.lahr.model.conftest import models

EXACT = 1e-10


def change_from(tokens_BT, t):
    """The tokens with position t and all after it replaced by others."""
    return torch.cat((tokens_BT[:, :t], (tokens_BT[:, t:] + 17) % 61), 1)


@torch.no_grad()
def test_no_logit_before_a_change_moves_under_causal_routing(every, awake, tokens_BT):
    """Caught: the causal mask one place late (`triu_(start + 2)`); the causal branch taking the top-k mask."""
    model = awake(every)
    before = model(tokens_BT)
    for t in (1, 7, 16, 23):
        after = model(change_from(tokens_BT, t))
        assert (after - before)[:, :t].abs().max() < EXACT
        assert (after - before)[:, t:].abs().amax(-1).min() > 1e-6


class Replay:
    """Stands in for `top_k_places`: records each layer's choice, then gives them back in order."""

    def __init__(self):
        self.places, self.real, self.replaying = [], mixture_of_depths.top_k_places, False

    def __call__(self, scores_BT, k):
        if self.replaying:
            return self.places.pop(0)
        self.places.append(self.real(scores_BT, k))
        return self.places[-1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["mod", "mod+latent", "mod+memory", "mod+latent+memory"])
def test_with_the_selection_frozen_top_k_routing_is_causal_too(name, cells, awake, tokens_BT, monkeypatch):
    """Caught: the chosen tokens gathered in a random order."""
    model, replay = awake(cells[name]), Replay()
    monkeypatch.setattr(mixture_of_depths, "top_k_places", replay)
    before = model(tokens_BT, routing="topk")
    places = list(replay.places)
    assert all(0 < chosen_BK.shape[1] < tokens_BT.shape[1] for chosen_BK in places)
    replay.replaying = True
    for t in (1, 7, 16, 23):
        replay.places = list(places)
        after = model(change_from(tokens_BT, t), routing="topk")
        assert (after - before)[:, :t].abs().max() < EXACT


@torch.no_grad()
def test_top_k_that_chooses_anew_does_see_the_future(cells, awake, tokens_BT):
    """So the tests above can fail. Caught: `routing="topk"` treated as causal."""
    model = awake(cells["mod"])
    before, after = (model(x, routing="topk") for x in (tokens_BT, change_from(tokens_BT, 16)))
    assert (after - before)[:, :16].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("routing", ["causal", "topk"])
def test_a_sequence_gives_the_same_logits_alone_and_in_any_batch(every, routing, awake, tokens_BT):
    """Caught: padding places not masked out (`* real_BK` removed); the top k taken over the whole batch; memory
    queries normalised over the batch."""
    model = awake(every)
    together = model(tokens_BT, routing=routing)
    order = torch.tensor([3, 0, 4])
    assert (model(tokens_BT[order], routing=routing) - together[order]).abs().max() < EXACT
    for b in range(len(tokens_BT)):
        assert (model(tokens_BT[b : b + 1], routing=routing) - together[b]).abs().max() < EXACT


@torch.no_grad()
def test_a_shorter_sequence_gives_the_first_logits_of_the_longer_one(every, awake, tokens_BT):
    """Caught: a router threshold taken over the sequence at evaluation instead of the stored one."""
    model = awake(every)
    assert (model(tokens_BT[:, :9]) - model(tokens_BT)[:, :9]).abs().max() < EXACT


@torch.no_grad()
@settings(max_examples=60)
@given(config=models(), t=st.integers(1, 23), seed=st.integers(0, 999), threshold=st.floats(-1, 1))
def test_models_drawn_at_random_see_neither_later_tokens_nor_other_sequences(config, t, seed, threshold):
    """Caught: the exit's probability averaged over a sequence; a router's threshold taken from the batch."""
    torch.manual_seed(seed)
    model = LAHR(config).double().eval()
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p))
    for _, router in model.routers:
        router.threshold.fill_(threshold)
    tokens = torch.randint(61, (3, 24))
    before, after = model(tokens), model(change_from(tokens, t))
    assert (after - before)[:, :t].abs().max() < EXACT
    assert (model(tokens[1:2]) - before[1]).abs().max() < EXACT
