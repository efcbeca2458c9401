"""Losses and accuracies by label against a reader that goes through the answers one by one; what predicts nothing."""

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lahr.data import IGNORED, Batches, Windows
from lahr.data.documents import FIRST, UNCOUNTED, Label
from lahr.model import LAHR
from lahr.training.evaluation import evaluate
from lahr.training.loop import train
from lahr.training.runtime import Runtime
from tests.conftest import TINY
from tests.lahr.data import labelled

LABELS = (Label("alone"), Label("recall/near"), Label("recall/far"), Label("count/two"), Label("never"))
PLAIN = torch.autocast("cpu", enabled=False)


@pytest.fixture(scope="module")
def model(tiny):
    model = LAHR(tiny().model, seed=0).double()
    with torch.no_grad():
        model.embedding.weight.mul_(3.0)  # so that it is right now and then about the token that it saw
    return model


def windows_of(segments: int, rows: int = 9, seed: int = 0) -> Windows:
    """Rows of random tokens with answers that follow one another, are cut at both ends, and run over windows' edges."""
    noise = torch.Generator().manual_seed(seed)
    inputs = torch.randint(300, (rows, segments * 32), generator=noise)
    targets = torch.randint(300, inputs.shape, generator=noise)
    labels = torch.zeros(inputs.shape, dtype=torch.uint8)
    for row in range(rows):
        place = 0
        if row % 3 == 0:  # the end of an answer whose beginning is not in the row
            labels[row, :3], place = 2, 3
        while place < inputs.shape[1]:
            size, kind = (int(torch.randint(1, n, (), generator=noise)) for n in (6, 8))
            if kind <= 4:
                labels[row, place : place + size] = kind
                labels[row, place] += FIRST
            elif kind == 5:
                labels[row, place : place + size] = UNCOUNTED
                targets[row, place : place + size] = IGNORED
            place += size
    # Half of the targets are what these weights find likely, or no answer would ever be right.
    copied = (torch.rand(inputs.shape, generator=noise) < 0.8) & (targets >= 0)
    targets = torch.where(copied, inputs, targets)
    whole = torch.rand(inputs.shape, generator=noise) < 0.3
    return Windows(*(x.view(-1, 32) for x in (inputs, targets, labels, whole)))


@torch.no_grad()
def slowly(model, windows: Windows, segments: int) -> dict[str, float]:
    """Answer by answer, from logits."""
    logits = model.eval()(windows.inputs_NT)
    losses = F.cross_entropy(logits.flatten(0, 1), windows.targets_NT.flatten(), reduction="none").tolist()
    right = (logits.argmax(-1) == windows.targets_NT).flatten().tolist()
    labels, targets, whole = (
        x.flatten().tolist() for x in (windows.labels_NT, windows.targets_NT, windows.whole_NT)
    )
    row = segments * 32
    answers = defaultdict(list)  # name → places of each answer
    place = 0
    while place < len(labels):
        if labels[place] < FIRST:
            place += 1
            continue
        number, end = labels[place] - FIRST, place + 1
        while end % row and labels[end] == number:
            end += 1
        name = LABELS[number - 1].name
        for group in {"", f"/{name.split('/')[0]}", f"/{name}"}:
            answers[group].append(range(place, end))
        place = end
    found = {"val_loss": mean(loss for loss, target in zip(losses, targets, strict=True) if target >= 0)}
    counted = zip(losses, targets, whole, strict=True)
    found["document_loss"] = mean(loss for loss, target, inside in counted if target >= 0 and inside)
    for group, all_places in answers.items():
        found[f"answer_loss{group}"] = mean(losses[i] for places in all_places for i in places)
        found[f"accuracy{group}"] = mean(float(all(right[i] for i in places)) for places in all_places)
    return found


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


@pytest.mark.parametrize(("segments", "micro_batch"), [(1, 9), (1, 1), (1, 4), (2, 18), (2, 2), (3, 6)])
def test_losses_and_accuracies_are_those_of_the_answers_one_by_one(model, segments, micro_batch):
    """Caught: an answer right where its first token is; an answer's end whose beginning is cut off counted; answers of
    two batches, or that follow one another, taken for one; a token that predicts nothing in a mean; the part of an
    answer behind a window's edge left out; a kind's mean as the mean over its groups."""
    windows = windows_of(segments)
    expected = slowly(model, windows, segments)
    found = evaluate(
        model, windows, micro_batch=micro_batch, autocast=PLAIN, bytes_per_token=2.0, with_topk=True, labels=LABELS,
        segments=segments,
    )  # fmt: skip
    assert {
        "accuracy",
        "accuracy/alone",
        "accuracy/recall",
        "accuracy/recall/near",
        "accuracy/count/two",
    } <= expected.keys()
    assert 0.1 < expected["accuracy"] < 0.9 and expected["accuracy/recall"] > 0
    assert "accuracy/never" not in found
    own = {"val_loss_topk", "router_gap", "bits_per_byte"}
    assert {name: found[name] for name in found.keys() - own} == pytest.approx(expected, rel=1e-12)


def test_text_without_labels_and_floors_says_nothing_of_them(model):
    """Caught: accuracies of no answers."""
    windows = windows_of(1)._replace(labels_NT=None, whole_NT=torch.zeros(9, 32, dtype=torch.bool))
    found = evaluate(model, windows, micro_batch=4, autocast=PLAIN, bytes_per_token=2.0, with_topk=False)
    assert found.keys() == {"val_loss", "bits_per_byte"}


