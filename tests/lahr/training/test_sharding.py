"""A sharded trial is the same trial: one process's numbers, from any number of processes, through any checkpoint.

Two and four processes on this machine over gloo, each started once for several jobs, since what costs is starting
them: they import torch for some seconds. This file is also what they run.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pyarrow import fs
from safetensors import safe_open

from lahr.config import TrialConfig
from lahr.data import prepare
from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.plain import from_dict
from lahr.training import checkpoints
from lahr.training.loop import train
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime

ROOT = Path(__file__).parents[3]
FULL = "mod+latent+memory"
EQUAL = {
    "base": ("base", {}),
    "mod": ("mod", {}),
    FULL: (FULL, {}),
    "exit gate, threshold": (
        FULL,
        {"latent_mode": "sampled", "latent_halting": "gate", "mod_router": "threshold"},
    ),
    "act, random, slots": (
        FULL,
        {"latent_halting": "act", "mod_router": "random", "memory_kind": "slots", "mod_z_loss": 0.01},
    ),
    "latent capacity": (FULL, {"latent_capacity": 0.25, "latent_mode": "sampled", "latent_core_layers": 2}),
    "averaged weights": (FULL, {}),
    "own, tied": ("base", {"build": "tests.lahr.model.own_models:plain", "options": {"tied": True}}),
    "own, llama": ("base", {"build": "tests.lahr.model.own_models:llama"}),
}
"""Name → cell and options."""
SHARDED = Runtime(workers=2, sharding="shard", micro_batch=1)
HANG_S = 60
"""How long a process waits for the others; a job takes a few seconds."""


@dataclass(frozen=True)
class Job:
    """One call of `train` by every process."""

    config: TrialConfig
    folder: str | None = None
    """Of its checkpoints; `{rank}` stands for the process."""
    runtime: Runtime = SHARDED
    until: int = 10**9
    """Left after the first record at this step or later, as a killed run is."""


@dataclass(frozen=True)
class Ran:
    """What one process got from a job."""

    records: list[Progress]
    warnings: list[str]
    error: str


class Store:
    """An object store: no folder is made beforehand, and nothing is a path of this machine."""

    def __init__(self) -> None:
        self._disk = fs.LocalFileSystem()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def open_output_stream(self, path: str) -> Any:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return self._disk.open_output_stream(path)


def run_jobs(jobs: dict[str, Job], processes: int, place: Path, cache: Path) -> dict[str, list[Ran]]:
    """Every job by so many processes, in turn; job → what each process got."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "jobs.json").write_text(json.dumps({name: asdict(job) for name, job in jobs.items()}))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(place), str(cache), str(processes)]
    started = [subprocess.Popen([*command, str(rank)], env=env, cwd=ROOT) for rank in range(processes)]
    try:
        deadline = time.monotonic() + 180
        while any(process.poll() is None for process in started) and not any(p.poll() for p in started):
            assert time.monotonic() < deadline, "the processes wait for each other"
            time.sleep(0.05)
        codes = [process.poll() for process in started]
        assert not any(codes), (
            f"exit codes {codes}: the traceback of a process that failed is in the captured stderr"
        )
    finally:
        for process in started:
            process.kill()
            process.wait()
    found = [json.loads((place / f"rank-{rank}.json").read_text()) for rank in range(processes)]
    return {
        name: [
            Ran([Progress.from_json(r) for r in each[name]["records"]], each[name]["warnings"], each[name]["error"])
            for each in found
        ]
        for name in jobs
    }


