"""Sweeps by the real command on a Ray of their own on this machine, and their processes."""

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.steps import Again, module, taken_again
from tests.chaos.sweeps import OPTIONS, Running, trials
from tests.cluster.namespaces import PROJECT, until

SAME = "every trial finished, bit for bit as undisturbed"


class Here:
    """Sweeps of one folder; `stop` ends those that still run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen] = []

    def start(
        self, name: str, options: str = "", place: str | Path | None = None, fault: str = "pass", **environment: str
    ) -> Running:
        """Starts a sweep of one seed block, or goes on with it; `place` is where results go instead, `fault` runs
        before each step (see `steps.py`)."""
        place = place or self.folder / "results"
        log = self.folder / f"{name}-{time.time_ns()}.log"
        words = [*shlex.split(f"{OPTIONS} --seeds 1 {options}"), "--name", name, "--results", str(place)]
        given = {
            "RAY_ADDRESS": "",
            "PYTHONPATH": f"{self._inside(fault)}{os.pathsep}{PROJECT}",
            "LAHR_CACHE": str(self.folder / "cache"),
        }
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(PROJECT / "sweeps/factorial.py"), *words],
                env={**os.environ, **given, **environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # as in a terminal: Ctrl-C reaches the script and all that it started
            )
        self._running.append(process)
        return Running(process, log, Path(place) / name, time.monotonic())

    def taken_again(self, running: Running) -> list[Again]:
        """Each time that a trial of the sweep was gone on with by another process."""
        return taken_again(self.folder / "steps", running.results.name)

    def _inside(self, fault: str) -> Path:
        inside = self.folder / f"inside-{hashlib.sha256(fault.encode()).hexdigest()[:8]}"
        inside.mkdir(exist_ok=True)
        (inside / "sitecustomize.py").write_text(module(self.folder / "steps", fault))
        return inside

    def stop(self) -> None:
        """Ends what still runs; their Rays end with them."""
        for process in self._running:
            process.kill()
            process.wait()
        self._running.clear()


def kill_9(script: subprocess.Popen) -> None:
    """The script alone, as a crash would take it. Its workers follow within seconds, and are waited for: until then
    they go on, and write checkpoints."""
    left = below(script.pid, "RayTrainWorker")
    script.kill()
    script.wait()
    until(lambda: not any(map(lives, left)), 60, "the end of the sweep's workers")


def ctrl_c(script: subprocess.Popen) -> None:
    """To the whole process group, as a terminal does."""
    os.killpg(script.pid, signal.SIGINT)
    assert script.wait(timeout=120) == 130


def below(parent: int, title: str) -> list[int]:
    """Processes that `parent` started, however far down, whose command line holds `title`."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            stat = Path("/proc", name, "stat").read_text()
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(name))
    found, left = [], [parent]
    while left:
        for pid in children.get(left.pop(), []):
            left.append(pid)
            with contextlib.suppress(OSError):
                if title in Path("/proc", str(pid), "cmdline").read_text():
                    found.append(pid)
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process, and it is more than an entry in the table."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def strike(running: Running, title: str) -> int:
    """Kills the first process of the sweep with that title, once there is one; its pid."""
    found: list[int] = []

    def there() -> bool:
        found[:] = below(running.process.pid, title)
        return bool(found)

    until(there, 60, f"a process called {title}")
    os.kill(found[0], signal.SIGKILL)
    return found[0]


def others_are_the_same(results: Path, expected: dict[str, dict], but: Callable[[str], bool]) -> dict[str, dict]:
    """Asserts that every trial `but` some came to what it came to undisturbed; what became of those, where they have
    a result."""
    found = trials(results)
    assert {t: r for t, r in found.items() if not but(t)} == {t: r for t, r in expected.items() if not but(t)}
    return {t: r for t, r in found.items() if but(t)}
