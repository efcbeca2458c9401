"""Pending trials through Ray Tune: the only file of the package that imports Ray.

Each Tune trial is a launch, a Ray Train run that carries several of the design's trials in turn. Tune decides when
and where a launch runs; each start of a sweep is a new Tuner over what is pending, so a design can grow between
starts, and what a killed start left half-done is found in the trials' own checkpoints.
"""

import logging
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

# Read by Ray when it is imported or started. Its own TensorBoard files count reports instead of steps; its tables,
# usage report and warnings (of a launch's seven processes on two cores, for one) are noise here.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "60")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
# Statistics that every one of Ray's twenty processes gathers and nobody here reads: 4 % of two cores.
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
os.environ.setdefault("RAY_enable_metrics_collection", "0")
os.environ.setdefault("RAY_event_stats", "0")
os.environ.setdefault("RAY_io_context_event_loop_lag_collection_interval_ms", "0")

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from lahr import distributed
from lahr.distributed import Launch
from lahr.errors import ConfigError, check
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime
from sweeps.engine.design import Trial
from sweeps.engine.results import Results, result_of

_LAUNCH_S = 900.0
"""What a launch should carry, in estimated seconds: start-up (10 to 30 s) is then a few per cent of it."""
_ADDRESS_S = 5.0
_WORKER_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # also how often Ray Train takes a report; polling costs CPU
    # A step allocates and frees the same large blocks: kept, they cost no page faults (5 % of a step on a CPU).
    "MALLOC_MMAP_THRESHOLD_": str(256 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Observer(Protocol):
    """Whoever wants to know how a sweep goes: the results folder, the table on the terminal, the event files.

    One that raises is dropped, and the sweep goes on without it, unless it is `essential`.
    """

    essential: bool

    def started(self, trial: Trial) -> None: ...
    def progressed(self, trial: Trial, rows: Sequence[Progress]) -> None: ...
    def finished(self, trial: Trial, result: Mapping[str, Any]) -> None: ...
    def failed(self, trial: Trial, error: str) -> None: ...
    def close(self) -> None: ...


@dataclass
class Outcome:
    """How a start of the sweep ended."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


@dataclass(frozen=True)
class Cluster:
    """What the Ray that this process is connected to can run at once."""

    cpus: float
    gpus: float
    grows: bool = False
    """Whether it may start machines as they are needed: a Ray that was started here cannot."""

    def lanes(self, runtime: Runtime, concurrency: int | None = None) -> int:
        """Launches that run side by side: those that fit, at most `concurrency`; exactly that where machines may come.

        `ConfigError` if not even one fits.
        """
        need = distributed.worker_resources(runtime)
        have = {"CPU": self.cpus, "GPU": self.gpus}
        fitting = min(int(have[name] // (amount * runtime.workers)) for name, amount in need.items())
        if concurrency is not None and self.grows:
            if fitting < 1:
                logging.getLogger(__name__).warning(
                    "one trial needs %s x %s and the cluster has %s now; waiting for it to start machines",
                    runtime.workers, need, have,
                )  # fmt: skip
            return concurrency
        check(
            fitting >= 1,
            f"one trial needs {runtime.workers} x {need} and the cluster has {have}; lower --workers or --threads"
            + (", or say with --concurrency how many trials it holds once it has started machines" * self.grows),
        )
        return min(fitting, concurrency or fitting)


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """Connects to the Ray at `address` (or `RAY_ADDRESS`), else starts one on this machine for the block."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    outer = dict(os.environ)
    _refuse_a_dead_address(address)
    if address == "local":
        # The dashboard stays on: the cleaner of a dead trial's placement group asks it. Nobody preempts this machine.
        quiet |= {"include_dashboard": True, "dashboard_host": "127.0.0.1", "object_store_memory": 256 << 20}
        # A Ray of our own hands its environment down, and then its first processes need not be started twice.
        os.environ |= {**_WORKER_ENV, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    else:
        quiet |= {"runtime_env": {"env_vars": _WORKER_ENV}}
    try:
        context: Any = ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        _restore(outer)
        raise _no_ray(address, str(error).strip().splitlines()[0]) from error
    # Helpers of Ray look up their cluster by these, and another Ray may be visible on this machine.
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
    if context.dashboard_url:
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://{context.dashboard_url}"
    try:
        total = ray.cluster_resources()
        yield Cluster(total.get("CPU", 0.0), total.get("GPU", 0.0), grows=address != "local")
    finally:
        ray.shutdown()
        _restore(outer)


def _refuse_a_dead_address(address: str) -> None:
    """`ConfigError` where nothing listens at host:port; Ray itself would go on trying for minutes."""
    at = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", address)
    if at is None:
        return  # `local`, `auto`: nothing to ask
    try:
        socket.create_connection((at[1], int(at[2])), timeout=_ADDRESS_S).close()
    except (OSError, OverflowError) as error:
        raise _no_ray(address, str(error)) from error


def _no_ray(address: str, reason: str) -> ConfigError:
    return ConfigError(
        f"no Ray answers at {address!r} ({reason}); start one with `ray start --head`, give another --address, or "
        "leave it out (and unset RAY_ADDRESS) to start one here"
    )


def _restore(environment: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def launches(pending: Sequence[Trial], lanes: int, seconds: Mapping[str, float]) -> list[list[Trial]]:
    """Which trials ride together: whole blocks first, inside a block the longest first, lanes evenly filled.

    `seconds` is the estimated length of a trial by cell. As many waves of `lanes` launches as make each about
    `_LAUNCH_S` long, and never more launches than trials.
    """
    order = sorted(pending, key=lambda trial: (trial.seed, -seconds[trial.cell]))
    total = sum(seconds[trial.cell] for trial in order)
    waves = max(1, min(round(total / lanes / _LAUNCH_S), -(-len(order) // lanes)))
    plan: list[list[Trial]] = [[] for _ in range(waves * lanes)]
    loads = [0.0] * len(plan)
    done = 0.0
    for trial in order:
        wave = min(int(done / total * waves), waves - 1)
        slot = min(range(wave * lanes, (wave + 1) * lanes), key=lambda i: loads[i])
        plan[slot].append(trial)
        loads[slot] += seconds[trial.cell]
        done += seconds[trial.cell]
    return [part for part in plan if part]


def run(
    pending: Sequence[Trial],
    observers: Sequence[Observer],
    *,
    results: Results,
    runtime: Runtime,
    lanes: int,
    content_hash: str,
    cache: str,
    seconds: Mapping[str, float],
) -> Outcome:
    """Runs the pending trials to their ends, `lanes` at a time, handing every record to the observers.

    Needs `connected()`. A trial that keeps failing is reported as failed and does not stop the others. Ctrl-C ends
    it early with `interrupted` set; what was done is kept.
    """
    by_id = {trial.id: trial for trial in pending}
    relay = _Relay(by_id, observers)
    storage = results.folder.child(".ray")
    for _ in range(2):  # a second round only for a trial whose last report was lost with its launch
        waiting = [trial for trial in pending if not relay.ended(trial.id)]
        if not waiting or relay.outcome.interrupted:
            break
        start = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        carried = [
            Launch(
                {trial.id: trial.config for trial in group},
                runtime,
                results.checkpoints.uri,
                content_hash,
                cache,
                start,
            ).to_dict()
            for group in launches(waiting, lanes, seconds)
        ]
        relay.carry([list(launch["trials"]) for launch in carried])
        try:
            _tune(carried, relay, lanes, start, storage.uri)
        finally:
            relay.let_go()
    if not relay.outcome.interrupted:
        relay.give_up_the_rest()
    results.folder.remove(".ray")
    return relay.outcome


def _tune(carried: list[dict[str, Any]], relay: "_Relay", lanes: int, start: str, storage: str) -> None:
    trainable = tune.with_resources(
        tune.with_parameters(_launch, carried=carried, storage=storage, start=start),
        # The trial's own process only waits: no CPU, or two trials on two CPUs would wait for each other for ever.
        {"node:__internal_head__": 0.001},
    )
    tune.Tuner(
        trainable,
        param_space={"launch": tune.grid_search(list(range(len(carried))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=lanes, reuse_actors=False),
        run_config=tune.RunConfig(
            name=f"tune-{start}",
            storage_path=storage,
            verbose=0,
            callbacks=[relay],
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    ).fit()


def _launch(config: dict[str, Any], carried: list[dict[str, Any]], storage: str, start: str) -> None:
    """One Tune trial: Ray Train over the trials it carries."""
    index = config["launch"]
    launch = Launch.from_dict(carried[index])
    distributed.fit(launch, f"train-{start}-{index}", storage, [TuneReportCallback()])


class _Relay(tune.Callback):
    """Tune's callback that turns reports into calls of the observers, each trial's step counted once."""

    def __init__(self, trials: Mapping[str, Trial], observers: Sequence[Observer]) -> None:
        self._trials, self._observers = trials, list(observers)
        self._steps: dict[str, int] = {}
        self._carried: list[list[str]] = []
        self._heard: dict[int, Any] | None = None
        self.outcome = Outcome()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks into its own state; this one lives in the driver alone

    def carry(self, carried: list[list[str]]) -> None:
        """Tells which trials each launch of the next Tuner carries."""
        self._carried = carried

    def ended(self, trial: str) -> bool:
        """Whether the trial has a result or was given up."""
        return trial in self.outcome.finished or trial in self.outcome.failed

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        for row in result.get("rows", ()):
            self._row(*distributed.progress_of(row))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        reason = (trial.error_file and _last_line(trial.error_file)) or "its launch failed"
        for name in self._carried[trial.config["launch"]]:
            if not self.ended(name):
                self._fail(name, f"Ray gave up its launch: {reason}")

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Puts itself in front of Tune's handler for Ctrl-C, which ends a run well but tells nobody why it ended."""
        inner = signal.getsignal(signal.SIGINT)
        if self._heard is None and threading.current_thread() is threading.main_thread() and callable(inner):

            def stop(number: int, frame: Any) -> None:
                self.outcome.interrupted = True
                inner(number, frame)

            self._heard = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def let_go(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in (self._heard or {}).items():
            signal.signal(number, handler if number == signal.SIGTERM else signal.default_int_handler)
        self._heard = None

    def _row(self, name: str, said: Progress | str, warnings: list[str]) -> None:
        if self.ended(name):
            return
        if isinstance(said, str):
            self._fail(name, said)
            return
        trial = self._trials[name]
        for warning in warnings:
            logging.getLogger(__name__).warning("%s: %s", name, warning)
        if name not in self._steps:
            self._tell("started", trial)
        if said.step > self._steps.get(name, 0):
            self._steps[name] = said.step
            self._tell("progressed", trial, [said])
        if said.status != "running":
            self.outcome.finished.append(name)
            self._tell("finished", trial, result_of(trial, said))

    def _fail(self, name: str, error: str) -> None:
        self.outcome.failed[name] = error
        self._tell("failed", self._trials[name], error)

    def give_up_the_rest(self) -> None:
        """Counts as failed what neither ended nor failed: a launch that ended and left no word of it."""
        for name in self._trials:
            if not self.ended(name):
                self._fail(name, "Ray ended its launch twice without a result")

    def _tell(self, what: str, *said: Any) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, what)(*said)
            except Exception:
                if observer.essential:
                    raise
                logging.getLogger(__name__).exception("%s failed; going on without it", type(observer).__name__)
                self._observers.remove(observer)


def _last_line(path: str) -> str:
    if not os.path.exists(path):
        return ""
    with open(path) as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else ""
