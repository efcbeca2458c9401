"""`train.capacity_warmup`: which capacity each step has, what it costs, and that all else stays as it is."""

import math
from dataclasses import replace

import pytest
import torch

from lahr.config import TrainConfig
from lahr.data import prepare
from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.model.flops import training_flops_per_token
from lahr.model.mixture_of_depths import BELOW_ALL, MOMENTUM, Router
from lahr.training.loop import train
from lahr.training.plan import capacity, planned_flops
from lahr.training.runtime import Runtime
from tests.lahr.training.test_loop import state, without_clock

KEPT = [32 - 2 * step for step in range(12)] + [8] * 12
"""Tokens of 32 that pass a block of capacity ¼ in each of 24 steps, of which the warm-up is half."""


@pytest.fixture
def kept(monkeypatch) -> list[int]:
    """Tokens of a sequence that each router lets through, one a training pass."""
    forward, seen = Router.forward, []

    def watched(router, x_BTD, *of):
        routed = forward(router, x_BTD, *of)
        if router.training:
            seen.append(routed.places_BK.shape[1])
        return routed

    monkeypatch.setattr(Router, "forward", watched)
    return seen


def test_the_capacity_falls_in_a_line_and_then_stays(tiny, tiny_data, kept):
    """Caught: a line that ends a step late; the warm-up as a share of the tokens that are left."""
    list(train(tiny("mod", capacity_warmup=0.5), tiny_data, Runtime()))
    assert kept == KEPT
    kept.clear()
    list(train(tiny("mod", capacity_warmup=1.0), tiny_data, Runtime()))
    assert kept == [math.ceil(32 - step) for step in range(24)]
    kept.clear()
    list(train(tiny("mod"), tiny_data, Runtime()))
    assert kept == [8] * 24


def test_all_parts_of_a_batch_have_it_and_the_latent_core_has_its_own(tiny, tiny_data, kept):
    """Caught: the capacity given to the latent core's router too."""
    full = tiny("mod+latent+memory", capacity_warmup=0.5)
    full = replace(full, model=replace(full.model, latent_capacity=0.5))
    list(train(full, tiny_data, Runtime(micro_batch=2)))
    assert kept == [n for block in KEPT for _ in range(2) for n in (block, 16)]


@pytest.mark.parametrize("cell", ["mod", "mod+latent+memory"])
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_what_is_executed_is_what_was_planned(cell, share, tiny, tiny_data, tmp_path):
    """At each record, and of a run that was cut off. Caught: the nominal capacity; the capacity one step off; a plan
    at the capacity in the middle of the line."""
    config = tiny(cell, capacity_warmup=share)
    model, expected = config.model, [0.0]
    for step in range(24):
        c = 0.25 + 0.75 * (1 - step / (24 * share)) if step < 24 * share else 0.25
        assert capacity(config, step) == (pytest.approx(c) if step < 24 * share else None)
        # Of a capacity of 1 the cost is that of a block with a router, which is no `mod_capacity` of a configuration.
        each = training_flops_per_token(replace(model, mod_capacity=c)) if c < 1 else None
        expected.append(expected[-1] + 4 * 32 * (each if each is not None else _dense(model)))
    assert planned_flops(config) == pytest.approx(expected[-1], rel=1e-12)
    interrupted = train(config, tiny_data, Runtime(), Folder.at(tmp_path))
    while next(interrupted).step < 12:
        pass
    interrupted.close()
    records = list(train(config, tiny_data, Runtime(), Folder.at(tmp_path)))
    assert [r.flops for r in records] == pytest.approx([expected[r.step] for r in records], rel=1e-12)
    assert planned_flops(config) > planned_flops(tiny(cell))


def _dense(model) -> float:
    """FLOPs a token of a model whose routed blocks take every token."""
    return training_flops_per_token(replace(model, mod_capacity=1.0))


