"""What a run says of itself: one `Progress` every few steps."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["running", "finished", "diverged"]


@dataclass(frozen=True)
class Progress:
    """A record at one step. Everything but `seconds` and the rates in `metrics` repeats bit for bit."""

    step: int
    """Optimiser steps done."""
    tokens: int
    """Training tokens read, over all workers."""
    flops: float
    """Training FLOPs executed, by the closed form (causal attention's useful half)."""
    seconds: float
    """Time spent in training steps; evaluation, checkpoints and start-up are not in it."""
    metrics: Mapping[str, float]
    """`train_loss` (mean since the last record), `lr`, `grad_norm`, `tokens_per_second`; with an evaluation also
    `val_loss` and its companions; at the end `peak_memory_mib`. Where a shorter run is branched off
    (`train.decayed_points`), its `decayed_val_loss`, NaN if it diverged, at its `decayed_tokens` and `decayed_flops`;
    the steps it took on its own count in no other field."""
    pairing: str
    """Hash of the ids of all blocks read so far: equal in every cell of a seed block."""
    status: Status = "running"

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite becomes its name, since JSON has none."""
        record = asdict(self)
        record["metrics"] = {k: v if math.isfinite(v) else str(v) for k, v in self.metrics.items()}
        return record

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "Progress":
        """The inverse of `to_json`."""
        return Progress(**{**record, "metrics": {k: float(v) for k, v in record["metrics"].items()}})

    def seconds_left(self, steps: int) -> float:
        """Of training until so many steps are done, at the mean pace so far, whatever starts the run has had."""
        return self.seconds / self.step * (steps - self.step)

    def row(self) -> dict[str, Any]:
        """One flat row of a table."""
        flat = asdict(self)
        return {**{k: v for k, v in flat.items() if k != "metrics"}, **self.metrics}
