"""From the rows that workers report to what the observers of a sweep are told, each trial's step counted once."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lahr.errors import StorageError
from lahr.training.progress import Progress
from sweeps.engine.design import Trial
from sweeps.engine.recorder import result_of

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Whoever wants to know how a sweep goes: the results folder, the table on the terminal, the event files.

    One that raises is dropped, and the sweep goes on without it, unless it is `essential`: then the sweep ends.
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
    stopped: str | None = None
    """Why it was ended early by what is no trial's doing: storage that is away, a machine that does not fit."""


@dataclass
class _Heard:
    """What one trial has said so far."""

    resumed_at: int
    """Step that this start of the sweep went on from."""
    step: int = 0
    restarts: int = 0
    repeated: int = 0
    """Steps that were reported, and then done again."""
    warnings: list[str] = field(default_factory=list)


class Relay:
    """Takes rows as they come, also twice, and tells the observers; keeps how the sweep goes in `outcome`."""

    def __init__(self, trials: Mapping[str, Trial], observers: Sequence[Observer]) -> None:
        self._trials, self._observers = trials, list(observers)
        self._heard: dict[str, _Heard] = {}
        self.outcome = Outcome()

    def ended(self, trial: str) -> bool:
        """Whether the trial has a result or was given up."""
        return trial in self.outcome.finished or trial in self.outcome.failed

    @property
    def over(self) -> bool:
        """Whether nothing more is to be run."""
        return self.outcome.interrupted or self.outcome.stopped is not None

    def take(self, row: Mapping[str, Any]) -> None:
        """One row of a report (see `lahr.distributed`); what comes after the sweep's end is not counted."""
        if self.outcome.stopped is not None:
            return
        try:
            if "said" in row:
                _log.warning("%s", row["said"])
            elif "refused" in row:
                self.outcome.stopped = row["refused"]
            elif "trial" in row and not self.ended(row["trial"]):
                self._of_trial(row["trial"], row)
        except StorageError as error:  # the results folder's: no result can be kept now
            self.outcome.stopped = str(error)

    def _of_trial(self, name: str, row: Mapping[str, Any]) -> None:
        trial = self._trials[name]
        if "failed" in row:
            self.fail(name, row["failed"])
        elif "resumed" in row:
            self._resumed(trial, row["resumed"], row["warnings"])
        else:
            self._progressed(trial, Progress.from_json(row["progress"]))

    def _resumed(self, trial: Trial, step: int, warnings: Sequence[str]) -> None:
        for warning in warnings:
            _log.warning("%s: %s", trial.id, warning)
        heard = self._heard.get(trial.id)
        if heard is None:
            self._heard[trial.id] = _Heard(step, warnings=list(warnings))
            self._tell("started", trial)
            return
        if step >= trial.config.steps:
            return  # it had ended, and is only told again: what disturbed its launch was another trial's
        heard.restarts += 1
        heard_of = max(heard.step, step)  # a checkpoint may be younger than the last report
        _log.warning("%s was disturbed after step %d and goes on from step %d", trial.id, heard_of, step)
        heard.repeated += max(0, heard.step - step)
        heard.warnings += [warning for warning in warnings if warning not in heard.warnings]

    def _progressed(self, trial: Trial, record: Progress) -> None:
        heard = self._heard[trial.id]
        if record.step > heard.step:
            heard.step = record.step
            self._tell("progressed", trial, [record])
        if record.status != "running":
            how = {
                "resumed_at": heard.resumed_at,
                "restarts": heard.restarts,
                "repeated_steps": heard.repeated,
                "warnings": "\n".join(heard.warnings) or None,
            }
            self._tell("finished", trial, {**result_of(trial, record), **how})
            self.outcome.finished.append(trial.id)

    def fail(self, name: str, error: str) -> None:
        """Gives a trial up."""
        self._tell("failed", self._trials[name], error)
        self.outcome.failed[name] = error

    def give_up_the_rest(self) -> None:
        """Counts as failed what neither ended nor failed: a launch that ended and left no word of it."""
        for name in self._trials:
            if not self.ended(name):
                self.fail(name, "Ray ended its launch twice without a result")

    def _tell(self, what: str, *said: Any) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, what)(*said)
            except Exception as error:
                if observer.essential:
                    raise
                # Of a full disk it is known what and where; of anything else one wants to see where in the code.
                _log.warning(
                    "%s failed; going on without it: %s",
                    type(observer).__name__,
                    " ".join(str(error).split()) or type(error).__name__,
                    exc_info=None if isinstance(error, OSError) else error,
                )
                self._observers.remove(observer)
