"""Comparisons of cells with `base`: the second family, ratios of cost, and who diverged.

The second family asks what a paper claims: each cell minus `base`, the full model minus `base`, and, where every factor
is on or off, the synergy, full minus base minus the sum of the single factors' own differences. It is adjusted on its
own, with the rule of `effects`: the larger of the blocked and the seed-wise p, then Holm.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lahr.errors import check
from sweeps.analysis.contrasts import Contrasts
from sweeps.analysis.effects import blocks_by_cell, holm, paired_p, residual_sd, t_interval

SYNERGY = "synergy"


def cells_in_order(cells: Sequence[str], design: Contrasts) -> list[str]:
    """`cells` without repeats, those of the design first and in its order, then the others by name."""
    order = {cell: place for place, cell in enumerate(design.cells)}
    return sorted(set(cells), key=lambda cell: (order.get(cell, len(order)), cell))


def second_family(trials: pd.DataFrame, design: Contrasts, metric: str = "val_loss") -> pd.DataFrame:
    """Each cell minus `base`, and the synergy: term, estimate, both 95 % intervals, p's, p_adjusted, blocks.

    Only blocks of which every cell of the design is finished enter, and of those, for another cell, the ones that have
    it. The blocked error pools the residual of the design's cells, as in `effects`.
    """
    wide, *_ = blocks_by_cell(trials, metric)
    corners = list(design.cells)
    wide = wide.reindex(columns=cells_in_order([*wide.columns, *corners], design)).dropna(subset=corners)
    weights = (
        {cell: {cell: 1.0, "base": -1.0} for cell in wide.columns if cell != "base"} if "base" in corners else {}
    )
    singles = [factor.labels[1] for factor in design.factors]
    if design.is_two_level and len(singles) > 1 and {"base", "+".join(singles), *singles} <= set(corners):
        weights[SYNERGY] = {"+".join(singles): 1.0, "base": len(singles) - 1.0, **dict.fromkeys(singles, -1.0)}
    sigma = float(residual_sd(wide[corners].to_numpy(float))) if len(wide) > 1 else math.nan
    freedom = (len(corners) - 1) * (len(wide) - 1)
    rows = []
    for term, weight in weights.items():
        difference = wide[list(weight)].dropna().to_numpy(float) @ np.array(list(weight.values()))
        n = len(difference)
        mean = float(difference.mean()) if n else math.nan
        row: dict[str, Any] = {"term": term, "estimate": mean, "blocks": n}
        spread = float(difference.std(ddof=1)) if n > 1 else math.nan
        norm = math.sqrt(sum(w * w for w in weight.values()))
        for name, deviation, df in (("blocked", sigma * norm, freedom), ("seedwise", spread, n - 1)):
            error = deviation / math.sqrt(n) if n > 1 else math.nan
            half = float(stats.t.isf(0.025, df)) * error
            row |= {f"{name}_low": mean - half, f"{name}_high": mean + half}
            row[f"p_{name}"] = float(paired_p(np.array(mean), np.array(error), df)) if n > 1 else math.nan
        row["p"] = max(row["p_blocked"], row["p_seedwise"])
        rows.append(row)
    table = pd.DataFrame(rows)
    if len(table):
        table["p_adjusted"] = holm(table["p"].to_numpy())
    return table


def extra_family(trials: pd.DataFrame, metric: str = "val_loss") -> pd.DataFrame:
    """Each extra cell minus each cell that it is there to be compared with, paired by seed, as a family of its own.

    Columns: cell, of, loss (mean), estimate, low, high (95 %, one t over the seeds' differences), p, p_adjusted (Holm),
    blocks; and for `tokens_per_second` and `flops` the ratio to that cell with `_low` and `_high`, as logs.
    """
    finished = trials[trials["status"] == "finished"]
    rows = []
    for cell, of in ((cell, of) for cell, others in extras_of(trials).items() for of in others):
        mine, other = (finished[finished["cell"] == name].set_index("seed") for name in (cell, of))
        shared = mine.index.intersection(other.index)
        row: dict[str, Any] = {"cell": cell, "of": of, "loss": mine[metric].mean(), "blocks": len(shared)}
        middle, low, high, p = _paired((mine[metric] - other[metric])[shared].to_numpy(float))
        row |= {"estimate": middle, "low": low, "high": high, "p": p}
        for measure in ("tokens_per_second", "flops"):
            logs = np.log((mine[measure] / other[measure])[shared].to_numpy(float))
            middle, low, high = np.exp(_paired(logs)[:3])
            row |= {measure: middle, f"{measure}_low": low, f"{measure}_high": high}
        rows.append(row)
    table = pd.DataFrame(rows)
    if len(table):
        table["p_adjusted"] = holm(table["p"].to_numpy(float))
    return table


def extras_of(trials: pd.DataFrame) -> dict[str, list[str]]:
    """Extra cell → the cells it is compared with, in the order of the table."""
    if "extra_of" not in trials:
        return {}
    some = trials[trials["extra_of"].notna()]
    return {str(cell): str(of).split(" ") for cell, of in zip(some["cell"], some["extra_of"], strict=True)}


def without_extras(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials of the factorial and its further levels."""
    return trials[trials["extra_of"].isna()] if "extra_of" in trials else trials


def _paired(differences: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, 95 % interval and p of paired differences; NaN where there are too few."""
    n = len(differences)
    mean, low, high = map(float, t_interval(differences))
    error = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return mean, low, high, float(paired_p(np.array(mean), np.array(error), n - 1)) if n > 1 else math.nan


def ratios(
    trials: pd.DataFrame, design: Contrasts, columns: Sequence[str] = ("tokens_per_second", "flops")
) -> pd.DataFrame:
    """Each cell over `base`, paired by seed: measure, cell, ratio (geometric mean), low, high (95 %), seeds.

    Analysed as logs. Finished trials only; the interval is NaN with fewer than two shared seeds.
    """
    finished = trials[trials["status"] != "diverged"] if "status" in trials else trials
    rows = []
    for column in columns:
        check(column in finished, f"the table of trials has no column {column!r}")
        wide = finished.pivot(index="seed", columns="cell", values=column).astype(float).apply(np.log)
        if "base" not in wide:
            continue
        for cell in cells_in_order([str(c) for c in wide.columns if c != "base"], design):
            logs = (wide[cell] - wide["base"]).dropna().to_numpy()
            if not len(logs):
                continue
            n = len(logs)
            middle, low, high = np.exp(t_interval(logs))
            rows.append({"measure": column, "cell": cell, "ratio": middle, "low": low, "high": high, "seeds": n})
    return pd.DataFrame(rows, columns=["measure", "cell", "ratio", "low", "high", "seeds"])


def pareto_front(means: pd.DataFrame, cost: str, metric: str = "val_loss") -> pd.DataFrame:
    """The cells (rows of means) that no other beats in `metric` at as little `cost`, the cheapest first."""
    front = means.sort_values([cost, metric])
    return front[front[metric] <= front[metric].cummin()]


def divergences(trials: pd.DataFrame, design: Contrasts, metric: str = "val_loss") -> pd.DataFrame:
    """Diverged trials by cell: cell, diverged, trials, p against `base` (exact, paired), p_adjusted (Holm).

    The test is McNemar's, exact: of the seeds on which just one of the two diverged, how many were the cell's.
    """
    _, bad, _ = blocks_by_cell(trials, metric)
    seeds = {cell: set(group["seed"]) for cell, group in trials.groupby("cell")}
    lost = {cell: {seed for name, seed in bad if name == cell} for cell in seeds}
    rows = []
    for cell in cells_in_order([str(c) for c in seeds], design):
        shared = seeds[cell] & seeds.get("base", set())
        mine, its = (
            len((lost[cell] - lost.get("base", set())) & shared),
            len((lost.get("base", set()) - lost[cell]) & shared),
        )
        p = math.nan
        if cell != "base" and shared:
            p = float(stats.binomtest(mine, mine + its).pvalue) if mine + its else 1.0
        rows.append({"cell": cell, "diverged": len(lost[cell]), "trials": len(seeds[cell]), "p": p})
    table = pd.DataFrame(rows, columns=["cell", "diverged", "trials", "p"])
    table["p_adjusted"] = holm(table["p"].to_numpy(float))
    return table
