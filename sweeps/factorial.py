"""The 2³ factorial of Mixture-of-Depths × latent reasoning × memory, in seed blocks, to a verdict.

    python sweeps/factorial.py                                  run the `quick` preset, or carry on with it
    python sweeps/factorial.py plan --preset small              trials, FLOPs, time, the smallest effect it could see
    python sweeps/factorial.py --data text.txt --seeds 8        one's own text, more blocks
    python sweeps/factorial.py status | report                  where it stands; the report again

Data flows one way: design → pending → schedule → table → effects → report. Exit status: 0 finished, 1 some trials
failed, 2 bad input or storage that is away for good, 130 interrupted (the same command carries on from either).
"""

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from lahr.data import publish
from lahr.errors import check
from lahr.files import Folder
from lahr.machine import Demands
from lahr.options import parse
from lahr.options import run as run_main
from sweeps.analysis import power
from sweeps.analysis.effects import estimate
from sweeps.engine import lease, study
from sweeps.engine.design import Design, parameters
from sweeps.engine.machines import wall_seconds
from sweeps.engine.options import Options, check_room
from sweeps.engine.recorder import Recorder
from sweeps.engine.results import Results
from sweeps.reporting import event_files, report
from sweeps.reporting.progress import ProgressTable
from sweeps.reporting.verdict import sentences

_GUESSED_SIGMA = 0.012
"""Nats; the residual sd that `quick` had on two corpora (docs/notebook.md), for a sweep that has none yet."""


def main(argv: list[str]) -> int:
    """Runs one command; the exit status."""
    options = parse(Options, argv, Options.of, "python sweeps/factorial.py")
    console = Console()
    commands = {"run": run, "plan": plan, "status": status, "report": write_report}
    return commands[options.command](options, console)


def run(options: Options, console: Console) -> int:
    """Runs what is pending, then reports."""
    Results.at(options.results, options.sweep_name).folder.check_writable()
    others = [_other(path) for path in options.reuse]
    sweep = study.resolve(options, console, has_gpu=None)
    results = sweep.results
    pending = results.pending(sweep.design)
    check_room(sweep.design, len(pending), study.lanes_here(sweep), results.folder)
    lease.refuse_if_held(results.folder)
    if not pending and results.exists():
        console.print(
            "every trial of this design is finished; writing the report again"
            + "; there is nothing left to profile" * options.profile
        )
        with lease.held(results.folder):
            _report(options, results, console)
        return 0

    from sweeps.engine import schedule  # Ray takes seconds to import, and only running needs it

    began = time.monotonic()
    with schedule.connected(options.address, options.hang_after) as cluster:
        if not results.exists():
            sweep = study.resolve(options, console, has_gpu=cluster.gpus > 0)
        design, runtime = sweep.design, sweep.runtime
        lanes = cluster.lanes(runtime, options.concurrency)
        with lease.held(results.folder):
            demands, prepared = Demands.made(results.folder), Folder.at(sweep.data.folder)
            environment = study.environment()
            if cluster.grows:  # prepared here once, found by all machines, also those that come later
                environment["machines"] = schedule.examine(demands)
                prepared = publish(sweep.data, Folder.at(options.results).child(".data"))
            else:
                environment["machine"] += cluster.gpu_kinds
            known = results.header()["estimated_seconds"] if results.exists() else {}
            seconds = known if known.keys() == {c.name for c in design.cells()} else _timed(sweep, console)
            results.begin(design, runtime, study.about(sweep, seconds), environment)
            results.folder.write("tokenizer.json", sweep.data.tokenizer_path.read_bytes())
            taken = sum(results.take_over(other, design) for other in others)
            pending = results.pending(design)
            _say_start(console, sweep, len(pending), taken, lanes)
            observers: list[schedule.Observer] = [
                Recorder(results, results.design()),
                ProgressTable(pending, results.table(results.design()), console),
                event_files.EventFiles(
                    _events_folder(results), {cell.name: cell.levels for cell in design.cells()}
                ),
            ]
            launch = schedule.Launch(
                runtime=runtime,
                checkpoints=results.checkpoints.uri,
                data=prepared.uri,
                content_hash=design.content_hash,
                cache=options.cache if options.cache.startswith("~") else str(options.cache_folder),
                demands=demands,
                hang_after=options.hang_after,
                profiled=study.first_of_each_cell(pending) if options.profile else (),
            )
            outcome = schedule.run(
                pending,
                observers,
                results=results,
                launch=launch,
                cluster=cluster,
                seconds=seconds,
                concurrency=options.concurrency,
            )
            for observer in observers:
                observer.close()
            if outcome.interrupted or outcome.stopped is not None:
                _say_stop(console, outcome.stopped, len(pending) - len(outcome.finished), len(design.trials()))
                return 130 if outcome.interrupted else 2
            if results.finished():
                _report(options, results, console)
            if launch.profiled:
                console.print(f"profiles:    {_shown(results, 'profile')}, a folder for each trial", soft_wrap=True)
            console.print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    for name, error in outcome.failed.items():
        _say_failed(console, name, error)
    return 1 if outcome.failed else 0


