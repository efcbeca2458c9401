"""What a sweep wastes: `quick` as a user runs it, and how much of its slots' time its training steps are.

    python benchmarks/sweep.py                    # the whole of quick, a quarter of an hour
    python benchmarks/sweep.py --preset smoke

A slot is a place for one trial at a time. Everything is read from the results folder: training seconds are the trials'
own, starts and ends the times at which their files were written.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from protocol import Goal, Section, table
from rich.console import Console

from sweeps.engine.results import Results

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    """What to run."""

    preset: str = "quick"
    slots: int = os.cpu_count() or 1
    """Trials at once."""


def section(options: Options, console: Console) -> Section:
    """Measures."""
    with tempfile.TemporaryDirectory() as place:
        given = ("--preset", options.preset, "--results", place, "--name", "timed")
        command = [sys.executable, str(ROOT / "sweeps/factorial.py"), *given, "--concurrency", str(options.slots)]
        began = time.time()
        console.print(f"{options.preset} …")
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        wall = time.time() - began
        results = Results.at(place, "timed")
        done = results.table(results.design())
        trials = Path(place) / "timed" / "trials"
        starts = sorted((trials / trial / "config.json").stat().st_mtime for trial in done["trial"])
        ends = sorted((trials / trial / "result.json").stat().st_mtime for trial in done["trial"])
        report = json.loads((Path(place) / "timed" / "design.json").read_text())["starts"][-1]["machine"]
    training = float(done["seconds"].sum())
    steady = (ends[-1] - starts[0]) * options.slots
    share, overhead = training / wall / options.slots, (steady - training) / len(done)
    beside = 1 - training / steady
    rows = [
        ("until the first trial starts", f"{starts[0] - began:.0f} s", f"{(starts[0] - began) / wall:.1%}"),
        ("training steps, a slot", f"{training / options.slots:.0f} s", f"{share:.1%}"),
        (
            "evaluation, checkpoints, reports, slots that end early",
            f"{(steady - training) / options.slots:.0f} s",
            f"{(steady - training) / options.slots / wall:.1%}",
        ),
        ("the report, and Ray's end", f"{wall - (ends[-1] - began):.0f} s", f"{1 - (ends[-1] - began) / wall:.1%}"),
        ("all", f"{wall:.0f} s", "100 %"),
    ]
    text = f"`{options.preset}`, {len(done)} trials on {options.slots} slots, {report}.\n\n" + table(
        ("", "time", "of the whole"), rows
    )
    start = (
        f"It takes {starts[0] - began:.0f} s until the first trial starts, for Ray's own processes, five a launch, and "
        f"{wall - (ends[-1] - began):.0f} s from the last one's end, however long the trials are."
    )
    goals = (
        Goal(
            f"`{options.preset}` sweep: Σ training seconds ÷ (slots × wall)",
            "≥ 90 %", f"{share:.1%}", share >= 0.9, start,
        ),
        Goal("a trial's overhead at steady state", "≤ 3 s", f"{overhead:.2f} s", overhead <= 3),
        Goal("evaluation, checkpoints and reports of a trial", "≤ 5 %", f"{beside:.1%}", beside <= 0.05),
    )  # fmt: skip
    return Section("A sweep", text, goals)


if __name__ == "__main__":
    found = section(tyro.cli(Options, description=__doc__), Console(stderr=True))
    found.save("sweep")
    print(found.text)
