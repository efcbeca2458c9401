"""What processes of Ray find in their environment, and that none outlives its Ray. To be imported before Ray, which
reads some of it then."""

import contextlib
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

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


def sources(builds: Iterable[str], known: Sequence[Path]) -> list[Path]:
    """Where the code of those functions lies, `package.module:function`, its package whole: but for what is installed,
    as it must be on every machine, and what is `known` to be sent already."""
    found = set()
    for build in builds:
        spec = importlib.util.find_spec(build.partition(":")[0].partition(".")[0])
        if spec is None or (spec.origin is None and not spec.submodule_search_locations):
            continue  # which the cost of the model has said already
        place = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)])))
        if place not in known and "site-packages" not in place.parts:
            found.add(place)
    return sorted(found)


def restore(environment: Mapping[str, str]) -> None:
    """Makes this process's environment what it was."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def processes() -> list[psutil.Process]:
    """Ray's workers and actors below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            if "".join(process.cmdline()).startswith("ray::"):
                found.append(process)
    return found


def end(left: Sequence[psutil.Process]) -> None:
    """Ends those `processes` of a Ray that outlive it: at times one sleeps for good in its own exit, with 400 MB."""
    _, alive = psutil.wait_procs(left, timeout=_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
