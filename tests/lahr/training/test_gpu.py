"""Training on a GPU: the same bits each time, and after a kill; the losses of the CPU."""

from dataclasses import replace

import pytest
import torch

from lahr.files import Folder
from lahr.training.loop import train
from lahr.training.runtime import Runtime
from tests.lahr.training.test_loop import CELLS, OPTIONS, state, without_clock

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none here")
GPU = Runtime(device="cuda")


@pytest.fixture(params=[*CELLS, *OPTIONS])
def config(request, tiny):
    if request.param in CELLS:
        return tiny(request.param)
    full = tiny("mod+latent+memory")
    return replace(full, model=replace(full.model, **OPTIONS[request.param]))


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


def test_losses_are_those_of_the_cpu(config, tiny_data):
    """In float64, over all steps."""
    config = replace(config, precision="fp64")
    here, there = (list(train(config, tiny_data, runtime)) for runtime in (Runtime(), GPU))
    assert [record.pairing for record in here] == [record.pairing for record in there]
    for ours, theirs in zip(there, here, strict=True):
        assert ours.metrics["train_loss"] == pytest.approx(theirs.metrics["train_loss"], abs=1e-7)
    assert there[-1].metrics["val_loss"] == pytest.approx(here[-1].metrics["val_loss"], abs=1e-7)
    assert there[-1].metrics["peak_memory_mib"] > 0
