"""From options to a design on prepared data, with what is decided once: the part that every study shares."""

import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lahr.config import Precision
from lahr.data import SHARED, TokenData, anchored, prepare, published_at
from lahr.errors import check
from lahr.files import Folder
from lahr.machine import processor
from lahr.plain import changed
from lahr.presets import preset
from lahr.training import compilation
from lahr.training.runtime import Runtime, choose_micro_batch, choose_precision
from lahr.training.timing import seconds_per_step, seconds_per_trial
from lahr.version import code_version
from sweeps.engine.budget import at_equal_time
from sweeps.engine.design import Design, Trial
from sweeps.engine.machines import Cluster
from sweeps.engine.options import StudyOptions
from sweeps.engine.results import Results

_VERSIONS = ("torch", "ray", "tokenizers", "datasets", "pyarrow", "numpy", "statsmodels", "tensorboard")

_COMPILES_IN_S = 300.0
_BUSY = 20.0
"""Share of the processors that others take, in %, beyond which times are said to be doubtful."""
_GPU_FLOPS = 1e14
"""What a trial may reach on a current GPU, where no step can be timed."""


@dataclass(frozen=True)
class Study:
    """A design on its data, its folder, and how its trials are executed."""

    options: StudyOptions
    design: Design
    data: TokenData
    results: Results
    runtime: Runtime

    @property
    def builds(self) -> set[str]:
        """The functions that make its models, where they are not LAHR."""
        return {trial.config.model.build for trial in self.design.one_block()} - {""}

    @property
    def code(self) -> str:
        """The version of the code that its trials are made by."""
        return code_version(self.builds)


def resolve(
    options: StudyOptions,
    console: Console,
    has_gpu: bool | None,
    tuned: Mapping[str, Any] | None = None,
    shape: Callable[[Design], Design] = lambda design: design,
) -> Study:
    """Prepares the data and settles device, precision, batch split and budget, or takes those of `design.json`.

    `has_gpu` is None where it is not known yet; whether trials are compiled, and equal time, are not settled then.
    `tuned` is what was found of the learning rate; `shape` makes the design that is run of the one that is asked for.
    Raises `ConfigError` for data that cannot be had and for another design under the same name.
    """
    results = Results.at(options.results, options.sweep_name)
    asked = options.design(options.config(), "")
    asked.one_block()  # builds models of one's own, before any data is prepared
    asked.check_read()
    data = prepared(options, console)
    # Workers look for a local file from a folder of Ray's, so they are given its absolute path.
    config = replace(options.config(), data=anchored(options.data))
    config = changed(config, {factor.field: factor.levels[0] for factor in options.factors()})
    if results.exists():
        tuned = results.header().get("tuned")
    if tuned is not None:
        check(
            options.train.lr in (preset(options.preset).train.lr, tuned["lr"]),
            f"--train.lr is {options.train.lr}, and this sweep's was chosen by --tune-lr: {tuned['lr']}; leave it out",
        )
        config = replace(config, train=replace(config.train, lr=tuned["lr"]))
    if results.exists():
        runtime, precision = results.runtime(), results.design().config.precision
        for name in ("workers", "threads", "device", "sharding", "trials_per_gpu", "compile"):
            asked, decided = getattr(options, name), getattr(runtime, name)
            check(
                asked in (1, "auto", "replicate", decided),
                f"--{name.replace('_', '-')} is {asked}, but {results.folder.uri} was begun with {decided}, and "
                "that is kept for all of its trials; leave the option out, or give --name another name",
            )
    else:
        shared = options.trials_per_gpu > 1  # who asks for a part of a GPU asks for a GPU
        device = options.device if options.device != "auto" else "cuda" if has_gpu or shared else "cpu"
        check(
            options.trials_per_gpu == 1 or device == "cuda",
            f"--trials-per-gpu is {options.trials_per_gpu}, and trials run on {device}; leave it out, "
            "or give --device cuda",
        )
        precision = _precision(options, device)
        compile_: Literal["on", "off"] = "off"
        if has_gpu is not None:
            compile_, said = compilation.decide(options.compile, config, device)
            if said:
                console.print(said, highlight=False, soft_wrap=True)
        runtime = Runtime(
            device="cuda" if device == "cuda" else "cpu",
            workers=options.workers,
            threads=options.threads,
            micro_batch=choose_micro_batch(config, device, options.workers),
            sharding=options.sharding,
            trials_per_gpu=options.trials_per_gpu,
            compile=compile_,
        )
    check(
        runtime.compile == "off" or options.hang_after >= _COMPILES_IN_S,
        f"--hang-after is {options.hang_after:g} s, and trials compile at their start, which may take minutes "
        f"without a step; give {_COMPILES_IN_S:g} or more, or start a new sweep with --compile off",
    )
    if options.precision != "auto":
        precision = options.precision
    design = options.design(replace(config, precision=precision), data.content_hash)
    if design.equal == "time":
        if results.exists():
            stored = results.design().steps
            design = replace(design, steps={cell.name: stored.get(cell.name, 1) for cell in design.cells()})
        elif has_gpu is not None:
            design = at_equal_time(design, _exclusive_seconds(design, runtime, console))
    design = shape(design)
    if results.exists():
        results.check_same(design)
    return Study(options, design, data, results, runtime)


