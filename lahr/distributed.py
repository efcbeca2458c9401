"""The training loop inside Ray Train: several trials in turn on one group of workers, reported as they go.

This is the only file of the package that imports Ray. Starting a group of workers costs several seconds, so one
launch carries several trials; checkpoints, attempts and failures stay those of each trial. A worker that dies is
restarted by Ray Train, finds each trial's own checkpoint, and reports again what the checkpoint already holds: the
driver counts by the trial's own step, so nothing is lost and nothing counts twice.
"""

import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer

from lahr.config import TrialConfig
from lahr.data import TokenData, prepare
from lahr.files import Folder
from lahr.plain import from_dict
from lahr.training import checkpoints
from lahr.training.loop import train
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime

_REPORT_EVERY_S = 2.0
_ATTEMPTS = 3
"""How often one trial may be begun at the same checkpoint, in one start of the sweep, before it is given up."""
_ATTEMPTS_FILE = "attempts.json"


@dataclass(frozen=True)
class Launch:
    """What one group of workers is to run."""

    trials: Mapping[str, TrialConfig]
    """Trial id → configuration, in the order to run them."""
    runtime: Runtime
    checkpoints: str
    """Path or URI of the folder of all trials' checkpoints."""
    content_hash: str
    """What the data must be: a worker prepares its own copy where its machine has none, and compares."""
    cache: str
    """Where prepared data lies on each machine."""
    start: str
    """Names this start of the sweep: attempts are counted within it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the way to the workers."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Launch":
        """The inverse of `to_dict`."""
        trials = {name: from_dict(TrialConfig, config) for name, config in values["trials"].items()}
        return Launch(**{**values, "trials": trials, "runtime": from_dict(Runtime, values["runtime"])})


def fit(launch: Launch, name: str, storage: str, callbacks: list[Any]) -> None:
    """Runs the launch in Ray Train to its end; what it reports reaches `callbacks`.

    `storage` is a path or URI for Ray's own state. Raises what Ray Train raises when workers could not be kept alive.
    """
    TorchTrainer(
        _work,
        train_loop_config=launch.to_dict(),
        torch_config=TorchConfig(backend="nccl" if launch.runtime.device == "cuda" else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=launch.runtime.workers,
            use_gpu=launch.runtime.device == "cuda",
            resources_per_worker=worker_resources(launch.runtime),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            callbacks=callbacks,
            # Each trial has its own attempts, counted on storage; this bound only ends a group that never comes up.
            failure_config=ray.train.FailureConfig(max_failures=_ATTEMPTS * len(launch.trials)),
        ),
    ).fit()


def worker_resources(runtime: Runtime) -> dict[str, float]:
    """What Ray has to keep free for one worker of a trial."""
    return {"CPU": runtime.threads, **({"GPU": 1} if runtime.device == "cuda" else {})}


def _work(values: Mapping[str, Any]) -> None:
    """One worker's whole life: every trial of the launch in turn."""
    launch = Launch.from_dict(values)
    reporter = _Reporter()
    prepared: dict[str, TokenData] = {}
    for trial, config in launch.trials.items():
        folder = Folder.at(launch.checkpoints).child(trial)
        error = _agree(_begin_attempt(folder, launch.start) if _is_first() else None)
        if error is not None:
            reporter.add({"trial": trial, "failed": error}, flush=True)
            continue
        try:
            data = _data(launch, config, prepared)
            warnings: list[str] = []
            for record in train(config, data, launch.runtime, folder, warnings):
                row = {"trial": trial, "progress": record.to_json(), "warnings": warnings[:]}
                warnings.clear()
                reporter.add(row, flush=record.status != "running")
            if _is_first():
                folder.remove(_ATTEMPTS_FILE)  # a restart replays what is done; that is no attempt at it
        except Exception:
            if _is_first():
                _note_error(folder, launch.start, traceback.format_exc(limit=-3))
            raise  # Ray Train restarts the group; the next attempt goes on from the checkpoint


def _data(launch: Launch, config: TrialConfig, prepared: dict[str, TokenData]) -> TokenData:
    key = repr((config.data, config.model.vocab_size, config.model.max_seq_len))
    if key not in prepared:
        data = prepare(config.data, config.model.vocab_size, config.model.max_seq_len, Path(launch.cache))
        if data.content_hash != launch.content_hash:
            raise RuntimeError(
                f"the data on this machine has content hash {data.content_hash[:12]}, the sweep's has "
                f"{launch.content_hash[:12]}: give every machine the same corpus"
            )
        prepared[key] = data
    return prepared[key]


class _Reporter:
    """Collects rows and reports them together: a report is a barrier and takes a tenth of a second or more."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._last = time.monotonic()

    def add(self, row: dict[str, Any], flush: bool) -> None:
        """Keeps the row, and reports all kept ones when `flush` is set or the last report is some time ago."""
        self._rows.append(row)
        # Every rank must report or none: rank 0's clock decides for all.
        if flush or _agree(time.monotonic() - self._last > _REPORT_EVERY_S):
            ray.train.report({"rows": self._rows})
            self._rows, self._last = [], time.monotonic()


def _is_first() -> bool:
    return ray.train.get_context().get_world_rank() == 0


def _agree(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if ray.train.get_context().get_world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared)
    return shared[0]


def _begin_attempt(folder: Folder, start: str) -> str | None:
    """Counts one more attempt at this trial since its newest checkpoint; why there is none left, else None."""
    known = _attempts(folder, start)
    step = checkpoints.latest_step(folder)
    count = known["count"] if known["step"] == step else 0
    if count >= _ATTEMPTS:
        return f"given up after {count} attempts at step {step}; the last one: {known['error']}"
    died = "the worker died (killed, or out of memory)"
    folder.write_json(_ATTEMPTS_FILE, {"start": start, "step": step, "count": count + 1, "error": died})
    return None


def _note_error(folder: Folder, start: str, error: str) -> None:
    folder.write_json(_ATTEMPTS_FILE, {**_attempts(folder, start), "error": error})


def _attempts(folder: Folder, start: str) -> dict[str, Any]:
    if folder.exists(_ATTEMPTS_FILE):
        known = folder.read_json(_ATTEMPTS_FILE)
        if known["start"] == start:
            return known
    return {"start": start, "step": -1, "count": 0, "error": ""}


def progress_of(row: Mapping[str, Any]) -> tuple[str, Progress | str, list[str]]:
    """What a reported row says: the trial's id, its progress or why it failed, and warnings."""
    if "failed" in row:
        return row["trial"], row["failed"], []
    return row["trial"], Progress.from_json(row["progress"]), row["warnings"]
