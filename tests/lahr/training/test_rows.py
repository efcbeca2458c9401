"""Rows of segments through the loop: every forward pass holds whole rows, on every rank, with their number."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lahr.data import prepare
from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.model import LAHR
from lahr.training import evaluation
from lahr.training.evaluation import evaluate
from lahr.training.loop import train
from lahr.training.runtime import Runtime
from tests.conftest import TINY

ROWS = replace(TINY.data, segments=2)


@pytest.fixture(scope="module")
def row_data(cache):
    return prepare(ROWS, TINY.model.vocab_size, TINY.model.max_seq_len, cache)


@pytest.fixture
def passes(monkeypatch) -> list:
    """What each forward pass was given: training or not, tokens, targets, segments."""
    seen, forward = [], LAHR.forward

    def noted(model, tokens_BT, targets_BT=None, routing=None, **options):
        seen.append((model.training, tokens_BT, targets_BT, options.get("segments")))
        return forward(model, tokens_BT, targets_BT, routing, **options)

    monkeypatch.setattr(LAHR, "forward", noted)
    return seen


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_every_pass_holds_whole_rows(tiny, row_data, passes, micro_batch):
    """Caught: windows of the stream in place of rows, and `segments` not passed on in training or in evaluation."""
    config = replace(tiny("mod+latent+memory"), data=ROWS)
    records = list(train(config, row_data, Runtime(micro_batch=micro_batch)))
    assert records[-1].status == "finished"
    assert {training for training, *_ in passes} == {True, False}
    for training, tokens_BT, targets_BT, segments in passes:
        assert segments == 2
        assert len(tokens_BT) == ((micro_batch or 4) if training else 2 * (micro_batch or 4))
        assert torch.equal(tokens_BT[1::2, 0], targets_BT[::2, -1])  # a row's second window goes on from its first


def test_the_knn_memory_trains_resumes_and_is_measured(tiny, row_data, tmp_path):
    """Caught: no segments in the evaluation, so nothing remembered there; a gate that never moves."""
    config = replace(tiny("mod+latent"), data=ROWS)
    knn = replace(config, model=replace(config.model, memory_slots=32, memory_kind="knn", memory_top_k=4))
    whole, cut = Folder.at(tmp_path / "whole"), Folder.at(tmp_path / "cut")
    records = list(train(knn, row_data, Runtime(), whole))
    last = records[-1].metrics
    assert 0 < last["memory/gate"] < 1
    assert 1 <= last["memory/distance"] < 64
    plain = list(train(config, row_data, Runtime()))[-1].metrics
    assert plain["val_loss"] != last["val_loss"]
    interrupted = train(knn, row_data, Runtime(), cut)
    while next(interrupted).step < 12:
        pass
    interrupted.close()
    resumed = list(train(knn, row_data, Runtime(), cut))
    assert [r.metrics["train_loss"] for r in resumed] == [r.metrics["train_loss"] for r in records]
    assert resumed[-1].metrics["val_loss"] == last["val_loss"]


def test_one_segment_is_said_to_the_model_too(tiny, tiny_data, passes):
    """Caught: the number of segments taken for that of the windows."""
    list(train(tiny(tokens=256), tiny_data, Runtime()))
    assert {segments for *_, segments in passes} == {1}


def test_a_split_by_hand_that_cuts_rows_is_refused(tiny, row_data):
    """Before the first step. Caught: without the check the first half of a row went through alone."""
    with pytest.raises(ConfigError, match="micro_batch is 1, which is no whole number of rows of 2"):
        next(train(replace(tiny(), data=ROWS), row_data, Runtime(micro_batch=1)))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_evaluate_whole_rows_and_together_all_of_them(tiny, row_data, passes, monkeypatch, world):
    """Caught: every `world`-th window to a rank, which tears rows apart."""
    model = LAHR(tiny().model)
    windows = row_data.windows
    for rank in range(world):
        fake = SimpleNamespace(
            is_initialized=lambda: True, get_rank=lambda rank=rank: rank, get_world_size=lambda: world,
            all_reduce=lambda value: None,
        )  # fmt: skip
        monkeypatch.setattr(evaluation, "dist", fake)
        evaluate(
            model, windows, micro_batch=4, autocast=torch.autocast("cpu", enabled=False),
            bytes_per_token=2.0, with_topk=False, segments=2,
        )  # fmt: skip
    rows = [row for _, tokens_BT, *_ in passes for row in tokens_BT.view(-1, 64).tolist()]
    assert sorted(rows) == sorted(windows.inputs_NT.view(-1, 64).tolist())
