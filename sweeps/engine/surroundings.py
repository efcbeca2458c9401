"""What processes of Ray find in their environment. To be imported before Ray, which reads some of it then."""

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Read by Ray when it is imported or started. Its own TensorBoard files count reports instead of steps; its tables,
# usage report and warnings (of a launch's five processes on two cores, for one) are noise here.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "60")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Pages, of what we say in a line.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|Raylet is terminated")
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
# Statistics that every one of Ray's twenty processes gathers and nobody here reads: 4 % of two cores.
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
os.environ.setdefault("RAY_enable_metrics_collection", "0")
os.environ.setdefault("RAY_event_stats", "0")
os.environ.setdefault("RAY_io_context_event_loop_lag_collection_interval_ms", "0")

OF_WORKERS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # also how often Ray Train takes a report; polling costs CPU
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What those get that train, beside what a sweep decides."""
_GRACE_S = 3.0
_HANDED_DOWN = ("LAHR_STORAGE_PATIENCE",)
"""Settings of the driver's environment that hold on every machine."""


def everywhere(settings: Mapping[str, str], *packages: Path) -> dict[str, Any]:
    """What processes of this sweep get on every machine: its settings, and the driver's own code, in these folders."""
    handed = {name: os.environ[name] for name in _HANDED_DOWN if name in os.environ}
    return {"env_vars": {**settings, **handed}, "py_modules": [*map(str, packages)], "excludes": ["__pycache__"]}


def restore(environment: Mapping[str, str]) -> None:
    """Makes this process's environment what it was."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def processes() -> dict[int, str]:
    """Ray's workers and actors below this process: id → start time. Empty where there is no /proc."""
    parents, found = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parents[int(stat.parent.name)] = _fields(stat)[1]
    for process in parents:
        above = process
        while above in parents and above != os.getpid():
            above = int(parents[above])
        with contextlib.suppress(OSError):
            if above == os.getpid() and Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::"):
                found[process] = _fields(Path(f"/proc/{process}/stat"))[19]
    return found


def end(left: Mapping[int, str]) -> None:
    """Ends those `processes` of a Ray that outlive it: at times one sleeps for good in its own exit, with 400 MB."""
    until = time.monotonic() + _GRACE_S
    while (alive := [process for process, start in left.items() if _lives(process, start)]) and (
        time.monotonic() < until
    ):
        time.sleep(0.1)
    for process in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _fields(stat: Path) -> list[str]:
    """State, parent and what follows; the name before them may hold anything."""
    return stat.read_text(errors="replace").rpartition(")")[2].split()


def _lives(process: int, start: str) -> bool:
    with contextlib.suppress(OSError):
        fields = _fields(Path(f"/proc/{process}/stat"))
        return fields[0] not in "ZX" and fields[19] == start
    return False
