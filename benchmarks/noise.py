"""What noise costs: σ² × CPU seconds of real sweeps, of `quick` as it is and with one thing changed; what blocks buy.

    python benchmarks/noise.py run --data FILE --seeds 4 [--only ema qk-norm]    sweeps, one after another; resumable
    python benchmarks/noise.py time                         seconds of a step and an evaluation, on a quiet machine
    python benchmarks/noise.py windows                      the finished models' losses on more validation windows
    python benchmarks/noise.py write                        into docs/statistics.md

σ is the residual standard deviation of a trial within its block. The trials that a question takes grow with σ², so a
lever is worth its σ² × seconds a trial. All levers have the same seeds and data order. What is done where is in
`variances.py`; sweeps and what was measured on them are left in .tmp, so each command goes on from the one before.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
import tyro
import variances
from protocol import KEPT, Figure, figure, made, table, write_rows
from rich.console import Console
from scipy import stats

from lahr.config import TrialConfig
from lahr.data import Windows, prepare
from lahr.model import build_model
from lahr.trained import find
from lahr.training.evaluation import evaluate
from lahr.training.timing import seconds_per_step
from sweeps.analysis.contrasts import switches
from sweeps.analysis.effects import holm, residual_sd
from sweeps.engine.results import Results

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "statistics.md"
BEGIN, END = "<!-- noise: python benchmarks/noise.py write -->", "<!-- end of noise -->"
FACTORIAL = switches("mod", "latent", "memory")
SMALLEST = (0.05, 0.02, 0.01)
"""Effects that pairing is priced at, nats; the first is the smallest of interest."""
WINDOWS = (20, 40, 64, 128)
ROUNDS = 9
SAME = 1e-5
"""Nats by which a model's loss may differ from what its trial reported: windows one at a time add up otherwise."""
SECONDS, ON_WINDOWS = KEPT / "noise-seconds.json", KEPT / "noise-windows.json"


@dataclass(frozen=True)
class Lever:
    """One change to the preset."""

    name: str
    what: str
    options: tuple[str, ...] = ()
    step_of: str = "as-it-is"
    """The lever that does the same in a step, which therefore takes as long."""


PLAIN = "as-it-is"
LEVERS = (
    Lever(PLAIN, "as it is"),
    Lever("lr-3e-3", "peak rate halved, 3e-3", ("--train.lr", "3e-3")),
    Lever("qk-norm", "queries and keys normalised", ("--model.qk-norm",), "qk-norm"),
    Lever("zero-init", "branches start at zero", ("--model.zero-init",)),
    Lever(
        "zero-init-lr-3e-3",
        "branches start at zero, peak rate halved",
        ("--model.zero-init", "--train.lr", "3e-3"),
    ),
    Lever("ema", "weights averaged, decay 0.98", ("--train.ema", "0.98"), "ema"),
    Lever("final-lr-0.3", "rate decayed to 0.3 of its peak", ("--train.final-lr", "0.3")),
    Lever(
        "final-lr-0.3-ema",
        "rate decayed to 0.3, weights averaged, 0.98",
        ("--train.final-lr", "0.3", "--train.ema", "0.98"),
        "ema",
    ),
    Lever("clip-0.3", "gradient clipped at 0.3", ("--train.clip-norm", "0.3")),
    Lever("clip-off", "gradient never clipped", ("--train.clip-norm", "1e9")),
    Lever("final-lr-0.1", "rate decayed to 0.1 of its peak", ("--train.final-lr", "0.1")),
)


@dataclass(frozen=True)
class Options:
    """Measures what noise costs."""

    command: Annotated[Literal["run", "time", "windows", "write"], tyro.conf.Positional]
    data: str = ""
    """The text, for `run`."""
    seeds: int = 4
    """Seed blocks to run; a sweep that has them is left as it is."""
    only: tuple[str, ...] = ()
    """These levers alone, in this order."""
    results: str = str(ROOT / ".tmp" / "results")
    cache: str = os.environ.get("LAHR_CACHE", "~/.cache/lahr")
    """Where prepared data lies."""

    def of(self, name: str) -> Results:
        """A lever's sweep."""
        return Results.at(self.results, f"noise-{name}")


