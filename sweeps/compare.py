"""The same prompt continued by every cell of a sweep, side by side.

    python sweeps/compare.py results/quick-stories --prompt "Once upon a time"
    python sweeps/compare.py results/quick-stories --prompt "Once" --seed 3 --temperature 0

All cells draw with the same random numbers, so what differs is the models. Exit status: 0, or 2 for bad input.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lahr.errors import ConfigError, check
from lahr.files import Folder
from lahr.options import parse
from lahr.options import run as run_main
from lahr.trained import SamplingOptions, find
from sweeps.engine.results import Results


@dataclass(frozen=True)
class Options(SamplingOptions):
    """Continues a prompt with each cell of one seed block."""

    results: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RESULTS")]
    """The sweep's folder, a path or URI."""
    prompt: str = ""
    """Text to continue, the beginning of a document; empty lets the models begin."""
    seed: int = 0
    """The seed block."""
    draw: int = 0
    """Seed of the draws, the same for every cell."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampling(self.draw, "draw")


def main(argv: list[str]) -> int:
    """Prints the table."""
    options = parse(Options, argv, None, "python sweeps/compare.py")
    results = Results(Folder.at(options.results))
    design = results.design()
    table = results.table(design)
    block = table[table["seed"] == options.seed]
    seeds = ", ".join(map(str, sorted(set(table["seed"]))))
    check(
        len(block) > 0,
        f"--seed is {options.seed}, and no trial of that seed is finished in {results.folder.uri}; "
        + (f"give one of {seeds}" if seeds else "run the sweep first"),
    )
    losses = dict(zip(block["cell"], block["val_loss"], strict=True))
    trials = [trial for trial in design.trials() if trial.seed == options.seed]
    shown = Table(title=f"{results.folder.uri}, seed {options.seed}", show_lines=True)
    shown.add_column("cell", no_wrap=True)
    shown.add_column("validation\nloss, nats", justify="right")
    shown.add_column("continuation")
    console = Console()
    with console.status("") as status:
        for n, trial in enumerate(trials, 1):
            if trial.cell not in losses:
                shown.add_row(trial.cell, "–", Text("not finished yet", style="dim"))
                continue
            status.update(f"{trial.cell}, {n} of {len(trials)} …")
            try:
                trained = find(results.folder.child("trials").child(trial.id).uri)
            except ConfigError as error:  # it diverged, or was taken over: the others can still be compared
                shown.add_row(trial.cell, f"{losses[trial.cell]:.4f}", Text(str(error), style="dim"))
                continue
            sampling = options.sampling(options.draw, "draw")
            *_, (text,) = trained.continuations([options.prompt], options.tokens, sampling)
            written = Text(options.prompt, style="bold") + Text(text)
            shown.add_row(trial.cell, f"{losses[trial.cell]:.4f}", written)
    console.print(shown)
    return 0


if __name__ == "__main__":
    run_main(main, "stopped; nothing was changed")
