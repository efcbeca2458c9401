"""The report of a sweep as files in memory: report.md and its page report.html, verdict.json, effects.csv, figures.

Its order is that of a reader's questions: what is the verdict, how large, what could have been seen, does it show,
what does it cost, can it be trusted, where was it run.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sweeps.analysis.comparisons import (
    cells_in_order,
    divergences,
    extra_family,
    ratios,
    second_family,
    without_extras,
)
from sweeps.analysis.effects import FACTORS, Effects, estimate
from sweeps.reporting import figures, page
from sweeps.reporting.literal import code, literal
from sweeps.reporting.verdict import (
    diverged_trials,
    document,
    horizon,
    interval,
    p_value,
    sentences,
    signed,
    told,
)

DOUBTFUL_P = 0.01
CAPACITY_TOLERANCE = 0.10
"""A realised capacity further from the one asked for than this share of it is flagged."""


def render(trials: pd.DataFrame, curves: Mapping[str, pd.DataFrame], info: Mapping[str, Any]) -> dict[str, bytes]:
    """File name → content. Pure: the caller decides where they go.

    `trials` is the sweep's table, `curves` its progress records by trial id. `info` has `name`, `preset`, `planned`
    (trials), `seeds`, `failed` (a list of trial, cell, seed, error), `missing` (trial ids), `horizon` (tokens a
    trial), `equal_at`, `smallest_effect` (nats or None), `declared_beforehand` (that), `environment` (a mapping),
    `floor` (nats or None) and `rerun` (a command); `factors` where they are not the three mechanisms.
    """
    factors = tuple(info.get("factors", FACTORS))
    options, every, trials = extra_family(trials), trials, without_extras(trials)
    effects = estimate(trials, factors, smallest_effect=info["smallest_effect"])
    second, lost = second_family(trials, factors), divergences(every, factors=factors)
    title = f"{info['name']}: {horizon(info)}, complete seed blocks: {len(effects.blocks)}"
    files = figures.draw(effects, trials, curves, title)
    files["effects.csv"] = effects.table.to_csv(index=False).encode()
    files["verdict.json"] = document(effects, second, options, lost, every, info)
    parts = [
        _verdict(effects, info),
        _effects(effects),
        _detection(effects),
        "## Figures\n\n![Effects, interactions, paired learning curves and cost](report.png)\n\n"
        "One colour is one cell everywhere. Thick bars are blocked intervals, thin ones seed-wise, each tick is a "
        "seed. Alone: " + ", ".join(f"[{name}]({name})" for name in files if name.endswith(".png")) + ".",
        _second(second, effects),
        _options(options),
        _cost(trials, factors),
        _sanity(effects, every, lost, info),
        _environment(info),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return files | {"report.md": text.encode(), "report.html": page.render(text, files)}


def _verdict(effects: Effects, info: Mapping[str, Any]) -> str:
    headline, *rest = [literal(sentence) for sentence in sentences(effects, info)]
    lines = "\n".join(f"- {sentence}" for sentence in rest)
    return f"# {literal(info['name'])}: what the sweep shows\n\n**{headline}**\n\n{lines}".rstrip()


def _effects(effects: Effects) -> str:
    rows = [
        (
            row["term"],
            signed(row["estimate"]),
            interval(row["blocked_low"], row["blocked_high"]),
            interval(row["seedwise_low"], row["seedwise_high"]),
            p_value(row["p_adjusted"]),
            row["verdict"],
        )
        for row in effects.table.to_dict(orient="records")
    ]
    head = ("effect", "ON − OFF, nats", "95 % blocked", "95 % seed-wise", "Holm p", "verdict")
    return (
        "## Effects\n\n"
        + markdown_table(head, rows)
        + (
            "\n\nBelow 0 is a lower validation loss. An interaction is half the difference of differences. p is the "
            "larger of the blocked and the seed-wise one, adjusted over all rows by Holm."
        )
    )


def _detection(effects: Effects) -> str:
    head = "## What this sweep could have detected\n\n"
    if math.isnan(effects.sigma):
        return head + "Nothing can be said: it takes two complete seed blocks to see the noise."
    text = (
        f"One trial scatters by σ = {effects.sigma:.4f} nats within its block. With {len(effects.blocks)} complete "
        f"blocks an effect of {effects.smallest_detectable:.3g} nats is found with 80 % probability (at the strictest "
        "step of Holm); a smaller one may well have been missed, which is no evidence that there is none."
    )
    if effects.smallest_effect is not None:
        text += f" The smallest effect of interest is {effects.smallest_effect:g} nats."
    return head + text


def _second(second: pd.DataFrame, effects: Effects) -> str:
    rows = [
        (
            row["term"] if row["term"] == "synergy" else f"{row['term']} − base",
            signed(row["estimate"]),
            interval(row["blocked_low"], row["blocked_high"]),
            interval(row["seedwise_low"], row["seedwise_high"]),
            p_value(row["p_adjusted"]),
            str(row["blocks"]),
        )
        for row in second.to_dict(orient="records")
    ]
    head = ("comparison", "nats", "95 % blocked", "95 % seed-wise", "Holm p", "blocks")
    return (
        "## Cells against base\n\n"
        + markdown_table(head, rows)
        + (
            "\n\nA second family, adjusted on its own. Synergy is full − base − the sum of each mechanism's own "
            "difference."
            + " A trial diverged, so what remains is a selected sample and claims nothing." * effects.withheld
            + " So few blocks are exploratory and claim nothing." * effects.exploratory
        )
    )


def _options(extra: pd.DataFrame) -> str:
    """The extra cells, each beside the corner that it is an option of; nothing where there are none."""
    if extra.empty:
        return ""
    rows = [
        (
            row["cell"],
            f"{row['loss']:.4f}",
            signed(row["estimate"]),
            interval(row["low"], row["high"]),
            p_value(row["p_adjusted"]),
            "{tokens_per_second:.2f} ({tokens_per_second_low:.2f} to {tokens_per_second_high:.2f})".format_map(row),
            f"{row['flops']:.3f}",
            str(row["blocks"]),
        )
        for row in extra.to_dict(orient="records")
    ]
    head = (
        "option",
        "mean loss",
        "option − cell, nats",
        "95 %",
        "Holm p",
        "tokens/s / cell (95 %)",
        "FLOPs / cell",
        "blocks",
    )
    return (
        "## Options of the mechanisms\n\n"
        + markdown_table(head, rows)
        + "\n\nEach option beside the cell before its `~`, paired by seed; one t over the seeds' differences, adjusted "
        "over these rows by Holm. They enter no effect above."
    )


def _cost(trials: pd.DataFrame, factors: Sequence[str]) -> str:
    finished = trials[trials["status"] != "diverged"]
    if finished.empty:
        return "## Cost\n\nNo trial has finished."
    table = ratios(finished, ("tokens_per_second", "flops"), factors)
    by_cell = finished.groupby("cell")
    rows = []
    for cell in cells_in_order([str(c) for c in by_cell.groups], factors):
        part = by_cell.get_group(cell)
        first = part.iloc[0]
        of = {r["measure"]: r for r in table[table["cell"] == cell].to_dict(orient="records")}
        speed, flops = of.get("tokens_per_second"), of.get("flops")
        rows.append(
            (
                cell,
                f"{first['parameters']:,.0f}",
                f"{first['parameters_without_embeddings']:,.0f}",
                figures.short_number(float(first["flops"])),
                f"{flops['ratio']:.3f}" if flops else "1",
                f"{part['tokens_per_second'].median():,.0f}",
                f"{speed['ratio']:.2f} ({_ratio_interval(speed)})" if speed else "1",
                f"{part['val_loss'].mean():.4f}",
            )
        )
    head = (
        "cell",
        "parameters",
        "without embeddings",
        "training FLOPs",
        "FLOPs / base",
        "tokens/s",
        "tokens/s / base (95 %)",
        "mean loss",
    )
    return (
        "## Cost\n\n"
        + markdown_table(head, rows)
        + (
            "\n\nThroughput was measured beside other trials; the figure that counts is measured alone, "
            "by `benchmarks/`. Ratios are paired by seed and analysed as logs."
        )
    )


def _sanity(effects: Effects, trials: pd.DataFrame, lost: pd.DataFrame, info: Mapping[str, Any]) -> str:
    finished = trials[trials["status"] != "diverged"]
    lines = []
    for name, what in (
        ("normality_p", "Residuals normal (Shapiro-Wilk)"),
        ("equal_variances_p", "Equal variances (Levene)"),
    ):
        p = effects.checks[name]
        doubt = " – **in doubt**" if p < DOUBTFUL_P else ""
        lines.append(f"{what}: p {p_value(p)}{doubt}")
    outlying = effects.checks["outlying_seeds"]
    lines.append(f"Outlying seeds: {', '.join(map(str, outlying)) or 'none'}")
    if "pairing" in finished:
        hashes = finished.groupby("seed")["pairing"].nunique()
        uneven = [str(seed) for seed, count in hashes.items() if count > 1]
        lines.append(
            f"Data order: **differs between cells in seed block {', '.join(uneven)}; they are not paired**"
            if uneven and info["equal_at"] == "tokens"
            else "Data order: the same in every cell of each seed block"
            if not uneven
            else "Data order: cells read prefixes of different length"
        )
    lines += _routing(finished) + _exits(finished)
    if info["floor"] is not None and len(finished):
        best = finished["val_loss"].min()
        flag = " – **below it: something leaks**" if best < info["floor"] else ""
        lines.append(f"Known loss floor {info['floor']:.4f} nats; the lowest trial reached {best:.4f}{flag}")
    for name, entries in (
        (
            "Failed",
            [
                f"{literal(f['cell'])} seed {f['seed']}: {code((f['error'].strip().splitlines() or [''])[-1])}"
                for f in info["failed"]
            ],
        ),
        ("Missing", [code(str(trial)) for trial in info["missing"]]),
        ("Diverged", [f"{literal(cell)} seed {seed}" for cell, seed in diverged_trials(trials)]),
        (
            "Seed blocks left out of the estimates",
            [str(seed) for seed in range(info["seeds"]) if seed not in effects.blocks],
        ),
    ):
        lines.append(f"{name}: {'; '.join(entries) or 'none'}")
    lines += _disturbances(trials)
    text = "## Sanity\n\n" + "\n".join(f"- {line}" for line in lines)
    if lost["diverged"].any():
        rows = [
            (row["cell"], f"{row['diverged']} of {row['trials']}", p_value(row["p"]), p_value(row["p_adjusted"]))
            for row in lost.to_dict(orient="records")
        ]
        text += "\n\nDivergences against base, exact and paired:\n\n"
        text += markdown_table(("cell", "diverged", "p", "Holm p"), rows)
    return text


def _disturbances(trials: pd.DataFrame) -> list[str]:
    """Trials that were begun again, and checkpoints that could not be used."""
    if "restarts" not in trials:
        return []
    again = trials[trials["restarts"].fillna(0) > 0]
    lines = [
        f"Begun again after a fault: {len(again)} trials, {int(again['restarts'].sum())} times, "
        f"{int(again['repeated_steps'].sum())} steps done twice"
        if len(again)
        else "Begun again after a fault: none"
    ]
    return lines + [
        f"{literal(row['cell'])} seed {row['seed']}: **{literal('; '.join(row['said']))}**" for row in told(trials)
    ]


def _routing(finished: pd.DataFrame) -> list[str]:
    """Router gap and realised capacity of the cells that route."""
    if "mod_capacity" not in finished or not (finished["mod_capacity"] < 1).any():
        return []
    routed = finished[finished["mod_capacity"] < 1]
    lines = []
    if "router_gap" in routed:
        gap = routed["router_gap"].astype(float)
        lines.append(
            f"Router gap (causal minus top-k loss): mean {signed(gap.mean())}, largest {signed(gap.max())} nats"
        )
    off = []
    names = [name for name in routed.columns if name.startswith("mod/capacity_layer")]
    for name in names:
        realised = routed[name].astype(float)
        worst = ((realised - routed["mod_capacity"]).abs() / routed["mod_capacity"]).max()
        if worst > CAPACITY_TOLERANCE:
            off.append(
                f"{name.removeprefix('mod/capacity_')} realised {realised.min():.3f} to {realised.max():.3f}"
            )
    if names:
        within = f"within {100 * CAPACITY_TOLERANCE:.0f} % of the one asked for"
        lines.append(
            f"Realised capacity: **not {within}: {'; '.join(off)}**" if off else f"Realised capacity: {within}"
        )
    return lines


def _exits(finished: pd.DataFrame) -> list[str]:
    """After which pass the tokens of each cell left, where they may leave: the mean over its seeds."""
    names = [name for name in finished.columns if name.startswith("latent/exit_")]
    if not names:
        return []
    leaving = finished.dropna(subset=names, how="all")
    lines = []
    for cell, rows in leaving.groupby("cell", sort=False):
        shares = rows[names].mean().dropna()
        passes = ", ".join(
            f"{str(name).removeprefix('latent/exit_')}: {100 * share:.1f} %" for name, share in shares.items()
        )
        lines.append(
            f"Passes after which tokens of {literal(str(cell))} left: {passes}; "
            f"{rows['latent/passes'].mean():.2f} on average"
        )
    return lines


def _environment(info: Mapping[str, Any]) -> str:
    rows = [(str(key), str(value)) for key, value in info["environment"].items()]
    count = f"{info['planned']} trials planned over {info['seeds']} seeds, preset `{info['preset']}`."
    table = markdown_table(("what", "value"), rows)
    return f"## Environment\n\n{count}\n\n{table}\n\nAgain: {code(info['rerun'])}"


def _ratio_interval(row: Mapping[Any, Any]) -> str:
    return "–" if math.isnan(row["low"]) else f"{row['low']:.2f} to {row['high']:.2f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table; the first column left, the others right."""
    safe = [[literal(cell) for cell in row] for row in rows]
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)]), *(" | ".join(row) for row in safe)]
    return "\n".join(f"| {line} |" for line in lines)
