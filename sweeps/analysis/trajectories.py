"""Differences and effects along the way, from the evaluations of every trial."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sweeps.analysis.contrasts import Contrasts
from sweeps.analysis.effects import t_interval


def effects_along(
    trials: pd.DataFrame, curves: Mapping[str, pd.DataFrame], design: Contrasts, metric: str = "val_loss"
) -> pd.DataFrame:
    """Each effect at each evaluation: share (of a trial's training done), tokens (mean over cells), term, estimate,
    low, high (95 %, seed-wise, for that point alone), blocks.

    Cells whose budgets differ are compared at equal shares of them, interpolated where their evaluations do not fall
    together. Only blocks of which every cell is finished enter.
    """
    finished = trials[trials["status"] != "diverged"] if "status" in trials else trials
    ids = finished.drop_duplicates(["cell", "seed"]).set_index(["cell", "seed"])["trial"]
    blocks = []
    for seed in sorted(finished["seed"].unique()):
        own = [evaluations(curves.get(str(ids.get((cell, seed)))), metric) for cell in design.cells]
        if all(len(curve) for curve in own):
            blocks.append(own)
    columns = ["share", "tokens", "term", "estimate", "low", "high", "blocks"]
    if not blocks:
        return pd.DataFrame(columns=columns).astype({name: float for name in columns if name != "term"})
    shares = blocks[0][0]["share"].to_numpy()
    shares = shares[shares >= max(curve["share"].iloc[0] for block in blocks for curve in block) - 1e-9]
    losses_SCE = np.array([[np.interp(shares, c["share"], c[metric]) for c in block] for block in blocks])
    tokens_E = np.mean([np.interp(shares, c["share"], c["tokens"]) for block in blocks for c in block], axis=0)
    own_SET = np.einsum("sce,ct->set", losses_SCE, design.weights_CT)
    mean_ET, low_ET, high_ET = t_interval(own_SET)
    rows = [
        (
            share,
            tokens_E[e],
            term,
            mean_ET[e, t],
            low_ET[e, t],
            high_ET[e, t],
            len(blocks),
        )
        for e, share in enumerate(shares)
        for t, term in enumerate(design.terms)
    ]
    return pd.DataFrame(rows, columns=columns)


def paired_difference(
    cell: str, trials: pd.DataFrame, curves: Mapping[str, pd.DataFrame], metric: str = "val_loss"
) -> pd.DataFrame:
    """`metric` of `cell` minus that of `base` at the cell's own evaluations: index the share of its training that was
    done, one column a seed.

    Base's curve is interpolated where its evaluations stand at other shares: half-way through its schedule a cell is
    compared with base half-way through its own. Seeds where either diverged are left out.
    """
    finished = trials[trials["status"] != "diverged"] if "status" in trials else trials
    ids = finished.set_index(["cell", "seed"])["trial"]
    columns = {}
    for seed in sorted(finished["seed"].unique()):
        if (cell, seed) not in ids.index or ("base", seed) not in ids.index:
            continue
        own, base = (evaluations(curves.get(ids[name, seed]), metric) for name in (cell, "base"))
        if len(own) and len(base):
            inside = own["share"] >= base["share"].iloc[0] - 1e-9
            at_base = np.interp(own["share"][inside], base["share"], base[metric].astype(float))
            columns[int(seed)] = pd.Series(own[metric][inside].to_numpy(float) - at_base, own["share"][inside])
    return pd.DataFrame(columns).sort_index()


def evaluations(curve: pd.DataFrame | None, metric: str) -> pd.DataFrame:
    """A trial's evaluations: the share of its training that was done, tokens, step, `metric`."""
    if curve is None or metric not in curve:
        return pd.DataFrame(columns=["share", "tokens", "step", metric])
    kept = curve.dropna(subset=[metric]).drop_duplicates("tokens", keep="last").sort_values("tokens")
    step = kept["step"] if "step" in kept else kept["tokens"]
    share = (kept["tokens"] / curve["tokens"].max()).round(9)
    return pd.DataFrame({"share": share, "tokens": kept["tokens"], "step": step, metric: kept[metric]})
