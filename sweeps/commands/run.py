"""`run`: trains what is pending, look by look where blocks are added until the question is settled, then reports."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lahr.data import SHARED, publish
from lahr.errors import check
from lahr.files import Folder
from lahr.machine import Demands
from sweeps.analysis.adaptive import next_look
from sweeps.analysis.effects import estimate
from sweeps.analysis.sequential import looks
from sweeps.commands import tuning
from sweeps.commands.report import report, shown
from sweeps.commands.status import say_failed
from sweeps.engine import lease, study
from sweeps.engine.options import StudyOptions, check_room
from sweeps.engine.recorder import Recorder
from sweeps.engine.results import Results
from sweeps.reporting import event_files
from sweeps.reporting.progress import ProgressTable


def run(options: StudyOptions, console: Console) -> int:
    """Runs what is pending, then reports."""
    Results.at(options.results, options.sweep_name).folder.check_writable()
    others = [other(path) for path in options.reuse]
    sweep = study.resolve(options, console, has_gpu=None)
    results = sweep.results
    design = _this_look(sweep).design
    pending = results.pending(design)
    if results.exists():
        study.check_declared(options, results)
    results.check_code(results.design() if results.exists() else design, sweep.code, options.allow_mixed)
    for each in others:
        each.check_code(each.design(), sweep.code, options.allow_mixed)
    check_room(design, len(pending), study.lanes_here(sweep), results.folder)
    lease.refuse_if_held(results.folder)
    if results.exists() and not pending and _next_look(sweep) is None:
        console.print(
            "every trial of this design is finished; writing the report again"
            + "; there is nothing left to profile" * options.profile
        )
        with lease.held(results.folder):
            report(options, results, console)
        return 0

    from sweeps.engine import schedule  # Ray takes seconds to import, and only running needs it

    began = time.monotonic()
    with schedule.connected(options.address, options.hang_after, sweep.builds) as cluster:
        tuned = None
        if not results.exists():
            if options.tune_lr:
                ended, tuned = tuning.choose(
                    options, cluster.gpus > 0, console, lambda of: _train(of, None, cluster, [], console)
                )
                if tuned is None:
                    return ended
            sweep = study.resolve(options, console, has_gpu=cluster.gpus > 0, tuned=tuned)
        if design.seeds < 2:
            console.print(
                "one seed block has no intervals and gives no verdict: --seeds 5 sees large effects, 8 a claim"
            )
        with lease.held(results.folder):
            ended = _train(sweep, tuned, cluster, others, console)
            if ended in (2, 130):
                return ended
            if results.finished():
                report(options, results, console)
            if options.profile:
                console.print(f"profiles:    {shown(results, 'profile')}, a folder for each trial", soft_wrap=True)
            console.print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    for failure in results.failures(results.design()):
        say_failed(console, failure["trial"], failure["error"])
    return ended


def _train(
    sweep: study.Study, tuned: dict[str, Any] | None, cluster: Any, others: list[Results], console: Console
) -> int:
    """Trains the design, or its looks one after another; the exit status."""
    from sweeps.engine import schedule

    options, results, runtime = sweep.options, sweep.results, sweep.runtime
    lanes = cluster.lanes(runtime, options.concurrency)
    demands, prepared = Demands.made(results.folder), Folder.at(sweep.data.folder)
    environment = study.environment()
    if cluster.grows:  # prepared here once, found by all machines, also those that come later
        environment["machines"] = schedule.examine(demands)
        prepared = publish(sweep.data, Folder.at(options.results).child(SHARED))
    else:
        environment["machine"] += cluster.gpu_kinds
    known = results.header()["estimated_seconds"] if results.exists() else {}
    seconds = known if known.keys() == {c.name for c in sweep.design.cells()} else timed(sweep, console)
    sweep = _this_look(sweep)
    results.begin(sweep.design, runtime, study.about(sweep, seconds, tuned), environment)
    results.folder.write("tokenizer.json", sweep.data.tokenizer_path.read_bytes())
    launch = schedule.Launch(
        runtime=runtime,
        checkpoints=results.checkpoints.uri,
        data=prepared.uri,
        content_hash=sweep.design.content_hash,
        cache=options.cache if options.cache.startswith("~") else str(options.cache_folder),
        demands=demands,
        hang_after=options.hang_after,
    )
    while True:
        design = sweep.design
        results.extend(design.seeds)
        taken = sum(results.take_over(each, design) for each in others)
        pending = results.pending(design)
        _say_start(console, sweep, len(pending), taken, lanes)
        observers: list[schedule.Observer] = [
            Recorder(results, results.design(), sweep.code),
            ProgressTable(pending, results.table(results.design()), console),
            event_files.EventFiles(_events_folder(results), {c.name: c.levels for c in design.cells()}),
        ]
        outcome = schedule.run(
            pending,
            observers,
            results=results,
            launch=replace(launch, profiled=study.first_of_each_cell(pending) if options.profile else ()),
            cluster=cluster,
            seconds=seconds,
            concurrency=options.concurrency,
        )
        for observer in observers:
            observer.close()
        if outcome.interrupted or outcome.stopped is not None:
            _say_stop(console, outcome.stopped, len(pending) - len(outcome.finished), len(design.trials()))
            return 130 if outcome.interrupted else 2
        failed = bool(outcome.failed)
        following = _next_look(sweep)
        if following is None or failed:
            return 1 if failed else 0
        console.print(
            f"not every effect is settled after {design.seeds} seed blocks: adding blocks up to {following}"
        )
        sweep = replace(sweep, design=replace(design, seeds=following))


def _this_look(sweep: study.Study) -> study.Study:
    """The sweep with the seed blocks that are to be trained first: under --until decided those of the next look."""
    if sweep.options.until == "seeds":
        return sweep
    begun = sweep.results.design().seeds if sweep.results.exists() else 0
    first = next((n for n in looks(sweep.options.max_seeds) if n >= begun), sweep.options.max_seeds)
    return replace(sweep, design=replace(sweep.design, seeds=first))


def _next_look(sweep: study.Study) -> int | None:
    """Seed blocks to go on to; None where everything is settled, or no more were asked for."""
    options, results = sweep.options, sweep.results
    if options.until == "seeds" or not results.exists():
        return None
    design = results.design()
    effects = estimate(results.table(design), design.contrasts, smallest_effect=options.smallest_effect)
    following = next_look(effects, options.max_seeds, design.first_seed)
    return following if following is not None and following > design.seeds else None


def timed(sweep: study.Study, console: Console) -> dict[str, float]:
    """Cell → estimated seconds of a trial, saying meanwhile what is timed."""
    with console.status("") as saying:
        return study.estimated_seconds(sweep, saying.update)


def _say_start(console: Console, sweep: study.Study, pending: int, taken: int, lanes: int) -> None:
    design = sweep.design
    console.print(
        f"[bold]{sweep.options.sweep_name}[/]: {len(design.cells())} cells × {design.seeds} seeds on "
        f"{sweep.data.description}, at equal {design.equal}; {pending} of {len(design.trials())} trials to run, "
        f"{lanes} at a time, {design.config.precision} on {sweep.runtime.device}"
        + ", compiled" * (sweep.runtime.compile == "on")
        + (f"; {taken} taken over from other sweeps" if sweep.options.reuse else "")
    )
    longest = max(trial.config.steps * trial.config.train.batch_size for trial in design.one_block())
    if repeats := sweep.data.said_to_repeat(longest):
        console.print(repeats, highlight=False)
    console.print(f"results: {shown(sweep.results, '')}")


def _say_stop(console: Console, why: str | None, left: int, planned: int) -> None:
    if why is not None:
        console.print(f"error: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"stopped: {left} of {planned} trials are left; finished ones are kept, and begun ones go on from their "
        f"checkpoints with\n  {study.command()}",
        soft_wrap=True,
    )


def _events_folder(results: Results) -> Path:
    """Where curves are written while the sweep runs: event files grow, which an object store cannot do."""
    return Path(results.folder.path("tensorboard")) if results.folder.is_local else Path(tempfile.mkdtemp())


def other(path: str) -> Results:
    """A sweep that trials are to be taken over from; `ConfigError` if there is none."""
    found = Results(Folder.at(path))
    check(found.exists(), f"--reuse {path}: there is no sweep there (no design.json)")
    return found
