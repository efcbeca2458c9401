"""The report's section on sanity: can the figures be trusted?"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sweeps.analysis.effects import Effects
from sweeps.reporting.literal import code, literal, markdown_table
from sweeps.reporting.verdict import diverged_trials, p_value, signed, told

DOUBTFUL_P = 0.01
CAPACITY_TOLERANCE = 0.10
"""A realised capacity further from the one asked for than this share of it is flagged."""
CAPACITY = "model.mod_capacity"


def sanity(effects: Effects, trials: pd.DataFrame, lost: pd.DataFrame, info: Mapping[str, Any]) -> str:
    """Whether the figures can be trusted: assumptions, pairing, routing; what failed, is missing or was set aside."""
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
            if uneven and info["equal_at"] == "tokens" and not info["varied"]
            else "Data order: the same in every cell of each seed block"
            if not uneven
            else "Data order: not comparable by its hash, since cells read prefixes of different length of one stream"
        )
    lines += _routing(finished) + _exits(finished)
    if info["floor"] is not None and "document_loss" in finished and finished["document_loss"].notna().any():
        best = finished["document_loss"].min()
        flag = " – **below it: something leaks**" if best < info["floor"] else ""
        lines.append(
            f"Known loss floor {info['floor']:.4f} nats, of documents that lie whole in a window; on those the lowest "
            f"trial reached {best:.4f}{flag}"
        )
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
        ("Damaged, and counted as not finished", [code(str(trial)) for trial in info["damaged"]]),
        ("Results of no trial of this design, left alone", [code(str(trial)) for trial in info["foreign"]]),
        ("Rows set aside", [literal(said) for said in effects.doubtful]),
        (
            "Seed blocks left out of the estimates",
            [
                str(info["first_seed"] + n)
                for n in range(info["seeds"])
                if info["first_seed"] + n not in effects.blocks
            ],
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
    if CAPACITY not in finished or not (finished[CAPACITY] < 1).any():
        return []
    routed = finished[finished[CAPACITY] < 1]
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
        worst = ((realised - routed[CAPACITY]).abs() / routed[CAPACITY]).max()
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
