"""The sweep on the terminal: one live table with a row a cell, a bar, and the time that is left.

Time is weighted by FLOPs, since cells differ in cost and a count of trials does not see it. Off a terminal (a log, a
pipe) there is one plain line a finished trial instead.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from lahr.training.progress import Progress
    from sweeps.engine.design import Trial


@dataclass
class _Cell:
    """What has become of one cell's trials."""

    total: int = 0
    losses: list[float] = field(default_factory=list)
    diverged: int = 0
    failed: set[str] = field(default_factory=set)
    running: dict[str, float] = field(default_factory=dict)
    """Trial → share of it done."""
    speeds: dict[str, float] = field(default_factory=dict)
    """Trial → its latest tokens a second."""

    @property
    def done(self) -> int:
        return len(self.losses) + self.diverged


class ProgressTable:
    """The observer that shows a sweep.

    `pending` are the trials about to run; `done`, the sweep's table so far, counts earlier ones in. `clock` gives
    seconds. The console is made at first use, so that a copy of the observer can be pickled before.
    """

    essential = False

    def __init__(
        self,
        pending: "Sequence[Trial]",
        done: "pd.DataFrame | None" = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._clock = console, clock
        self._live: Live | None = None
        self._cells: dict[str, _Cell] = {}
        self._flops = {trial.id: trial.flops for trial in pending}
        self._executed: dict[str, float] = {}
        self._replayed: dict[str, float] = {}
        self._began: float | None = None
        self._started: dict[str, float] = {}
        if done is not None:
            for cell, status, loss in zip(done["cell"], done["status"], done["val_loss"], strict=True):
                self._cells.setdefault(str(cell), _Cell()).total += 1
                self._count(str(cell), status, loss)
        for trial in pending:
            self._cells.setdefault(trial.cell, _Cell()).total += 1

    def started(self, trial: "Trial") -> None:
        """A trial starts, or starts again after a failure."""
        self._open()
        self._started[trial.id] = self._clock()
        cell = self._cells[trial.cell]
        cell.failed.discard(trial.id)
        cell.running[trial.id] = 0.0

    def progressed(self, trial: "Trial", rows: "Sequence[Progress]") -> None:
        """Records of a running trial."""
        if not rows:
            return
        row, cell = rows[-1], self._cells[trial.cell]
        if trial.id not in self._executed and row.seconds > 0:
            # The first records of a resumed trial tell of work done by an earlier start: it says nothing of pace.
            here = (self._clock() - self._started[trial.id]) / row.seconds
            self._replayed[trial.id] = row.flops * (1 - min(1.0, here))
        self._executed[trial.id] = row.flops
        if trial.id in cell.running:
            cell.running[trial.id] = min(1.0, row.flops / trial.flops)
        speed = row.metrics.get("tokens_per_second", math.nan)
        if math.isfinite(speed):
            cell.speeds[trial.id] = speed

    def finished(self, trial: "Trial", result: Mapping[str, Any]) -> None:
        """A trial has ended, well or diverged."""
        # A diverged trial stopped early, and nothing of it is left to do.
        self._executed[trial.id] = trial.flops
        self._count(trial.cell, result["status"], result["val_loss"])
        self._cells[trial.cell].running.pop(trial.id, None)
        said = "diverged" if result["status"] == "diverged" else f"val_loss {result['val_loss']:.4f}"
        self._say(trial, said)

    def failed(self, trial: "Trial", error: str) -> None:
        """A trial was given up."""
        self._open()
        cell = self._cells[trial.cell]
        cell.running.pop(trial.id, None)
        cell.failed.add(trial.id)
        self._say(trial, f"FAILED: {error}")

    def close(self) -> None:
        """Leaves the last state of the table on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def render(self) -> Group:
        """The table and the bar as they stand now."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("cell", no_wrap=True)
        for name in ("done", "failed", "running", "val_loss", "tokens/s"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, cell in self._cells.items():
            failed = f"{len(cell.failed)}" if cell.failed else ""
            diverged = f"{cell.diverged} diverged" if cell.diverged else ""
            table.add_row(
                name,
                Text(f"{cell.done}/{cell.total}", style="green" if cell.done == cell.total else ""),
                Text(", ".join(filter(None, (failed, diverged))), style="red"),
                " ".join(f"{100 * share:.0f} %" for share in cell.running.values()),
                _mean_and_deviation(cell.losses),
                f"{fmean(cell.speeds.values()):,.0f}" if cell.speeds else "",
            )
        share = sum(self._executed.values()) / max(sum(self._flops.values()), 1e-30)
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(ProgressBar(total=1.0, completed=min(share, 1.0), width=32), Text(self._status()))
        return Group(table, Text(""), line)

    def remaining(self) -> float:
        """Seconds left at the pace so far, by FLOPs; NaN before there is a pace. Failed trials do not count."""
        given_up = {name for cell in self._cells.values() for name in cell.failed}
        executed = sum(self._executed.values()) - sum(self._replayed.values())
        left = sum(
            flops - self._executed.get(name, 0.0) for name, flops in self._flops.items() if name not in given_up
        )
        if left <= 0:
            return 0.0
        return self._elapsed() * left / executed if executed > 0 else math.nan

    def _count(self, cell: str, status: str, loss: float | None) -> None:
        if status == "diverged" or loss is None:
            self._cells[cell].diverged += 1
        else:
            self._cells[cell].losses.append(float(loss))

    def _elapsed(self) -> float:
        return 0.0 if self._began is None else self._clock() - self._began

    def _status(self) -> str:
        done, total = (sum(getattr(cell, name) for cell in self._cells.values()) for name in ("done", "total"))
        failed = sum(len(cell.failed) for cell in self._cells.values())
        left = self.remaining()
        parts = [f"{done}/{total} trials", f"{_duration(self._elapsed())} elapsed"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"about {_duration(left)} left"] if math.isfinite(left) and left > 0 else []
        return ", ".join(parts)

    def _open(self) -> None:
        if self._began is None:
            self._began = self._clock()
            self._console = self._console or Console()
            if self._console.is_terminal:
                self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=2)
                self._live.start()

    def _say(self, trial: "Trial", what: str) -> None:
        """One plain line off a terminal; on one, only what went wrong is kept above the table."""
        assert self._console is not None, "a trial starts or fails before anything is said of it"
        if self._live is None:
            line = f"{trial.cell} seed {trial.seed}: {what} [{self._status()}]"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif not what.startswith("val_loss"):
            self._console.print(f"{trial.cell} seed {trial.seed}: {what}", markup=False, highlight=False)


def _mean_and_deviation(losses: Sequence[float]) -> str:
    if not losses:
        return ""
    return f"{fmean(losses):.4f}" + (f" ± {stdev(losses):.4f}" if len(losses) > 1 else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
