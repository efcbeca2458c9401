"""The results folder: what a sweep decided, which trials are finished, and one table of them.

    design.json                     factors, levels, seeds, what was decided once, versions, commit, machine
    trials/<id>/config.json         everything needed to run this trial again
                metrics.parquet     one row a progress record
                result.json         written last and whole: with a whole curve it means finished
                failure.json        why the last start gave it up, instead of a result
    checkpoints/<id>/step-N/        written by the workers
    trials.parquet                  one row a finished trial

Nothing here trains; `recorder.py` writes trials as they end.
"""

import contextlib
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa

from lahr.errors import ConfigError, StorageError, check
from lahr.files import Folder
from lahr.plain import from_dict
from lahr.training.runtime import Runtime
from sweeps.engine.design import Design, Trial, differences

_AT_ONCE = 16
"""Trials read at once."""
_NUMBERS = ("val_loss", "tokens", "steps", "flops", "seconds", "tokens_per_second", "parameters", "bits_per_byte")
_REPORTED = "report/reported.json"
_CURVE = ("step", "tokens", "flops", "seconds")
FIRST_COLUMNS = ("trial", "cell", "seed", "status", "val_loss")


Value = TypeVar("Value")


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

    def extend(self, seeds: int) -> None:
        """Says in `design.json` that there are to be so many seed blocks, if there were fewer."""
        header = self.header()
        if header["design"]["seeds"] < seeds:
            header["design"]["seeds"] = seeds
            self.folder.write_json("design.json", header)

    def note_report(self, blocks: int) -> list[int]:
        """Notes beside the report that so many blocks were reported on; the smaller numbers that were before."""
        reported: set[int] = set()
        with contextlib.suppress(FileNotFoundError):
            reported.update(self.folder.read_json(_REPORTED))
        if blocks not in reported:  # no part of design.json, which a sweep that runs may be writing
            self.folder.write_json(_REPORTED, sorted({*reported, blocks}))
        return sorted(n for n in reported if n < blocks)

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
        files = (name.split("/") for name in self.folder.files("trials"))
        there = [parts[1] for parts in files if len(parts) == 3 and parts[2] == "result.json"]
        return {trial for trial, result in _side_by_side(self._result, there).items() if result is not None}

    def _result(self, trial: str) -> dict[str, Any] | None:
        if trial not in self._read:
            try:
                result = _checked(trial, self.folder.read_json(f"trials/{trial}/result.json"))
                self._curve(trial)
                self._read[trial] = result
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

    def damaged(self) -> list[str]:
        """Trials whose result was read and cannot be believed."""
        return sorted(trial for trial, result in self._read.items() if result is None)

    def foreign(self, design: Design) -> list[str]:
        """Results that stand here and are of no trial of the design; they are left alone."""
        return sorted(self.finished() - {trial.id for trial in design.trials()})

    def check_code(self, design: Design, code: str, allow_mixed: bool) -> None:
        """`ConfigError` if trials stand here that another version of the code has made, unless that was allowed."""
        found = self.codes(design)
        others = {version: count for version, count in found.items() if version != code}
        check(
            allow_mixed or not others,
            f"{self.folder.uri} holds trials of another version of the code ("
            + ", ".join(f"{count} of {version}" for version, count in others.items())
            + f"; this is {code}), which may differ for that alone; give --name another name, or --allow-mixed to mix "
            "them, and the report will say so (`report` alone needs neither where all are of one version)",
        )

    def codes(self, design: Design) -> dict[str, int]:
        """Version of the code → how many of the design's results it has made."""
        table = self.table(design)
        made = table["code"].fillna("unknown") if "code" in table else ["unknown"] * len(table)
        return dict(Counter(map(str, made)))

    def take_over(self, other: "Results", design: Design) -> int:
        """Copies finished trials of the same configuration and seed from another sweep; how many.

        `ConfigError` if they were executed in another way: then they are not what this sweep would have got.
        """
        unlike = self.runtime().differences(other.runtime())
        differing = [f"{name} {there} there, {here} here" for name, (here, there) in unlike.items()]
        check(
            not differing,
            f"--reuse {other.folder.uri}: its trials were executed in another way ({'; '.join(differing)}); "
            "give this sweep the same options, or leave --reuse out",
        )
        theirs = {trial.rpartition("-")[2]: trial for trial in sorted(other.finished())}
        taken = [
            (trial, theirs[trial.fingerprint]) for trial in self.pending(design) if trial.fingerprint in theirs
        ]
        for trial, its in taken:
            result = other._result(its)
            assert result is not None
            self.folder.write_json(f"trials/{trial.id}/config.json", trial.described())
            self.folder.write(
                f"trials/{trial.id}/metrics.parquet", other.folder.read(f"trials/{its}/metrics.parquet")
            )
            # The result last: its presence means that the rest is there.
            self.folder.write_json(f"trials/{trial.id}/result.json", {**result, **trial.named()})
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
                extra = cells[trial.cell].extra
                of = " ".join(extra.compared) if extra else None
                rows.append({**_level_columns(design, trial), **result, "extra_of": of})
        frame = pd.DataFrame(rows, columns=None if rows else list(FIRST_COLUMNS))
        frame["val_loss"] = frame["val_loss"].astype(float)
        return frame[[*FIRST_COLUMNS, *(name for name in frame.columns if name not in FIRST_COLUMNS)]]

    def curves(self, trials: Iterable[str]) -> dict[str, pd.DataFrame]:
        """Trial id → its progress records, one row a step."""
        return _side_by_side(self._curve, trials)

    def _curve(self, trial: str) -> pd.DataFrame:
        curve = pd.read_parquet(io.BytesIO(self.folder.read(f"trials/{trial}/metrics.parquet")))
        lacking = [name for name in _CURVE if name not in curve or not pd.api.types.is_numeric_dtype(curve[name])]
        if not len(curve) or lacking:
            raise ValueError(f"its metrics.parquet holds no curve (no numbers as {', '.join(lacking) or 'rows'})")
        return curve

    def forget(self, trial: str) -> None:
        """To be called when the trial's result is written."""
        self._read.pop(trial, None)

    def write_table(self, design: Design) -> None:
        """Writes `trials.parquet`."""
        self.folder.write("trials.parquet", parquet(self.table(design)))


