"""A response surface of second order over factors whose levels are numbers, from a grid of cells in seed blocks.

Loss is a polynomial in the coordinates of each factor's levels (log₂ of a capacity, of iterations, of slots): linear,
square and product terms, and a jump for each arm that stands apart, such as a plain block beside one that is routed
with every token chosen (Box & Wilson 1951). Cells are complete in every block, so a coefficient is a weighted sum of
cells' means, and has the two estimators of any effect.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from lahr.errors import check
from sweeps.analysis.contrasts import Contrasts
from sweeps.analysis.effects import Effects, fit

JUMP = "jump:"


@dataclass(frozen=True, eq=False)
class Surface:
    """The fitted surface."""

    coefficients: pd.DataFrame
    """One row a term: term, estimate, blocked_low, blocked_high, seedwise_low, seedwise_high (95 %, unadjusted),
    p_blocked, p_seedwise."""
    fitted: pd.Series
    """Cell → the surface's loss there."""
    lack_of_fit_p: float
    """F test of what the cells' means have beyond the surface, against the residual within blocks; NaN where nothing is
    left to test."""


def coordinates(
    design: Contrasts, levels: Mapping[str, Mapping[str, float]], apart: Mapping[str, str]
) -> pd.DataFrame:
    """Cell × variable: `log₂ <factor>` of its level, whose value `levels` has for each label, and a variable that
    begins with `jump`, 1 for the arm with the label that `apart` gives (whose value is where it would stand), or 0."""
    shown = {factor.name: dict(zip(factor.labels, factor.values, strict=True)) for factor in design.factors}
    rows = {}
    for cell, labels in design.labels.items():
        row = {f"log₂ {name}": math.log2(of[labels[name]]) for name, of in levels.items()}
        row |= {
            f"{JUMP} {name} {shown[name][label]}": float(labels[name] == label) for name, label in apart.items()
        }
        rows[cell] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def model_columns(at: pd.DataFrame) -> dict[str, np.ndarray]:
    """Term of the surface → its value in each cell of `at`. `ConfigError` if the cells cannot tell the terms apart."""
    names = [str(name) for name in at]
    jumps = [name for name in names if name.startswith(JUMP)]
    numbers = [name for name in names if name not in jumps and at[name].nunique() > 1]
    columns = {"1": np.ones(len(at))}
    columns |= {name: at[name].to_numpy(float) for name in numbers}
    # Squares of what takes three values and more, away from the arm apart.
    columns |= {f"{n}²": at[n].to_numpy(float) ** 2 for n in numbers if at.loc[_inside(at, jumps), n].nunique() > 2}
    columns |= {f"{a} × {b}": at[a].to_numpy(float) * at[b].to_numpy(float) for a, b in combinations(numbers, 2)}
    columns |= {name: at[name].to_numpy(float) for name in jumps if at[name].nunique() > 1}
    check(
        np.linalg.matrix_rank(np.column_stack(list(columns.values()))) == len(columns),
        f"{len(at)} cells cannot tell the {len(columns)} terms of the surface apart; give each factor more levels",
    )
    return columns


def response_surface(effects: Effects, at: pd.DataFrame) -> Surface:
    """The surface over the complete blocks of `effects`; `at` has each cell's coordinates and jumps.

    `ConfigError` if the cells are too few for its terms.
    """
    cells = list(effects.losses.columns)
    columns = model_columns(at.loc[cells])
    model = np.column_stack(list(columns.values()))
    weights_CT = np.linalg.pinv(model).T
    losses = effects.losses.to_numpy(float)
    fitted = fit(losses, weights_CT)
    sigma = float(fitted.pop("sigma"))
    table = pd.DataFrame({"term": list(columns), **fitted})
    means = losses.mean(0)
    surface = model @ np.linalg.lstsq(model, means, rcond=None)[0]
    left = len(cells) - model.shape[1]
    lack = math.nan
    if left > 0 and len(losses) > 1 and sigma > 0:
        f = len(losses) * ((means - surface) ** 2).sum() / left / sigma**2
        lack = float(stats.f.sf(f, left, (len(cells) - 1) * (len(losses) - 1)))
    return Surface(table[table["term"] != "1"].reset_index(drop=True), pd.Series(surface, index=cells), lack)


def _inside(at: pd.DataFrame, jumps: list[str]) -> pd.Series:
    return (at[jumps] == 0).all(axis=1)
