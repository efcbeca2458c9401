"""The published findings, tested with intervals on two sweeps of one text: docs/studies/published-findings.md.

    python benchmarks/published.py time results/tokens                  a step of every cell in turn, on a quiet machine
    python benchmarks/published.py write results/tokens results/flops   into the page, and both reports beside it

The first sweep is at equal tokens, declared primary, and the second at equal FLOPs. Cells minus `base` are the second
family of docs/statistics.md, at each point adjusted on its own, with the rule's words. A published figure was printed
rounded, so a band is set against the interval of our mean: `inside` where they overlap, which a wide one always does.
It was of one seed, whose own error is not known: one seed more of ours would lie in the wider range beside it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import tyro
from protocol import KEPT, Figure, figure, made, measure, ratio, table, write_rows
from rich.console import Console
from scipy import stats
from steps import Setting, ours

from lahr.errors import check
from lahr.files import Folder
from lahr.model.flops import training_flops_per_token
from lahr.model_config import ModelConfig
from lahr.options import run
from lahr.training.runtime import prepare_process
from sweeps.analysis.comparisons import SYNERGY, second_family, without_extras
from sweeps.analysis.contrasts import Contrasts
from sweeps.analysis.effects import estimate, t_interval, verdict
from sweeps.engine.design import Design
from sweeps.engine.results import Results
from sweeps.reporting.verdict import interval, p_value, signed

PAGE = Path(__file__).parents[1] / "docs" / "studies" / "published-findings.md"
BEGIN, END = "<!-- rows: python benchmarks/published.py write -->", "<!-- end of rows -->"
FULL = "mod+latent+memory"
STEP = 100
"""Where the published study looked."""
ROUNDS = 15
ESTIMATORS = ("blocked", "seedwise")
SPEED = KEPT / "published-speed.json"
COPIED = ("report.md", "effects.csv")


@dataclass(frozen=True)
class Options:
    """Tests the published findings."""

    command: Annotated[Literal["time", "write"], tyro.conf.Positional]
    sweeps: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders: of the sweep at equal tokens, and for `write` of the one at equal FLOPs."""


@dataclass(frozen=True)
class Point:
    """Each cell minus `base` at one point of one sweep."""

    where: str
    rows: pd.DataFrame
    """`second_family` by term, with bound_low and bound_high (the outer 90 % limits) and the rule's `verdict`."""

    @staticmethod
    def of(where: str, trials: pd.DataFrame, design: Contrasts, smallest: float) -> "Point":
        """`ConfigError` where the rule claims nothing: a divergence, three complete blocks or fewer."""
        effects = estimate(trials, design)
        check(not effects.withheld, f"{where}: trials diverged, and what is left claims nothing")
        check(
            not effects.exploratory,
            f"{where}: {len(effects.blocks)} complete blocks claim nothing; run four or more",
        )
        rows = second_family(without_extras(trials), design).set_index("term")
        n = len(effects.blocks)
        half = pd.concat(
            [
                (rows[f"{name}_high"] - rows["estimate"]) * stats.t.isf(0.05, df) / stats.t.isf(0.025, df)
                for name, df in (("blocked", (len(design.cells) - 1) * (n - 1)), ("seedwise", n - 1))
            ],
            axis=1,
        ).max(axis=1)
        rows = rows.assign(bound_low=rows["estimate"] - half, bound_high=rows["estimate"] + half)
        said = [verdict(row, n, smallest, False) for row in rows.to_dict(orient="records")]
        return Point(where, rows.assign(verdict=said))


def nats(row: Mapping[Any, Any]) -> str:
    """A difference with its blocked and its seed-wise 95 % interval, or those of them that it has."""
    ends = [interval(row[f"{name}_low"], row[f"{name}_high"]) for name in ESTIMATORS if f"{name}_low" in row]
    return f"{signed(row['estimate'])} ({'; '.join(ends)})"


def perplexity(row: Mapping[Any, Any]) -> str:
    """The same as a ratio of perplexities, in %."""

    def percent(nats: float) -> str:
        return f"{100 * math.expm1(nats):+.1f}".replace("-", "−")

    ends = [
        f"{percent(row[f'{name}_low'])} to {percent(row[f'{name}_high'])}"
        for name in ESTIMATORS
        if f"{name}_low" in row
    ]
    return f"{percent(row['estimate'])} % ({'; '.join(ends)})"


def held(ends: Sequence[tuple[float, float]], low: float, high: float) -> str:
    """Whether a figure that was printed rounded, and lay between `low` and `high`, overlaps one of the intervals."""
    check(all(math.isfinite(end) for pair in ends for end in pair), "there is no interval to set a figure against")
    return "inside" if any(a <= high and low <= b for a, b in ends) else "outside"