def run(options: Options, console: Console) -> None:
    """Each lever's sweep as a user starts it."""
    known = {lever.name: lever for lever in LEVERS}
    for name in options.only or known:
        results = options.of(name)
        if results.exists() and (design := results.design()).seeds >= options.seeds and not results.pending(design):
            continue
        console.print(f"{name}: {options.seeds} seeds")
        given = ["--preset", "quick", "--data", options.data, "--seeds", str(options.seeds)]
        place = ["--results", options.results, "--name", f"noise-{name}"]
        command = [sys.executable, str(ROOT / "sweeps" / "factorial.py"), *given, *place, *known[name].options]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)


def measure_time(options: Options, console: Console) -> None:
    """Seconds of a training step and of an evaluated window, each cell's, the levers in turn; several rounds."""
    configs = {
        name: [trial.config for trial in options.of(name).design().one_block()]
        for name in dict.fromkeys(lever.step_of for lever in LEVERS)
        if options.of(name).exists()
    }
    plain = options.of(PLAIN)
    steps: dict[str, list[list[float]]] = {name: [] for name in configs}
    windows: list[list[float]] = []
    for i in range(ROUNDS):
        console.print(f"round {i + 1} of {ROUNDS}")
        every = seconds_per_step([config for of in configs.values() for config in of], plain.runtime(), rounds=5)
        for place, name in enumerate(configs):
            steps[name].append(every[8 * place : 8 * place + 8])
        windows.append([_evaluation_seconds(config) for config in configs[PLAIN]])
    kept = {
        "cells": [trial.cell for trial in plain.design().one_block()],
        "steps": steps,
        "windows": windows,
        "made": made(),
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    SECONDS.write_text(json.dumps(kept, indent=1))


def _evaluation_seconds(config: TrialConfig, windows: int = 16) -> float:
    """Of one window in an evaluation."""
    model = build_model(config.model, seed=0)
    tokens_NT = torch.randint(config.model.vocab_size, (windows, config.model.max_seq_len))

    def once() -> float:
        began = time.perf_counter()
        unmarked = Windows(tokens_NT, tokens_NT, None, torch.zeros_like(tokens_NT, dtype=torch.bool))
        _evaluated(model, config, unmarked, at_once=4 * config.train.batch_size)
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(3)) / windows


def _evaluated(model: torch.nn.Module, config: TrialConfig, windows: Windows, at_once: int) -> float:
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bf16")
    how = {"micro_batch": at_once, "autocast": autocast, "bytes_per_token": 1.0, "with_topk": False}
    return evaluate(model, windows, **how)["val_loss"]  # type: ignore[arg-type]


def measure_windows(options: Options, console: Console) -> None:
    """Losses of the plain sweep's models on each of more validation windows than its trials read."""
    results = options.of(PLAIN)
    design = results.design()
    config = design.config
    block = config.model.max_seq_len
    data = prepare(config.data, config.model.vocab_size, block, Path(options.cache).expanduser())
    windows = [data.validation.windows([i]) for i in range(max(WINDOWS))]
    done = results.table(design)
    torch.set_num_threads(1)
    losses = json.loads(ON_WINDOWS.read_text()) if ON_WINDOWS.exists() else {}
    for trial, loss in zip(done["trial"], done["val_loss"], strict=True):
        if trial in losses:
            continue
        console.print(trial)
        model = find(results.folder.child("trials").child(trial).uri).model
        each = [_evaluated(model, config, window, 1) for window in windows]
        again = float(np.mean(each[: config.data.validation_blocks]))
        if abs(again - loss) > SAME:
            raise ValueError(f"{trial} reported a loss of {loss} and has {again} now")
        losses[trial] = each
    KEPT.mkdir(parents=True, exist_ok=True)
    ON_WINDOWS.write_text(json.dumps(losses))


# ---------------------------------------------------------------- what is made of it


def losses_of(results: Results, metric: str = "val_loss") -> pd.DataFrame:
    """The complete blocks: one row a seed, one column a cell; a block with a trial that diverged is not complete."""
    done = results.table(results.design())
    done = done[done["status"] == "finished"]
    wide = done.pivot(index="seed", columns="cell", values=metric).reindex(columns=list(FACTORIAL.cells))
    return wide.dropna().sort_index()


