"""Launches, and a real sweep through Ray: whole, after workers were killed, and with a trial that cannot run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import ray
from ray.exceptions import NodeDiedError
from ray.train.torch import TorchTrainer
from ray.util.placement_group import placement_group, placement_group_table

from lahr import distributed
from lahr.distributed import Launch
from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.machine import Demands
from lahr.training.loop import train
from lahr.training.runtime import Runtime
from sweeps.engine import schedule, surroundings
from sweeps.engine.design import Trial
from sweeps.engine.machines import Cluster
from sweeps.engine.recorder import Recorder
from sweeps.engine.relay import Outcome, Relay
from sweeps.engine.results import Results

ABOUT = {"preset": "smoke", "data": {"corpus": "x", "floor": None}}


class Heard:
    """An observer that keeps what it is told."""

    essential = False

    def __init__(self) -> None:
        self.started_, self.steps, self.finished_, self.failed_ = [], {}, {}, {}

    def started(self, trial):
        self.started_.append(trial.id)

    def progressed(self, trial, rows):
        self.steps.setdefault(trial.id, []).extend(row.step for row in rows)

    def finished(self, trial, result):
        assert trial.id not in self.finished_, "a trial finished twice"
        self.finished_[trial.id] = result

    def failed(self, trial, error):
        self.failed_[trial.id] = error

    def close(self):
        pass


def seconds(design) -> Mapping[str, float]:
    return {cell.name: 1.0 + (cell.name != "base") + cell.name.count("+") for cell in design.cells()}


def test_an_address_where_no_ray_answers_is_said_at_once(monkeypatch):
    """Ray itself tries for minutes. Seen to fail without the question to the port."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"no Ray answers at .127\.0\.0\.1:1"), schedule.connected(None):
        pass
    assert time.monotonic() - began < 5


