"""Two ranks equal one process at the same global batch (property 11), with every option. Through Ray it is held in
`tests/sweeps/engine/test_schedule.py`, sharded in `test_sharding.py`."""

import json
import os
import signal
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from lahr.data import TokenData, prepare
from lahr.training.compilation import unable
from lahr.training.loop import train
from lahr.training.parallel import lost_another
from lahr.training.runtime import Runtime
from tests.conftest import TINY
from tests.lahr.data import labelled

ROWS = replace(TINY.data, segments=2)
QUESTIONS = replace(TINY.data, packing="documents", train_tokens=4_000, validation_blocks=9)
STAGED = replace(QUESTIONS, validation_blocks=8)
TRAINED = {
    "every default, with branches and averaged weights": {"decayed_points": 2, "ema": 0.8},
    "falling capacity": {"capacity_warmup": 0.7},
    "stages": {"curriculum": 0.7},
}
OPTIONS = {
    "every default, with branches and averaged weights": {},
    "sampled, exit gate, threshold": {
        "latent_mode": "sampled", "latent_halting": "gate", "mod_router": "threshold",
    },
    "act, random, router losses": {
        "latent_halting": "act", "latent_iterations": 4, "mod_router": "random", "mod_z_loss": 0.01,
        "mod_balance_loss": 0.1,
    },
    "latent capacity, sampled, slots": {
        "latent_capacity": 0.25, "latent_mode": "sampled", "memory_kind": "slots",
    },
    "knn": {"memory_kind": "knn", "memory_slots": 40},
    "own, tied": {"build": "tests.lahr.model.own_models:plain", "options": {"tied": True}},
    "own, llama": {"build": "tests.lahr.model.own_models:llama"},
    "questions": {"max_seq_len": 64},
    "questions, own": {"max_seq_len": 64, "build": "tests.lahr.model.own_models:plain", "options": {"tied": True}},
    "falling capacity": {"latent_iterations": 0},
    "stages": {"memory_slots": 0},
    "compiled": {"latent_capacity": 0.5},
}  # fmt: skip


def prepared(config, cache) -> TokenData:
    """Rows of the stories, or documents with answers, of which some predict little and none the same."""
    how = labelled.prepared if config.data.packing == "documents" else prepare
    if config.train.curriculum:
        how = labelled.prepared_stages
    return how(config.data, config.model.vocab_size, config.model.max_seq_len, cache)


def _rank(rank, world, folder, configs, cache) -> None:
    store = torch.distributed.FileStore(f"{folder}/store", world)
    patience = timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=patience)
    for name, config in configs.items():
        data = prepared(config, cache)
        runtime = Runtime(workers=world, compile="on" if name == "compiled" else "off")
        records = list(train(config, data, runtime))
        (folder / f"{name}-{rank}").write_text(json.dumps([r.to_json() for r in records]))
    torch.distributed.destroy_process_group()
    os._exit(0)  # a gloo thread now and then takes the interpreter down with it on the way out


@pytest.mark.timeout(600)
def test_two_ranks_equal_one_process_with_every_option(tiny, cache, tmp_path):
    """In float64: losses of the run and of its branches, metrics, pairing, tokens and FLOPs; compiled ranks equal one
    process that runs as written.

    Caught: a branch that only rank 0 runs, which then waits for the others in vain; balance over a rank's own batch;
    an exit gate without a gradient in a step of one pass; each rank drawing its own passes; the mean of two ranks'
    means where one predicts fewer tokens; a threshold of a rank's own capacity, and each rank in a stage of its own.
    """
    full = tiny("mod+latent+memory", precision="fp64", schedule="wsd", decay=0.5)
    configs = {
        name: replace(
            full,
            data=STAGED if name == "stages" else QUESTIONS if name.startswith("questions") else ROWS,
            model=replace(full.model, **options),
            train=replace(full.train, **TRAINED.get(name, {})),
        )
        for name, options in OPTIONS.items()
    }
    if why := unable("cpu"):
        warnings.warn(f"nothing is compiled here, and so no compiled ranks: {why}", stacklevel=1)
        del configs["compiled"]
    mp.spawn(_rank, args=(2, tmp_path, configs, cache), nprocs=2)
    for name, config in configs.items():
        data = prepared(config, cache)
        alone = [r.to_json() for r in train(config, data, Runtime())]
        for rank in range(2):
            records = json.loads((tmp_path / f"{name}-{rank}").read_text())
            assert len(records) == len(alone)
            for ours, theirs in zip(records, alone, strict=True):
                assert (ours["pairing"], ours["tokens"]) == (theirs["pairing"], theirs["tokens"])
                assert ours["flops"] == pytest.approx(theirs["flops"], rel=1e-9)
                assert ours["metrics"].keys() == theirs["metrics"].keys()
                # In the first block equal tokens have equal keys: which of them is read, rounding decides.
                same = theirs["metrics"].keys() - {"tokens_per_second", "peak_memory_mib", "memory/distance"}
                assert {k: ours["metrics"][k] for k in same} == pytest.approx(
                    {k: theirs["metrics"][k] for k in same}, rel=1e-8, abs=1e-12
                ), name
        assert sum("decayed_val_loss" in r["metrics"] for r in alone) == config.train.decayed_points


def _loses_its_peer(rank: int, folder: Path, how: str) -> None:
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    try:
        for step in range(3):
            model(torch.ones(1, 2)).sum().backward()
            if rank == 1 and step == 1 and how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 1 and step == 1:
                raise ValueError("its own")
    except Exception as error:
        (folder / str(rank)).write_text(f"{type(error).__name__} {lost_another(error)}")
    os._exit(0)


@pytest.mark.parametrize("how", ["killed", "raises"])
def test_who_loses_a_peer_knows_that_it_is_not_its_own_fault(how, tmp_path):
    """Seen to fail: three preempted peers within a checkpoint's interval were three errors, and the trial given up."""
    context = mp.get_context("spawn")
    ranks = [context.Process(target=_loses_its_peer, args=(rank, tmp_path, how)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert (tmp_path / "0").read_text() == "RuntimeError True"
    assert how == "killed" or (tmp_path / "1").read_text() == "ValueError False"
