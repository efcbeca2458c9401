"""On a GPU a model computes what it computes on the CPU, where its properties are tested."""

import pytest
import torch

from lahr.model.generation import Sampling, generate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none here")


def loss_and_gradients(model, tokens_BT, targets_BT):
    output = model.train()(tokens_BT, targets_BT)
    output.loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_losses_metrics_and_gradients_are_those_of_the_cpu(variant, awake, tokens_BT, targets_BT):
    """In float64, where nothing but the order of sums may differ."""
    here, theirs = loss_and_gradients(awake(variant), tokens_BT, targets_BT)
    there, ours = loss_and_gradients(awake(variant).cuda(), tokens_BT.cuda(), targets_BT.cuda())
    assert abs(there.loss.item() - here.loss.item()) < 1e-11
    assert there.metrics.keys() == here.metrics.keys()
    for name, value in here.metrics.items():
        assert abs(float(there.metrics[name]) - float(value)) < 1e-9, name
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name].cpu() - gradient).abs().max() < 1e-10, name


@torch.no_grad()
def test_logits_are_those_of_the_cpu_and_decoding_with_caches_draws_the_same_text(every, awake, tokens_BT):
    here, there = awake(every), awake(every).cuda()
    assert (there(tokens_BT.cuda()).cpu() - here(tokens_BT)).abs().max() < 1e-10
    prompts = [row[:n].tolist() for row, n in zip(tokens_BT, (9, 3, 7, 1, 5), strict=True)]
    drawn = [list(generate(model, prompts, 12, Sampling(seed=3))) for model in (here, there)]
    assert drawn[0] == drawn[1]
