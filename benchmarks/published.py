"""The published findings, tested with intervals on two sweeps of one text: docs/studies/published-findings.md.

    python benchmarks/published.py time results/tokens                  a step of every cell in turn, on a quiet machine
    python benchmarks/published.py write results/tokens results/flops   into the page, and both reports beside it

The first sweep is at equal tokens, and is the primary one; the second at equal FLOPs. Differences of cells have the two
estimators of docs/statistics.md. A published figure is called excluded where neither interval holds it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import tyro
from protocol import KEPT, Figure, figure, made, measure, ratio, table, write_rows
from rich.console import Console
from steps import Setting, ours

from lahr.errors import check
from lahr.files import Folder
from lahr.model.flops import training_flops_per_token
from lahr.model_config import ModelConfig
from lahr.training.runtime import prepare_process
from sweeps.analysis.contrasts import Contrasts
from sweeps.analysis.effects import Fit, estimate, t_interval
from sweeps.engine.design import Design
from sweeps.engine.results import Results
from sweeps.reporting.verdict import interval, p_value, signed

PAGE = Path(__file__).parents[1] / "docs" / "studies" / "published-findings.md"
BEGIN, END = "<!-- rows: python benchmarks/published.py write -->", "<!-- end of rows -->"
FULL = "mod+latent+memory"
STEP = 100
"""Where the published study looked."""
ROUNDS = 15
SPEED = KEPT / "published-speed.json"
COPIED = ("report.md", "effects.csv")


@dataclass(frozen=True)
class Options:
    """Tests the published findings."""

    command: Annotated[Literal["time", "write"], tyro.conf.Positional]
    sweeps: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders: of the sweep at equal tokens, and for `write` of the one at equal FLOPs."""


@dataclass(frozen=True)
class Difference:
    """A weighted sum of cells' losses over complete blocks, in nats, with the intervals of both estimators."""

    estimate: float
    blocked: tuple[float, float]
    seedwise: tuple[float, float]
    bound: tuple[float, float]
    """The outer limits of both 90 % intervals."""
    p: float
    blocks: int

    @staticmethod
    def of(losses: pd.DataFrame, cell: str, other: str = "base") -> "Difference":
        """The cell's loss minus the other's; `losses` has a row a seed and a column a cell."""
        weights = np.array([[(c == cell) - (c == other)] for c in losses.columns], float)
        fit = Fit.of(losses.to_numpy(float), weights)
        low, high, own_low, own_high = (float(end[0]) for end in fit.interval(0.05))
        half = float(max(h[0] for h in fit.halves(0.1)))
        mean = float(fit.estimate[0])
        return Difference(
            mean, (low, high), (own_low, own_high), (mean - half, mean + half), float(fit.p[0]), len(losses)
        )

    def as_ratio(self) -> str:
        """Of perplexities, in %, with both intervals."""
        value, *ends = (
            f"{100 * math.expm1(x):+.1f}".replace("-", "−") for x in (self.estimate, *self.blocked, *self.seedwise)
        )
        return f"{value} % ({ends[0]} to {ends[1]}; {ends[2]} to {ends[3]})"

    def as_nats(self) -> str:
        """With both intervals."""
        return f"{signed(self.estimate)} ({interval(*self.blocked)}; {interval(*self.seedwise)})"

    def holds(self, value: float) -> bool:
        """Whether at least one interval does."""
        return any(low <= value <= high for low, high in (self.blocked, self.seedwise))

    def verdict(self, smallest: float) -> str:
        """Of one comparison that stands alone: no other is adjusted for."""
        if max(map(abs, self.bound)) < smallest:
            return f"no difference larger than {smallest:g}"
        return "undecided" if self.p >= 0.05 else "better" if self.estimate < 0 else "worse"


def at_step(results: Results, trials: pd.DataFrame, step: int) -> pd.DataFrame:
    """The trials with the validation loss that each had after so many steps. `ConfigError` where it was not taken."""
    losses = {}
    for trial, curve in results.curves(trials["trial"]).items():
        found = curve.loc[curve["step"] == step, "val_loss"].dropna()
        check(len(found) == 1, f"{trial} was not evaluated at step {step}; give other --train.evaluations")
        losses[trial] = float(found.iloc[0])
    return trials.assign(val_loss=trials["trial"].map(losses))


