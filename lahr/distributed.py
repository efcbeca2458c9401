"""The training loop inside Ray Train: several trials in turn on one group of workers, reported as they go.

This is the only file of the package that imports Ray. Starting a group of workers costs several seconds, so one
launch carries several trials; checkpoints, attempts and failures stay those of each trial. A worker that dies is
restarted by Ray Train, finds each trial's own checkpoint, and reports again what the checkpoint already holds: the
driver counts by the trial's own step, so nothing is lost and nothing counts twice.
"""

import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer

from lahr import patience
from lahr.config import TrialConfig
from lahr.data import TokenData, fetch
from lahr.errors import ConfigError, StorageError, check
from lahr.files import Folder
from lahr.machine import Demands
from lahr.plain import from_dict
from lahr.training.attempts import DEATHS, Attempt, Superseded, Watchdog
from lahr.training.loop import train
from lahr.training.parallel import first_says, from_first, lost_another
from lahr.training.profiling import Profile
from lahr.training.runtime import Runtime, require
from lahr.training.watch import Watch

_REPORT_EVERY_S = 2.0
_LAST_WORDS_S = 5.0
_ASKED_EVERY_S = 2.0
"""How often a worker that is alone asks whether its machine is about to be taken away."""
_ASKED_IN_ALL = 500
"""How often several workers together ask it in a trial: each time they wait for one another."""


@dataclass(frozen=True)
class Launch:
    """What one group of workers is to run."""

    runtime: Runtime
    checkpoints: str
    """Path or URI of the folder of all trials' checkpoints."""
    data: str
    """Path or URI of the prepared data; a machine that has no copy in its cache takes one from there."""
    content_hash: str
    """What the data must be."""
    cache: str
    """Where prepared data lies on each machine."""
    demands: Demands
    """What a machine must be to take part."""
    hang_after: float = 1800.0
    """Seconds without a step after which a trial counts as hung."""
    profiled: Sequence[str] = ()
    """Trials of which some steps are looked at by the profiler."""
    trials: Mapping[str, TrialConfig] = field(default_factory=dict)
    """Trial id → configuration, in the order to run them."""
    start: str = ""
    """Names this start of the sweep: attempts are counted within it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the way to the workers."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Launch":
        """The inverse of `to_dict`."""
        trials = {name: from_dict(TrialConfig, config) for name, config in values["trials"].items()}
        parts = {"runtime": from_dict(Runtime, values["runtime"]), "demands": Demands(**values["demands"])}
        return Launch(**{**values, "trials": trials, "profiled": tuple(values["profiled"]), **parts})


def fit(launch: Launch, name: str, storage: str, callbacks: list[Any]) -> None:
    """Runs the launch in Ray Train to its end; what it reports reaches `callbacks`.

    `storage` is a folder of this machine for Ray's own state, which is never read again. Raises what Ray Train raises
    when workers could not be kept alive.
    """
    _Trainer(
        _work,
        train_loop_config=launch.to_dict(),
        torch_config=TorchConfig(backend="nccl" if launch.runtime.device == "cuda" else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=launch.runtime.workers,
            use_gpu=launch.runtime.device == "cuda",
            resources_per_worker=launch.runtime.worker_resources(),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            callbacks=callbacks,
            # Each trial has its own attempts, counted on storage; this bound only ends a group that never comes up.
            failure_config=ray.train.FailureConfig(max_failures=100 + DEATHS * len(launch.trials)),
        ),
    ).fit()


class _Trainer(TorchTrainer):
    """Without two helpers of a launch, each a process that takes two seconds to start."""

    UNUSED = "DatasetsCallback", "PlacementGroupCleanerCallback"
    """There are no Ray datasets here; and what a dead launch had reserved, the driver gives back itself, since the
    cleaner does so only where it finds the dashboard, and only once the workers are up."""

    def _create_default_callbacks(self) -> list[Any]:
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # of Train, second version
        return [callback for callback in made if type(callback).__name__ not in self.UNUSED]


def _work(values: Mapping[str, Any]) -> None:
    """One worker's whole life: every trial of the launch in turn."""
    launch, reporter = Launch.from_dict(values), _Reporter()
    group = ray.util.get_current_placement_group()
    reporter.add({"group": group.id.hex() if group else None}, "now")
    # What is no trial's doing, and what no other attempt would meet with more luck, ends the sweep and says why.
    refusal = _first_of_any(_unfit(launch))
    try:
        for trial, config in launch.trials.items() if refusal is None else ():
            _try(launch, trial, config, reporter)
        reporter.send()
    except StorageError as error:  # raised on every rank, or on none
        refusal = f"{socket.gethostname()}: {error}"
    if refusal is not None:
        reporter.add({"refused": refusal}, "now")
        raise RuntimeError(refusal)


