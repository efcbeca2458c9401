"""Faults of processes, hosts and the network, in the middle of a sweep over three hosts, a cluster by `ray up`.

Every trial has to finish, bit for bit as in a sweep that nothing disturbed, with at most one checkpoint's interval of
any trial done again.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from tests.chaos.here import SAME
from tests.chaos.stage import Stage
from tests.chaos.steps import Again, figures
from tests.chaos.sweeps import INTERVAL, Fault, Running, newest_checkpoints, trials
from tests.cluster.namespaces import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
KILLS = int(os.environ.get("KILLS", "20"))


@pytest.fixture(scope="module")
def stage(cluster, tmp_path_factory) -> Stage:
    return Stage(cluster, tmp_path_factory.mktemp("logs"))


@pytest.fixture(autouse=True)
def put_right(stage: Stage) -> Iterator[None]:
    """A test that fails in the middle is no reason for the next to fail."""
    yield
    stage.put_right()


@pytest.fixture(scope="module")
def undisturbed(stage) -> SimpleNamespace:
    """What the sweep comes to, and the seconds it takes."""
    running = stage.start("undisturbed")
    seconds = running.wait()
    return SimpleNamespace(results=trials(running.results), seconds=seconds)


@pytest.fixture
def disturbed(stage, undisturbed, row, request) -> Callable[..., list[Again]]:
    """`disturbed(fault, break_it, options)`: a sweep that `break_it` disturbs once three trials are finished."""

    def disturb(fault: str, break_it: Fault, options: str = "--seeds 1", pace: float = 0.0) -> list[Again]:
        running = stage.start(request.node.name.removeprefix("test_"), options, pace)
        running.until_finished(3)
        running = break_it(running) or running
        seconds = running.wait()
        assert trials(running.results) == undisturbed.results
        again = stage.taken_again(running)
        assert again, "nothing was disturbed"
        assert max(one.steps for one in again) <= INTERVAL
        row(
            fault,
            SAME,
            **figures(again, INTERVAL),
            seconds=f"{seconds:.0f} from the last start, {undisturbed.seconds:.0f} undisturbed",
        )
        return again

    return disturb


def test_from_ray_up_to_the_first_step(stage, row):
    """On machines that are set up, but have no Ray."""
    stage.cluster.down()
    began = time.time()
    stage.cluster.up()
    up = time.time() - began
    running = stage.start("first")
    until(lambda: stage.first_step(running), 120, running.said)
    first = stage.first_step(running) - began
    running.wait()
    row(
        "none: `ray up` on three hosts, and a sweep",
        "it trains",
        all_nodes_up=f"{up:.0f} s",
        first_step_of_the_first_trial=f"{first:.0f} s from the start of `ray up`",
    )


def test_a_training_worker(stage, disturbed):
    def fault(running: Running) -> None:
        assert stage.hosts.kill(stage.with_workers(running, (1, 2, 3)), "RayTrainWorker")

    disturbed("kill -9 a training worker", fault)


def test_a_trial_driver(stage, disturbed):
    def fault(running: Running) -> None:
        stage.with_workers(running, (1, 2, 3))
        assert stage.hosts.kill(1, r"ImplicitFunc")

    disturbed("kill -9 a trial driver (of all launches at once)", fault)


def test_the_sweep_script(stage, disturbed):
    def fault(running: Running) -> Running:
        stage.with_workers(running, (1, 2, 3))
        assert stage.hosts.kill(1, "factorial.py")
        running.process.wait()
        return stage.start("the_sweep_script")

    disturbed("kill -9 the sweep script, and the same command again", fault)


def test_a_raylet(stage, disturbed):
    def fault(running: Running) -> None:
        assert stage.hosts.kill(stage.with_workers(running), r"raylet/raylet")

    disturbed("kill -9 a host's raylet", fault)


def test_a_worker_host(stage, disturbed):
    def fault(running: Running) -> None:
        stage.hosts.lose(stage.with_workers(running))

    disturbed("a whole worker host lost, with its disk", fault)


def test_a_host_cut_off(stage, disturbed):
    def fault(running: Running) -> None:
        host = stage.with_workers(running)
        stage.hosts.cut(host)
        try:
            time.sleep(60)
        finally:
            stage.hosts.mend(host)

    disturbed("a host cut off from the network for 60 s, then back", fault)


def test_the_head_host(stage, disturbed):
    def fault(running: Running) -> Running:
        stage.with_workers(running)
        stage.hosts.lose(1)
        running.process.wait()
        stage.mend()
        return stage.start("the_head_host")

    disturbed("the head host lost; `ray down`, `ray up` and the same command again", fault)


def test_a_hang(stage, disturbed):
    def fault(running: Running) -> None:
        assert stage.hosts.kill(stage.with_workers(running, (1, 2, 3)), "RayTrainWorker", signal.SIGSTOP)

    disturbed("a training worker stopped (SIGSTOP), with --hang-after 60", fault, "--seeds 1 --hang-after 60")


def test_preemption(stage, disturbed):
    """A notice, a checkpoint at once, and the machine is gone: what goes on elsewhere does so from that checkpoint."""

    def fault(running: Running) -> None:
        host = stage.with_workers(running)
        stage.hosts.run(
            host,
            "cd ~/lahr && .venv/bin/ray drain-node --address 10.78.0.1:6379 --reason DRAIN_NODE_REASON_PREEMPTION "
            "--reason-message test --deadline-remaining-seconds 60",
        )
        out_of_turn = lambda: any(step % INTERVAL for step in newest_checkpoints(running.results).values())  # noqa: E731
        until(out_of_turn, 30, "a checkpoint (in one case of twelve it falls on one that was due)")
        stage.hosts.reboot(host)

    what = "a preemption notice, and the machine gone as soon as a checkpoint answers it"
    again = disturbed(
        what, fault, pace=0.1
    )  # else the next checkpoint is there before the one that answers is seen
    assert any(one.went_on_from % INTERVAL for one in again)


@pytest.mark.timeout(1800 + 60 * KILLS)
@pytest.mark.parametrize("count", [KILLS])
def test_random_kills(count, stage, undisturbed, row):
    """Workers, drivers, raylets, whole hosts and the script itself, one to four at a random moment, then a pause in
    which little more than a start fits; until so many are done.

    Seen to fail: a host whose raylet was killed just before the script was started again ended the sweep.
    """
    chance = random.Random(20261126)
    expected = undisturbed.results
    kills: Counter[str] = Counter()
    sweeps, again, by_hand, ends = 0, [], 0, 0  # ends that nobody brought about
    began = time.monotonic()
    while kills.total() < count:
        name = f"kills{sweeps}"
        running = stage.start(name)
        while running.finished() < len(expected) and kills.total() < count:
            time.sleep(chance.uniform(15, 50))
            burst = chance.choices(
                ["worker", "worker", "driver", "raylet", "host", "script"], k=chance.randint(1, 4)
            )
            for what in burst:
                kills[what] += _strike(stage, what, chance)
            if "script" in burst or running.process.poll():
                if running.process.wait() not in (0, -signal.SIGKILL, 128 + signal.SIGKILL):
                    ends += 1
                    print(running.said()[-3000:], flush=True)
                running = stage.start(name)
        running.wait(900)
        assert trials(running.results) == expected
        again += stage.taken_again(running)
        assert max((one.steps for one in again), default=0) <= INTERVAL
        sweeps += 1
        by_hand += stage.made_whole()
        print(f"{sweeps} sweeps, {dict(kills)}, {by_hand} by hand, {time.monotonic() - began:.0f} s", flush=True)
    assert not ends, f"the script ended {ends} times by itself"
    row(
        f"{kills.total()} random kills",
        SAME,
        kills=", ".join(f"{count} of a {what}" for what, count in sorted(kills.items())),
        sweeps=sweeps,
        hosts_brought_back_by_hand=by_hand,
        **figures(again, INTERVAL),
        minutes=f"{(time.monotonic() - began) / 60:.0f}",
    )


def _strike(stage: Stage, what: str, chance: random.Random) -> bool:
    host = chance.choice((2, 3))
    if what == "host":
        in_the_cluster = bool(stage.hosts.pids(host, "raylet/raylet"))
        stage.hosts.reboot(host)
        return in_the_cluster
    pattern = {
        "worker": "RayTrainWorker",
        "driver": "ImplicitFunc",
        "raylet": "raylet/raylet",
        "script": "factorial",
    }
    return bool(stage.hosts.kill(1 if what in ("driver", "script") else host, pattern[what]))