def _say_stop(console: Console, why: str | None, left: int, planned: int) -> None:
    if why is not None:
        console.print(f"error: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"stopped: {left} of {planned} trials are left; finished ones are kept, and begun ones go on from their "
        f"checkpoints with\n  {study.command()}",
        soft_wrap=True,
    )


def _say_failed(console: Console, trial: str, error: str) -> None:
    said = error.strip().splitlines() or [""]
    console.print(f"failed: {trial}: {said[-1]}", markup=False, highlight=False, soft_wrap=True)


def plan(options: Options, console: Console) -> int:
    """Prints what the sweep would cost and could detect; starts and writes nothing in the results."""
    sweep = study.resolve(options, console, has_gpu=_gpu_here())
    design, trials = sweep.design, sweep.design.trials()
    pending = sweep.results.pending(design)
    seconds = _timed(sweep, console)
    table = Table(title=f"{options.sweep_name}: {len(trials)} trials, {len(pending)} to run")
    for column in ("cell", "parameters", "without embedding", "tokens", "training FLOPs", "seconds (est.)"):
        table.add_column(column, justify="left" if column == "cell" else "right", no_wrap=column == "cell")
    for trial in replace(design, seeds=1).trials():
        sizes = parameters(trial)
        table.add_row(
            trial.cell,
            f"{sizes['parameters']:,}",
            f"{sizes['parameters_without_embeddings']:,}",
            f"{trial.config.steps * trial.config.tokens_per_step:,}",
            f"{trial.flops:.3g}",
            f"{seconds[trial.cell]:,.0f}",
        )
    console.print(table)
    lanes, flops = study.lanes_here(sweep), sum(trial.flops for trial in pending)
    training = sum(seconds[trial.cell] for trial in pending) / lanes
    wall = wall_seconds(pending, lanes, seconds)
    alone = " (each as if it had its GPU alone)" if sweep.runtime.trials_per_gpu > 1 else ""
    console.print(
        f"to run: {len(pending)} trials, {flops:.3g} FLOPs, about {wall / 60:.0f} minutes with {lanes} at a time on a "
        f"machine like this one{alone}, {(wall - training) / 60:.0f} of them beside training: Ray's starts, "
        "checkpoints, and lanes that end before others"
    )
    sigma, source = _sigma(sweep.results, design)
    for blocks in sorted({options.seeds, 5, 8, 12}):
        smallest = power.smallest_detectable(sigma, blocks)
        mark = " ← this plan" if blocks == options.seeds else ""
        console.print(
            f"with {blocks:2d} seed blocks the smallest effect it can detect is {smallest:.3f} nats{mark}"
        )
    console.print(f"(80 % power at the strictest Holm step; σ = {sigma:.3f} nats, {source})")
    if options.smallest_effect is not None:
        needed = power.blocks_needed(options.smallest_effect, sigma)
        console.print(f"an effect of {options.smallest_effect:g} nats takes {needed} blocks")
    return 0


def status(options: Options, console: Console) -> int:
    """Prints where the sweep stands, cell by cell."""
    results = Results.at(options.results, options.sweep_name)
    design = results.design()
    done, failures = results.table(design), results.failures(design)
    begun = set(results.checkpoints.names())
    waiting = {trial.id: trial.cell for trial in results.pending(design)}
    table = Table(title=f"{results.folder.uri}: {len(done)} of {len(design.trials())} trials finished")
    for column in ("cell", "finished", "diverged", "failed", "begun", "waiting", "validation loss, nats"):
        table.add_column(column, justify="left" if column == "cell" else "right", no_wrap=column == "cell")
    for cell in design.cells():
        rows = done[done["cell"] == cell.name]
        mine = [trial for trial, name in waiting.items() if name == cell.name]
        losses = rows["val_loss"].dropna()
        spread = f" ± {losses.std():.4f}" if len(losses) > 1 else ""
        table.add_row(
            cell.name,
            str(int((rows["status"] == "finished").sum())),
            str(int((rows["status"] == "diverged").sum())),
            str(sum(failure["cell"] == cell.name for failure in failures)),
            str(sum(trial in begun for trial in mine)),
            str(sum(trial not in begun for trial in mine)),
            f"{losses.mean():.4f}{spread}" if len(losses) else "–",
        )
    console.print(table)
    for failure in failures:
        _say_failed(console, failure["trial"], failure["error"])
    return 0


