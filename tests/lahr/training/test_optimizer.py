"""Parameter groups and the schedule."""

import itertools

import pytest
import torch

from lahr.model import LAHR
from lahr.training.optimizer import build_optimizer, learning_rate, set_learning_rate


def test_groups_hold_every_parameter_once_with_the_right_decay(tiny):
    config = tiny("mod+latent+memory")
    model = LAHR(config.model)
    optimizer = build_optimizer(model, config.train)
    by_name = {name: group for group in optimizer.param_groups for name in group["names"]}
    assert sorted(by_name) == sorted(name for name, _ in model.named_parameters())
    assert by_name["memory.values"]["scale"] == pytest.approx(10 / 3)
    assert by_name["memory.values"]["weight_decay"] == 0
    assert by_name["embedding.weight"]["weight_decay"] == 0
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            assert by_name[name]["weight_decay"] == 0, name
        elif name not in ("memory.values", "embedding.weight"):
            assert by_name[name]["weight_decay"] == config.train.weight_decay, name


def test_the_rate_rises_linearly_and_falls_as_a_cosine(tiny):
    train = tiny(lr=1.0, warmup=0.1, final_lr=0.1).train
    rates = [learning_rate(train, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)  # half-way down, between the peak and a tenth of it
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] > 0.1
    assert learning_rate(train, 0, 1) == 1.0  # a run of one step still takes one


def test_every_group_gets_its_share(tiny):
    optimizer = build_optimizer(LAHR(tiny("memory").model), tiny("memory").train)
    set_learning_rate(optimizer, 0.3)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.3, 0.3, 1.0])
    assert torch.is_tensor(optimizer.param_groups[0]["params"][0])