def routed(trials: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Cell → share of tokens that its routed blocks process under causal routing at the end, the mean over layers, with
    a 95 % interval over seeds."""
    layers = [name for name in trials.columns if re.fullmatch(r"mod/capacity_layer\d+", name)]
    shares = trials.assign(share=trials[layers].mean(axis=1)).dropna(subset="share")
    found = {}
    for cell, rows in shares.groupby("cell", sort=False):
        mean, low, high = map(float, t_interval(rows["share"].to_numpy(float)))
        found[str(cell)] = mean, low, high
    return found


def models(design: Design) -> dict[str, ModelConfig]:
    """Those of the factorial's cells."""
    tested = {cell.name for cell in design.cells() if cell.tested}
    return {trial.cell: trial.config.model for trial in design.one_block() if trial.cell in tested}


def time_cells(results: Results, console: Console) -> dict[str, list[float]]:
    """Cell → tokens a second in each round, of a training step as the trials have it, all cells in turn."""
    design, runtime = results.design(), results.runtime()
    check(runtime.device == "cpu", f"{results.folder.uri} ran on {runtime.device}; this times trials of a CPU")
    batch = design.config.train.batch_size
    check(runtime.micro_batch == batch, f"trials took their {batch} windows in parts of {runtime.micro_batch}")
    prepare_process("cpu", runtime.threads)
    setting = Setting("cpu", design.config.precision == "bf16")
    contestants = [ours(model, batch, setting, name) for name, model in models(design).items()]
    return measure(contestants, ROUNDS, console)


def speed_table(rates: Mapping[str, Sequence[float]], flops: Mapping[str, float], trials: pd.DataFrame) -> str:
    """What each cell's throughput is to that of `base`: alone, within the sweep, and as FLOPs would have it."""
    wide = trials.pivot(index="seed", columns="cell", values="tokens_per_second")
    rows: list[tuple[object, ...]] = []
    for cell in rates:
        if cell == "base":
            rows.append((cell, f"{figure(rates[cell]).value:,.0f}", 1, 1, 1))
            continue
        logs = np.log((wide[cell] / wide["base"]).dropna().to_numpy(float))
        inside = Figure(*(float(np.exp(x)) for x in t_interval(logs)))
        rows.append(
            (
                cell,
                f"{figure(rates[cell]).value:,.0f}",
                ratio(rates, cell, "base"),
                inside,
                f"{flops['base'] / flops[cell]:.3g}",
            )
        )
    head = (
        "cell",
        "tokens/s, alone",
        "times `base`, alone (95 %)",
        "times `base`, in the sweep",
        "base FLOPs ÷ its own",
    )
    return table(head, rows)


def difference_table(losses: Mapping[str, pd.DataFrame], cells: Sequence[str], smallest: float) -> str:
    """Cells minus `base` by sweep and point: nats and perplexity with both intervals, and the verdict of each alone."""
    rows = []
    for where, wide in losses.items():
        for cell in cells:
            d = Difference.of(wide, cell)
            rows.append((f"{cell} − base, {where}", d.as_nats(), d.as_ratio(), p_value(d.p), d.verdict(smallest)))
    return table(
        ("comparison", "nats (95 % blocked; seed-wise)", "perplexity (the same)", "p, unadjusted", "alone"), rows
    )


def findings(
    rates: Mapping[str, Sequence[float]],
    shares: Mapping[str, tuple[float, float, float]],
    losses: Mapping[str, pd.DataFrame],
    smallest: float,
) -> str:
    """One row a published finding: what was published, what is found here, and whether the two go together."""

    def held(low: float, high: float, value: float) -> str:
        return "inside the interval" if low <= value <= high else "excluded"

    mod, full = ratio(rates, "mod", "base"), ratio(rates, FULL, "base")
    share = shares["mod"]
    rows = [
        ("throughput of `mod`, times `base`", "1.13", str(mod), held(mod.low, mod.high, 1.13)),
        (
            "share of tokens that routed blocks process, causal, at the end", "0.125",
            f"{share[0]:.4f} ({share[1]:.4f} to {share[2]:.4f})", held(share[1], share[2], 0.125),
        ),
    ]  # fmt: skip
    first = Difference.of(next(iter(losses.values())), "mod")
    rows.append(
        (f"`mod` − `base` at step {STEP}, nats", "0 (parity)", first.as_nats(), first.verdict(smallest)),
    )
    rows.append(
        (
            f"throughput of the full model (`{FULL}`), times `base`",
            "0.83",
            str(full),
            held(full.low, full.high, 0.83),
        )
    )
    for where, wide in losses.items():
        d = Difference.of(wide, FULL)
        inside = "inside an interval" if d.holds(math.log(1.017)) else "excluded"
        rows.append((f"perplexity of the full model, {where}", "+1.7 %", d.as_ratio(), inside))
    return table(("finding", "published", "here (95 %)", "published figure"), rows)


def write(tokens: Results, flops: Results) -> None:
    """The page's rows, and beside it each sweep's report with its table of trials."""
    check(
        SPEED.exists(), f"nothing was timed yet; run python benchmarks/published.py time {tokens.folder.uri} first"
    )
    kept = json.loads(SPEED.read_text())
    designs = {"tokens": tokens.design(), "flops": flops.design()}
    for equal, results in (("tokens", tokens), ("flops", flops)):
        check(
            designs[equal].equal == equal, f"{results.folder.uri} is at equal {designs[equal].equal}, not {equal}"
        )
    trials = {"tokens": tokens.table(designs["tokens"]), "flops": flops.table(designs["flops"])}
    contrasts = designs["tokens"].contrasts
    early = at_step(tokens, trials["tokens"], STEP)
    losses = {
        f"step {STEP} of equal tokens": complete(early, contrasts),
        "the end of equal tokens": complete(trials["tokens"], contrasts),
        "the end of equal FLOPs": complete(trials["flops"], designs["flops"].contrasts),
    }
    smallest = tokens.header()["smallest_effect"]
    cost = {cell: float(training_flops_per_token(model)) for cell, model in models(designs["tokens"]).items()}
    shares = routed(trials["tokens"])
    cells = [cell for cell in contrasts.cells if cell != "base"]
    text = [
        findings(kept["rates"], shares, losses, smallest),
        f"Timed {kept['made']}.",
        speed_table(kept["rates"], cost, trials["tokens"]),
        table(
            ("cell", "share of tokens in routed blocks (95 % over seeds)"),
            [(cell, f"{mean:.4f} ({low:.4f} to {high:.4f})") for cell, (mean, low, high) in shares.items()],
        ),
        difference_table(losses, cells, smallest),
    ]
    write_rows(PAGE, BEGIN, END, "\n\n".join(text))
    for equal, results in (("tokens", tokens), ("flops", flops)):
        copy_report(results.folder, PAGE.with_suffix("") / equal, trials[equal])


def complete(trials: pd.DataFrame, design: Contrasts) -> pd.DataFrame:
    """Losses of the complete blocks: a row a seed, a column a cell."""
    return estimate(trials, design).losses


def copy_report(source: Folder, target: Path, trials: pd.DataFrame) -> None:
    """The report, the pictures that it shows, and the table that all of it is made from."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    text = source.read("report/report.md").decode()
    for name in {*COPIED, *re.findall(r"\((\w+\.png)\)", text)}:
        (target / name).write_bytes(source.read(f"report/{name}"))
    trials.dropna(axis=1, how="all").to_csv(target / "trials.csv", index=False, float_format="%.8g")


def main(options: Options) -> None:
    """Measures or writes."""
    sweeps = [Results(Folder.at(path)) for path in options.sweeps]
    for path, sweep in zip(options.sweeps, sweeps, strict=True):
        check(sweep.exists(), f"{path}: there is no sweep there (no design.json)")
    expected = 1 if options.command == "time" else 2
    check(len(sweeps) == expected, f"{options.command} takes {expected} folders, and {len(sweeps)} were given")
    if options.command == "write":
        write(*sweeps)
        return
    rates = time_cells(sweeps[0], Console(stderr=True))
    KEPT.mkdir(parents=True, exist_ok=True)
    SPEED.write_text(json.dumps({"made": made(), "rates": rates}, indent=1))
    print(table(("cell", "times base"), [(c, ratio(rates, c, "base")) for c in rates]))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
