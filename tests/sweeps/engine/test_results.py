"""The results folder: pending, finished, other designs, reuse and the lease."""

import json
import os
import signal
import time
from dataclasses import replace

import pandas as pd
import pytest

from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime
from sweeps.engine import lease
from sweeps.engine.design import Factor
from sweeps.engine.results import Recorder, Results, result_of

ABOUT = {"preset": "smoke", "data": {"corpus": "x", "floor": None}}


def last(step: int = 24, loss: float = 3.0, status: str = "finished") -> Progress:
    metrics = {"train_loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "val_loss": loss, "tokens_per_second": 9.0}
    return Progress(step, step * 128, 1e9, 2.0, metrics, "ab12", status)


def record(results: Results, design, trial, **kind) -> None:
    recorder = Recorder(results, design)
    end = last(**kind)
    recorder.started(trial)
    recorder.progressed(trial, [last(12, status="running"), end])
    recorder.finished(trial, result_of(trial, end))


@pytest.fixture
def results(tmp_path, make_design) -> Results:
    made = Results.at(str(tmp_path), "sweep")
    made.begin(make_design(), Runtime(), ABOUT, {})
    return made


def test_a_recorded_trial_is_no_longer_pending_and_stands_in_the_table(results, make_design):
    design = make_design()
    trial = design.trials()[3]
    record(results, design, trial)
    assert trial not in results.pending(design)
    assert len(results.pending(design)) == 15
    table = results.table(design)
    assert list(table.columns[:5]) == ["trial", "cell", "seed", "status", "val_loss"]
    row = table.iloc[0]
    assert (row["trial"], row["val_loss"], row["memory"], row["mod"], row["corner"]) == (
        trial.id,
        3.0,
        True,
        False,
        True,
    )
    assert row["memory_slots"] == 64
    assert row["tokens_per_second"] == row["tokens"] / row["seconds"]
    assert row["pairing"] == "ab12"
    assert list(results.curves([trial.id])[trial.id]["step"]) == [12, 24]
    pd.testing.assert_frame_equal(pd.read_parquet(results.folder.path("trials.parquet")), table)


def test_a_diverged_trial_is_a_result_without_a_loss(results, make_design):
    design = make_design()
    trial = design.trials()[0]
    record(results, design, trial, loss=float("nan"), status="diverged")
    row = results.table(design).iloc[0]
    assert row["status"] == "diverged"
    assert pd.isna(row["val_loss"])
    assert trial not in results.pending(design)


def test_a_trial_without_its_last_file_is_pending(results, make_design):
    """`result.json` is written last: what was cut short before it runs again."""
    design = make_design()
    trial = design.trials()[0]
    record(results, design, trial)
    results.folder.remove(f"trials/{trial.id}/result.json")
    assert trial in results.pending(design)


def test_a_failed_trial_stays_pending_and_its_reason_goes_when_it_starts_again(results, make_design):
    design = make_design()
    trial = design.trials()[0]
    recorder = Recorder(results, design)
    recorder.failed(trial, "out of memory")
    assert trial in results.pending(design)
    assert results.failures(design) == [{"trial": trial.id, "cell": "base", "seed": 0, "error": "out of memory"}]
    recorder.started(trial)
    assert results.failures(design) == []


def test_more_seeds_extend_the_sweep_and_fewer_keep_it(results, make_design):
    results.begin(make_design(seeds=5), Runtime(), ABOUT, {})
    assert results.design().seeds == 5
    results.begin(make_design(seeds=3), Runtime(), ABOUT, {})
    assert results.design().seeds == 5


def test_another_design_under_the_same_name_is_refused_and_changes_nothing(results, make_design):
    before = results.folder.read("design.json")
    design = make_design()
    other = replace(design, config=replace(design.config, train=replace(design.config.train, lr=0.5)))
    with pytest.raises(
        ConfigError, match=r"holds another design \(config.train.lr: 0.5 here, 0.003 there\).*--name"
    ):
        results.begin(other, Runtime(), ABOUT, {})
    assert results.folder.read("design.json") == before


def test_finished_trials_of_the_same_id_are_taken_over(results, make_design, tmp_path):
    design = make_design()
    record(results, design, design.trials()[1])
    larger = make_design(factors=(Factor("mod", "mod_capacity", 1.0, (0.25, 0.5)), *design.factors[1:]))
    other = Results.at(str(tmp_path), "larger")
    other.begin(larger, Runtime(), ABOUT, {})
    assert other.take_over(results, larger) == 1
    assert other.table(larger)["trial"].tolist() == [design.trials()[1].id]
    assert other.take_over(results, larger) == 0


def test_trials_that_were_executed_in_another_way_are_not_taken_over(results, make_design, tmp_path):
    """Two workers give other bits than one. Seen to fail: they were mixed within a block."""
    record(results, make_design(), make_design().trials()[1])
    other = Results.at(str(tmp_path), "wide")
    other.begin(make_design(), Runtime(workers=2), ABOUT, {})
    with pytest.raises(ConfigError, match=r"executed in another way \(workers 1 there, 2 here\)"):
        other.take_over(results, make_design())
    assert other.table(make_design()).empty


def test_every_start_leaves_its_environment(results, make_design):
    results.begin(make_design(), Runtime(), ABOUT, {"commit": "b"})
    assert results.header()["starts"] == [{}, {"commit": "b"}]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "/x", "x" * 129])
