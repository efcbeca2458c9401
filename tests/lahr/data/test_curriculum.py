"""A corpus with stages: which is read when, and that what is drawn does not depend on it."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lahr.config import DataConfig, TrainConfig
from lahr.data import Batches
from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.training.loop import train
from lahr.training.runtime import Runtime
from tests.lahr.data import labelled
from tests.lahr.data.labelled import STAGES
from tests.lahr.training.test_loop import state, without_clock

ASKED = DataConfig(packing="documents", train_tokens=4_000, validation_blocks=8)
N, BLOCK = 24, 8


@pytest.fixture(scope="module")
def data(cache):
    return labelled.prepared_stages(ASKED, 64, BLOCK, cache, N)


@pytest.fixture
def config(tiny):
    """24 steps of 4 questions."""
    found = tiny(tokens=24 * 4 * BLOCK)
    return replace(found, data=ASKED, model=replace(found.model, vocab_size=64, max_seq_len=BLOCK))


def test_the_stages_of_a_run():
    """Each of the first ones for as long, the last from the curriculum's end to the run's."""
    half = TrainConfig(tokens=1, batch_size=1, curriculum=0.5)
    assert [half.stage(step, 12, 4) for step in range(12)] == [0, 0, 1, 1, 2, 2, *[3] * 6]
    assert [half.stage(step, 12, 1) for step in range(12)] == [0] * 12
    most = TrainConfig(tokens=1, batch_size=1, curriculum=0.999)
    assert [most.stage(step, 6, 3) for step in range(6)] == [0, 0, 0, 1, 1, 1]
    long = TrainConfig(tokens=1, batch_size=1, curriculum=0.75, first_stage=4)
    assert [long.stage(step, 16, 4) for step in range(16)] == [*[0] * 8, 1, 1, 2, 2, *[3] * 4]
    assert [long.stage(step, 16, 2) for step in range(16)] == [*[0] * 12, *[1] * 4]
    none = TrainConfig(tokens=1, batch_size=1)
    assert {none.stage(step, 12, 4) for step in range(12)} == {3}
    # A share that is no whole number of steps, and more stages than steps: never one that there is not.
    for share, steps, stages in itertools.product((0.1, 1 / 3, 0.77), (1, 2, 7, 30), (2, 3, 9)):
        of = [TrainConfig(tokens=1, batch_size=1, curriculum=share).stage(i, steps, stages) for i in range(steps)]
        assert of == sorted(of) and of[0] >= 0 and of[-1] <= stages - 1
        assert sum(stage == stages - 1 for stage in of) >= int((1 - share) * steps)
        counts = Counter(of)
        early = [counts[stage] for stage in range(stages - 1)]
        assert max(early) - min(early) <= 1
    with pytest.raises(ConfigError, match=r"curriculum is 1.0; it is a share of the steps, 0 \(none\) to below 1"):
        TrainConfig(tokens=1, batch_size=1, curriculum=1.0)
    for wrong in (0.0, math.inf):
        with pytest.raises(ConfigError, match=rf"first_stage is {wrong}; it is how many times as long the first"):
            TrainConfig(tokens=1, batch_size=1, first_stage=wrong)


def test_the_same_questions_at_each_step_in_another_stage(data):
    """Caught: rows of all stages drawn from; a stage's rows one question off; a digest of the rows read."""
    assert (data.stages, len(data.train)) == (STAGES, STAGES * N)
    plain = Batches(data.train, 6, 3, STAGES, lambda step: STAGES - 1)
    staged = Batches(data.train, 6, 3, STAGES, lambda step: step % STAGES)
    assert plain.n_blocks == N
    for step in range(12):
        assert plain.block_ids(step).tolist() == staged.block_ids(step).tolist()
        (ours, answers), (theirs, same) = staged.batch(step), plain.batch(step)
        # A row is <|endoftext|>, the question's two words, its stage, and predicts the answer from there.
        assert torch.equal(ours[:, :3], theirs[:, :3]) and torch.equal(answers[:, 3], same[:, 3])
        stage = ours[:, 3] - theirs[:, 3]
        assert (stage == step % STAGES - (STAGES - 1)).all()
        for rank in range(2):
            assert torch.equal(staged.batch(step, rank, 2)[0], ours[rank::2])
        assert staged.predicted(step) == int((answers >= 0).sum())
    assert plain.digest(12) == staged.digest(12)
    epoch = [i for step in range(4) for i in staged.block_ids(step).tolist()]
    assert sorted(epoch) == list(range(N))


def test_trials_with_and_without_a_curriculum_are_paired(data, config):
    with_it = replace(config, train=replace(config.train, curriculum=0.5))
    ours, theirs = (list(train(each, data, Runtime())) for each in (with_it, config))
    assert [r.pairing for r in ours] == [r.pairing for r in theirs]
    assert ours[0].metrics["train_loss"] != theirs[0].metrics["train_loss"]
    assert "accuracy/last" in ours[-1].metrics


@pytest.mark.parametrize("options", [{}, {"mod_capacity": 0.25, "mod_noise": 0.5}])
def test_a_resumed_curriculum_equals_an_uninterrupted_one_bit_for_bit(options, data, config, tmp_path):
    """Cut off inside the curriculum. Caught: a stage that is counted from the resume on."""
    own = {"curriculum": 0.8, "capacity_warmup": 0.7 if options else 0.0}
    config = replace(config, train=replace(config.train, **own), model=replace(config.model, **options))
    whole, cut = Folder.at(tmp_path / "whole"), Folder.at(tmp_path / "cut")
    undisturbed = list(train(config, data, Runtime(), whole))
    interrupted = train(config, data, Runtime(), cut)
    while next(interrupted).step < 12:
        pass
    interrupted.close()
    torch.manual_seed(999)
    resumed = list(train(config, data, Runtime(), cut))
    assert [without_clock(r) for r in resumed] == [without_clock(r) for r in undisturbed]
    ours, theirs = state(cut, config, data), state(whole, config, data)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_corpus_without_stages_refuses_a_curriculum(tiny, tiny_data):
    with pytest.raises(ConfigError) as raised:
        next(train(tiny(curriculum=0.5), tiny_data, Runtime()))
    assert str(raised.value) == ("train.curriculum is 0.5, and stories (made here) has no stages; leave it out")


def test_too_few_tokens_for_all_stages_are_refused(cache, data):
    """One document less than all of them, and one token less. Caught: the last stage's rows fewer than the others',
    and read as other questions."""
    needed = data.train.split.n_tokens
    for short in (needed - 1, needed - 5, needed // 2):
        with pytest.raises(ConfigError, match=rf"has 3 stages, and data.train_tokens {short} ends before the last"):
            labelled.prepared_stages(replace(ASKED, train_tokens=short), 64, BLOCK, cache, N)
    assert labelled.prepared_stages(replace(ASKED, train_tokens=needed + 1), 64, BLOCK, cache, N).stages == STAGES


def test_stages_as_a_stream_are_refused(cache):
    with pytest.raises(ConfigError, match=r"has 3 stages, whose rows must be documents; give --data.packing doc"):
        labelled.prepared_stages(replace(ASKED, packing="stream"), 64, BLOCK, cache, N)
