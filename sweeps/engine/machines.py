"""What a cluster can run at once, and how a sweep's trials are shared out over it."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lahr.errors import check
from lahr.training.runtime import Runtime
from sweeps.engine.design import Trial

_log = logging.getLogger(__name__)
_LAUNCH_S = 900.0
"""What a launch should carry, in estimated seconds: start-up is then a few per cent of it."""
_LEADING_BYTES = 0.75e9
"""What a launch takes of the head's memory: Tune's process, Train's controller, and two small ones (docs/scale.md)."""
_START_S, _TRIAL_S = 15.0, 0.8
"""What a launch takes to start, and a trial beside its steps and evaluations, on two cores (docs/scale.md)."""


@dataclass(frozen=True)
class Cluster:
    """What the Ray that this process is connected to can run at once."""

    machines: tuple[Mapping[str, float], ...]
    """CPU and GPU of each machine that is up."""
    grows: bool = False
    """Whether machines may join it: a Ray that was started here is one machine for good."""
    head_memory: float = math.inf
    """Bytes that Ray's processes may take on the head, where those that lead a launch are."""
    gpu_kinds: str = ""
    """The GPUs of all machines, as `gpus_of` says them."""

    @property
    def gpus(self) -> float:
        """GPUs of all machines."""
        return sum(machine["GPU"] for machine in self.machines)

    def fitting(self, runtime: Runtime) -> int:
        """Trials that fit side by side: a worker stays within a machine, a trial's workers need not."""
        need = runtime.worker_resources()
        # A share of a GPU is no binary fraction: three thirds have to make one.
        each = (min(int(have[name] / amount + 1e-6) for name, amount in need.items()) for have in self.machines)
        return sum(each) // runtime.workers

    def at_once(self, runtime: Runtime, concurrency: int | None) -> int:
        """Launches that may run side by side: those that fit, or `concurrency`, and that the head has memory for."""
        return int(min(concurrency or self.fitting(runtime), max(self.head_memory / _LEADING_BYTES, 1)))

    def wanting(self, runtime: Runtime) -> str:
        """What a trial needs and what there is, for a message."""
        need = _amounts(runtime.worker_resources())
        have = ", ".join(_amounts(machine) for machine in self.machines) or "no machine"
        return f"one trial needs {runtime.workers} x ({need}), each on one machine, and the cluster has {have}"

    def lanes(self, runtime: Runtime, concurrency: int | None = None) -> int:
        """Launches that run side by side: those that fit, at most `concurrency`; or that many where machines may come.

        `ConfigError` if not even one fits.
        """
        fitting = self.fitting(runtime)
        if concurrency is None or not self.grows:
            check(
                fitting >= 1,
                f"{self.wanting(runtime)}; "
                + (
                    "lower --workers or --threads"
                    if self.gpus or runtime.device == "cpu"
                    else "give --device cpu and no --trials-per-gpu"
                )
                + (
                    ", or say with --concurrency how many trials it holds once it has started machines" * self.grows
                ),
            )
            concurrency = min(fitting, concurrency or fitting)
        elif fitting < 1:
            _log.warning("%s now; waiting for it to start machines", self.wanting(runtime))
        held = self.at_once(runtime, concurrency)
        if held < concurrency:
            _log.warning(
                "%d trials at a time, not %d: what leads one takes %.2f GB of the head's memory, which has %.0f GB; a "
                "larger head leads more", held, concurrency, _LEADING_BYTES / 1e9, self.head_memory / 1e9,
            )  # fmt: skip
        return held


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:.3g} {name}" for name, amount in resources.items())


def gpus_of(resources: Mapping[str, float]) -> str:
    """A machine's GPUs, to stand after its processor's name: ", 8 × H100"; empty where there is none."""
    kinds = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
    return f", {resources['GPU']:g} × {kinds[0] if kinds else 'GPU'}" if resources.get("GPU") else ""


def launches(pending: Sequence[Trial], lanes: int, seconds: Mapping[str, float]) -> list[list[Trial]]:
    """Which trials ride together: whole blocks first, inside a block the longest first, lanes evenly filled.

    `seconds` is the estimated length of a trial by cell. As many waves of `lanes` launches as make each about
    `_LAUNCH_S` long, and never more launches than trials.
    """
    order = sorted(pending, key=lambda trial: (trial.seed, -seconds[trial.cell]))
    total = sum(seconds[trial.cell] for trial in order)
    waves = max(1, min(round(total / lanes / _LAUNCH_S), -(-len(order) // lanes)))
    plan: list[list[Trial]] = [[] for _ in range(waves * lanes)]
    loads = [0.0] * len(plan)
    done = 0.0
    for trial in order:
        wave = min(int(done / total * waves), waves - 1)
        slot = min(range(wave * lanes, (wave + 1) * lanes), key=lambda i: loads[i])
        plan[slot].append(trial)
        loads[slot] += seconds[trial.cell]
        done += seconds[trial.cell]
    return [part for part in plan if part]


def wall_seconds(pending: Sequence[Trial], lanes: int, seconds: Mapping[str, float]) -> float:
    """How long `lanes` launches at a time take for them all, with what it costs to start launches and trials."""
    busy = [0.0] * lanes
    for part in launches(pending, lanes, seconds):
        lane = min(range(lanes), key=busy.__getitem__)
        busy[lane] += _START_S + sum(_TRIAL_S + seconds[trial.cell] for trial in part)
    return max(busy)
