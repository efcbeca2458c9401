"""The command line of every study, and the design that it asks for; a study adds its factors."""

import math
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import tyro

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.errors import check
from lahr.files import Folder
from lahr.model.flops import parameter_counts
from lahr.model_config import ModelConfig
from lahr.options import DEFAULT_PRESET
from lahr.plain import changed
from lahr.presets import Preset, preset
from lahr.training import compilation
from sweeps.analysis.effects import Effects
from sweeps.analysis.sequential import looks
from sweeps.engine.budget import at_equal_flops
from sweeps.engine.design import Design, Equal
from sweeps.engine.factors import Extra, Factor, checked

Command = Literal["run", "plan", "status", "report"]


@dataclass(frozen=True)
class StudyOptions:
    """What every study is asked. One of its own is a subclass with its factors."""

    NAME: ClassVar[str] = ""
    """How the names of its folders begin."""
    FACTORS: ClassVar[tuple[Factor, ...]] = ()
    EXTRAS: ClassVar[tuple[Extra, ...]] = ()
    FIRST_SEED: ClassVar[int] = 0
    PRESET: ClassVar[str] = DEFAULT_PRESET
    """The preset where none is given."""
    BUILD: ClassVar[str] = ""
    """`package.module:function` of the model that it is about, if not LAHR."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    command: tyro.conf.Positional[Command] = "run"
    """`run` starts or carries on; `plan` prints what it would cost and could detect; `status`; `report`."""
    preset: str = "quick"
    """smoke, quick, small, paper or base, or a probe: sizes and defaults of everything below."""
    seeds: int = 5
    """Seed blocks: every cell runs each of them. A larger number than before adds blocks."""
    extra: tuple[str, ...] = ()
    """Cells beside the factorial, each one of its cells with other values: `mod:mod_router=random
    latent:latent_mode=sampled,latent_halting=gate base:train.lr=1e-3`; each is compared with that cell."""
    order: int | None = None
    """The most factors of an interaction that is estimated: 1 is main effects alone; by default all."""
    without: tuple[str, ...] = ()
    """Cells to leave out; the effects that are asked for (see --order) must remain estimable."""
    equal: Equal = "tokens"
    """At equal what cells are compared: training tokens, training FLOPs, or seconds on hardware that does nothing else
    (timed before the sweep). Each cell is given what `base` spends."""
    primary: Equal | None = None
    """The comparison that was declared primary beforehand, if this sweep is another one: its report says so."""
    tune_lr: tuple[float, ...] = ()
    """Peak rates to try first, over all cells, on a seed that is no block; the lowest mean loss decides."""
    until: Literal["seeds", "decided"] = "seeds"
    """`decided` adds seed blocks until every effect is settled at --smallest-effect, or there are --max-seeds."""
    max_seeds: int = 12
    """Seed blocks at most, under --until decided."""
    smallest_effect: float | None = None
    """Smallest effect of interest in nats, declared beforehand: only with it can a verdict be "no effect"."""
    results: str = "results"
    """Folder of all sweeps: a path or a URI such as s3://bucket/results."""
    name: str | None = None
    """This sweep's folder below it; by default the preset and the corpus."""
    reuse: tuple[str, ...] = ()
    """Other sweeps' folders; finished trials of the same configuration and seed are taken from them."""
    allow_mixed: bool = False
    """Goes on, or reports, although trials here were made by another version of the code; the report says so."""
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
        self._check_execution()
        named = preset(self.preset)
        given, usual = self.config(), TrialConfig(self._model_of(named), named.data, named.train)
        for factor in checked(self.factors()):
            value = _at(given, factor.field)
            check(
                value in (_at(usual, factor.field), factor.levels[0]),
                f"{factor.field} is {value}, but it is a factor of this study; {self.level_option(factor)}",
            )
        check(
            self.smallest_effect is None or 0 < self.smallest_effect < math.inf,
            f"--smallest-effect is {self.smallest_effect}; it is a size in nats, above 0 and finite",
        )
        check(
            self.until == "decided" or self.max_seeds == type(self).max_seeds,
            f"--max-seeds is {self.max_seeds} without --until decided, which alone goes by it; give both, or --seeds",
        )
        if self.until == "decided":
            check(
                self.smallest_effect is not None,
                "--until decided needs --smallest-effect, the size in nats below which an effect does not matter: "
                "without it nothing could be settled as none",
            )
            looks(self.max_seeds)
            check(
                self.seeds == _usual_seeds(self.preset),
                f"--seeds is {self.seeds} with --until decided, which adds seed blocks by itself; leave it out, give "
                "the most there may be with --max-seeds",
            )
        check(
            self.smallest_effect is None or self.seeds >= 2,
            f"--smallest-effect is given with --seeds {self.seeds}: a verdict takes intervals, and those two blocks at "
            "least; give --seeds 5, or 8 for a claim",
        )
        check(
            len(set(self.tune_lr)) == len(self.tune_lr) != 1 and all(0 < rate < math.inf for rate in self.tune_lr),
            f"--tune-lr is {', '.join(map(str, self.tune_lr))}; give two or more rates to choose from, each above 0 "
            "and once",
        )
        check(
            not self.tune_lr or all(factor.field != "train.lr" for factor in self.factors()),
            "--tune-lr is given, and the learning rate is a factor of this study; leave it out",
        )
        check(
            not self.tune_lr or (given.train.lr == usual.train.lr and all(f.name != "lr" for f in self.factors())),
            f"--train.lr is {given.train.lr} beside --tune-lr, which chooses it, or a factor is named lr; drop one",
        )
        self.design(self.config(), "")

    def _check_execution(self) -> None:
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

    @classmethod
    def of(cls, name: str, preset: Preset) -> Self:
        """A preset's options."""
        model = cls._model_of(preset)
        return cls(model, preset.data, preset.train, preset=name, seeds=_usual_seeds(name))

    @classmethod
    def _model_of(cls, preset: Preset) -> ModelConfig:
        model: ModelConfig = changed(preset.model, {"build": cls.BUILD} if cls.BUILD else {})
        return model

    def config(self) -> TrialConfig:
        """The configuration that the factors vary."""
        return TrialConfig(self.model, self.data, self.train)

    def factors(self) -> tuple[Factor, ...]:
        """What is varied."""
        return self.FACTORS

    def extras(self) -> tuple[Extra, ...]:
        """The study's own cells beside the factorial, then those that were asked for."""
        return (*self.EXTRAS, *map(Extra.parse, self.extra))

    def section(self, effects: Effects, design: Design) -> tuple[str, dict[str, bytes]]:
        """What a study's report has of its own: Markdown, and the pictures that it names."""
        return "", {}

    def level_option(self, factor: Factor) -> str:
        """How one gives a factor other levels."""
        return f"change its levels in the study's file ({', '.join(map(str, factor.levels))})"

    def design(self, config: TrialConfig, content_hash: str) -> Design:
        """The design of these options on that data; at equal time it has yet to be told the steps."""
        made = Design(
            self.factors(),
            replace(config, seed=0),
            content_hash,
            self.seeds,
            self.extras(),
            self.order,
            self.without,
            first_seed=self.FIRST_SEED,
        )
        check(
            self.equal == "tokens" or "base" in made.contrasts.cells,
            f"--equal {self.equal}: cells are given what `base` spends, and --without leaves it out; leave it in",
        )
        return at_equal_flops(made) if self.equal == "flops" else replace(made, equal=self.equal)

    @property
    def sweep_name(self) -> str:
        """The sweep's folder name."""
        name = self.data.corpus.rstrip("/")
        file = (
            name if " + " in name else Path(name).name.split(".")[0]
        )  # a mixture's weights have points of their own
        corpus = re.sub(r"[^A-Za-z0-9._-]+", "-", file).strip("-.") or "corpus"
        if ":" in name and name == preset(self.preset).data.corpus:  # what the preset is about, and its parameters
            corpus = ""
        parts = [self.NAME, self.preset, corpus, "" if self.equal == "tokens" else self.equal]
        return self.name or "-".join(filter(None, parts))

    @property
    def cache_folder(self) -> Path:
        """Where prepared data lies on this machine."""
        return Path(self.cache).expanduser().resolve()


def _usual_seeds(name: str) -> int:
    return 2 if name == "smoke" else 5


def _at(config: object, field: str) -> object:
    """What a configuration has at a dotted place; None where an open mapping has no such entry."""
    for part in field.split("."):
        config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


def check_room(design: Design, pending: int, at_once: int, folder: Folder) -> None:
    """`ConfigError` if the disk has too little room for the checkpoints of trials, so many of them at once."""
    if not folder.is_local or not pending:
        return
    largest = max(parameter_counts(trial.config.model)["total"] for trial in design.one_block())
    # Of one that has ended the weights in fp32; of one that runs two moments and an average as well, and two of those
    # while a third is written.
    running = 16 if design.config.train.ema else 12
    need = largest * (4 * pending + running * 3 * min(at_once, pending))
    place = Path(folder.uri)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    check(
        free >= need,
        f"the checkpoints of {pending} trials may take {need / 2**30:.1f} GiB and {place} has {free / 2**30:.1f} GiB "
        "free; make room or give --results another place",
    )
