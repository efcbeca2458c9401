"""`report`: the report and the event files, from the results folder alone."""

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.console import Console

from lahr.errors import check
from sweeps.analysis.adaptive import until_decided
from sweeps.analysis.effects import Effects, estimate
from sweeps.engine import lease, study
from sweeps.engine.design import Design
from sweeps.engine.options import StudyOptions
from sweeps.engine.results import Results
from sweeps.reporting import event_files
from sweeps.reporting import report as reporting
from sweeps.reporting.verdict import sentences


def write_report(options: StudyOptions, console: Console) -> int:
    """Writes the report and the event files again."""
    report(options, Results.at(options.results, options.sweep_name), console)
    return 0


def report(options: StudyOptions, results: Results, console: Console) -> None:
    """Reports on all that stands there: it may have more seeds than were asked for now, and none is hidden."""
    study.check_declared(options, results)
    design = results.design()
    trials = results.table(design)
    check(len(trials) > 0, f"no trial in {results.folder.uri} has finished; nothing to report")
    codes = results.codes(design)
    check(
        len(codes) < 2 or options.allow_mixed,
        f"trials in {results.folder.uri} were made by {len(codes)} versions of the code "
        f"({', '.join(f'{count} by {code}' for code, count in codes.items())}), and may differ for that alone; "
        "--allow-mixed reports on them all the same, and says so",
    )
    curves = results.curves(trials["trial"])
    info = study.report_info(results, design, options)
    effects = estimated(results, design, info["smallest_effect"])
    info["earlier"] = results.note_report(len(effects.blocks))
    files = reporting.render(effects, trials, curves, info, *options.section(effects, design))
    for name, content in files.items():
        results.folder.write(f"report/{name}", content)
    results.write_table(design)
    if options.command == "report" and lease.is_held(results.folder):
        console.print("a sweep is running here and writes TensorBoard's files itself; they are left alone")
    else:
        _write_events(results, trials, curves, files, design)
    console.print()
    for sentence in sentences(effects, info):
        console.print(sentence, highlight=False)
    say_where(console, results, event_files.runs(trials))


def say_where(console: Console, results: Results, runs: int) -> None:
    """Where the report and the curves are; `runs` are TensorBoard's."""
    console.print(f"\nreport:      {shown(results, 'report/report.html')}", soft_wrap=True)
    console.print(f"as Markdown: {shown(results, 'report/report.md')}", soft_wrap=True)
    console.print(f"figure:      {shown(results, 'report/report.png')}", soft_wrap=True)
    console.print(f"TensorBoard: tensorboard --logdir {shown(results, 'tensorboard')}", soft_wrap=True)
    if runs > event_files.MOST_CHOSEN:
        console.print(
            f"  Most of its tabs start with none of the {runs} runs chosen, and empty; these links choose:"
        )
    for what, view in event_files.VIEWS.items():
        console.print(f"  {what + ':':<21}http://localhost:6006/{view}", soft_wrap=True)


def estimated(results: Results, design: Design, smallest_effect: float | None = None) -> Effects:
    """The effects of all that stands there, by the rule that was declared when the sweep was begun."""
    header, trials = results.header(), results.table(design)
    cap = header.get("max_seeds")
    if cap:  # a look waits for every seed that it was planned with
        given_up = {failure["trial"] for failure in results.failures(design)}
        running = [trial.seed for trial in results.pending(design) if trial.id not in given_up]
        trials = trials[trials["seed"] < min(running, default=math.inf)]
    effect = smallest_effect if smallest_effect is not None else header.get("smallest_effect")
    effects = estimate(trials, design.contrasts, smallest_effect=effect)
    return until_decided(effects, cap, design.first_seed) if cap else effects


def shown(results: Results, name: str) -> str:
    """A place in the results, as short as one can type it."""
    if not results.folder.is_local:
        return results.folder.child(name).uri if name else results.folder.uri
    return os.path.relpath(results.folder.path(name).rstrip("/"))


def _write_events(
    results: Results,
    trials: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    files: Mapping[str, bytes],
    design: Design,
) -> None:
    levels = [factor.field for factor in design.factors]
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        event_files.write_events(made, trials, curves, files, design.contrasts, levels)
        results.folder.remove("tensorboard")
        for path in sorted(made.rglob("*")):
            if path.is_file():
                results.folder.write(f"tensorboard/{path.relative_to(made).as_posix()}", path.read_bytes())