def main(place: Path, cache: Path, processes: int, rank: int) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    # A worker of a sweep is refused where bf16 is slow; slow is no matter here.
    sys.modules["lahr.training.runtime"].has_bf16 = lambda device: True  # type: ignore[attr-defined]
    disk = Folder._open
    Folder._open = lambda self: (  # type: ignore[method-assign]
        (Store(), self.uri.removeprefix("store:/")) if self.uri.startswith("store:/") else disk(self)
    )
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place / 'meeting'}",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=HANG_S),
    )
    results = {}
    as_it_is = checkpoints.Checkpoint.kept_tensors
    for name, values in json.loads((place / "jobs.json").read_text()).items():
        config, runtime = from_dict(TrialConfig, values["config"]), from_dict(Runtime, values["runtime"])
        data = prepare(config.data, config.model.vocab_size, config.model.max_seq_len, cache)
        folder = values["folder"] and Folder(values["folder"].format(rank=rank))
        records, warnings, error = [], [], ""
        kept = as_it_is if name.startswith("diverged") else everything
        checkpoints.Checkpoint.kept_tensors = kept  # type: ignore[method-assign]
        try:
            for record in train(config, data, runtime, folder, warnings):
                records.append(record.to_json())
                if record.step >= values["until"]:
                    break
        except ConfigError as raised:
            error = str(raised)
        results[name] = {"records": records, "warnings": warnings, "error": error}
    (place / f"rank-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def everything(checkpoint: checkpoints.Checkpoint) -> dict[str, torch.Tensor]:
    """What is written instead of the weights alone once a trial has ended, so that moments can be compared, too."""
    return checkpoint.tensors


def clockless(records: list[Progress]) -> list[tuple]:
    """What has to repeat from run to run and from machine to machine."""
    noisy = ("tokens_per_second", "peak_memory_mib")
    return [
        (r.step, r.tokens, r.flops, r.pairing, r.status, {k: v for k, v in r.metrics.items() if k not in noisy})
        for r in records
    ]


def assert_same(ours: list[Progress], theirs: list[Progress], rel: float = 1e-9) -> None:
    """Records equal to float64's rounding, and equal in all that is no measurement."""
    assert len(ours) == len(theirs)
    for (*facts, metrics), (*expected_facts, expected) in zip(clockless(ours), clockless(theirs), strict=True):
        assert facts == expected_facts
        assert metrics == pytest.approx(expected, rel=rel, abs=rel)


def tensors(place: Path, config: TrialConfig, content_hash: str) -> dict[str, torch.Tensor]:
    """The newest checkpoint's, whole, read by this process alone."""
    found, problems = checkpoints.newest(Folder.at(place), config.fingerprint(content_hash))
    assert found is not None and not problems
    return found.tensors


def left_at(place: Path, whole: Path, step: int) -> None:
    """A copy of a run's checkpoints as they were at `step`."""
    shutil.copytree(whole / f"step-{step}", place / f"step-{step}")


class Runs:
    """The jobs of two processes and the runs of one that they are compared with."""

    def __init__(self, place: Path, cache: Path, tiny, data) -> None:
        self.place, self.cache, self.data, self.tiny = place, cache, data, tiny
        self.alone: dict[str, list[Progress]] = {}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(checkpoints.Checkpoint, "kept_tensors", everything)
            for cell in EQUAL:
                folder = Folder.at(place / "alone" / cell)
                self.alone[cell] = list(train(self.config(cell), data, Runtime(), folder))
        half = train(self.config(FULL), data, Runtime(), Folder.at(place / "from one"))
        while next(half).step < 6:
            pass
        half.close()
        full = self.config(FULL)
        jobs = {cell: Job(self.config(cell), str(place / "two" / cell)) for cell in EQUAL}
        knn = self.config(FULL)
        knn = replace(
            knn,
            data=replace(knn.data, validation_blocks=6, segments=2),
            model=replace(knn.model, memory_kind="knn", memory_slots=40),
        )
        rows = prepare(knn.data, knn.model.vocab_size, knn.model.max_seq_len, cache)
        self.alone["knn"] = list(train(knn, rows, Runtime()))
        jobs |= {
            "knn": Job(knn, runtime=replace(SHARDED, micro_batch=2)),
            "cut 6": Job(full, str(place / "cut 6"), until=6),
            "cut 9": Job(full, str(place / "cut 9"), until=9),
            "cut": Job(full, str(place / "cut"), until=6),
            "resumed": Job(full, str(place / "cut")),
            "from one": Job(full, str(place / "from one")),
            "diverged": Job(
                tiny(FULL, lr=1e25, warmup=0.0, clip_norm=1e30, evaluations=24), str(place / "diverged")
            ),
            "diverged again": Job(
                tiny(FULL, lr=1e25, warmup=0.0, clip_norm=1e30, evaluations=24), str(place / "diverged")
            ),
            "bf16": Job(self.config(FULL, "bf16")),
            "store": Job(full, f"store:/{place / 'store'}", until=6),
            "from store": Job(full, f"store:/{place / 'store'}"),
            "two disks": Job(full, str(place / "disk {rank}")),
        }
        self.two = run_jobs(jobs, 2, place / "jobs", cache)

    def config(self, name: str, precision: str = "fp64") -> TrialConfig:
        """Twelve steps, a clip that always bites, and five windows: three and two, which is two batches and one."""
        cell, options = EQUAL[name]
        config = self.tiny(cell, precision=precision, clip_norm=0.1, tokens=12 * 4 * 32)
        data = replace(config.data, validation_blocks=5)
        train = replace(config.train, ema=0.8 if name == "averaged weights" else 0.0)
        return replace(config, data=data, model=replace(config.model, **options), train=train)

    def tensors(self, run: str) -> dict[str, torch.Tensor]:
        """A finished full model's checkpoint, whole, read by this process alone."""
        return tensors(self.place / run, self.config(FULL), self.data.content_hash)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache, tiny, tiny_data) -> Runs:
    return Runs(tmp_path_factory.mktemp("sharding"), cache, tiny, tiny_data)


