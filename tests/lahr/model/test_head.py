"""The head's loss in slices is torch's cross-entropy of all logits at once: value, gradients, types."""

import pytest
import torch
import torch.nn.functional as F

from lahr.model import head
from lahr.model.head import cross_entropy, mean_cross_entropy

V, D = 37, 12


@pytest.fixture(params=[1, 3 * V, 1 << 22], ids=["a token at a time", "slices of three", "one slice"])
def slices(request, monkeypatch):
    monkeypatch.setitem(head.SLICE, "cpu", request.param)


def given(dtype=torch.float64, scale=1.0):
    noise = torch.Generator().manual_seed(1)
    x = (scale * torch.randn(2, 5, D, generator=noise)).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=noise).to(dtype).requires_grad_()
    return x, weight, torch.randint(V, (2, 5), generator=noise)


def test_loss_and_gradients_are_those_of_all_logits_at_once(slices):
    """Caught: a last slice that is shorter weighed like the others; the target's share of the gradient left out."""
    x, weight, targets = given()
    loss = 3 * mean_cross_entropy(x, weight, targets)
    loss.backward()
    found = x.grad.clone(), weight.grad.clone()
    x.grad = weight.grad = None
    each = F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten(), reduction="none")
    (3 * each.mean()).backward()
    assert abs(loss - 3 * each.mean()) < 1e-13
    for ours, theirs in zip(found, (x.grad, weight.grad), strict=True):
        assert (ours - theirs).abs().max() < 1e-13
    assert (cross_entropy(x, weight, targets)[0] - each).abs().max() < 1e-13


def test_without_a_gradient_it_is_the_same_mean(slices):
    """Caught: a mean over slices."""
    x, weight, targets = given()
    with torch.no_grad():
        assert abs(mean_cross_entropy(x, weight, targets) - cross_entropy(x, weight, targets)[0].mean()) < 1e-13


def test_logits_of_any_size_overflow_nothing():
    """Caught: a logarithm of a softmax that is zero."""
    x, weight, targets = given(torch.float32, scale=1e4)
    loss = mean_cross_entropy(x, weight, targets)
    loss.backward()
    expected = F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten())
    assert torch.isfinite(x.grad).all()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_under_autocast_products_are_narrow_and_losses_wide():
    """Caught: a loss summed in bf16; a gradient of another type than its tensor's."""
    x, weight, targets = given(torch.float32)
    exact = F.cross_entropy((x @ weight.T).flatten(0, 1), targets.flatten())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mean_cross_entropy(x, weight, targets)
    loss.backward()
    assert loss.dtype == x.grad.dtype == weight.grad.dtype == torch.float32
    assert 0 < abs(float(loss.detach() - exact.detach())) < 0.05


def test_the_gradient_is_handed_out_once():
    """Caught: a second backward pass that scales it twice."""
    x, weight, targets = given()
    loss = mean_cross_entropy(x, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already; run the forward pass again"):
        loss.backward()


def test_the_logits_of_a_batch_are_never_held(monkeypatch):
    """What is kept for the backward pass has the size of the states and of the weight. Caught: logits saved."""
    monkeypatch.setitem(head.SLICE, "cpu", 8 * V)
    x = torch.randn(64, D, requires_grad=True)
    weight, targets = torch.randn(V, D, requires_grad=True), torch.randint(V, (64,))
    sizes = []
    softmax = F.softmax
    monkeypatch.setattr(F, "softmax", lambda t, *a, **k: (sizes.append(t.shape), softmax(t, *a, **k))[1])
    loss = mean_cross_entropy(x, weight, targets)
    assert set(sizes) == {(8, V)}
    assert sorted(t.numel() for t in loss.grad_fn.grads) == sorted([64 * D, V * D])


@pytest.mark.parametrize("ignored", [0, 3, 9, 10])
def test_tokens_without_a_target_count_in_nothing(slices, ignored):
    """As torch's `ignore_index`, in value and gradients; where none has a target, 0 and no gradient. Caught: a mean
    over all tokens; the softmax left in the gradient of a token without a target; a division by no tokens."""
    x, weight, targets = given()
    targets.view(-1)[torch.randperm(10, generator=torch.Generator().manual_seed(2))[:ignored]] = -100
    loss = 3 * mean_cross_entropy(x, weight, targets)
    loss.backward()
    found = x.grad.clone(), weight.grad.clone()
    x.grad = weight.grad = None
    logits = (x @ weight.T).flatten(0, 1)
    summed = F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum")
    expected = 3 * summed / max(10 - ignored, 1)
    expected.backward()
    assert abs(loss - expected) < 1e-13
    for ours, theirs in zip(found, (x.grad, weight.grad), strict=True):
        assert (ours - theirs).abs().max() < 1e-13
    each, right = cross_entropy(x, weight, targets)
    torch.testing.assert_close(
        each, F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="none")
    )
    assert torch.equal(right, logits.argmax(-1) == targets.flatten())
    with torch.no_grad():
        assert abs(3 * mean_cross_entropy(x, weight, targets) - expected) < 1e-13