@pytest.mark.parametrize("options", [{}, {"mod_noise": 0.5}, {"mod_router": "threshold"}])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(options, tiny, tiny_data, tmp_path):
    """With noise in the choice too, which follows from (seed, step). Caught: a capacity counted from the resume on."""
    config = tiny("mod+latent+memory", capacity_warmup=0.8)
    config = replace(config, model=replace(config.model, **options))
    whole, cut = Folder.at(tmp_path / "whole"), Folder.at(tmp_path / "cut")
    undisturbed = list(train(config, tiny_data, Runtime(), whole))
    interrupted = train(config, tiny_data, Runtime(), cut)
    while next(interrupted).step < 12:
        pass
    interrupted.close()
    torch.manual_seed(999)
    resumed = list(train(config, tiny_data, Runtime(), cut))
    assert [without_clock(r) for r in resumed] == [without_clock(r) for r in undisturbed]
    ours, theirs = state(cut, config, tiny_data), state(whole, config, tiny_data)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["top_k", "threshold"])
def test_thresholds_follow_the_capacity(kind, tiny, cache):
    """At the end as many tokens pass causally, of text that was not trained on, as the model's capacity says.

    Seen to fail: the threshold of the first step, which all exceed, stayed in the running mean, and everything passed
    for 650 steps.
    """
    config = tiny("mod", tokens=240 * 128, capacity_warmup=0.5, lr=1e-3, evaluations=1)
    data = replace(config.data, train_tokens=30_000, validation_blocks=256)
    config = replace(config, data=data, model=replace(config.model, mod_router=kind))
    *_, last = train(config, prepare(data, 300, 32, cache), Runtime())
    assert last.metrics["mod/capacity_layer1"] == pytest.approx(0.25, rel=0.1)


def test_each_step_is_observed_at_its_own_capacity(tiny, tiny_data, monkeypatch):
    """Caught: thresholds for the model's capacity while the blocks still learn with more."""
    observe, seen = Router.observe, []

    def watched(router, scores_BT, c=None):
        observe(router, scores_BT, c)
        seen.append((c, float(router.threshold)))

    monkeypatch.setattr(Router, "observe", watched)
    config = tiny("mod", capacity_warmup=0.5)
    list(train(config, tiny_data, Runtime()))
    assert [c for c, _ in seen] == [capacity(config, step) for step in range(24)]
    assert [step for step, (_, threshold) in enumerate(seen) if threshold <= BELOW_ALL] == [0]


def test_a_threshold_that_all_exceed_has_no_part_in_a_mean():
    router = Router(8, 0.25, "top_k", "sigmoid", False, False)
    scores_BT = torch.arange(32.0).view(2, 16)
    router.observe(scores_BT, 1.0)
    router.observe(scores_BT, 1.0)
    assert router.threshold == BELOW_ALL and (scores_BT > router.threshold).all()
    router.observe(scores_BT, 0.5)
    assert router.threshold == 15.0  # which 16 of 32 exceed
    router.observe(scores_BT)
    assert router.threshold == pytest.approx(MOMENTUM * 15 + (1 - MOMENTUM) * 23)
    assert router.observations == 4


@pytest.mark.parametrize("cell", ["base", "latent+memory"])
def test_a_cell_without_routed_blocks_does_not_notice(cell, tiny, tiny_data, tmp_path):
    """So that a sweep may give it to all cells. Caught: a random draw for it."""
    runs = {}
    for share in (0.0, 0.5):
        config, folder = tiny(cell, capacity_warmup=share), Folder.at(tmp_path / str(share))
        records = [without_clock(r) for r in train(config, tiny_data, Runtime(), folder)]
        runs[share] = records, state(folder, config, tiny_data), planned_flops(config)
    (records, weights, planned), (others, other_weights, other_planned) = runs.values()
    assert records == others and planned == other_planned
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"capacity_warmup is 0.5 and train.decayed_points 1: .* leave one out"):
        TrainConfig(tokens=3072, batch_size=4, schedule="wsd", decayed_points=1, capacity_warmup=0.5)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="it is a share of the steps, 0 \\(none\\) to 1"):
            TrainConfig(tokens=3072, batch_size=4, capacity_warmup=share)
