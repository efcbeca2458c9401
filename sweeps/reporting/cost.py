"""The report's section on cost: parameters, FLOPs, throughput, and the Pareto fronts."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sweeps.analysis.comparisons import cells_in_order, pareto_front, ratios
from sweeps.analysis.effects import Effects
from sweeps.reporting import figures
from sweeps.reporting.literal import markdown_table


def cost(trials: pd.DataFrame, effects: Effects, equal_at: str) -> str:
    """What each cell costs beside base, and which no other beats at its cost. Of what all were given alike there is no
    front: whole steps make costs differ by a little, and every cell could stand on it."""
    finished = trials[trials["status"] != "diverged"]
    if finished.empty:
        return "## Cost\n\nNo trial has finished."
    table = ratios(finished, effects.design)
    by_cell = finished.groupby("cell")
    complete = finished[finished["seed"].isin(effects.blocks)] if effects.blocks else finished
    means = complete.groupby("cell")[["flops", "seconds", "val_loss"]].mean()
    names = {"flops": "FLOPs", "seconds": "time"}
    fronts = {
        name: pareto_front(means, column).index
        for column, name in names.items()
        if equal_at != figures.EQUAL_OF[column]
    }
    rows = []
    for cell in cells_in_order([str(c) for c in by_cell.groups], effects.design):
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
                f"{means['val_loss'].get(cell, math.nan):.4f}",
                ", ".join(name for name, front in fronts.items() if cell in front) or "–",
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
        "mean loss, complete blocks",
        "on the front of",
    )
    return (
        "## Cost\n\n"
        + markdown_table(head, rows)
        + (
            "\n\nThroughput was measured beside other trials; the figure that counts is measured alone, "
            "by `benchmarks/`. Ratios are paired by seed and analysed as logs. On the front of loss against "
            + " or ".join({"FLOPs": "FLOPs", "time": "seconds"}[name] for name in fronts)
            + " are the cells that no other beats at as little; which is on it is itself uncertain."
        )
    )


def _ratio_interval(row: Mapping[Any, Any]) -> str:
    return "–" if math.isnan(row["low"]) else f"{row['low']:.2f} to {row['high']:.2f}"
