"""Two on one machine: another Ray beside a sweep's own, and the same sweep started twice."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.here import SAME, Here, below, strike
from tests.chaos.steps import figures
from tests.chaos.sweeps import INTERVAL, Running, trials
from tests.cluster.namespaces import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
OTHER = """
import ray, time
ray.init(address="local", num_cpus=1, log_to_driver=False)

@ray.remote
class Other:
    def __init__(self):
        self.count = 0
    def more(self):
        self.count += 1
        return self.count

other = Other.remote()
while True:
    print(ray.get(other.more.remote()), flush=True)
    time.sleep(0.5)
"""


@pytest.fixture
def another_ray(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A Ray of somebody else, whose actor counts in a file."""
    counted = tmp_path / "counted"
    with open(counted, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER], env={**os.environ, "RAY_ADDRESS": ""}, stdout=file, cwd=tmp_path
        )
    until(lambda: counted.read_text().endswith("\n"), 240, "another Ray")
    yield process, counted
    process.kill()
    process.wait()


def test_another_ray_on_the_machine(here: Here, alone, another_ray, row):
    """Our trial driver and a training worker are killed beside it."""
    expected, usual = alone
    other, counted = another_ray
    theirs = {title: below(other.pid, title) for title in ("gcs_server", "raylet/raylet", "ray::Other")}
    assert all(theirs.values()), theirs
    running = here.start("beside")
    running.until_finished(2, 600)
    strike(running, "ray::ImplicitFunc")
    time.sleep(15)  # until another leads the launch on
    strike(running, "RayTrainWorker")
    seconds = running.wait()
    assert trials(running.results) == expected
    again = here.taken_again(running)
    assert len(again) >= 2, running.said()
    assert max(one.steps for one in again) <= INTERVAL
    assert {title: below(other.pid, title) for title in theirs} == theirs
    before = counted.stat().st_size
    until(lambda: counted.stat().st_size > before, 20, "the other Ray to go on")
    counts = [int(line) for line in counted.read_text().split()]
    assert counts == list(range(1, len(counts) + 1)), "the other Ray's actor began again"
    row(
        "kill -9 a trial driver, then a training worker, beside another Ray on the machine",
        f"no hang, no process of the other Ray is touched; {SAME}",
        **figures(again, INTERVAL),
        seconds=f"{seconds:.0f}, {usual:.0f} undisturbed",
    )


def written(results: Path) -> dict[Path, tuple[int, int]]:
    """Files of the finished trials, and what changes when one is written again."""
    files = [file for done in results.glob("trials/*/result.json") for file in done.parent.iterdir()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def assert_refused(running: Running) -> float:
    seconds = running.wait(120, status=2)
    lines = running.said().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: another sweep "), running.said()
    return seconds


def assert_only(first: Running, expected: dict) -> None:
    """The results are those of `first` alone."""
    assert trials(first.results) == expected
    assert len(json.loads((first.results / "design.json").read_text())["starts"]) == 1


def test_the_same_sweep_started_while_it_runs(here: Here, alone, row):
    """Seen to fail: an empty line before the refusal."""
    expected, _ = alone
    first = here.start("twice")
    first.until_finished(2, 600)
    before = written(first.results)
    took = assert_refused(here.start("twice"))
    first.wait()
    after = written(first.results)
    assert {path: after[path] for path in before} == before
    assert_only(first, expected)
    row(
        "the same sweep started a second time while it runs",
        "the second is refused in one line, status 2, and nothing is written twice",
        seconds_until_refused=f"{took:.0f}",
    )


def test_the_same_sweep_started_twice_at_once(here: Here, alone, row):
    """Seen to fail: an empty line before the refusal."""
    expected, usual = alone
    both = [here.start("at-once"), here.start("at-once")]
    until(lambda: any(each.process.poll() is not None for each in both), 120, both[0].said)
    second, first = sorted(both, key=lambda each: each.process.poll() is None)
    took = assert_refused(second)
    seconds = first.wait()
    assert_only(first, expected)
    row(
        "the same sweep started twice at the same moment",
        "one runs, the other is refused in one line, status 2, and nothing is written twice",
        seconds_until_refused=f"{took:.0f}",
        seconds=f"{seconds:.0f}, {usual:.0f} undisturbed",
    )
