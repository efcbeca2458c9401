"""The first row of docs/reliability.md, one fault after another in one sweep over three hosts.

tests/chaos/test_hosts.py has each of them alone, with figures.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lahr.data import prepare
from lahr.training.loop import train
from sweeps.engine.results import Results
from tests.chaos.stage import Stage
from tests.chaos.sweeps import INTERVAL
from tests.cluster.on_prem import OnPrem

STEPS, PACE = 96, 0.15
OPTIONS = f"--seeds 1 --train.tokens {STEPS * 256} --train.checkpoints {STEPS // INTERVAL}"
pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]


@pytest.fixture
def stage(cluster: OnPrem, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(cluster, tmp_path)
    yield made
    made.put_right()


def test_kills_and_a_lost_host_change_no_result(stage: Stage):
    """A worker, a driver, a raylet, the script and a host with its disk: every trial ends as it does undisturbed in
    this process, and what was finished is not done again."""
    hosts = stage.hosts
    running = stage.start("disturbed", OPTIONS, PACE)
    ended: set[str] = set()  # processes, by a fault

    def busy(among: tuple[int, ...], ends_all: bool = False) -> int:
        host = stage.with_workers(running, among, before=STEPS // 2, ended=ended)
        ended.update(p for p, on in stage.took_steps(running.results.name).items() if ends_all or on == host)
        return host

    assert hosts.kill(busy((1, 2, 3)), "RayTrainWorker")
    assert hosts.kill(busy((2, 3)), "raylet/raylet")
    # After this the head alone may have room for a while: what dead launches had reserved is given back in minutes.
    assert busy((1, 2, 3), ends_all=True) and hosts.kill(1, "ImplicitFunc")
    running.until_finished(1)
    assert busy((1, 2, 3), ends_all=True) and hosts.kill(1, "factorial.py")
    running.process.wait()
    kept = {path: path.stat().st_mtime_ns for path in running.results.glob("trials/*/result.json")}

    running = stage.start("disturbed", OPTIONS, PACE)
    hosts.lose(busy((2, 3)))
    running.wait()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    again = stage.taken_again(running)
    assert len(again) >= 5
    assert max(one.steps for one in again) <= INTERVAL

    results = Results.at(str(running.results.parent), running.results.name)
    design = results.design()
    model = design.config.model
    data = prepare(design.config.data, model.vocab_size, model.max_seq_len, hosts.shared / "cache")
    found = results.table(design).set_index("trial")["val_loss"]
    for trial in design.trials():
        *_, last = train(trial.config, data, results.runtime())
        assert last.step == STEPS
        assert found[trial.id] == last.metrics["val_loss"], trial.id
