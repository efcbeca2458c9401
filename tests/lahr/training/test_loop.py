"""The loop: properties 9, 10 and 13 of the architecture, divergence, and what a record says.

Property 11 (two workers equal one process) is in `tests/sweeps/engine/test_schedule.py`, through Ray.
"""

import math
from dataclasses import replace

import pytest
import torch

from lahr.data import Batches, Windows
from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.model import LAHR
from lahr.model.flops import training_flops_per_token
from lahr.training import checkpoints, loop
from lahr.training.evaluation import evaluate
from lahr.training.loop import train
from lahr.training.plan import milestones, sampled_passes
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime
from lahr.training.watch import Watch
from tests.conftest import CELLS


def without_clock(record: Progress) -> tuple:
    """All of a record that has to repeat: not the seconds, the rates and the memory."""
    noisy = ("tokens_per_second", "peak_memory_mib")
    metrics = {k: v for k, v in record.metrics.items() if k not in noisy}
    return replace(record, seconds=0.0, metrics=metrics), repr(metrics)


def state(folder: Folder, config, data) -> dict[str, torch.Tensor]:
    found, problems = checkpoints.newest(folder, config.fingerprint(data.content_hash))
    assert found is not None
    assert not problems
    return found.tensors


OPTIONS = {
    "threshold": {"mod_router": "threshold"},
    "random, router losses": {"mod_router": "random", "mod_balance_loss": 0.1, "mod_z_loss": 0.01},
    "sampled, exit gate": {"latent_mode": "sampled", "latent_halting": "gate"},
    "act": {"latent_halting": "act"},
    "latent capacity": {"latent_capacity": 0.25, "latent_mode": "sampled"},
    "slots": {"memory_kind": "slots"},
}


@pytest.fixture(params=[*CELLS, *OPTIONS, "averaged weights"])
def config(request, tiny):
    """Each cell, and the full model with each option."""
    if request.param in CELLS:
        return tiny(request.param)
    if request.param == "averaged weights":
        return tiny("mod+latent+memory", ema=0.8)
    full = tiny("mod+latent+memory")
    return replace(full, model=replace(full.model, **OPTIONS[request.param]))


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config, tiny_data, tmp_path, monkeypatch):
    """Weights, optimiser, thresholds, draws, records and data position, across an epoch's end.

    Seen to fail when the moments were not restored, when the steps did not seed what they draw, when the pairing hash
    began anew, when the router's thresholds were left out of the state, and when the position was one step off.
    """
    gradient = loop._Run._gradient

    def drawing(run, *of):  # nothing in these models draws in training; a dropout would, so every step does here
        with torch.no_grad():
            next(run.model.parameters()).add_(1e-4 * torch.rand(()))
        return gradient(run, *of)

    monkeypatch.setattr(loop._Run, "_gradient", drawing)
    # Of a trial that has ended the weights alone are kept; here the moments count as well.
    monkeypatch.setattr(checkpoints.Checkpoint, "kept_tensors", lambda self: self.tensors)
    assert config.steps * config.tokens_per_step > tiny_data.train.split.n_tokens, (
        "the test has to cross an epoch's end"
    )
    whole, cut = Folder.at(tmp_path / "whole"), Folder.at(tmp_path / "cut")
    undisturbed = list(train(config, tiny_data, Runtime(), whole))

    interrupted = train(config, tiny_data, Runtime(), cut)
    while next(interrupted).step < 12:
        pass
    interrupted.close()
    torch.manual_seed(999)  # another process would not have this random state either
    resumed = list(train(config, tiny_data, Runtime(), cut))

    assert [without_clock(r) for r in resumed] == [without_clock(r) for r in undisturbed]
    ours, theirs = state(cut, config, tiny_data), state(whole, config, tiny_data)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class AsksAt(Watch):
    """Asks for a checkpoint after some step, and ends the run two steps later, as a machine that is taken away."""

    def __init__(self, step: int) -> None:
        self.step, self.asked_at, self.resumed_at = 0, step, -1

    def resumed(self, step):
        self.step = self.resumed_at = step

    def stepped(self):
        self.step += 1
        if self.step == self.asked_at + 2:
            raise InterruptedError
        return self.step == self.asked_at