def _level_columns(design: Design, trial: Trial) -> dict[str, Any]:
    """The trial's levels, by field, and by factor: whether a switch is on. As text where not all levels are numbers,
    since a column has one type."""
    columns: dict[str, Any] = {}
    for factor in design.factors:
        level = trial.levels[factor.field]
        columns[factor.field] = level if all(_is_number(x) for x in factor.levels) else str(level)
        columns[factor.name] = level != factor.levels[0] if factor.switch else columns[factor.field]
    return columns


def _is_number(level: Any) -> bool:
    return isinstance(level, int | float) and not isinstance(level, bool)


def _side_by_side(read: Callable[[str], Value], trials: Iterable[str]) -> dict[str, Value]:
    """Trial → what is read of it; an object store takes a tenth of a second to answer, and may be asked often."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        # In this thread's context, which says how long storage is waited for.
        reading = {trial: pool.submit(copy_context().run, read, trial) for trial in trials}
        return {trial: future.result() for trial, future in reading.items()}


def _checked(trial: str, result: Any) -> dict[str, Any]:
    """What was read from a `result.json`; `ValueError` if it is not that of this trial."""
    if not isinstance(result, dict) or result.get("trial") != trial:
        raise ValueError("its result.json is not that of this trial")
    if not trial.startswith(f"{result.get('cell')}-s{result.get('seed')}-"):
        raise ValueError(f"its result.json says cell {result.get('cell')!r} and seed {result.get('seed')!r}")
    if result.get("status") not in ("finished", "diverged"):
        raise ValueError(f"its result.json has the status {result.get('status')!r}")
    for name in _NUMBERS:
        if name in result and not (result[name] is None or _is_number(result[name])):
            raise ValueError(f"its result.json has {result[name]!r} as {name}")
    if "val_loss" not in result:
        raise ValueError("its result.json has no val_loss")
    if result["status"] == "finished" and not math.isfinite(result["val_loss"] or math.nan):
        raise ValueError(f"its result.json says finished, and {result['val_loss']!r} as val_loss")
    return result


def parquet(frame: pd.DataFrame) -> bytes:
    """A table as the bytes of a file."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
