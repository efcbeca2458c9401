"""Sweeps on the cluster of hosts, to be disturbed."""

import time
from pathlib import Path

from tests.chaos.steps import Again, module, taken, taken_again
from tests.chaos.sweeps import OPTIONS, Running, newest_checkpoints
from tests.cluster.namespaces import until
from tests.cluster.on_prem import OnPrem


class Stage:
    """The cluster, and sweeps on it."""

    def __init__(self, cluster: OnPrem, logs: Path) -> None:
        self.cluster, self.hosts, self._logs = cluster, cluster.hosts, logs
        self._steps = self.hosts.shared / "steps"

    def start(self, name: str, options: str = "--seeds 1") -> Running:
        """Starts a sweep, or goes on with it, from the head; every host's processes write down their steps."""
        inside = self.hosts.shared / "inside"
        inside.mkdir(exist_ok=True)
        (inside / "steps_of_tests.py").write_text(module(self._steps))
        (inside / "steps.pth").write_text(f"{inside}\nimport steps_of_tests\n")
        for host in self.hosts.all:
            self.hosts.run(host, f"cp {inside}/steps.pth ~/lahr/.venv/lib/python3*/site-packages/")
        log = self._logs / f"{name}-{time.time_ns()}"
        process = self.hosts.start(1, self.cluster.sweep(name, f"{OPTIONS} {options}"), log)
        return Running(process, log, self.cluster.results(name), time.monotonic())

    def taken_again(self, running: Running) -> list[Again]:
        """Each time that a trial of the sweep was gone on with by another process."""
        return taken_again(self._steps, running.results.name)

    def first_step(self, running: Running) -> float | None:
        """When the first step of the sweep's trials was begun; None before."""
        return min((when for _, _, when in taken(self._steps, running.results.name)), default=None)

    def whole(self, seconds: float = 240) -> None:
        """Waits until all hosts are in the cluster again."""
        until(lambda: self.cluster.nodes() == len(self.hosts.all), seconds, self.cluster.log)

    def made_whole(self, seconds: float = 60) -> int:
        """Waits until all hosts are in the cluster again, some of them by a person's hand; how many."""
        try:
            self.whole(seconds)
            return 0
        except TimeoutError:
            gone = [host for host in self.hosts.all if not self.hosts.pids(host, "raylet/raylet")]
            for host in gone:
                self.cluster.bring_back(host)
            self.whole()
            return len(gone)

    def with_workers(self, running: Running, among: tuple[int, ...] = (2, 3)) -> int:
        """A host on which a trial is well on its way, as far as its first checkpoint at least."""
        busy: list[int] = []

        def found() -> bool:
            everywhere = [host for host in self.hosts.all if self.hosts.pids(host, "RayTrainWorker")]
            busy[:] = [host for host in everywhere if host in among]
            begun = [step for step in newest_checkpoints(running.results).values() if step > 0]
            return bool(busy) and len(begun) >= len(everywhere)

        until(found, 120, "a host with a trial on its way")
        return busy[0]

    def strike(self, host: int, pattern: str) -> None:
        """Ends the host's processes whose command line has the pattern, as soon as there is one."""
        until(lambda: self.hosts.kill(host, pattern), 120, f"a process {pattern} on host {host}")
