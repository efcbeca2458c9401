"""The command line of a study over LAHR's three factors, and what it resolves to before anything starts."""

import math
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.errors import check
from lahr.files import Folder
from lahr.model.flops import parameter_counts
from lahr.model_config import ModelConfig
from lahr.presets import Preset
from lahr.training import compilation
from sweeps.engine.design import Design, Extra, Factor

Command = Literal["run", "plan", "status", "report"]
_OFF = {"mod_capacity": 1.0, "latent_iterations": 0, "memory_slots": 0}
_OPTION = {"mod_capacity": "--capacity", "latent_iterations": "--iterations", "memory_slots": "--slots"}


@dataclass(frozen=True)
class Options:
    """Mixture-of-Depths × latent reasoning × memory, each on or off, in seed blocks."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    command: tyro.conf.Positional[Command] = "run"
    """`run` starts or carries on; `plan` prints what it would cost and could detect; `status`; `report`."""
    preset: str = "quick"
    """smoke, quick, small, paper or base: sizes and defaults of everything below."""
    seeds: int = 5
    """Seed blocks: every cell runs each of them. A larger number than before adds blocks."""
    capacity: tuple[float, ...] = (0.125,)
    """Mixture-of-Depths capacities when it is on; the first is the factorial's, others are levels beside it."""
    iterations: tuple[int, ...] = (4,)
    """Latent iterations when they are on, likewise."""
    slots: tuple[int, ...] = (4096,)
    """Memory slots when it is on, likewise; square numbers."""
    extra: tuple[str, ...] = ()
    """Cells beside the factorial, each a cell of it with options of the model: `mod:mod_router=random
    latent:latent_mode=sampled,latent_halting=gate`; each is compared with that cell."""
    smallest_effect: float | None = None
    """Smallest effect of interest in nats, declared beforehand: only with it can a verdict be "no effect"."""
    results: str = "results"
    """Folder of all sweeps: a path or a URI such as s3://bucket/results."""
    name: str | None = None
    """This sweep's folder below it; by default the preset and the corpus."""
    reuse: tuple[str, ...] = ()
    """Other sweeps' folders; finished trials of the same id are taken from them."""
    address: str | None = None
    """A running Ray cluster (`auto`, host:port); by default RAY_ADDRESS, else one is started on this machine."""
    concurrency: int | None = None
    """Trials at once; by default what the cluster holds now. Give it where machines start as they are needed."""
    workers: int = 1
    """Processes of one trial (data parallel)."""
    sharding: Literal["replicate", "shard"] = "replicate"
    """What each of them holds: a whole copy of the model, or a part (`shard`: FSDP2), for one that is too large."""
    threads: int = 1
    """Threads of each process on a CPU."""
    trials_per_gpu: int = 1
    """Trials that share one GPU, for models that leave most of it idle."""
    hang_after: float = 1800.0
    """Seconds without a step after which a trial counts as hung, and is begun again."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where trials run; `auto` takes GPUs where the cluster has some."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of matrix products; `auto` takes bf16 where the hardware has it."""
    compile: compilation.Asked = "auto"
    """torch.compile; `auto` on a CPU where a trial is long enough to gain by it."""
    profile: bool = False
    """Leaves a trace of five steps of the first trial of each cell that is run, and a table of where their time goes,
    in `profile/`. Those steps are slower for it, and count in the trial's seconds."""
    cache: str = os.environ.get("LAHR_CACHE", "~/.cache/lahr")
    """Where prepared data lies on each machine."""

    def __post_init__(self) -> None:
        for field, off in _OFF.items():
            given = getattr(self.model, field)
            check(
                given == off,
                f"model.{field} is {given}, but it is a factor of this study; give its level with {_OPTION[field]}",
            )
        check(
            self.concurrency is None or self.concurrency >= 1,
            f"--concurrency is {self.concurrency}; it must be at least 1",
        )
        check(self.workers >= 1, f"--workers is {self.workers}; it must be at least 1")
        check(1 <= self.threads <= 1024, f"--threads is {self.threads}; it must be 1 to 1024, the cores at most")
        check(
            self.trials_per_gpu >= 1 and (self.trials_per_gpu == 1 or self.workers == 1),
            f"--trials-per-gpu is {self.trials_per_gpu} with --workers {self.workers}; it is at least 1, and trials of "
            "several workers have their GPUs to themselves",
        )
        check(self.hang_after >= 10, f"--hang-after is {self.hang_after}; it is a time in seconds, at least 10")
        check(
            self.train.batch_size % self.workers == 0,
            f"train.batch_size is {self.train.batch_size}, which --workers {self.workers} cannot share evenly",
        )
        check(
            self.smallest_effect is None or 0 < self.smallest_effect < math.inf,
            f"--smallest-effect is {self.smallest_effect}; it is a size in nats, above 0 and finite",
        )
        self.design(TrialConfig(self.model, self.data, self.train), "")

    @staticmethod
    def of(name: str, preset: Preset) -> "Options":
        """A preset's options."""
        return Options(
            model=preset.model,
            data=preset.data,
            train=preset.train,
            preset=name,
            seeds=2 if name == "smoke" else 5,
            capacity=(float(preset.on["mod_capacity"]),),
            iterations=(int(preset.on["latent_iterations"]),),
            slots=(int(preset.on["memory_slots"]),),
        )

    def factors(self) -> tuple[Factor, ...]:
        """The three factors at the levels that were asked for."""
        return (
            Factor("mod", "mod_capacity", _OFF["mod_capacity"], self.capacity),
            Factor("latent", "latent_iterations", _OFF["latent_iterations"], self.iterations),
            Factor("memory", "memory_slots", _OFF["memory_slots"], self.slots),
        )

    def design(self, config: TrialConfig, content_hash: str) -> Design:
        """The design of these options on that data."""
        extras = tuple(Extra.parse(text) for text in self.extra)
        return Design(self.factors(), replace(config, seed=0), content_hash, self.seeds, extras)

    @property
    def sweep_name(self) -> str:
        """The sweep's folder name."""
        corpus = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.data.corpus.rstrip("/")).name.split(".")[0]).strip("-.")
        return self.name or f"{self.preset}-{corpus or 'corpus'}"

    @property
    def cache_folder(self) -> Path:
        """Where prepared data lies on this machine."""
        return Path(self.cache).expanduser().resolve()


def check_room(design: Design, pending: int, at_once: int, folder: Folder) -> None:
    """`ConfigError` if the disk has too little room for the checkpoints of trials, so many of them at once."""
    if not folder.is_local or not pending:
        return
    largest = max(parameter_counts(trial.config.model)["total"] for trial in replace(design, seeds=1).trials())
    # Of one that has ended the weights in fp32; of one that runs two moments as well, and two while a third is written.
    need = largest * (4 * pending + 12 * 3 * min(at_once, pending))
    place = Path(folder.uri)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    check(
        free >= need,
        f"the checkpoints of {pending} trials may take {need / 2**30:.1f} GiB and {place} has {free / 2**30:.1f} GiB "
        "free; make room or give --results another place",
    )