@dataclass(frozen=True)
class Costs:
    """Seconds on a machine that does nothing else; each of the cells in the order of the contrasts."""

    step: dict[str, np.ndarray]
    """Lever → seconds of a step, (rounds, 8)."""
    window: np.ndarray
    """Seconds of an evaluated window, (rounds, 8)."""

    @staticmethod
    def kept() -> "Costs":
        """As `time` left them."""
        kept = json.loads(SECONDS.read_text())
        order = [kept["cells"].index(cell) for cell in FACTORIAL.cells]
        steps = {name: np.array(of)[:, order] for name, of in kept["steps"].items()}
        return Costs(steps, np.array(kept["windows"])[:, order])

    def trials(self, config: TrialConfig, step_of: str = PLAIN, windows: int | None = None) -> np.ndarray:
        """Seconds of a trial of each cell, (rounds, 8): its steps, its evaluations, and the last one by top-k as well
        where something is routed."""
        routed = np.array(["mod" in cell for cell in FACTORIAL.cells])
        read = (config.train.evaluations + routed) * (windows or config.data.validation_blocks)
        return config.steps * self.step[step_of] + read * self.window


def levers_table(options: Options, costs: Costs) -> str:
    """What each lever makes of σ², the loss and the seconds, against the preset as it is."""
    plain, config = losses_of(options.of(PLAIN)), options.of(PLAIN).design().config
    sigma, rng = residual_sd(plain.to_numpy()), np.random.default_rng(0)
    ends = stats.chi2.isf((0.025, 0.975), variances.freedom(plain.to_numpy()))
    low, high = sigma * np.sqrt(variances.freedom(plain.to_numpy()) / ends)
    own = Figure(float(sigma), float(low), float(high))
    rows: list[list[object]] = [
        [LEVERS[0].what, len(plain), f"{plain.to_numpy().mean():.4f}", own, 1, "", 1, 1, 1, 1]
    ]
    p = []
    for lever in LEVERS[1:]:
        if not options.of(lever.name).exists() or len(there := losses_of(options.of(lever.name))) < 2:
            continue
        seeds = there.index.intersection(plain.index)
        one, other = there.loc[seeds].to_numpy(), plain.loc[seeds].to_numpy()
        longer = figure((costs.trials(config, lever.step_of).sum(1) / costs.trials(config).sum(1)).tolist())
        longer = longer if lever.step_of != PLAIN else Figure(1.0)
        paired = variances.variance_ratio(one, other)
        p.append(variances.variance_ratio_p(one, other))
        rows.append([
            lever.what, len(there), signed(variances.paired_difference(one, other)),
            f"{residual_sd(there.to_numpy()):.4f}", paired,
            variances.variance_ratio_f(there.to_numpy(), plain.to_numpy()),
            variances.variance_ratio_drawn(one, other, rng), longer, scaled(paired, longer.value),
        ])  # fmt: skip
    header = (
        "one thing changed", "blocks", "mean loss of the cells, or minus that as it is, nats", "σ, nats",
        "σ², ×, paired", "p, and by Holm over all", "by F", "seeds drawn anew", "seconds a trial, ×", "σ² × seconds, ×",
    )  # fmt: skip
    for row, alone, adjusted in zip(rows[1:], p, holm(np.array(p)), strict=True):
        row.insert(5, f"{alone:.4f}, {adjusted:.3f}")
    return table(header, rows)


def scaled(of: Figure, times: float) -> Figure:
    """A ratio and its interval, multiplied."""
    return Figure(*(times * value for value in of))


def signed(of: Figure) -> str:
    """A difference."""
    return f"{of.value:+.4f} ({of.low:+.4f} to {of.high:+.4f})"


def windows_table(options: Options, costs: Costs) -> str:
    """The same models on more validation windows."""
    results, kept = options.of(PLAIN), json.loads(ON_WINDOWS.read_text())
    config, done = results.design().config, results.table(results.design())
    places = {(seed, cell): trial for trial, seed, cell in zip(done.trial, done.seed, done.cell, strict=True)}
    seeds = [seed for seed in losses_of(results).index if all((seed, c) in places for c in FACTORIAL.cells)]
    losses_SCN = np.array([[kept[places[seed, cell]] for cell in FACTORIAL.cells] for seed in seeds])
    first, rows = losses_SCN[..., : WINDOWS[0]].mean(-1), []
    for n in WINDOWS:
        there = losses_SCN[..., :n].mean(-1)
        ratio = variances.variance_ratio(there, first) if n > WINDOWS[0] else Figure(1.0)
        longer = figure((costs.trials(config, windows=n).sum(1) / costs.trials(config).sum(1)).tolist())
        by_window_NT = losses_SCN.mean(0).T @ FACTORIAL.weights_CT
        text = float(by_window_NT.std(0, ddof=1).mean() / np.sqrt(n))
        rows.append([
            n, f"{residual_sd(there):.4f}", ratio, longer, scaled(ratio, longer.value), f"{text:.4f}",
        ])  # fmt: skip
    header = (
        "validation windows", "σ, nats", "σ², ×, paired", "seconds a trial, ×", "σ² × seconds, ×",
        "sd of an effect over other windows, nats",
    )  # fmt: skip
    return table(header, rows)