@pytest.mark.parametrize("cell", EQUAL)
def test_two_sharded_processes_equal_one_process_in_float64(cell, runs):
    """Losses, norms, thresholds and evaluations of every record, and at the end weights and moments.

    Over batches in parts, a clip that always bites, and validation windows that two do not share evenly. Caught: a
    gradient clipped by the norm of each process's own parts, thresholds that saw a rank's own tokens, losses of one
    rank, weights drawn by rank; and an evaluation of as many batches as a rank has windows for, which waited for ever.
    """
    for ran in runs.two[cell]:
        assert_same(ran.records, runs.alone[cell])
    config = runs.config(cell)
    assert max(r.metrics["grad_norm"] for r in runs.alone[cell]) > config.train.clip_norm, "nothing was clipped"
    ours = tensors(runs.place / "two" / cell, config, runs.data.content_hash)
    theirs = tensors(runs.place / "alone" / cell, config, runs.data.content_hash)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-7, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_knn_memory_whose_gates_are_used_inside_a_block_is_sharded_too(runs):
    """Caught: its gates a group of their own, which nobody ever gathers."""

    def known(records):  # in the first block equal tokens have equal keys: which is read, rounding decides
        kept = [{k: v for k, v in r.metrics.items() if k != "memory/distance"} for r in records]
        return [replace(r, metrics=metrics) for r, metrics in zip(records, kept, strict=True)]

    for ran in runs.two["knn"]:
        assert not ran.error
        assert_same(known(ran.records), known(runs.alone["knn"]))


def test_each_process_holds_its_half(runs):
    """Of weights and moments, by what it wrote; nothing lies there that is no safetensors or JSON.

    Caught: copies (DistributedDataParallel) in the place of parts, whose numbers are equal.
    """
    folder = runs.place / "two" / FULL / "step-12"
    held = []
    for shard in sorted(folder.glob("shard-*.safetensors")):
        with safe_open(shard, "pt") as file:
            sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118
        held.append(sum(size for name, size in sizes.items() if not name.startswith("random.")))
    assert len(held) == 2
    assert max(held) < 0.52 * sum(held)
    assert {p.name for p in folder.iterdir()} == {
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
        "state.json",
        "manifest.json",
    }


def test_a_resumed_sharded_run_equals_an_uninterrupted_one_bit_for_bit(runs):
    """Caught: moments that were not read back, and a choice of checkpoint that the first process kept to itself."""
    for ran, undisturbed in zip(runs.two["resumed"], runs.two[FULL], strict=True):
        assert clockless(ran.records) == clockless(undisturbed.records)
        assert not ran.warnings
    assert runs.two["cut"][0].records[-1].step == 6
    config = runs.config(FULL)
    ours = tensors(runs.place / "cut", config, runs.data.content_hash)
    theirs = tensors(runs.place / "two" / FULL, config, runs.data.content_hash)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_processes_go_on_from_one_and_one_from_two(runs):
    """Caught: parts that were looked for in shards alone, so that two found nothing in what one had left."""
    for ran in runs.two["from one"]:
        assert_same(ran.records, runs.alone[FULL])
        assert not ran.warnings
    left_at(runs.place / "from two", runs.place / "cut 9", 9)
    warnings: list[str] = []
    again = list(train(runs.config(FULL), runs.data, Runtime(), Folder.at(runs.place / "from two"), warnings))
    assert_same(again, runs.alone[FULL])
    assert not warnings