@pytest.mark.parametrize("asked_at", [1, 13, 16, 12])
def test_a_checkpoint_may_be_asked_for_at_any_step(config, asked_at, tiny_data, tmp_path):
    """Before the first record, between two, at the next to a milestone and at one: nothing but those two steps repeats.

    Seen to fail when the losses, the passes, the pairing or the last record's step were not kept between records.
    """
    whole, cut = Folder.at(tmp_path / "whole"), Folder.at(tmp_path / "cut")
    undisturbed = list(train(config, tiny_data, Runtime(), whole))
    with pytest.raises(InterruptedError):
        list(train(config, tiny_data, Runtime(), cut, watch=AsksAt(asked_at)))
    assert checkpoints.latest_step(cut) == asked_at
    watch = AsksAt(99)
    resumed = list(train(config, tiny_data, Runtime(), cut, watch=watch))
    assert watch.resumed_at == asked_at
    assert [without_clock(r) for r in resumed] == [without_clock(r) for r in undisturbed]
    ours, theirs = state(cut, config, tiny_data), state(whole, config, tiny_data)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_damaged_newest_checkpoint_is_said_and_the_older_one_used(tiny, tiny_data, tmp_path):
    config, folder = tiny("mod"), Folder.at(tmp_path)
    undisturbed = list(train(config, tiny_data, Runtime()))
    for record in train(config, tiny_data, Runtime(), folder):
        if record.step == 18:
            break
    newest = tmp_path / "step-18" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7] + b"damaged")
    warnings: list[str] = []
    again = list(train(config, tiny_data, Runtime(), folder, warnings))
    assert [without_clock(r) for r in again] == [without_clock(r) for r in undisturbed]
    assert warnings == [
        "checkpoint step-18 is not used: state.safetensors is damaged (its sha256 is not the manifest's)",
        "it goes on from step 12",
    ]


def test_a_finished_run_is_replayed_and_not_trained_again(tiny, tiny_data, tmp_path, monkeypatch):
    config, folder = tiny(), Folder.at(tmp_path)
    first = list(train(config, tiny_data, Runtime(), folder))
    monkeypatch.setattr(loop._Run, "_step", lambda self: pytest.fail("a finished run took a step"))
    assert list(train(config, tiny_data, Runtime(), folder)) == first


def test_of_a_trial_that_has_ended_one_checkpoint_with_the_weights_alone_is_left(tiny, tiny_data, tmp_path):
    """A sweep keeps one for every trial. Seen to fail: with `_KEPT` for those that ended, too, and with all tensors."""
    ended = list(train(tiny(), tiny_data, Runtime(), Folder.at(tmp_path)))
    assert sorted(Folder.at(tmp_path).names()) == ["newest.json", "step-24"]
    kept = state(Folder.at(tmp_path), tiny(), tiny_data)
    assert kept.keys() == {f"model.{name}" for name in LAHR(tiny().model).state_dict()}
    diverging = tiny(lr=1e25, warmup=0.0, clip_norm=1e30, evaluations=24)
    for folder in [Folder.at(tmp_path / "diverged")] * 2:
        *_, last = train(diverging, tiny_data, Runtime(), folder)
        assert last.status == "diverged"
        assert sorted(folder.names()) == ["newest.json", f"step-{last.step}"]
    assert ended[-1].status == "finished"


def test_every_cell_of_a_seed_block_reads_identical_batches(tiny, tiny_data):
    """And another seed does not. Seen to fail with the cell's name in the data's seed."""
    hashes = {cell: [r.pairing for r in train(tiny(cell), tiny_data, Runtime())] for cell in CELLS}
    assert len({tuple(h) for h in hashes.values()}) == 1
    other = [r.pairing for r in train(tiny("base", seed=1), tiny_data, Runtime())]
    assert other[-1] != hashes["base"][-1]


def test_keys_change_the_start_and_the_order_of_the_data_as_another_seed_would(tiny, tiny_data, tmp_path):
    """And the same keys nothing. Seen to fail: with `seed` in the place of `drawn_seed` for the weights, for the
    batches and for the sampled passes."""
    sampled = tiny("latent", tokens=4 * 128)
    sampled = replace(sampled, model=replace(sampled.model, latent_iterations=40, latent_mode="sampled"))
    runs = {}
    for name, config in {
        "plain": sampled,
        "keyed": replace(sampled, keys={"b": 1}),
        "again": replace(sampled, keys={"b": 1}),
        "seeded": replace(sampled, seed=replace(sampled, keys={"b": 1}).drawn_seed),
    }.items():
        records = list(train(config, tiny_data, Runtime()))
        runs[name] = [without_clock(r) for r in records], records[-1].pairing, sampled_passes(config, 0)
    assert runs["keyed"] == runs["again"] == runs["seeded"]
    assert all(a != b for a, b in zip(runs["keyed"], runs["plain"], strict=True))


