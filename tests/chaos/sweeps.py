"""Sweeps that are disturbed, and what has to be the same as in one that was not."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tests.cluster.namespaces import until

CHECKPOINTS, STEPS = 40, 480
"""In a trial: a checkpoint every twelve steps."""
INTERVAL = STEPS // CHECKPOINTS
OPTIONS = (
    f"--preset smoke --train.tokens {STEPS * 256} --train.batch-size 2 --train.checkpoints {CHECKPOINTS} "
    "--train.evaluations 4"
)
CLOCKS = (
    "seconds", "tokens_per_second", "peak_memory_mib", "restarts", "repeated_steps", "resumed_at", "warnings",
)  # fmt: skip
"""Figures of a trial that are of its run, and no result."""


def trials(results: Path) -> dict[str, dict]:
    """Trial → what it came to, all but the clocks: the result, and the curve as text."""
    found = {}
    for path in sorted(results.glob("trials/*/result.json")):
        result = json.loads(path.read_text())
        curve = pd.read_parquet(path.with_name("metrics.parquet"))
        kept = curve.drop(columns=[name for name in CLOCKS if name in curve])
        found[path.parent.name] = {k: v for k, v in result.items() if k not in CLOCKS} | {"curve": kept.to_json()}
    return found


def newest_checkpoints(results: Path) -> dict[str, int]:
    """Trial that is not finished → the step of its newest whole checkpoint."""
    steps = {}
    for folder in results.glob("checkpoints/*"):
        if not (results / "trials" / folder.name / "result.json").exists():
            whole = [int(m.parent.name.removeprefix("step-")) for m in folder.glob("step-*/manifest.json")]
            steps[folder.name] = max(whole, default=0)
    return steps


@dataclass
class Running:
    """A sweep's process and what it has said."""

    process: subprocess.Popen
    log: Path
    results: Path
    began: float

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def finished(self) -> int:
        return len(list(self.results.glob("trials/*/result.json")))

    def until_finished(self, count: int, seconds: float = 240) -> None:
        """Waits until so many trials have a result."""
        until(lambda: self.finished() >= count or self.process.poll() is not None, seconds, self.said)
        assert self.finished() >= count, self.said()

    def wait(self, seconds: float = 600, status: int = 0) -> float:
        """Waits for its end, which has to be a good one unless another status is named; seconds from its start."""
        assert self.process.wait(timeout=seconds) == status, self.said()
        return time.monotonic() - self.began


Fault = Callable[[Running], Running | None]
"""Disturbs a sweep that runs, and returns the one that runs then, where it is another."""