def at_step(results: Results, trials: pd.DataFrame, step: int) -> pd.DataFrame:
    """The trials with the validation loss that each had after so many steps. `ConfigError` where it was not taken."""
    losses = {}
    trials = trials[trials["status"] == "finished"]
    for trial, curve in results.curves(trials["trial"]).items():
        found = curve.loc[curve["step"] == step, "val_loss"].dropna()
        check(len(found) == 1, f"{trial} was not evaluated at step {step}; give other --train.evaluations")
        losses[trial] = float(found.iloc[0])
    return trials.assign(val_loss=trials["trial"].map(losses))


def routed(trials: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Cell → share of tokens that its routed blocks process under causal routing at the end, the mean over layers, with
    a 95 % interval over seeds."""
    layers = [name for name in trials.columns if re.fullmatch(r"mod/capacity_layer\d+", name)]
    trials = trials[trials["status"] == "finished"]
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
    check(runtime.compile == "off", "trials were compiled, and this times steps that are not")
    batch = design.config.train.batch_size
    check(runtime.micro_batch == batch, f"trials took their {batch} windows in parts of {runtime.micro_batch}")
    prepare_process("cpu", runtime.threads)
    setting = Setting("cpu", design.config.precision == "bf16")
    contestants = [ours(model, batch, setting, name) for name, model in models(design).items()]
    return measure(contestants, ROUNDS, console)


def speed_table(rates: Mapping[str, Sequence[float]], flops: Mapping[str, float], trials: pd.DataFrame) -> str:
    """What each cell's throughput is to that of `base`: alone, within the sweep, and as FLOPs would have it."""
    finished = trials[trials["status"] == "finished"]
    wide = finished.pivot(index="seed", columns="cell", values="tokens_per_second")
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


def difference_table(points: Sequence[Point]) -> str:
    """Cells minus `base` at each point: nats and perplexity with both intervals, Holm's p there, the rule's word."""
    rows = [
        (
            "synergy" if term == SYNERGY else f"{term} − base",
            point.where,
            nats(row),
            perplexity(row),
            p_value(row["p_adjusted"]),
            row["verdict"],
        )
        for point in points
        for term, row in zip(point.rows.index, point.rows.to_dict(orient="records"), strict=True)
    ]
    head = ("comparison", "at", "nats (95 % blocked; seed-wise)", "perplexity (the same)", "Holm p", "verdict")
    return table(head, rows)


def findings(
    rates: Mapping[str, Sequence[float]], shares: Mapping[str, tuple[float, float, float]], points: Sequence[Point]
) -> str:
    """One row a published finding: what was published, what is found here, whether the two can go together."""
    mod, full = ratio(rates, "mod", "base"), ratio(rates, FULL, "base")
    share, low, high = shares["mod"]
    early, *ends = points
    parity = early.rows.loc["mod"]
    rows = [
        ("throughput of `mod`, times `base`", "1.13", _times(mod), "–", held([(mod.low, mod.high)], 1.125, 1.135)),
        (
            "share of tokens that routed blocks of `mod` process, causal, at the end (a setting)", "0.125",
            f"{share:.4f} ({low:.4f} to {high:.4f})", "–", held([(low, high)], 0.1245, 0.1255),
        ),
        (
            f"`mod` − `base` at {early.where}, nats", "0 (parity)",
            nats(parity), nats(_one_seed(parity)), parity["verdict"],
        ),
        (
            f"throughput of the full model (`{FULL}`), times `base`", "0.83",
            _times(full), "–", held([(full.low, full.high)], 0.825, 0.835),
        ),
    ]  # fmt: skip
    for point in (early, *ends):
        row = point.rows.loc[FULL]
        both = [(row[f"{name}_low"], row[f"{name}_high"]) for name in ("blocked", "seedwise")]
        claimed = "FLOPs" not in point.where  # the published cells had equal steps
        said = held(both, math.log(1.0165), math.log(1.0175)) if claimed else row["verdict"]
        published = "+1.7 %" if claimed else "–"
        name = f"perplexity of the full model, {point.where}"
        rows.append((name, published, perplexity(row), perplexity(_one_seed(row)), said))
    head = ("finding", "published", "here (95 %)", "one seed more would be (95 %)", "published figure, or verdict")
    return table(head, rows)


def _one_seed(row: Mapping[Any, Any]) -> dict[str, float]:
    """The seed-wise 95 % interval in which a single further seed's difference would lie."""
    wider = math.sqrt(row["blocks"] + 1)
    ends = {end: row["estimate"] + wider * (row[f"seedwise_{end}"] - row["estimate"]) for end in ("low", "high")}
    return {"estimate": row["estimate"], "seedwise_low": ends["low"], "seedwise_high": ends["high"]}


def _times(of: Figure) -> str:
    return f"{of.value:.3f} ({of.low:.3f} to {of.high:.3f})"


def write(tokens: Results, flops: Results) -> None:
    """The page's rows, and beside it each sweep's report with its table of trials."""
    one, other = tokens.design(), flops.design()
    check_same_question(tokens, flops)
    check(
        SPEED.exists(), f"nothing was timed yet; run python benchmarks/published.py time {tokens.folder.uri} first"
    )
    kept = json.loads(SPEED.read_text())
    check(kept["sweep"] == tokens.header()["digest"], f"what was timed is not {tokens.folder.uri}; time it again")
    trials, at_flops = tokens.table(one), flops.table(other)
    smallest = tokens.header()["smallest_effect"]
    points = [
        Point.of(f"step {STEP} of equal tokens", at_step(tokens, trials, STEP), one.contrasts, smallest),
        Point.of("the end of equal tokens", trials, one.contrasts, smallest),
        Point.of("the end of equal FLOPs", at_flops, other.contrasts, smallest),
    ]
    cost = {cell: float(training_flops_per_token(model)) for cell, model in models(one).items()}
    shares = routed(trials)
    text = [
        findings(kept["rates"], shares, points),
        f"{len(points[0].rows)} comparisons at each point, from {int(points[0].rows['blocks'].min())} seed blocks. "
        f"Throughput alone was timed {kept['made']}, in {ROUNDS} rounds of one process.",
        speed_table(kept["rates"], cost, trials),
        table(
            ("cell", "share of tokens in routed blocks (95 % over seeds)"),
            [(cell, f"{mean:.4f} ({low:.4f} to {high:.4f})") for cell, (mean, low, high) in shares.items()],
        ),
        difference_table(points),
    ]
    write_rows(PAGE, BEGIN, END, "\n\n".join(text))
    for equal, results, rows in (("tokens", tokens, trials), ("flops", flops, at_flops)):
        copy_report(results.folder, PAGE.with_suffix("") / equal, rows)


def check_same_question(tokens: Results, flops: Results) -> None:
    """`ConfigError` unless the two sweeps differ in their budget alone, and the first was declared primary."""
    (one, first), (other, second) = ((of.design(), of.header()) for of in (tokens, flops))
    for equal, design, results in (("tokens", one, tokens), ("flops", other, flops)):
        check(design.equal == equal, f"{results.folder.uri} is at equal {design.equal}, not {equal}")
        check(
            len(results.codes(design)) < 2,
            f"trials of {results.folder.uri} were made by several versions of the code",
        )
    check(
        second["primary"] == "tokens",
        "the sweep at equal FLOPs does not say that the one at equal tokens is primary",
    )
    check(first["smallest_effect"] is not None, "no smallest effect was declared; give --smallest-effect")
    alike = (
        ("configuration", one.config, other.config),
        ("factors", one.factors, other.factors),
        ("text", one.content_hash, other.content_hash),
        ("seeds", one.seeds, other.seeds),
        ("smallest effect", first["smallest_effect"], second["smallest_effect"]),
        ("runtime", tokens.runtime(), flops.runtime()),
    )
    for what, mine, its in alike:
        check(mine == its, f"the two sweeps differ in their {what}: {mine} and {its}")


def copy_report(source: Folder, target: Path, trials: pd.DataFrame) -> None:
    """The report, the pictures that it shows, and the table that all of it is made from."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    text = source.read("report/report.md").decode()
    for name in {*COPIED, *re.findall(r"\((\w+\.png)\)", text)}:
        (target / name).write_bytes(source.read(f"report/{name}"))
    trials.dropna(axis=1, how="all").to_csv(target / "trials.csv", index=False, float_format="%.8g")


def main(options: Options) -> int:
    """Measures or writes."""
    sweeps = [Results(Folder.at(path)) for path in options.sweeps]
    for path, sweep in zip(options.sweeps, sweeps, strict=True):
        check(sweep.exists(), f"{path}: there is no sweep there (no design.json)")
    expected = 1 if options.command == "time" else 2
    check(len(sweeps) == expected, f"{options.command} takes {expected} folders, and {len(sweeps)} were given")
    if options.command == "write":
        write(*sweeps)
        return 0
    rates = time_cells(sweeps[0], Console(stderr=True))
    KEPT.mkdir(parents=True, exist_ok=True)
    SPEED.write_text(json.dumps({"sweep": sweeps[0].header()["digest"], "made": made(), "rates": rates}, indent=1))
    print(table(("cell", "times base"), [(c, ratio(rates, c, "base")) for c in rates]))
    return 0


if __name__ == "__main__":
    run(lambda argv: main(tyro.cli(Options, description=__doc__, args=argv)), "stopped")
