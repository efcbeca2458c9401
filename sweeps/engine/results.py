"""The results folder: what a sweep decided, which trials are finished, and one table of them.

    design.json                     factors, levels, seeds, what was decided once, versions, commit, machine
    trials/<id>/config.json         everything needed to run this trial again
                metrics.parquet     one row a progress record
                result.json         written last and whole: with a whole curve it means finished
                failure.json        why the last start gave it up, instead of a result
    checkpoints/<id>/step-N/        written by the workers
    trials.parquet                  one row a finished trial

Nothing here trains; a `Recorder` is the observer that writes trials as they end.
"""

import contextlib
import io
import json
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from lahr import patience
from lahr.errors import ConfigError, StorageError, check
from lahr.files import Folder
from lahr.plain import from_dict
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime
from sweeps.engine.design import Design, Trial, differences, parameters

_TABLE_SHARE = 20
"""Times as long as it took to write the table it is left alone: 5 % of the driver's time however many trials."""
FIRST_COLUMNS = ("trial", "cell", "seed", "status", "val_loss")


@dataclass(frozen=True)
class Results:
    """One sweep's folder."""

    folder: Folder
    _read: dict[str, dict[str, Any] | None] = field(default_factory=dict, repr=False, compare=False)
    """Results that were read already, since they never change; None for one that is damaged."""

    @staticmethod
    def at(results: str, name: str) -> "Results":
        """The folder `name` below `results` (a path or URI). `ConfigError` for a name that could leave it."""
        check(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,127}", name) is not None,
            f"--name is {name!r}; use up to 128 letters, digits, or '._+=-', the first a letter or digit",
        )
        return Results(Folder.at(results).child(name))

    @property
    def checkpoints(self) -> Folder:
        """Where workers keep each trial's checkpoints."""
        return self.folder.child("checkpoints")

    def exists(self) -> bool:
        """Whether a sweep was begun here."""
        return self.folder.exists("design.json")

    def header(self) -> dict[str, Any]:
        """All of `design.json`. `ConfigError` if there is none or it cannot be read."""
        check(
            self.exists(),
            f"there is no sweep at {self.folder.uri}; run one first, or give --results and --name of one",
        )
        try:
            header = self.folder.read_json("design.json")
        except ValueError as error:
            raise self._damaged(error) from error
        kinds = {"design": dict, "runtime": dict, "starts": list, "preset": str, "data": dict}
        known = isinstance(header, dict) and all(isinstance(header.get(k), kind) for k, kind in kinds.items())
        check(
            known,
            f"{self.folder.path('design.json')} is not a sweep's; restore it, or remove it and run again",
        )
        return header

    def design(self) -> Design:
        """The design that was run here."""
        values = self.header()["design"]
        try:
            return Design.from_dict(values)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise self._damaged(error) from error

    def runtime(self) -> Runtime:
        """What was decided once about execution."""
        values = self.header()["runtime"]
        try:
            return from_dict(Runtime, values)
        except (ValueError, TypeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ConfigError:
        place = self.folder.path("design.json")
        return ConfigError(f"{place} is damaged ({error}); restore it, or remove it and run again")

    def begin(
        self, design: Design, runtime: Runtime, about: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> None:
        """Writes `design.json`, or extends its seeds; each start's environment (commit, versions, machine) is added.

        `ConfigError` if another design stands here.
        """
        if self.exists():
            self.check_same(design)
            header = self.header()
            header["design"]["seeds"] = max(design.seeds, header["design"]["seeds"])
        else:
            decided = {"runtime": asdict(runtime), "digest": design.digest(), "design": design.to_dict()}
            header = {**about, **decided, "starts": []}
        header["starts"].append(dict(environment))
        self.folder.write_json("design.json", header)

    def check_same(self, design: Design) -> None:
        """`ConfigError` if another design stands here; seeds are no part of what is compared."""
        found = differences(design, self.design())
        check(
            not found,
            f"{self.folder.uri} holds another design ({'; '.join(found[:3])}"
            f"{f'; and {len(found) - 3} more' if len(found) > 3 else ''}); give --name another name",
        )

    def finished(self) -> set[str]:
        """Ids of the trials that have a result (finished or diverged), whole and with its curve.

        A damaged one counts as not finished: its trial runs again, or is only replayed from its last checkpoint.
        """
        there = (t for t in self.folder.names("trials") if self.folder.exists(f"trials/{t}/result.json"))
        return {trial for trial in there if self._result(trial) is not None}

    def _result(self, trial: str) -> dict[str, Any] | None:
        if trial not in self._read:
            try:
                self._read[trial] = _checked(trial, self.folder.read_json(f"trials/{trial}/result.json"))
                self._curve(trial)
            except StorageError:
                raise
            except (OSError, ValueError, pa.ArrowException) as error:
                logging.getLogger(__name__).warning(
                    "trials/%s in %s counts as not finished, since it is damaged: %s", trial, self.folder.uri, error
                )
                self._read[trial] = None
        return self._read[trial]

    def pending(self, design: Design) -> list[Trial]:
        """The design's trials without a result, block by block."""
        finished = self.finished()
        return [trial for trial in design.trials() if trial.id not in finished]

    def take_over(self, other: "Results", design: Design) -> int:
        """Copies finished trials of the same id from another sweep; how many.

        `ConfigError` if they were executed in another way: then they are not what this sweep would have got.
        """
        unlike = self.runtime().differences(other.runtime())
        differing = [f"{name} {there} there, {here} here" for name, (here, there) in unlike.items()]
        check(
            not differing,
            f"--reuse {other.folder.uri}: its trials were executed in another way ({'; '.join(differing)}); "
            "give this sweep the same options, or leave --reuse out",
        )
        taken = [trial for trial in self.pending(design) if trial.id in other.finished()]
        for trial in taken:
            # The result last: its presence means that the rest is there.
            for name in ("config.json", "metrics.parquet", "result.json"):
                self.folder.write(f"trials/{trial.id}/{name}", other.folder.read(f"trials/{trial.id}/{name}"))
            self.forget(trial.id)
        return len(taken)

    def failures(self, design: Design) -> list[dict[str, Any]]:
        """Trials that the last start gave up, with the reason."""
        found = []
        for trial in self.pending(design):
            if self.folder.exists(f"trials/{trial.id}/failure.json"):
                error = self._why(trial.id)
                found.append({"trial": trial.id, "cell": trial.cell, "seed": trial.seed, "error": error})
        return found

    def _why(self, trial: str) -> str:
        try:
            return str(self.folder.read_json(f"trials/{trial}/failure.json")["error"])
        except (ValueError, TypeError, LookupError):
            return "not known: its failure.json is damaged"

    def table(self, design: Design) -> pd.DataFrame:
        """One row a trial of the design that has a result: `trial, cell, seed, status, val_loss`, then the rest."""
        cells = {cell.name: cell for cell in design.cells()}
        finished = self.finished()
        rows = []
        for trial in design.trials():
            result = self._result(trial.id) if trial.id in finished else None
            if result is not None:
                cell = cells[trial.cell]
                extra_of = cell.extra.corner if cell.extra else None
                rows.append({**result, **cell.on, "corner": cell.corner, "extra_of": extra_of, **cell.levels})
        frame = pd.DataFrame(rows, columns=None if rows else list(FIRST_COLUMNS))
        frame["val_loss"] = frame["val_loss"].astype(float)
        return frame[[*FIRST_COLUMNS, *(name for name in frame.columns if name not in FIRST_COLUMNS)]]

    def curves(self, trials: Iterable[str]) -> dict[str, pd.DataFrame]:
        """Trial id → its progress records, one row a step."""
        return {trial: self._curve(trial) for trial in trials}

    def _curve(self, trial: str) -> pd.DataFrame:
        curve = pd.read_parquet(io.BytesIO(self.folder.read(f"trials/{trial}/metrics.parquet")))
        if not len(curve) or "step" not in curve:
            raise ValueError("its metrics.parquet holds no curve")
        return curve

    def forget(self, trial: str) -> None:
        """To be called when the trial's result is written."""
        self._read.pop(trial, None)

    def write_table(self, design: Design) -> None:
        """Writes `trials.parquet`."""
        self.folder.write("trials.parquet", _parquet(self.table(design)))


class Recorder:
    """The observer that keeps a sweep's results."""

    essential = True

    def __init__(self, results: Results, design: Design) -> None:
        self._results, self._design = results, design
        self._rows: dict[str, list[Progress]] = {}
        self._table_due = 0.0

    def started(self, trial: Trial) -> None:
        """Writes the trial's configuration; an earlier failure no longer stands."""
        self._results.folder.write_json(f"trials/{trial.id}/config.json", _described(trial))
        self._results.folder.remove(f"trials/{trial.id}/failure.json")
        self._rows[trial.id] = []

    def progressed(self, trial: Trial, rows: Sequence[Progress]) -> None:
        """Keeps the records until the trial ends."""
        self._rows[trial.id].extend(rows)

    def finished(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Writes the curve, then the result; the table now and then, since it is all trials' each time."""
        rows = pd.DataFrame([record.row() for record in self._rows.pop(trial.id)])
        folder = self._results.folder
        folder.write(f"trials/{trial.id}/metrics.parquet", _parquet(rows))
        folder.write(
            f"trials/{trial.id}/result.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
        )
        self._results.forget(trial.id)
        if time.monotonic() >= self._table_due:
            self._write_table()

    def _write_table(self) -> None:
        began = time.monotonic()
        self._results.write_table(self._design)
        ended = time.monotonic()
        self._table_due = ended + _TABLE_SHARE * (ended - began)

    def failed(self, trial: Trial, error: str) -> None:
        """Writes why; the trial stays pending."""
        self._results.folder.write_json(f"trials/{trial.id}/failure.json", {"error": error})

    def close(self) -> None:
        """Writes the table of all that is there; of storage that is away enough was said already."""
        with contextlib.suppress(StorageError), patience.limited(0):
            self._write_table()


def result_of(trial: Trial, last: Progress) -> dict[str, Any]:
    """A trial's row, from its last record: plain values, `None` where a figure is not finite.

    `decayed_…` figures are of shorter runs, points of the curve in `metrics.parquet` and none of the trial's: the last
    record never carries them, since a branch starts before the end.
    """
    metrics = {k: v if math.isfinite(v) else None for k, v in last.metrics.items()}
    for name in ("train_loss", "lr", "grad_norm"):
        metrics.pop(name, None)
    return {
        "trial": trial.id,
        "cell": trial.cell,
        "seed": trial.seed,
        "status": last.status,
        "val_loss": metrics.pop("val_loss", None) if last.status == "finished" else None,
        **metrics,
        **parameters(trial),
        "steps": last.step,
        "tokens": last.tokens,
        "flops": last.flops,
        "flops_per_token": last.flops / last.tokens,
        "seconds": last.seconds,
        "tokens_per_second": last.tokens / last.seconds if last.seconds > 0 else None,
        "pairing": last.pairing,
    }


def _checked(trial: str, result: Any) -> dict[str, Any]:
    """What was read from a `result.json`; `ValueError` if it is not that of this trial."""
    loss = result.get("val_loss", "missing") if isinstance(result, dict) else "missing"
    known = loss is None or (isinstance(loss, int | float) and not isinstance(loss, bool))
    if not known or result.get("trial") != trial or result.get("status") not in ("finished", "diverged"):
        raise ValueError("its result.json is not that of this trial")
    return result


def _described(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.id,
        "cell": trial.cell,
        "seed": trial.seed,
        "levels": dict(trial.levels),
        "config": asdict(trial.config),
    }


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