def test_a_final_evaluation_always_runs_and_the_last_step_is_a_milestone(tiny, tiny_data):
    """Whatever the counts: 24 steps with 5 evaluations, or 1, or more than there are steps."""
    for evaluations in (1, 5, 100):
        config = tiny("mod", evaluations=evaluations)
        records = list(train(config, tiny_data, Runtime()))
        assert records[-1].step == config.steps == 24
        assert records[-1].status == "finished"
        assert sum("val_loss" in r.metrics for r in records) == min(evaluations, 24)
        last = records[-1].metrics
        assert {"val_loss", "val_loss_topk", "router_gap", "bits_per_byte", "mod/capacity_layer1"} <= last.keys()
        assert last["router_gap"] == last["val_loss"] - last["val_loss_topk"]


def test_milestones_end_at_the_last_step(tiny):
    for steps in (1, 2, 7, 24):
        marks = milestones(tiny(tokens=steps * 128))
        assert max(marks.evaluate) == max(marks.checkpoint) == max(marks.record) == steps
        assert min(marks.record) >= 1
        assert marks.evaluate | marks.checkpoint <= marks.record


def some(windows: Windows, start: int, stop: int) -> Windows:
    return Windows(*(x if x is None else x[start:stop] for x in windows))


def test_constant_inputs_give_exact_constants_through_the_averages(tiny, tiny_data):
    """Identical windows: the mean over any split into batches is the loss of one window, to rounding.

    Seen to fail when a last smaller batch weighed as much as a whole one.
    """
    config = tiny("mod+latent+memory")
    model = LAHR(config.model, seed=0).double()
    windows = tiny_data.first_windows(7)
    equal = Windows(*(x if x is None else x[:1].expand_as(x) for x in windows))
    plain = torch.autocast("cpu", enabled=False)
    found = [
        evaluate(model, some(equal, 0, n), micro_batch=m, autocast=plain, bytes_per_token=2.0, with_topk=True)
        for n, m in ((1, 1), (7, 7), (7, 2), (7, 3))
    ]
    for metrics in found[1:]:
        assert metrics["val_loss"] == pytest.approx(found[0]["val_loss"], abs=1e-12)
        assert metrics["latent/passes"] == 2.0
    # The mean of windows that differ is the mean of their own losses, whatever the split.
    alone = [
        evaluate(model, some(windows, i, i + 1), micro_batch=1, autocast=plain, bytes_per_token=2.0,
                 with_topk=False)["val_loss"]
        for i in range(7)
    ]  # fmt: skip
    whole = evaluate(model, windows, micro_batch=3, autocast=plain, bytes_per_token=2.0, with_topk=False)
    assert whole["val_loss"] == pytest.approx(math.fsum(alone) / 7, abs=1e-12)
    assert whole["bits_per_byte"] == pytest.approx(whole["val_loss"] / math.log(2) / 2.0, rel=1e-12)


@torch.no_grad()
def test_a_large_loss_is_reported_as_it_is(tiny, tiny_data):
    """The published perplexity was capped at e¹⁰. Caught: the loss clamped to 10, and to 5."""
    config = tiny("mod+latent+memory")
    model = LAHR(config.model, seed=0).double().eval()
    model.norm.weight.mul_(300.0)
    windows = tiny_data.first_windows(4)
    logits_BTV = model(windows.inputs_NT)
    direct = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), windows.targets_NT.flatten())
    assert direct > 40
    plain = torch.autocast("cpu", enabled=False)
    found = evaluate(model, windows, micro_batch=4, autocast=plain, bytes_per_token=2.0, with_topk=False)
    assert found["val_loss"] == pytest.approx(float(direct), rel=1e-9)
    assert found["bits_per_byte"] == pytest.approx(float(direct) / math.log(2) / 2.0, rel=1e-9)


def test_the_recorded_training_loss_is_the_mean_over_its_steps(tiny, tiny_data):
    fine = [r.metrics["train_loss"] for r in train(tiny(log_points=24), tiny_data, Runtime())]
    coarse = [r.metrics["train_loss"] for r in train(tiny(log_points=4, evaluations=4), tiny_data, Runtime())]
    assert len(fine) == 24
    assert coarse == pytest.approx([math.fsum(fine[i : i + 6]) / 6 for i in range(0, 24, 6)], rel=1e-6)