def test_four_go_on_from_two_past_a_damaged_shard_and_all_say_so(runs, tmp_path):
    """Four processes of a model whose smallest parameters have a single row: three hold nothing of them.

    Caught: shards whose hashes were not compared.
    """
    place = tmp_path / "checkpoints"
    left_at(place, runs.place / "cut 6", 6)
    left_at(place, runs.place / "cut 9", 9)
    left_at(place, runs.place / "two" / FULL, 12)
    shard = "shard-00002-model-00001-of-00001.safetensors"
    (place / "step-9" / shard).unlink()
    (place / "step-12" / shard).write_bytes((place / "step-12" / shard).read_bytes()[:-7] + b"damaged")
    config = runs.config(FULL)
    four = Job(config, str(place), Runtime(workers=4, sharding="shard"))
    ran = run_jobs({"four": four}, 4, tmp_path / "jobs", runs.cache)
    for each in ran["four"]:
        assert_same(each.records, runs.alone[FULL])
        damaged, missing, then = each.warnings
        assert damaged == f"checkpoint step-12 is not used: {shard} is damaged (its sha256 is not the manifest's)"
        assert missing.startswith("checkpoint step-9 is not used") and shard in missing
        assert then == "it goes on from step 6"
    # What four have left is whole again, for one.
    assert_same(list(train(config, runs.data, Runtime(), Folder.at(place))), runs.alone[FULL])
    ours, theirs = tensors(place, config, runs.data.content_hash), runs.tensors(f"alone/{FULL}")
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-7, atol=1e-10)


def test_shards_of_another_number_of_processes_are_not_taken_for_these(runs, tmp_path):
    """A file that the manifest does not name would be read with the others. Caught: it was, when left unchecked."""
    left_at(tmp_path, runs.place / "two" / FULL, 12)
    shard = tmp_path / "step-12" / "shard-00002-model-00001-of-00001.safetensors"
    shutil.copy(shard, tmp_path / "step-12" / "shard-00003-model-00001-of-00001.safetensors")
    found, problems = checkpoints.newest(Folder.at(tmp_path), runs.config(FULL).fingerprint(runs.data.content_hash))
    assert found is None
    assert "which its manifest does not name" in problems[0]


def test_a_sharded_run_that_diverges_ends_on_every_process_and_is_a_result(runs):
    """One checkpoint is left of it, without moments. Caught: a run that saved nothing where it diverged, and was
    trained again. Seen to fail: moments in every shard."""
    for name in ("diverged", "diverged again"):
        assert [ran.records[-1].status for ran in runs.two[name]] == ["diverged", "diverged"]
    first, again = runs.two["diverged"][0].records, runs.two["diverged again"][0].records
    assert [r.to_json() for r in again] == [r.to_json() for r in first]
    (left,) = (runs.place / "diverged").glob("step-*")
    for shard in left.glob("shard-*.safetensors"):
        with safe_open(shard, "pt") as file:
            assert all(name.startswith("model.") for name in file.keys())  # noqa: SIM118


def test_products_are_in_bf16_where_that_was_decided(runs, monkeypatch):
    """Caught: autocast that was off where the model is sharded."""
    monkeypatch.setattr("lahr.training.runtime.has_bf16", lambda device: True)
    alone = list(train(runs.config(FULL, "bf16"), runs.data, Runtime()))
    losses = [
        [r.metrics["val_loss"] for r in run if "val_loss" in r.metrics]
        for run in (runs.two["bf16"][0].records, alone, runs.alone[FULL])
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.01)
    # In fp32 the first evaluation is within 1e-6 of float64's, in bf16 it is a thousandth away.
    assert abs(losses[0][0] - losses[2][0]) > 1e-4


def test_checkpoints_reach_an_object_store_and_come_back(runs):
    """Caught: shards written to the folder's URI as if it were a path, so that the resumed run began anew."""
    assert runs.two["store"][0].records[-1].step == 6
    for ran, undisturbed in zip(runs.two["from store"], runs.two[FULL], strict=True):
        assert clockless(ran.records) == clockless(undisturbed.records)
        assert not ran.warnings


def test_processes_that_write_to_different_disks_are_told(runs):
    """Caught: a manifest over files that the first process cannot see, when it did not look."""
    for ran in runs.two["two disks"]:
        assert "the first process does not see shard-00002" in ran.error
        assert "--results" in ran.error


def test_sharding_needs_somebody_to_share_with(tiny, tiny_data):
    """Caught: a runtime of one worker that was let through."""
    with pytest.raises(ConfigError, match="give --workers 2 or more"):
        Runtime(sharding="shard")
    with pytest.raises(ConfigError, match="this process is alone"):
        next(train(tiny(), tiny_data, SHARDED))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    # The device mesh keeps gloo's threads beyond destroy_process_group, and one exit in twenty aborts while Python is
    # taken down ("terminate called without an active exception"), after all is written. So it is not taken down.
    sys.stderr.flush()
    os._exit(0)
