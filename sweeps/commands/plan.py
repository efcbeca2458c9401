"""`plan`: what a sweep would cost and could see, before anything is spent."""

import os
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from sweeps.analysis import power
from sweeps.analysis.effects import estimate
from sweeps.analysis.sequential import looks
from sweeps.commands.run import other, timed
from sweeps.commands.tuning import at_rates
from sweeps.engine import study
from sweeps.engine.design import Design, parameters
from sweeps.engine.machines import wall_seconds
from sweeps.engine.options import StudyOptions
from sweeps.engine.results import Results

_GUESSED_SIGMA = 0.012
"""Nats; the residual sd that `quick` had on two corpora (docs/notebook.md), for a sweep that has none yet."""
_BLOCKS = (3, 4, 5, 6, 8, 10, 12, 16, 20)


def plan(options: StudyOptions, console: Console) -> int:
    """Prints what the sweep would cost and could detect; starts and writes nothing in the results."""
    sweep = study.resolve(options, console, has_gpu=torch.cuda.is_available())
    design, trials = sweep.design, sweep.design.trials()
    theirs = {trial.rpartition("-")[2] for path in options.reuse for trial in other(path).finished()}
    pending = [trial for trial in sweep.results.pending(design) if trial.fingerprint not in theirs]
    seconds = timed(sweep, console)
    table = Table(
        title=f"{options.sweep_name}: {len(trials)} trials, {len(pending)} to run, at equal {design.equal}"
    )
    for column in ("cell", "parameters", "non-emb.", "tokens", "FLOPs", "≈ seconds"):
        table.add_column(
            column, justify="left" if column == "cell" else "right", no_wrap=column != "cell", overflow="fold"
        )
    for trial in design.one_block():
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
    if options.until == "decided":
        sweep = _say_looks(sweep, console)
    if options.tune_lr and not sweep.results.exists():
        tried = at_rates(design, options.tune_lr).trials()
        console.print(
            f"before that {len(tried)} trials choose the learning rate, {sum(t.flops for t in tried):.3g} FLOPs"
        )
    _say_time(sweep, theirs, seconds, console)
    if theirs:
        taken = sum(trial.fingerprint in theirs for trial in sweep.results.pending(design))
        console.print(f"{taken} trials are taken over from other sweeps")
    others = {code: n for code, n in sweep.results.codes(design).items() if code != sweep.code}
    if others:
        console.print(
            f"{sum(others.values())} trials here were made by another version of the code; `run` refuses to add to "
            "them without --allow-mixed"
        )
    if design.seeds < 2 and options.until == "seeds":
        console.print("one seed block has no intervals and gives no verdict")
    sigma, source = _sigma(sweep.results, design)
    console.print(_detectable(design, sigma, sweep.design.seeds))
    console.print(f"(80 % power at the strictest Holm step; σ = {sigma:.3f} nats, {source})")
    if options.smallest_effect is not None:
        for name, norm in _kinds(design).items():
            needed = power.blocks_needed(options.smallest_effect, sigma, norm, len(design.contrasts.terms))
            which = f" ({name})" if name else ""
            console.print(
                f"an effect of {options.smallest_effect:g} nats takes {needed or 'over a million'} blocks{which}"
            )
    return 0


def _say_looks(sweep: study.Study, console: Console) -> study.Study:
    """Prints the looks; the sweep at its cap."""
    planned, cells = looks(sweep.options.max_seeds), len(sweep.design.cells())
    console.print(
        f"looks after {', '.join(map(str, planned))} blocks: {planned[0] * cells} to {planned[-1] * cells} trials; "
        "below is the last"
    )
    return replace(sweep, design=replace(sweep.design, seeds=planned[-1]))


def _say_time(sweep: study.Study, theirs: set[str], seconds: dict[str, float], console: Console) -> None:
    pending = [trial for trial in sweep.results.pending(sweep.design) if trial.fingerprint not in theirs]
    where = "on a machine like this one"
    address = sweep.options.address or os.environ.get("RAY_ADDRESS")
    if address:
        from sweeps.engine import schedule  # Ray takes seconds to import, and only a cluster needs it here

        with schedule.connected(address, sweep.options.hang_after) as cluster:
            lanes, where = cluster.lanes(sweep.runtime, sweep.options.concurrency), f"on the cluster at {address}"
    else:
        lanes = study.lanes_here(sweep)
    flops = sum(trial.flops for trial in pending)
    training = sum(seconds[trial.cell] for trial in pending) / lanes
    wall = wall_seconds(pending, lanes, seconds)
    alone = " (each as if it had its GPU alone)" if sweep.runtime.trials_per_gpu > 1 else ""
    tokens = sum(trial.config.steps * trial.config.tokens_per_step for trial in pending)
    console.print(
        f"to run: {len(pending)} trials, {tokens:,} tokens, {flops:.3g} FLOPs, {_hours(wall)} with {lanes} at a time "
        f"{where}{alone}, {_hours(wall - training)} of them beside training: Ray's starts, checkpoints, and lanes that "
        "end before others"
    )


def _hours(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"


def _detectable(design: Design, sigma: float, planned: int) -> Table:
    kinds = _kinds(design)
    table = Table(title="the smallest effect that it can detect, nats")
    table.add_column("seed blocks", justify="right")
    for name in kinds:
        table.add_column(name or "any effect", justify="right")
    for blocks in sorted({planned, *_BLOCKS} - {1}):
        figures = [
            power.smallest_detectable(sigma, blocks, norm, len(design.contrasts.terms)) for norm in kinds.values()
        ]
        table.add_row(
            f"{blocks}{' (this plan)' if blocks == planned else ''}",
            *(f"{figure:.4f}" for figure in figures),
            style="bold" if blocks == planned else "",
        )
    return table


def _kinds(design: Design) -> dict[str, float]:
    """Terms whose weights have one norm, and that norm: with two levels all effects are seen equally well."""
    kinds: dict[float, list[str]] = {}
    for term, norm in zip(design.contrasts.terms, design.contrasts.norms_T, strict=True):
        kinds.setdefault(round(float(norm), 9), []).append(term)
    if len(kinds) == 1:
        return {"": next(iter(kinds))}
    return {", ".join(terms): norm for norm, terms in kinds.items()}


def _sigma(results: Results, design: Design) -> tuple[float, str]:
    if results.exists():
        effects = estimate(results.table(design), design.contrasts)
        if len(effects.blocks) >= 3:
            return effects.sigma, f"from the {len(effects.blocks)} blocks of this sweep"
    return _GUESSED_SIGMA, "a guess: what `quick` had on two corpora"