def test_a_split_batch_gives_the_whole_batchs_step(tiny, tiny_data):
    """Gradient accumulation in float64. Seen to fail without the division by the number of parts."""
    config = tiny("mod+latent+memory", precision="fp64")
    whole = [r.metrics["train_loss"] for r in train(config, tiny_data, Runtime())]
    split = [r.metrics["train_loss"] for r in train(config, tiny_data, Runtime(micro_batch=1))]
    assert split == pytest.approx(whole, rel=1e-9)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(config, tiny_data, tmp_path):
    """In an evaluation or in training. Seen to fail where the memory's weights were NaN: its metrics raised."""
    wild = {"lr": 1e25, "warmup": 0.0, "clip_norm": 1e30, "evaluations": 24}
    config = replace(config, train=replace(config.train, **wild))
    folder = Folder.at(tmp_path)
    records = list(train(config, tiny_data, Runtime(), folder))
    assert [r.status for r in records[:-1]] == ["running"] * (len(records) - 1)
    assert records[-1].status == "diverged"
    again = list(train(config, tiny_data, Runtime(), folder))  # a diverged run is a result: it is not tried again
    assert [r.to_json() for r in again] == [r.to_json() for r in records]


def test_progress_survives_json_with_numbers_that_are_not_finite():
    record = Progress(3, 9, 1e9, 0.5, {"train_loss": math.nan, "grad_norm": math.inf, "lr": 0.1}, "ab", "diverged")
    assert repr(Progress.from_json(record.to_json())) == repr(record)


def test_a_worker_without_what_was_decided_is_refused(tiny, tiny_data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="has no GPU"):
        next(train(tiny(), tiny_data, Runtime(device="cuda")))
    monkeypatch.setattr("lahr.training.runtime.has_bf16", lambda device: False)
    with pytest.raises(ConfigError, match="--precision fp32"):
        next(train(tiny(precision="bf16"), tiny_data, Runtime()))


def test_training_learns(tiny, tiny_data):
    """A loop whose steps do nothing would pass most of the tests above."""
    records = list(train(tiny(lr=1e-2), tiny_data, Runtime()))
    assert records[-1].metrics["val_loss"] < math.log(300) - 0.5


def test_the_time_left_is_at_the_mean_pace_of_all_starts():
    """Caught: what a progress bar estimates, which knows no record that is older than half a minute."""
    assert Progress(50, 9, 1e9, 600.0, {}, "ab").seconds_left(200) == 1800


def test_the_loop_reads_what_batches_say(tiny, tiny_data):
    config = tiny()
    batches = Batches(tiny_data.train, 4, seed=0)
    import hashlib

    pairing = ""
    for step in range(config.steps):
        pairing = hashlib.sha256(pairing.encode() + batches.block_ids(step).tobytes()).hexdigest()[:16]
    assert list(train(config, tiny_data, Runtime()))[-1].pairing == pairing


def test_sampled_passes_are_uniform_repeat_and_have_the_mean_r(tiny):
    """Caught: R passes always; the step not in the draw; the range one off."""
    full = tiny("latent", seed=3)
    assert [sampled_passes(full, step) for step in range(3)] == [None] * 3
    model = replace(full.model, latent_iterations=4, latent_mode="sampled")
    config = replace(full, model=model)
    drawn = [sampled_passes(config, step) for step in range(7000)]
    assert drawn == [sampled_passes(config, step) for step in range(7000)]
    counts = [drawn.count(n) for n in range(1, 8)]
    assert sum(counts) == 7000
    assert all(abs(count - 1000) < 130 for count in counts)  # four standard deviations
    other = [sampled_passes(replace(config, seed=4), step) for step in range(7000)]
    assert 0.1 < sum(a == b for a, b in zip(drawn, other, strict=True)) / 7000 < 0.2


def test_the_flops_of_a_record_are_those_of_the_passes_that_ran(tiny, tiny_data):
    """Caught: nominal passes; the mean of a record's passes for each step's own; passes of one part of a batch."""
    full = tiny("mod+latent+memory")
    for options in ({"latent_mode": "sampled"}, {"latent_mode": "sampled", "latent_halting": "gate"}, {}):
        config = replace(full, model=replace(full.model, **options))
        for runtime in (Runtime(), Runtime(micro_batch=1)):
            expected, done = 0.0, 0
            for record in train(config, tiny_data, runtime):
                for step in range(done, record.step):
                    passes = sampled_passes(config, step) or 2
                    expected += config.tokens_per_step * training_flops_per_token(config.model, passes=passes)
                done = record.step
                assert record.flops == pytest.approx(expected, rel=1e-12)
    act = replace(full, model=replace(full.model, latent_halting="act", latent_iterations=4))
    nominal = 24 * act.tokens_per_step * training_flops_per_token(act.model)
    least = 24 * act.tokens_per_step * training_flops_per_token(act.model, passes=1)
    assert least < list(train(act, tiny_data, Runtime()))[-1].flops < nominal