def check_declared(options: StudyOptions, results: Results) -> None:
    """`ConfigError` if a sweep that exists is to go on, or be reported, by something else than was declared when it was
    begun: looks that were not planned, say, spend an error that nobody has counted."""
    header, place = results.header(), results.folder.uri
    primary, tuned = header.get("primary"), header.get("tuned")
    check(
        options.primary in (None, primary),
        f"--primary is {options.primary}, and {place} was begun with {primary} as its primary comparison; leave it out",
    )
    rates = None if tuned is None else sorted(map(float, tuned["losses"]))
    check(
        not options.tune_lr or sorted(options.tune_lr) == rates,
        f"--tune-lr is {' '.join(map(str, options.tune_lr))}, and {place} was begun with "
        + ("a given rate" if rates is None else f"--tune-lr {' '.join(map(str, rates))}")
        + "; leave it out, or give --name another name",
    )
    if options.command == "report":
        stands = results.design()
        for option, asked, decided in (
            ("order", options.order, stands.order),
            ("without", set(options.without), set(stands.without)),
            ("equal", options.equal, stands.equal),
        ):
            usual = getattr(type(options), option)
            check(
                asked in (usual, set(), decided),
                f"--{option} is {_listed(asked)}, and {place} was run with {_listed(decided)}; a report is of what was "
                "run: leave it out, or run that design under another --name",
            )
    cap, effect = header.get("max_seeds"), header.get("smallest_effect")
    begun = f"--until decided --max-seeds {cap} --smallest-effect {effect:g}" if cap else "a fixed number of seeds"
    asked = options.max_seeds if options.until == "decided" else None
    if options.command == "report":
        other = cap is not None and options.smallest_effect not in (None, effect)
    else:
        other = cap != asked or (cap is not None and effect != options.smallest_effect)
    check(
        not other,
        f"{place} was begun with {begun}, and how a sweep is stopped is decided before it begins; "
        + (f"give {begun}" if cap else "leave --until out")
        + ", or --name another name",
    )


def _listed(value: Any) -> str:
    return " ".join(sorted(value)) or "none" if isinstance(value, set) else str(value)


def _exclusive_seconds(design: Design, runtime: Runtime, console: Console) -> dict[str, float]:
    """Cell → seconds of a step, the cells in turn on this machine."""
    check(
        runtime.device == "cpu" or torch.cuda.is_available(),
        "--equal time is worked out from steps timed on this machine, which has no GPU; start the sweep where there is "
        "one, or give --equal flops",
    )
    busy = psutil.cpu_percent(interval=1.0)
    if busy > _BUSY:
        console.print(
            f"this machine is at {busy:.0f} % of its processors: times of steps, which make equal time, may be off"
        )
    cells = {trial.cell: trial.config for trial in design.one_block()}
    console.print(f"timing steps of {len(cells)} cells in turn …")
    return dict(zip(cells, seconds_per_step(list(cells.values()), runtime), strict=True))


def _precision(options: StudyOptions, device: str) -> Precision:
    if options.precision != "auto":
        return options.precision
    # A head without a GPU decides for workers that have one; a worker that lacks bf16 is refused and says so.
    return "bf16" if device == "cuda" else choose_precision(device)


