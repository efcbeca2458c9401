"""The latent core: R passes, exactly, over a state that depends on the input (property 6)."""

from itertools import pairwise

import pytest
import torch

from lahr.model import LAHR
from lahr.model.latent_reasoning import LatentReasoning
from lahr.model.layers import Rotary, Window, rotary_table


def make(iterations, seed=0):
    torch.manual_seed(seed)
    latent = LatentReasoning(16, 2, 24, 0.5, iterations).double()
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
