"""Faults in the middle of a sweep over three hosts, one after another: every trial ends as if there had been none."""

from pathlib import Path

import pytest

from tests.chaos.stage import Stage
from tests.chaos.sweeps import INTERVAL, trials
from tests.cluster.on_prem import OnPrem

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def test_kills_and_a_lost_host_change_no_result(cluster: OnPrem, tmp_path: Path):
    """A worker, a driver, the script, a raylet and a host with its disk, each once; test_hosts.py has each alone."""
    stage = Stage(cluster, tmp_path)
    undisturbed = stage.start("calm")
    undisturbed.wait()

    running = stage.start("disturbed")
    running.until_finished(1)
    stage.strike(stage.with_workers(running, (1, 2, 3)), "RayTrainWorker")
    running.until_finished(2)
    stage.strike(1, "ImplicitFunc")
    running.until_finished(3)
    stage.strike(1, "factorial.py")
    running.process.wait()
    kept = {path: path.stat().st_mtime_ns for path in running.results.glob("trials/*/result.json")}
    running = stage.start("disturbed")
    running.until_finished(len(kept) + 1)
    stage.strike(2, "raylet/raylet")
    running.until_finished(len(kept) + 2)
    stage.hosts.lose(3)
    running.wait()
    assert trials(running.results) == trials(undisturbed.results)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert max(again.steps for again in stage.taken_again(running)) <= INTERVAL
    stage.hosts.restore(3)
    cluster.up()  # an empty machine is set up by nothing else
