"""Sweeps on the cluster of hosts, to be disturbed."""

import time
from collections.abc import Collection
from pathlib import Path

from tests.chaos.steps import Again, module, taken, taken_again
from tests.chaos.sweeps import OPTIONS, STEPS, Running, newest_checkpoints
from tests.cluster.namespaces import until
from tests.cluster.on_prem import OnPrem


class Stage:
    """The cluster, and sweeps on it."""

    def __init__(self, cluster: OnPrem, logs: Path) -> None:
        self.cluster, self.hosts, self._logs = cluster, cluster.hosts, logs
        self._steps = self.hosts.shared / "steps"

    def start(self, name: str, options: str = "--seeds 1", pace: float = 0.0) -> Running:
        """Starts a sweep of `OPTIONS` and these, or goes on with it, from the head."""
        self.watch(pace)
        log = self._logs / f"{name}-{time.time_ns()}"
        process = self.hosts.start(1, self.cluster.sweep(name, f"{OPTIONS} {options}"), log)
        return Running(process, log, self.cluster.results(name), time.monotonic())

    def watch(self, pace: float) -> None:
        """From now on processes of every host write down their steps, and sleep for `pace` seconds before each.

        A test names it whose sweep is over too soon on a machine that is faster than the one where it was written.
        """
        inside = self.hosts.shared / "inside"
        inside.mkdir(exist_ok=True)
        (inside / "steps_of_tests.py").write_text(module(self._steps, f"time.sleep({pace})"))
        (inside / "steps.pth").write_text(f"{inside}\nimport steps_of_tests\n")
        for host in self.hosts.all:
            self.hosts.run(host, f"cp {inside}/steps.pth ~/lahr/.venv/lib/python3*/site-packages/")

    def taken_again(self, running: Running) -> list[Again]:
        """Each time that a trial of the sweep was gone on with by another process."""
        return taken_again(self._steps, running.results.name)

    def took_steps(self, name: str, since: float = 0.0, only: Collection[str] | None = None) -> dict[str, int]:
        """Process that has taken steps of that sweep after a moment → its host; of those trials alone, where some are
        given."""
        hosts = {f"lahr{host}": host for host in self.hosts.all}
        return {
            process: hosts[process.partition("-")[0]]
            for process, (trial, _), when in taken(self._steps, name)
            if when > since and (only is None or trial in only)
        }

    def first_step(self, running: Running) -> float | None:
        """When the first step of the sweep's trials was begun; None before."""
        return min((when for _, _, when in taken(self._steps, running.results.name)), default=None)

    def made_whole(self) -> int:
        """Waits until all hosts are in the cluster again, some of them by a person's hand; how many."""

        def whole(seconds: float) -> None:
            until(lambda: self.cluster.nodes() == len(self.hosts.all), seconds, self.cluster.log)

        try:
            whole(60)
            return 0
        except TimeoutError:
            gone = [host for host in self.hosts.all if not self.hosts.pids(host, "raylet/raylet")]
            for host in gone:
                self.cluster.bring_back(host)
            whole(240)
            return len(gone)

    def with_workers(
        self,
        running: Running,
        among: tuple[int, ...] = (2, 3),
        before: int = STEPS // 2,
        ended: Collection[str] = (),
    ) -> int:
        """A host that takes a step from now on, of a trial whose newest checkpoint is there and no later than `before`.

        So a fault there is felt by a trial that is far from its end. Processes that an earlier fault has `ended` do not
        count: some take another step after a raylet's or a driver's death.
        """
        asked = time.time()
        found: list[int] = []

        def on_its_way() -> bool:
            saved = [trial for trial, step in newest_checkpoints(running.results).items() if 0 < step <= before]
            busy = self.took_steps(running.results.name, asked, saved)
            found[:] = [host for process, host in busy.items() if host in among and process not in ended]
            return bool(found) or running.process.poll() is not None

        until(on_its_way, 240, running.said)
        assert found, running.said()
        return found[0]

    def put_right(self) -> None:
        """After a test, however it ended: no sweep runs, and all hosts are in the cluster."""
        self.hosts.kill(1, "factorial.py")
        self.mend()
        self.made_whole()

    def mend(self) -> None:
        """New machines in place of those that were lost, set up, and in the cluster."""
        lost = self.hosts.lost()
        for host in lost:
            self.hosts.restore(host)
        if 1 in lost:
            self.cluster.down()  # else `ray up` takes the empty machine for the head that it set up before
        if lost:
            self.cluster.up()  # an empty machine is set up by nothing else