def covariates_table(options: Options) -> str:
    """What a trial's own past tells of its loss within a block, in the runs of the preset as it is."""
    results = options.of(PLAIN)
    losses, done = losses_of(results), results.table(results.design())
    curves, config = results.curves(done["trial"]), results.design().config
    places = {
        (seed, cell): curves[trial] for trial, seed, cell in zip(done.trial, done.seed, done.cell, strict=True)
    }
    warm = config.train.warmup_steps(config.steps)

    def at(read: str, step: int) -> np.ndarray:
        """The last record of that column up to a step."""
        rows = [[places[seed, cell] for cell in FACTORIAL.cells] for seed in losses.index]
        return np.array([[c.loc[c["step"] <= step, read].dropna().iloc[-1] for c in row] for row in rows], float)

    any_curve = next(iter(curves.values()))
    looks = any_curve.loc[any_curve["val_loss"].notna(), "step"].tolist()
    first = int(any_curve["step"].iloc[0])
    tried = {
        f"training loss of the first {first} steps": at("train_loss", first),
        f"training loss at the end of the warm-up, step {warm}": at("train_loss", warm),
        **{f"validation loss at step {step}": at("val_loss", step) for step in looks[:-1]},
    }
    rows = []
    for what, covariate in tried.items():
        found = variances.adjusted(losses.to_numpy(), covariate, FACTORIAL.weights_CT)
        rows.append([what, f"{found.correlation:+.2f}", *(f"{v:.2f}" for v in found[1:3]), f"{found.shift:.4f}"])
    header = (
        "covariate", "correlation within blocks", "σ², ×", "variance of the effect that it serves worst, ×",
        "moves an effect by up to, nats",
    )  # fmt: skip
    return table(header, rows)


def pairing_table(options: Options) -> str:
    """What blocks take away, and what that saves."""
    losses = losses_of(options.of(PLAIN)).to_numpy()
    seeds = len(losses)
    drawn = variances.drawn_blocks(losses, variances.DRAWS, seeds, np.random.default_rng(0))
    more = np.sqrt(seeds / (seeds - 1))  # what is drawn from n blocks scatters as much less
    sds = {"paired": residual_sd, "blocked": residual_sd, "unpaired": variances.trial_sd}
    rows = []
    for effect in SMALLEST:
        here = {way: int(variances.needed(effect, sd(losses), way)) for way, sd in sds.items()}
        often = {way: variances.needed(effect, more * sd(drawn), way) for way, sd in sds.items()}
        ends = {way: np.percentile(counts, (2.5, 97.5)) for way, counts in often.items()}
        ratio = Figure(
            here["unpaired"] / here["paired"], *np.percentile(often["unpaired"] / often["paired"], (2.5, 97.5))
        )
        counted = [f"{here[way]} ({ends[way][0]:.0f} to {ends[way][1]:.0f})" for way in sds]
        rows.append([f"{effect:g}", *counted, ratio])
    ratio = variances.unpaired_ratio(losses)
    head = (
        f"{seeds} blocks of the preset as it is: a trial within its block has σ = {residual_sd(losses):.4f} nats, over "
        f"seeds {variances.trial_sd(losses):.4f}. Blocks divide the variance by {ratio}.\n\n"
    )
    return head + table(
        (
            "effect, nats", "blocks, paired, by the rule", "by the blocked t alone", "seeds, unpaired",
            "unpaired ÷ paired by the rule",
        ),
        rows,
    )  # fmt: skip


def write(options: Options, console: Console) -> None:
    """All tables, onto the page."""
    costs = Costs.kept()
    parts = [
        f"{json.loads(SECONDS.read_text())['made']}",
        levers_table(options, costs), windows_table(options, costs), covariates_table(options), pairing_table(options),
    ]  # fmt: skip
    text = "\n\n".join(parts)
    console.print(text, highlight=False, soft_wrap=True)
    write_rows(PAGE, BEGIN, END, text)


def main(options: Options) -> None:
    """Runs the command."""
    commands = {"run": run, "time": measure_time, "windows": measure_windows, "write": write}
    commands[options.command](options, Console(highlight=False))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
