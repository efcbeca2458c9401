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

from lahr.errors import check
from lahr.files import Folder
from lahr.model.generation import Sampling
from lahr.options import parse
from lahr.options import run as run_main
from lahr.trained import find, sampling_of
from sweeps.engine.results import Results


@dataclass(frozen=True)
class Options:
    """Continues a prompt with each cell of one seed block."""

    results: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RESULTS")]
    """The sweep's folder, a path or URI."""
    prompt: str = ""
    """Text to continue, the beginning of a document; empty lets the models begin."""
    seed: int = 0
    """The seed block."""
    tokens: int | None = None
    """New tokens at most, by default 100 or as many as fit; a text that ends is shorter."""
    temperature: float = 0.8
    """0 takes the likeliest token each time."""
    top_k: int | None = None
    """Draw from the k likeliest only."""
    top_p: float = 1.0
    """Draw from the likeliest only that hold this share of the probability together."""
    draw: int = 0
    """Seed of the draws, the same for every cell."""

    def __post_init__(self) -> None:
        check(self.tokens is None or self.tokens >= 1, f"--tokens is {self.tokens}; it must be at least 1")
        self.sampling()

    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return sampling_of(self.temperature, self.top_k, self.top_p, self.draw, "draw")


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
            trained = find(results.folder.child("trials").child(trial.id).uri)
            *_, (text,) = trained.continuations([options.prompt], options.tokens, options.sampling())
            written = Text(options.prompt, style="bold") + Text(text)
            shown.add_row(trial.cell, f"{losses[trial.cell]:.4f}", written)
    console.print(shown)
    return 0


if __name__ == "__main__":
    run_main(main, "stopped; nothing was changed")
