"""What a sweep costs beside its training: trivial trials through `sweeps/engine/schedule.py`.

    python benchmarks/trials.py                         # 125, 250, 500 and 1,000 trials, carried by a few launches
    python benchmarks/trials.py --apart --counts 30 60 120      # each a launch of its own

A plain function stands in place of training: it reports a curve of --points for each trial, and ends. All else is a
sweep's own: Ray Tune, reports, the results folder, event files, the progress line, and the report at the end. Each
count runs in a process of its own with a Ray of its own. `seconds` are from the first trial's end to the last one's,
`start` what was before; `report` is all that the command `report` does, event files too; memory is the driver's
resident set at the end, less that before the first trial. The exponent is that of a power law fitted over the counts:
1 where a trial costs the same however many there are.
"""

import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from ray import tune
from rich.console import Console
from rich.table import Table

from lahr.config import TrialConfig
from lahr.distributed import Launch
from lahr.machine import Demands
from lahr.presets import preset
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime
from sweeps.commands.report import report
from sweeps.engine import schedule, study
from sweeps.engine.design import Design, Trial
from sweeps.engine.recorder import Recorder
from sweeps.engine.results import Results
from sweeps.factorial import Options as Sweep
from sweeps.reporting import event_files
from sweeps.reporting.progress import ProgressTable

_APART_S = 1e4
"""A trial so long that a launch carries it alone."""


@dataclass(frozen=True)
class Options:
    """Which sweeps to time."""

    counts: tuple[int, ...] = (125, 250, 500, 1000)
    """Trials in each of them; rounded to whole blocks of eight."""
    apart: bool = False
    """Each trial in a launch of its own, rather than as many as a launch carries."""
    points: int = 10
    """Points of each trial's curve; `quick` has 40."""
    one: int = 0
    """Only this count, in this process; the figures as JSON."""


class Clock:
    """The observer that notes when the first and the last trial ended, and how large the driver is then."""

    essential = True

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.memory: list[float] = []

    def started(self, trial: Trial) -> None:
        if not self.memory:
            self.memory.append(_resident_mib())

    def progressed(self, trial: Trial, rows: Sequence[Progress]) -> None: ...

    def finished(self, trial: Trial, result: Mapping[str, Any]) -> None:
        self.ends.append(time.monotonic())

    def failed(self, trial: Trial, error: str) -> None:
        raise RuntimeError(f"{trial.id} failed: {error}")

    def close(self) -> None:
        self.memory.append(_resident_mib())


def trivial(launch: Launch, name: str, storage: str, callbacks: list[Any]) -> None:
    """In place of training: the records of each trial, as a worker reports them."""
    for trial, config in launch.trials.items():
        points = config.train.log_points
        rows: list[dict[str, Any]] = [{"trial": trial, "resumed": 0, "warnings": []}]
        for point in range(1, points + 1):
            step = config.steps * point // points
            loss = 6.0 - math.log(1 + point) + 0.01 * math.sin(config.seed)
            metrics = dict.fromkeys(("train_loss", "val_loss", "val_loss_topk", "bits_per_byte"), loss)
            status = "finished" if point == points else "running"
            tokens = step * config.tokens_per_step
            record = Progress(step, tokens, 1e6 * tokens, 0.1 * point, metrics, str(config.seed), status)
            rows.append({"trial": trial, "progress": record.to_json()})
        tune.report({"rows": rows})


def one(count: int, apart: bool, points: int) -> dict[str, float]:
    """One sweep of that many trials: its figures."""
    sweep = Sweep.of("smoke", preset("smoke"))
    sweep = replace(
        sweep, command="report", seeds=max(1, count // 8), train=replace(sweep.train, log_points=points)
    )
    config = TrialConfig(sweep.model, sweep.data, sweep.train)
    design: Design = sweep.design(config, "0" * 12)
    console, clock = Console(file=io.StringIO()), Clock()
    with tempfile.TemporaryDirectory(prefix="lahr-trials-") as folder, schedule.connected("local") as cluster:
        results = Results.at(folder, "trivial")
        about = {"preset": "smoke", "data": {"corpus": "none", "floor": None}, "estimated_seconds": {}}
        results.begin(design, Runtime(), about, study.environment())
        pending = results.pending(design)
        began = time.monotonic()
        schedule.run(
            pending,
            [
                Recorder(results, design, "trivial"),
                ProgressTable(pending, results.table(design), console),
                event_files.EventFiles(Path(folder) / "tensorboard", {c.name: c.levels for c in design.cells()}),
                clock,
            ],
            results=results,
            launch=Launch(
                runtime=Runtime(),
                checkpoints=results.checkpoints.uri,
                data=folder,
                content_hash=design.content_hash,
                cache=folder,
                demands=Demands.made(results.folder),
            ),
            cluster=cluster,
            seconds={cell.name: _APART_S if apart else 1.0 for cell in design.cells()},
            fit=trivial,
        )
        clock.close()
        ended = time.monotonic()
        report(sweep, results, console)
        reported = time.monotonic()
    return {
        "trials": len(pending),
        "start": clock.ends[0] - began,
        "seconds": clock.ends[-1] - clock.ends[0],
        "report": reported - ended,
        "memory": clock.memory[-1] - clock.memory[0],
    }


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(options: Options) -> None:
    """Prints the table."""
    if options.one:
        print(json.dumps(one(options.one, options.apart, options.points)))
        return
    measured = []
    for count in options.counts:
        command = [sys.executable, __file__, "--one", str(count), "--points", str(options.points)]
        command += ["--apart"] if options.apart else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
        print(measured[-1], flush=True)
    table = Table("trials", "start, s", "seconds", "ms a trial", "report, s", "driver's memory, MiB")
    for m in measured:
        each = 1000 * m["seconds"] / (m["trials"] - 1)
        counted = [m["trials"], m["start"], m["seconds"], each, m["report"], m["memory"]]
        table.add_row(*(f"{figure:.4g}" for figure in counted))
    Console().print(table)
    counts = np.log([m["trials"] for m in measured])
    for name in ("seconds", "report", "memory"):
        exponent = np.polyfit(counts, np.log([m[name] for m in measured]), 1)[0]
        print(f"{name}: trials^{exponent:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
