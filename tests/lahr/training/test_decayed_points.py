"""Branches that decay: each is the shorter run, bit for bit, and the run they leave does not notice them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.model.flops import training_flops_per_token
from lahr.training import checkpoints, loop
from lahr.training.loop import train
from lahr.training.plan import milestones
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime

WSD = {"schedule": "wsd", "decay": 0.5, "warmup": 0.1, "log_points": 24, "checkpoints": 24}
"""With one decayed point a run of 24 steps branches off at step 6 and the branch ends at step 12."""


def repeatable(record: Progress) -> tuple:
    """All of a record that has to repeat, without the figures of a branch."""
    left_out = ("tokens_per_second", "peak_memory_mib")
    metrics = {k: v for k, v in record.metrics.items() if k not in left_out and not k.startswith("decayed_")}
    return replace(record, seconds=0.0, metrics={}), repr(metrics)


def decayed(records: list[Progress]) -> dict[int, dict[str, float]]:
    """Step → the figures of the branch that left there."""
    found = {r.step: {k: v for k, v in r.metrics.items() if k.startswith("decayed_")} for r in records}
    return {step: figures for step, figures in found.items() if figures}


def final_state(folder: Folder, config, data) -> dict[str, torch.Tensor]:
    found, _ = checkpoints.newest(folder, config.fingerprint(data.content_hash))
    assert found is not None and found.step == config.steps
    return found.tensors


@pytest.fixture
def drawing(monkeypatch):
    """Nothing in these models draws in training; a dropout would, so here the loss of every step does."""
    step = loop._Run._step

    def drawn(run):
        loss, norm = step(run)
        with torch.no_grad():
            next(run.model.parameters()).add_(1e-4 * torch.rand(()))
        return loss, norm

    monkeypatch.setattr(loop._Run, "_step", drawn)


@settings(max_examples=12)
@given(
    steps=st.integers(8, 30),
    warmup=st.integers(0, 4),
    decay=st.sampled_from([0.1, 0.25, 0.4, 0.6]),
    points=st.integers(1, 3),
    final_lr=st.sampled_from([0.0, 0.3]),
    micro_batch=st.sampled_from([0, 1, 2]),
    cell=st.sampled_from(["base", "mod", "mod+latent+memory"]),
    ema=st.sampled_from([0.0, 0.8]),
)
def test_a_branch_is_the_shorter_run_bit_for_bit(
    tiny, tiny_data, steps, warmup, decay, points, final_lr, micro_batch, cell, ema
):
    """Loss, tokens and FLOPs equal those of a run of its length with as many warm-up steps.

    Caught: a branch that decays over as many steps as the whole run does, that is evaluated before its last step, or
    that reads other batches; figures at its start instead of its horizon.
    """
    runtime = Runtime(micro_batch=micro_batch)
    common = {
        "schedule": "wsd",
        "decay": decay,
        "final_lr": final_lr,
        "evaluations": 1,
        "log_points": 1,
        "ema": ema,
    }
    try:
        config = tiny(cell, tokens=steps * 128, warmup=warmup / steps, decayed_points=points, **common)
        shorter = [tiny(cell, tokens=h * 128, warmup=warmup / h, **common) for h in config.branches.values()]
    except ConfigError:
        assume(False)
    found = decayed(list(train(config, tiny_data, runtime)))
    assert list(found) == list(config.branches)
    for figures, alone in zip(found.values(), shorter, strict=True):
        *_, last = train(alone, tiny_data, runtime)
        assert figures == {
            "decayed_val_loss": last.metrics["val_loss"],
            "decayed_tokens": last.tokens,
            "decayed_flops": last.flops,
        }


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_the_run_is_the_same_with_and_without_branches(tiny, tiny_data, tmp_path, drawing, micro_batch):
    """Records, weights, moments, thresholds, random state and pairing, at every step after.

    Caught: any of weights, moments, random state, position, pairing hash or schedule left where the branch ended, and
    a saved state that is no copy.
    """
    runtime = Runtime(micro_batch=micro_batch)
    runs = []
    for points in (0, 3):
        config = tiny("mod+latent+memory", decayed_points=points, **WSD)
        folder = Folder.at(tmp_path / str(points))
        records = list(train(config, tiny_data, runtime, folder))
        assert len(decayed(records)) == points
        runs.append(([repeatable(r) for r in records], final_state(folder, config, tiny_data)))
    (without, theirs), (with_branches, ours) = runs
    assert with_branches == without
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("stop", "micro_batch"), [(5, 0), (6, 0), (8, 0), (8, 2), (12, 0)])
def test_a_run_resumed_around_a_branch_ends_the_same(tiny, tiny_data, tmp_path, drawing, stop, micro_batch):
    """From a checkpoint before its start, at it, between it and its horizon, and at the horizon.

    Caught: the schedule left at the branch's horizon, of which a resumed run would know nothing.
    """
    runtime = Runtime(micro_batch=micro_batch)
    config = tiny("mod+latent+memory", decayed_points=1, **WSD)
    assert config.branches == {6: 12}
    whole, cut = Folder.at(tmp_path / "whole"), Folder.at(tmp_path / "cut")
    undisturbed = list(train(config, tiny_data, runtime, whole))
    interrupted = train(config, tiny_data, runtime, cut)
    while next(interrupted).step < stop:
        pass
    interrupted.close()
    torch.manual_seed(999)
    resumed = list(train(config, tiny_data, runtime, cut))
    assert [repeatable(r) for r in resumed] == [repeatable(r) for r in undisturbed]
    assert repr(decayed(resumed)) == repr(decayed(undisturbed))
    ours, theirs = final_state(cut, config, tiny_data), final_state(whole, config, tiny_data)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_branchs_steps_cost_the_run_nothing(tiny, tiny_data, monkeypatch):
    """By a clock that only steps move: seconds are the run's own steps, as are tokens, FLOPs and the speed.

    Caught: the time taken only after the branch, and FLOPs that count its steps.
    """
    clock, step = [0.0], loop._Run._step
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def ticking(run):
        clock[0] += 1.0
        return step(run)

    monkeypatch.setattr(loop._Run, "_step", ticking)
    config = tiny("mod", decayed_points=3, **WSD)
    flops_per_step = 128 * training_flops_per_token(config.model)
    for record in train(config, tiny_data, Runtime()):
        assert record.seconds == record.step
        assert record.tokens == record.step * 128
        assert record.flops == record.step * flops_per_step
        assert record.metrics["tokens_per_second"] == 128
    assert clock[0] == config.steps + sum(end - start for start, end in config.branches.items()) > config.steps


def test_a_branch_that_diverges_is_nan_and_the_run_goes_on(tiny, tiny_data, tmp_path, monkeypatch):
    """Caught: its loss taken for the run's, which then ended as diverged."""
    rate = loop._Run._rate
    monkeypatch.setattr(
        loop._Run, "_rate", lambda run, step: rate(run, step) if run.horizon == run.config.steps else 1e30
    )
    config, folder = tiny("mod+latent+memory", decayed_points=2, **WSD), Folder.at(tmp_path)
    records = list(train(config, tiny_data, Runtime(), folder))
    assert [math.isnan(figures["decayed_val_loss"]) for figures in decayed(records).values()] == [True, True]
    assert records[-1].status == "finished"
    plain = list(train(tiny("mod+latent+memory", **WSD), tiny_data, Runtime()))
    assert [repeatable(r) for r in records] == [repeatable(r) for r in plain]
    again = list(train(config, tiny_data, Runtime(), folder))
    assert [r.to_json() for r in again] == [r.to_json() for r in records]


def test_every_start_is_a_milestone_and_no_end_is_a_point(tiny, tiny_data):
    """A result is made of the last record, which is the whole run's alone.

    Caught: starts left out of the milestones, whose branches then never ran.
    """
    config = tiny(schedule="wsd", decay=0.25, decayed_points=5, log_points=1, checkpoints=1, evaluations=1)
    assert config.branches.keys() <= milestones(config).record
    records = list(train(config, tiny_data, Runtime()))
    assert [r.step for r in records] == [*config.branches, 24]
    assert len(decayed(records)) == 5
    assert not any(name.startswith("decayed_") for name in records[-1].metrics)


def test_a_branch_longer_than_what_is_behind_it_is_counted(tiny, tiny_data):
    """Seen to fail: the steps of the branch were counted back from where it left, to before the run began, which a
    routed model has no capacity for."""
    config = tiny("mod", schedule="wsd", warmup=0.1, decay=0.8, decayed_points=1)
    ((start, horizon),) = config.branches.items()
    assert horizon > 2 * start
    (figures,) = decayed(list(train(config, tiny_data, Runtime()))).values()
    each = config.tokens_per_step * training_flops_per_token(config.model)
    assert figures["decayed_flops"] == pytest.approx(horizon * each, rel=1e-12)