def prepared(options: StudyOptions, console: Console) -> TokenData:
    """The data, with a progress bar while it is being made."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    # In a log it would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("data", total=1.0)

        def progress(what: str, fraction: float) -> None:
            if what != bar.tasks[task].description:  # what comes next takes its own time
                bar.reset(task, total=1.0, description=what)
            bar.update(task, completed=fraction)

        return prepare(
            options.data,
            options.model.vocab_size,
            options.model.max_seq_len,
            options.cache_folder,
            progress,
            published_at(Folder.at(options.results).child(SHARED)),
        )


def lanes_here(study: Study) -> int:
    """Trials at once on a machine like this one, unless it was said how many; one where not even that fits."""
    machine = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return study.options.concurrency or max(1, Cluster((machine,)).fitting(study.runtime))


def estimated_seconds(study: Study, say: Callable[[str], None]) -> dict[str, float]:
    """Cell → seconds a trial would take: from a few timed steps here; for GPUs of other machines a guess from FLOPs."""
    cells = {trial.cell: trial for trial in study.design.one_block()}
    runtime = study.runtime
    configs = [trial.config for trial in cells.values()]
    guessed = {name: trial.flops / _GPU_FLOPS / runtime.workers for name, trial in cells.items()}
    if runtime.device == "cuda" and not torch.cuda.is_available():
        say(f"there is no GPU here to time a step on: seconds are a guess, at {_GPU_FLOPS:.0e} FLOP/s for each GPU")
        return guessed
    say(f"timing {len(cells)} cells …")
    if runtime.device == "cpu":
        return dict(zip(cells, [seconds_per_trial(config, runtime) for config in configs], strict=True))
    try:  # in a process that ends: this one would go on holding some of the GPU, and all of one that is exclusive
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            return dict(zip(cells, other.map(seconds_per_trial, configs, repeat(runtime)), strict=True))
    except RuntimeError as error:  # a cell too large for it: the others are to be trained all the same
        why = str(error).strip().splitlines()[0]
        say(f"a step could not be timed ({why}): seconds are a guess, at {_GPU_FLOPS:.0e} FLOP/s for each GPU")
        return guessed


def first_of_each_cell(pending: Sequence[Trial]) -> tuple[str, ...]:
    """Ids of the first trial of each cell."""
    return tuple({trial.cell: trial.id for trial in reversed(pending)}.values())


def environment() -> dict[str, Any]:
    """Versions, commit and machine, to stand in `design.json` and the report."""
    return {
        "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in _VERSIONS),
        "machine": f"{os.cpu_count()} cores of {processor()}, {platform.system()}",
        "command": command(),
    }


def command() -> str:
    """The command line that this process was started with, for a shell."""
    return shlex.join(["python", *sys.argv])


def _commit() -> str:
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return head.stdout.strip() + (" with changes" if dirty.stdout.strip() else "")


def about(study: Study, seconds: Mapping[str, float], tuned: Mapping[str, Any] | None) -> dict[str, Any]:
    """What stands in `design.json` beside the design and the runtime; all of it declared before the first trial."""
    options, blocks = study.options, study.design.config.data.validation_blocks
    return {
        "preset": options.preset,
        "smallest_effect": options.smallest_effect,
        "max_seeds": options.max_seeds if options.until == "decided" else None,
        "primary": options.primary or options.equal,
        "tuned": tuned,
        "data": {
            "corpus": study.data.description,
            "floor": study.data.floor_nats_per_token(blocks),
            "labels": [asdict(label) for label in study.data.labels],
        },
        "estimated_seconds": dict(seconds),
    }


def report_info(results: Results, design: Design, options: StudyOptions) -> dict[str, Any]:
    """What a report says besides the table: the plan, the failures, the environment."""
    header = results.header()
    trials = design.trials()
    finished = results.finished()
    failures = results.failures(design)
    failed = {failure["trial"] for failure in failures}
    codes = results.codes(design)
    return {
        "name": options.sweep_name,
        "preset": header["preset"],
        "planned": len(trials),
        "seeds": design.seeds,
        "first_seed": design.first_seed,
        "failed": failures,
        "damaged": results.damaged(),
        "foreign": results.foreign(design),
        "missing": [trial.id for trial in trials if trial.id not in finished and trial.id not in failed],
        "codes": codes if len(codes) > 1 else {},
        "horizon": design.config.steps * design.config.tokens_per_step,
        "varied": any(
            f.field in ("train.tokens", "train.batch_size") or f.field.startswith("keys.") for f in design.factors
        ),
        "flops": trials[0].flops,
        "equal_at": design.equal,
        "primary": header.get("primary", design.equal),
        "max_seeds": header.get("max_seeds"),
        "tuned": header.get("tuned"),
        **_smallest_effect(header.get("smallest_effect"), options.smallest_effect),
        "floor": header["data"]["floor"],
        "labels": header["data"].get("labels", []),
        "corpus": header["data"]["corpus"],
        "environment": {
            **_differing(header["starts"]),
            "precision": design.config.precision,
            **header["runtime"],
        },
        "rerun": (header["starts"] or [{}])[-1].get("command", ""),
    }


def _smallest_effect(declared: float | None, given: float | None) -> dict[str, Any]:
    """The smallest effect of interest, and whether it was named before the results could be seen."""
    effect = declared if given is None else given
    return {"smallest_effect": effect, "declared_beforehand": effect == declared}


def _differing(starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The environment of all starts: a figure that was not the same in all of them with each of its values."""
    names = list(dict.fromkeys(name for start in starts for name in start if name != "command"))
    values = {name: list(dict.fromkeys(str(start.get(name, "–")) for start in starts)) for name in names}
    return {"starts": len(starts)} | {name: "; then ".join(each) for name, each in values.items()}