def test_what_a_ray_leaves_behind_is_ended_and_nothing_else(monkeypatch):
    """Caught: a process that sleeps in its own exit, and one that is none of Ray's, which goes on."""
    monkeypatch.setattr(surroundings, "_GRACE_S", 0.3)
    title = "import ray, sys; ray._raylet.setproctitle(sys.argv[1]); print(flush=True); input()"
    ours, other = (
        subprocess.Popen([sys.executable, "-c", title, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in ("ray::TrainController", "other")
    )
    try:
        assert all(process.stdout.readline() for process in (ours, other))
        found = [each for each in surroundings.processes() if each.pid in (ours.pid, other.pid)]
        assert [each.pid for each in found] == [ours.pid]
        surroundings.end(found)
        assert ours.wait(5) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.communicate()


def test_the_workers_of_a_ray_of_our_own_are_known(cluster):
    """Caught: processes that are looked for by what their title has overwritten."""
    assert ray.get(ray.remote(num_cpus=0)(lambda: os.getpid()).remote()) in {
        each.pid for each in surroundings.processes()
    }


def test_a_launch_starts_no_helpers_that_it_does_not_use():
    """Caught: a Ray where they have other names, and would be started again."""
    names = [
        [type(callback).__name__ for callback in kind(lambda: None)._create_default_callbacks()]
        for kind in (TorchTrainer, distributed._Trainer)
    ]
    assert set(distributed._Trainer.UNUSED) == set(names[0]) - set(names[1])


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_an_address_outside_of_the_cluster_is_refused(address):
    """Seen to fail: AttributeError, with the environment changed."""
    with pytest.raises(ConfigError, match="inside of the cluster: give its head's"), schedule.connected(address):
        pass


def test_an_address_that_is_no_name_is_said():
    """Seen to fail: UnicodeError."""
    with pytest.raises(ConfigError, match="no Ray answers at"), schedule.connected("head..local:6379"):
        pass


def test_a_launch_survives_the_way_to_a_worker(make_design):
    trials = {trial.id: trial.config for trial in make_design().trials()}
    demands = Demands("results", "nonce", {"torch": "2.13.0"})
    launch = Launch(
        Runtime(), "somewhere", "data", "hash", "cache", demands, 60.0, ("b-s0",), trials=trials, start="start"
    )
    assert Launch.from_dict(json.loads(json.dumps(launch.to_dict()))) == launch


def test_a_cluster_that_never_holds_a_trial_ends_the_sweep(monkeypatch):
    """With --concurrency on machines that are not enough: it says what a trial needs and what there is. Seen to fail:
    it waited for ever."""
    small = Cluster(({"CPU": 1.0, "GPU": 0.0},), grows=True)
    monkeypatch.setattr(schedule, "machines_now", lambda grows: small)
    relay = Relay({}, [])
    ears = schedule._Ears(relay, [], SimpleNamespace(max_concurrent=1), small, Runtime(threads=4), 2)
    ears._look()
    assert relay.outcome.stopped is None
    monkeypatch.setattr(schedule, "_FIRST_MACHINE_S", -1.0)
    ears._look()
    assert "one trial needs 1 x (4 CPU" in relay.outcome.stopped
    assert "the cluster has 1 CPU" in relay.outcome.stopped


@pytest.mark.ray
def test_a_machine_that_cannot_take_part_is_named_and_one_that_left_is_not_waited_for(
    tmp_path, cluster, monkeypatch, caplog
):
    """Seen to fail: a spot machine that left while, or just before it was asked, ended the sweep."""
    demands = replace(Demands.made(Folder.at(tmp_path)), versions={"torch": "1.0"})
    with pytest.raises(ConfigError, match=r"^\S+ \(\S+\) has torch .* \(the driver has 1\.0\)"):
        schedule.examine(demands)
    nodes = ray.nodes()
    monkeypatch.setattr(ray, "nodes", iter([nodes, []]).__next__)
    assert schedule.examine(demands) == ""
    assert "has left the cluster; going on without it" in caplog.text
    caplog.clear()
    monkeypatch.setattr(ray, "nodes", lambda: nodes)  # Ray lists it still
    monkeypatch.setattr(ray, "get", MagicMock(side_effect=NodeDiedError("Task failed because the node is dead")))
    assert schedule.examine(demands) == ""
    assert "has left the cluster; going on without it" in caplog.text


@pytest.mark.ray
def test_what_launches_left_reserved_is_given_back(tmp_path, cluster, monkeypatch):
    """By those of earlier starts at once, by this one's after a while, unless their workers have spoken of it; and not
    what another job has, or Tune itself. Seen to fail: random kills left groups that took every machine."""

    def reserve(**bundle: float) -> str:
        group = placement_group([bundle])
        assert group.wait(10)
        return group.id.hex()

    def left() -> set[str]:
        return {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"} & made

    job = ray.get_runtime_context().get_job_id()
    head = next(node["NodeID"] for node in ray.nodes())
    used, lost, tunes = reserve(CPU=0.1), reserve(CPU=0.1), reserve(**{"node:__internal_head__": 0.001})
    made = {used, lost, tunes}
    ears = schedule._Ears(Relay({}, []), [], SimpleNamespace(max_concurrent=1), cluster, Runtime(), None)
    ears._groups[0] = used
    ears._free_unheard()
    assert left() == made
    monkeypatch.setattr(schedule, "_UNHEARD_S", -1.0)
    ears._free_unheard()
    assert left() == {used, tunes}
    for earlier, kept in (
        ({"head": head, "jobs": ["ff000000"]}, {used, tunes}),
        ({"head": "another", "jobs": [job]}, {used, tunes}),
        ({"head": head, "jobs": ["ff000000", job]}, set()),
    ):
        Folder.at(tmp_path).write_json(".reserved.json", earlier)
        schedule.give_back_earlier(Folder.at(tmp_path))
        assert left() == kept
        assert Folder.at(tmp_path).read_json(".reserved.json")["jobs"][-1] == job


def sweep(
    design, pending, tmp_path, cluster, data, observers=(), runtime=None, hang_after=300.0
) -> tuple[Outcome, Heard, Results]:
    results, heard, runtime = Results.at(str(tmp_path), "s"), Heard(), runtime or Runtime()
    results.begin(design, runtime, ABOUT, {})
    outcome = schedule.run(
        pending,
        [heard, Recorder(results, design, "code"), *observers],
        results=results,
        launch=Launch(
            runtime=runtime,
            checkpoints=results.checkpoints.uri,
            data=str(data.folder),
            content_hash=design.content_hash,
            cache=str(data.folder.parent),
            demands=Demands.made(results.folder),
            hang_after=hang_after,
        ),
        cluster=cluster,
        seconds=seconds(design),
    )
    return outcome, heard, results


def undisturbed(trial: Trial, data) -> float:
    return list(train(trial.config, data, Runtime()))[-1].metrics["val_loss"]


class KillOneWorker:
    """Ends a training worker with SIGKILL, once, when the first trial has ended."""

    essential = False

    def __init__(self) -> None:
        self.killed = 0

    def finished(self, trial, result):
        if not self.killed:
            self.killed = _kill_a_worker()

    def started(self, *said): ...
    def progressed(self, *said): ...
    def failed(self, *said): ...
    def close(self): ...


def _kill_a_worker() -> int:
    """The pid of a Ray Train worker below this process's Ray that was ended; 0 if none was found."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline") as file:
                    command = file.read()
            except OSError:
                continue
            if command.startswith("ray::") and "RayTrainWorker" in command and _is_below(int(name)):
                os.kill(int(name), signal.SIGKILL)
                return int(name)
    return 0


def _is_below(pid: int) -> bool:
    """Whether this process started it, however far down: no other Ray on the machine is touched."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


@pytest.mark.ray
def test_a_sweep_survives_a_killed_worker_and_a_trial_that_cannot_run(make_design, tiny_data, tmp_path, cluster):
    """One block, one worker killed in the middle, one trial whose configuration no worker can run.

    Every other trial's loss is bit-identical to the same trial trained alone in this process; no step is told twice.
    """
    design = make_design(seeds=1)
    good = list(design.trials())
    # A model that cannot be built on the worker: its tokens lie outside the vocabulary.
    broken = replace(
        good[0], id="broken-s0", config=replace(good[0].config, model=replace(good[0].config.model, vocab_size=5))
    )
    killer = KillOneWorker()
    outcome, heard, results = sweep(design, [*good, broken], tmp_path, cluster, tiny_data, [killer])
    assert killer.killed, "no worker was found to kill; the test shows nothing"
    assert not outcome.interrupted
    assert sorted(outcome.finished) == sorted(trial.id for trial in good)
    assert list(outcome.failed) == ["broken-s0"]
    assert "given up after 3 attempts" in heard.failed_["broken-s0"]
    for trial in good:
        assert heard.finished_[trial.id]["val_loss"] == undisturbed(trial, tiny_data)
        assert heard.steps[trial.id] == sorted(set(heard.steps[trial.id]))
        assert heard.steps[trial.id][-1] == trial.config.steps
    assert results.pending(design) == []
    assert not results.folder.exists(".ray")


@pytest.mark.ray
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_workers_equal_one_process(sharding, make_design, tiny_data, tmp_path, cluster):
    """Property 11 in float64, through Ray: the full model's losses at every record, on two workers and on one.

    Seen to fail when each rank's thresholds saw only its own tokens, and when every rank read the whole batch.
    """
    design = make_design(seeds=1)
    full = design.trials()[-1]
    config = replace(full.config, precision="fp64")
    trial = replace(full, id="full-two-workers", config=config)
    runtime = Runtime(workers=2, sharding=sharding)
    outcome, _, results = sweep(design, [trial], tmp_path, cluster, tiny_data, runtime=runtime)
    assert outcome.finished == [trial.id]
    alone = list(train(config, tiny_data, Runtime()))
    curve = results.curves([trial.id])[trial.id]
    for column in ("train_loss", "val_loss", "val_loss_topk", "grad_norm", "mod/capacity_layer1"):
        ours = curve[column].dropna().tolist()
        theirs = [r.metrics[column] for r in alone if column in r.metrics]
        assert ours == pytest.approx(theirs, rel=1e-9), column
    assert curve["pairing"].tolist() == [r.pairing for r in alone]
