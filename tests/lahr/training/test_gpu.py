"""Training on a GPU: the same bits each time, and after a kill; the losses of the CPU."""

from dataclasses import replace

import pytest
import torch

from lahr.config import TrialConfig
from lahr.data import prepare
from lahr.files import Folder
from lahr.plain import changed
from lahr.presets import preset
from lahr.training.loop import train
from lahr.training.runtime import Runtime
from tests.conftest import LEVELS
from tests.lahr.training.test_loop import config as config  # the fixture
from tests.lahr.training.test_loop import state, without_clock

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none here")
GPU = Runtime(device="cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config, precision, tiny_data, tmp_path):
    config = replace(config, precision=precision)
    whole, cut = Folder.at(tmp_path / "whole"), Folder.at(tmp_path / "cut")
    undisturbed = list(train(config, tiny_data, GPU, whole))
    interrupted = train(config, tiny_data, GPU, cut)
    while next(interrupted).step < 12:
        pass
    interrupted.close()
    resumed = list(train(config, tiny_data, GPU, cut))
    assert [without_clock(r) for r in resumed] == [without_clock(r) for r in undisturbed]
    ours, theirs = state(cut, config, tiny_data), state(whole, config, tiny_data)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("factor", [None, *LEVELS])
def test_at_a_size_that_fills_the_gpu_two_runs_end_in_the_same_bits(factor, tmp_path):
    """Toy models do so by chance; these differ where sums have no fixed order (`benchmarks/same_bits.py`)."""
    small = preset("small")
    levels = {name: small.on[name] for name in LEVELS[factor]} if factor else {}
    data = replace(small.data, train_tokens=1_000_000, validation_blocks=16)
    lengths = {"tokens": 20 * small.train.batch_size * small.model.max_seq_len, "evaluations": 1, "checkpoints": 1}
    config = TrialConfig(changed(small.model, levels), data, replace(small.train, **lengths), precision="bf16")
    tokens = prepare(data, small.model.vocab_size, small.model.max_seq_len, tmp_path)
    one, other = (without_clock(list(train(config, tokens, GPU))[-1]) for _ in range(2))
    assert one == other


def test_losses_are_those_of_the_cpu(config, tiny_data):
    """In float64, over all steps."""
    config = replace(config, precision="fp64")
    here, there = (list(train(config, tiny_data, runtime)) for runtime in (Runtime(), GPU))
    assert [record.pairing for record in here] == [record.pairing for record in there]
    for ours, theirs in zip(there, here, strict=True):
        assert ours.metrics["train_loss"] == pytest.approx(theirs.metrics["train_loss"], abs=1e-7)
    assert there[-1].metrics["val_loss"] == pytest.approx(here[-1].metrics["val_loss"], abs=1e-7)
    assert there[-1].metrics["peak_memory_mib"] > 0