def test_names_that_are_no_folder_name_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="--name"):
        Results.at(str(tmp_path), name)


def test_a_folder_without_a_sweep_and_a_damaged_one_are_said(tmp_path, results):
    with pytest.raises(ConfigError, match="there is no sweep at"):
        Results.at(str(tmp_path), "none").design()
    results.folder.write("design.json", b"{")
    with pytest.raises(ConfigError, match="is damaged"):
        results.design()
    results.folder.write("design.json", b"{}")
    with pytest.raises(ConfigError, match="is not a sweep's"):
        results.design()


def test_a_living_sweep_keeps_others_out_and_lets_go_at_the_end(tmp_path):
    folder = Folder.at(tmp_path)
    with lease.held(folder), pytest.raises(ConfigError, match="another sweep is running"), lease.held(folder):
        pytest.fail("two sweeps hold one folder")
    assert folder.names() == []


def test_a_dead_sweeps_lease_is_taken_at_once_and_a_silent_ones_after_a_while(tmp_path):
    folder = Folder.at(tmp_path)
    dead = {"host": os.uname().nodename, "pid": 2**22 + 1, "owner": "x", "time": time.time()}
    folder.write("lease.json", json.dumps(dead).encode())
    with lease.held(folder):
        pass
    elsewhere = {**dead, "host": "another", "time": time.time() - 5}
    folder.write("lease.json", json.dumps(elsewhere).encode())
    with pytest.raises(ConfigError, match="on another, heard"), lease.held(folder):
        pass
    folder.write("lease.json", json.dumps({**elsewhere, "time": time.time() - 60}).encode())
    with lease.held(folder):
        pass


@pytest.mark.parametrize("start", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def test_a_sweep_that_lost_its_lease_stops_and_leaves_the_others_alone(tmp_path, monkeypatch, start):
    """Its machine slept, say. Seen to fail: it overwrote the other's lease, and removed it at the end; and one that a
    shell had started in the background, with Ctrl-C ignored, went on."""
    before = signal.signal(signal.SIGINT, start)
    try:
        _lose_the_lease(tmp_path, monkeypatch)
        assert signal.getsignal(signal.SIGINT) == start
    finally:
        signal.signal(signal.SIGINT, before)


def _lose_the_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_BEAT_S", 0.05)
    folder = Folder.at(tmp_path)
    theirs = {"host": "another", "pid": 1, "owner": "them", "time": time.time()}

    def sleep_too_long() -> None:
        time.sleep(0.2)
        assert folder.read_json("lease.json")["pid"] == os.getpid()
        folder.write("lease.json", json.dumps(theirs).encode())
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt), lease.held(folder):
        sleep_too_long()
    assert folder.read_json("lease.json") == theirs


def test_of_two_starts_at_once_one_holds_the_lease(tmp_path, monkeypatch):
    """Both have seen that nobody holds it; the slower one is refused."""
    folder = Folder.at(tmp_path)
    real, checks = lease.refuse_if_held, []
    monkeypatch.setattr(lease, "refuse_if_held", lambda f: checks.append(1) or (len(checks) > 1 and real(f)))
    monkeypatch.setattr(Folder, "remove", lambda self, name: None)
    other = {"host": "another", "pid": 1, "owner": "them", "time": time.time()}
    folder.write("lease.json", json.dumps(other).encode())
    with pytest.raises(ConfigError, match="another sweep is running"), lease.held(folder):
        pytest.fail("two sweeps hold one folder")
    assert folder.read_json("lease.json") == other