def write_report(options: Options, console: Console) -> int:
    """Writes the report and the event files again, from the results folder alone."""
    _report(options, Results.at(options.results, options.sweep_name), console)
    return 0


def _report(options: Options, results: Results, console: Console) -> None:
    """Reports on all that stands there: it may have more seeds than were asked for now, and none is hidden."""
    design = results.design()
    trials = results.table(design)
    check(len(trials) > 0, f"no trial in {results.folder.uri} has finished; nothing to report")
    curves = results.curves(trials["trial"])
    info = study.report_info(results, design, options)
    files = report.render(trials, curves, info)
    for name, content in files.items():
        results.folder.write(f"report/{name}", content)
    results.write_table(design)
    if options.command == "report" and lease.is_held(results.folder):
        console.print("a sweep is running here and writes TensorBoard's files itself; they are left alone")
    else:
        _write_events(results, design, trials, curves, files)
    effects = estimate(trials, smallest_effect=info["smallest_effect"])
    console.print()
    for sentence in sentences(effects, info):
        console.print(sentence, highlight=False)
    _say_where(console, results, event_files.runs(trials))


def _say_where(console: Console, results: Results, runs: int) -> None:
    """Where the report and the curves are; `runs` are TensorBoard's."""
    console.print(f"\nreport:      {_shown(results, 'report/report.html')}", soft_wrap=True)
    console.print(f"as Markdown: {_shown(results, 'report/report.md')}", soft_wrap=True)
    console.print(f"figure:      {_shown(results, 'report/report.png')}", soft_wrap=True)
    console.print(f"TensorBoard: tensorboard --logdir {_shown(results, 'tensorboard')}", soft_wrap=True)
    if runs > event_files.MOST_CHOSEN:
        console.print(
            f"  Most of its tabs start with none of the {runs} runs chosen, and empty; these links choose:"
        )
    for what, view in event_files.VIEWS.items():
        console.print(f"  {what + ':':<21}http://localhost:6006/{view}", soft_wrap=True)


def _write_events(
    results: Results,
    design: Design,
    trials: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    files: Mapping[str, bytes],
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        event_files.write_events(made, trials, curves, files, [factor.field for factor in design.factors])
        results.folder.remove("tensorboard")
        for path in sorted(made.rglob("*")):
            if path.is_file():
                results.folder.write(f"tensorboard/{path.relative_to(made).as_posix()}", path.read_bytes())


def _events_folder(results: Results) -> Path:
    """Where curves are written while the sweep runs: event files grow, which an object store cannot do."""
    return Path(results.folder.path("tensorboard")) if results.folder.is_local else Path(tempfile.mkdtemp())


def _timed(sweep: study.Study, console: Console) -> dict[str, float]:
    with console.status("") as shown:
        return study.estimated_seconds(sweep, shown.update)


def _say_start(console: Console, sweep: study.Study, pending: int, taken: int, lanes: int) -> None:
    trials = sweep.design.trials()
    console.print(
        f"[bold]{sweep.options.sweep_name}[/]: {len(sweep.design.cells())} cells × {sweep.design.seeds} seeds on "
        f"{sweep.data.description}; {pending} of {len(trials)} trials to run, {lanes} at a time, "
        f"{sweep.design.config.precision} on {sweep.runtime.device}{', compiled' * (sweep.runtime.compile == 'on')}"
        + (f"; {taken} taken over from other sweeps" if taken else "")
    )
    console.print(f"results: {_shown(sweep.results, '')}")


def _shown(results: Results, name: str) -> str:
    if not results.folder.is_local:
        return results.folder.child(name).uri if name else results.folder.uri
    return os.path.relpath(results.folder.path(name).rstrip("/"))


def _sigma(results: Results, design: Design) -> tuple[float, str]:
    if results.exists():
        effects = estimate(results.table(design))
        if len(effects.blocks) >= 3:
            return effects.sigma, f"from the {len(effects.blocks)} blocks of this sweep"
    return _GUESSED_SIGMA, "a guess: what `quick` had on two corpora"


def _other(path: str) -> Results:
    other = Results(Folder.at(path))
    check(other.exists(), f"--reuse {path}: there is no sweep there (no design.json)")
    return other


def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    run_main(main, "stopped; the same command carries on")