def _unfit(launch: Launch) -> str | None:
    """Why this machine can run none of the launch's trials; None where it can."""
    try:
        for config in launch.trials.values():
            require(config, launch.runtime)
            _data(launch, config)
    except (ConfigError, OSError) as error:  # OSError: of this machine's own cache, too
        return f"{socket.gethostname()}: {error}"
    unmet = launch.demands.unmet(wait=patience.seconds())
    return unmet and f"{socket.gethostname()} {unmet}"


def _data(launch: Launch, config: TrialConfig) -> TokenData:
    data = fetch(Folder.at(launch.data), config.data, config.model.max_seq_len, Path(launch.cache))
    check(
        data.content_hash == launch.content_hash,
        f"the data at {launch.data} has content hash {data.content_hash[:12]}, the sweep's has "
        f"{launch.content_hash[:12]}; start the sweep again",
    )
    return data


def _try(launch: Launch, trial: str, config: TrialConfig, reporter: "_Reporter") -> None:
    """One attempt at one trial, reported as it goes; raises what it raises, for Ray Train to begin the next."""
    folder = Folder.at(launch.checkpoints).child(trial)
    attempt = from_first(lambda: Attempt.begin(folder, launch.start))
    if isinstance(attempt, str):
        reporter.add({"trial": trial, "failed": attempt}, "with the next")
        return

    def hung(said: str) -> None:
        if _is_first():
            with patience.limited(_LAST_WORDS_S):
                attempt.failed(said)

    watchdog = Watchdog(launch.hang_after, hung)
    warnings: list[str] = []

    def resumed(step: int) -> None:
        reporter.add({"trial": trial, "resumed": step, "warnings": warnings[:]}, "now")

    watch: Watch = _Watch(attempt, watchdog, resumed, config)
    if trial in launch.profiled and _is_first():
        watch = Profile(watch, Folder.at(launch.demands.results).child(f"profile/{trial}"))
    try:
        with patience.showing_life(watchdog.alive):
            for record in train(config, _data(launch, config), launch.runtime, folder, warnings, watch):
                ended = record.status != "running"
                reporter.add(
                    {"trial": trial, "progress": record.to_json()}, "with the next" if ended else "in time"
                )
            from_first(attempt.done)
            if isinstance(watch, Profile) and watch.missing is not None:
                reporter.add({"said": f"{trial}: {watch.left}"}, "with the next")
    except (Superseded, StorageError):
        raise
    except Exception as error:
        if not lost_another(error):  # that one's death stays counted, or what it raised
            attempt.failed(traceback.format_exc(limit=-3))
        raise
    finally:
        watchdog.close()


class _Watch(Watch):
    """Keeps the watchdog quiet, the trial's folder its owner's, and saves where a machine is about to be taken away."""

    def __init__(
        self, attempt: Attempt, watchdog: Watchdog, tell: Callable[[int], None], config: TrialConfig
    ) -> None:
        self._attempt, self._watchdog, self._tell = attempt, watchdog, tell
        self._steps, self._every = 0, max(1, config.steps // _ASKED_IN_ALL)
        self._alone = ray.train.get_context().get_world_size() == 1
        self._last_asked = time.monotonic()
        self._answered: Any = None

    def resumed(self, step: int) -> None:
        self._tell(step)

    def alive(self) -> None:
        self._watchdog.alive()

    def saving(self) -> None:
        self._attempt.check_owner()

    def stepped(self) -> bool:
        self.alive()
        self._steps += 1
        now = time.monotonic()
        due = now - self._last_asked > _ASKED_EVERY_S if self._alone else self._steps % self._every == 0
        if not due or os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "0":
            return False
        self._last_asked = now
        notice = ray.train.get_preemption_info()
        if notice is None or notice == self._answered:
            return False
        self._answered = notice
        return True


class _Reporter:
    """Collects rows and reports them together. A report is a barrier, and waits up to a second for Ray Train to have
    taken the one before: so what ends a trial goes with the next one's first row, at once."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._last = time.monotonic()

    def add(self, row: dict[str, Any], when: Literal["now", "in time", "with the next"]) -> None:
        """Keeps the row; reports all kept ones now, or where the last report is some time ago."""
        self._rows.append(row)
        # Every rank must report or none: rank 0's clock decides for all.
        if when == "now" or (when == "in time" and first_says(time.monotonic() - self._last > _REPORT_EVERY_S)):
            self.send()

    def send(self) -> None:
        """Reports what is kept."""
        if self._rows:
            ray.train.report({"rows": self._rows})
            self._rows, self._last = [], time.monotonic()


def _is_first() -> bool:
    return ray.train.get_context().get_world_rank() == 0


def _first_of_any(said: str | None) -> str | None:
    """What the first rank that has something to say says, on every rank."""
    if ray.train.get_context().get_world_size() == 1:
        return said
    all_said: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(all_said, said)
    return next((said for said in all_said if said is not None), None)
