"""`status`: where a sweep stands, cell by cell."""

from rich.console import Console
from rich.table import Table

from sweeps.engine.options import StudyOptions
from sweeps.engine.results import Results


def status(options: StudyOptions, console: Console) -> int:
    """Prints where the sweep stands, cell by cell."""
    results = Results.at(options.results, options.sweep_name)
    design = results.design()
    done, failures = results.table(design), results.failures(design)
    begun = set(results.checkpoints.names())
    waiting = {trial.id: trial.cell for trial in results.pending(design)}
    table = Table(title=f"{results.folder.uri}: {len(done)} of {len(design.trials())} trials finished")
    for column in ("cell", "finished", "diverged", "failed", "begun", "waiting", "validation loss, nats"):
        table.add_column(
            column, justify="left" if column == "cell" else "right", no_wrap=column == "cell", overflow="fold"
        )
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
    for trial in results.foreign(design):
        console.print(
            f"of no trial of this design, left alone: {trial}", markup=False, highlight=False, soft_wrap=True
        )
    for failure in failures:
        say_failed(console, failure["trial"], failure["error"])
    return 0


def say_failed(console: Console, trial: str, error: str) -> None:
    """A line on a trial that was given up."""
    lines = error.strip().splitlines() or [""]
    console.print(f"failed: {trial}: {lines[-1]}", markup=False, highlight=False, soft_wrap=True)
