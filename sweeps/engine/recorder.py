"""The observer that keeps a sweep's results: each trial's files as it ends, and the table of all."""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lahr import patience
from lahr.errors import StorageError
from lahr.training.progress import Progress
from sweeps.engine.design import Design, Trial, parameters
from sweeps.engine.results import Results, parquet

_TABLE_SHARE = 20
"""Times as long as it took to write the table it is left alone: 5 % of the driver's time however many trials."""


class Recorder:
    """The observer that keeps a sweep's results; each says which version of the code has made it."""

    essential = True

    def __init__(self, results: Results, design: Design, code: str) -> None:
        self._results, self._design, self._code = results, design, code
        self._rows: dict[str, list[Progress]] = {}
        self._table_due = 0.0

    def started(self, trial: Trial) -> None:
        """Writes the trial's configuration; an earlier failure no longer stands."""
        self._results.folder.write_json(f"trials/{trial.id}/config.json", trial.described())
        self._results.folder.remove(f"trials/{trial.id}/failure.json")
        self._rows[trial.id] = []

    def progressed(self, trial: Trial, rows: Sequence[Progress]) -> None:
        """Keeps the records until the trial ends."""
        self._rows[trial.id].extend(rows)

    def finished(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Writes the curve, then the result; the table now and then, since it is all trials' each time."""
        rows = pd.DataFrame([record.row() for record in self._rows.pop(trial.id)])
        folder = self._results.folder
        folder.write(f"trials/{trial.id}/metrics.parquet", parquet(rows))
        said = json.dumps({**result, "code": self._code}, indent=2, allow_nan=False) + "\n"
        folder.write(f"trials/{trial.id}/result.json", said.encode())
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
        **trial.named(),
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