def test_one_answer_cut_at_the_end_of_its_row_does_not_go_on_in_the_next(model):
    """Caught: rows that share an answer."""
    windows = windows_of(1, rows=2)
    labels = torch.zeros(2, 32, dtype=torch.uint8)
    labels[0, 30], labels[0, 31], labels[1, :3] = 1 + FIRST, 1, 1
    windows = windows._replace(labels_NT=labels, targets_NT=windows.inputs_NT.clone())
    found = evaluate(
        model, windows, micro_batch=2, autocast=PLAIN, bytes_per_token=2.0, with_topk=False, labels=LABELS
    )
    each = F.cross_entropy(model(windows.inputs_NT)[0], windows.targets_NT[0], reduction="none")
    assert found["answer_loss/alone"] == pytest.approx(float(each[30:].mean().detach()), rel=1e-12)


@torch.no_grad()
def passed(model, windows: Windows) -> list[list[bool]]:
    """Of each router, token by token, whether it passed under causal routing."""
    seen = []
    hooks = [
        router.register_forward_hook(lambda _, __, routed: seen.append(routed.selected_BT.flatten().tolist()))
        for _, router in model.routers
    ]
    model.eval()(windows.inputs_NT, windows.targets_NT)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("micro_batch", [9, 4])
@pytest.mark.parametrize("latent", [{}, {"latent_iterations": 2, "latent_capacity": 0.4}])
def test_the_selected_share_is_that_of_the_tokens_that_answers_are_predicted_from(latent, micro_batch, tiny):
    """Token by token, over all routers. Caught: the first tokens of answers alone; the share of text without a label;
    those that top-k routing lets through; a kind's share as the mean over its groups'."""
    config = replace(tiny("mod").model, n_layers=4, **latent)
    model = LAHR(config, seed=0).double()
    windows = windows_of(1)
    with torch.no_grad():
        for _, router in model.routers:
            router.weight.mul_(30)
            router.predictor.hidden.weight.mul_(30)
            router.predictor.out.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
            router.threshold.fill_(0.5)
    by_router = passed(model, windows)
    assert len(by_router) == (3 if latent else 2)
    labels, shares = windows.labels_NT.flatten().tolist(), defaultdict(list)
    for place, label in enumerate(labels):
        if 0 < label % FIRST < UNCOUNTED:
            name = LABELS[label % FIRST - 1].name
            share = sum(router[place] for router in by_router) / len(by_router)
            for group in {"", f"/{name.split('/')[0]}", f"/{name}"}:
                shares[group].append(share)
    expected = {f"selected{group}": mean(of) for group, of in shares.items()}
    found = evaluate(
        model, windows, micro_batch=micro_batch, autocast=PLAIN, bytes_per_token=2.0, with_topk=True, labels=LABELS
    )
    assert {name: found[name] for name in found if name.startswith("selected")} == pytest.approx(expected, rel=1e-6)
    assert len({round(share, 4) for share in expected.values()}) > 3 and 0.1 < expected["selected"] < 0.9


def test_without_routers_nothing_is_selected(model):
    found = evaluate(
        model, windows_of(1), micro_batch=9, autocast=PLAIN, bytes_per_token=2.0, with_topk=True, labels=LABELS
    )
    assert not [name for name in found if name.startswith("selected")]


QUESTIONS = replace(TINY.data, packing="documents", train_tokens=4_000, validation_blocks=9)


@pytest.mark.parametrize("cell", ["base", "mod+latent+memory"])
def test_parts_that_predict_different_numbers_of_tokens_are_one_batch(cell, tiny, cache):
    """Losses, norms and evaluations in float64. Seen to fail: the mean of the parts' means."""
    data = labelled.prepared(QUESTIONS, 300, 64, cache)
    config = tiny(cell, precision="fp64", tokens=12 * 4 * 64)
    config = replace(config, data=QUESTIONS, model=replace(config.model, max_seq_len=64))
    batches = Batches(data.train, 4, config.drawn_seed)
    counts = [[int((row >= 0).sum()) for row in batches.batch(step)[1]] for step in range(config.steps)]
    assert any(len(set(each)) > 1 and min(each) < 10 for each in counts)
    assert [batches.predicted(step) for step in range(config.steps)] == [sum(each) for each in counts]
    one, split = (list(train(config, data, Runtime(micro_batch=micro))) for micro in (0, 1))
    noisy = {"tokens_per_second", "peak_memory_mib"}
    for ours, theirs in zip(split, one, strict=True):
        metrics = [{k: v for k, v in r.metrics.items() if k not in noisy} for r in (ours, theirs)]
        assert metrics[0] == pytest.approx(metrics[1], rel=1e-8, abs=1e-12)
    assert {"accuracy", "accuracy/many", "answer_loss/recall", "document_loss"} <= one[-1].metrics.keys()


def test_the_training_loss_is_the_mean_over_what_a_batch_predicts(tiny, cache):
    """Of the first step, from logits. Caught: a mean over all places of a row."""
    data = labelled.prepared(QUESTIONS, 300, 64, cache)
    config = tiny("base", precision="fp64", tokens=4 * 64, evaluations=1)
    config = replace(config, data=QUESTIONS, model=replace(config.model, max_seq_len=64))
    (record,) = train(config, data, Runtime())
    inputs, targets = Batches(data.train, 4, config.drawn_seed).batch(0)
    logits = LAHR(config.model, config.drawn_seed).double()(inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    assert record.metrics["train_loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
