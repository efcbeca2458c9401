"""The response surface in the report: a heat map with intervals, the coefficients, and what the surface misses."""

import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from sweeps.analysis.contrasts import Levels
from sweeps.analysis.effects import Effects
from sweeps.analysis.power import EXPLORATORY_BLOCKS
from sweeps.analysis.surface import Surface
from sweeps.reporting.literal import markdown_table
from sweeps.reporting.verdict import interval, p_value, signed

PICTURE = "surface.png"


def section(effects: Effects, surface: Surface, across: str, down: str) -> tuple[str, dict[str, bytes]]:
    """Markdown and its picture: loss over the factors `across` × `down`, a panel for each level of a third."""
    rows = [
        (
            row["term"],
            signed(row["estimate"]),
            interval(row["blocked_low"], row["blocked_high"]),
            interval(row["seedwise_low"], row["seedwise_high"]),
            p_value(max(row["p_blocked"], row["p_seedwise"])),
        )
        for row in surface.coefficients.to_dict(orient="records")
    ]
    worst = (effects.losses.mean() - surface.fitted).abs()
    text = (
        "## Response surface\n\n"
        f"![Mean loss of each cell; ± is within blocks]({PICTURE})\n\n"
        + markdown_table(("term", "nats", "95 % blocked", "95 % seed-wise", "p"), rows)
        + "\n\nA polynomial of second order in the logarithms (base 2) of the factors, fitted to all blocks; an arm "
        "apart has a jump. Intervals are those within blocks; they and p are each term's own, adjusted for nothing. "
        f"What cells have beyond the surface: at most {worst.max():.4f} nats ({worst.idxmax()}), lack of fit p "
        f"{p_value(surface.lack_of_fit_p)}. ± in the picture leaves out what seeds have in common: it is for comparing "
        "cells."
        + " All blocks that are there enter, and no look is paid for." * bool(effects.max_seeds)
        + " A trial diverged, so what remains is a selected sample and claims nothing." * effects.withheld
        + " So few blocks are exploratory and claim nothing." * (len(effects.blocks) <= EXPLORATORY_BLOCKS)
    )
    return text, {PICTURE: heat_map(effects, across, down)}


def heat_map(effects: Effects, across: str, down: str) -> bytes:
    """PNG: a square a cell with its mean loss and half its 95 % interval (blocked); the lowest is framed."""
    labels, by_name = effects.design.labels, {factor.name: factor for factor in effects.design.factors}
    columns, rows = by_name[across], by_name[down]
    third = [factor for factor in effects.design.factors if factor.name not in (across, down)]
    panels: Sequence[tuple[Levels, str] | None] = [(f, label) for f in third for label in f.labels] or [None]
    figure = Figure(
        figsize=(1.6 + 1.35 * len(columns.labels) * len(panels), 1.5 + 0.8 * len(rows.labels)), layout="constrained"
    )
    means = effects.losses.mean()
    freedom = (len(labels) - 1) * (len(effects.blocks) - 1)
    half = stats.t.isf(0.025, freedom) * effects.sigma / math.sqrt(len(effects.blocks)) if freedom > 0 else math.nan
    image = None
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels, strict=True):
        grid = np.full((len(rows.labels), len(columns.labels)), math.nan)
        for cell, of in labels.items():
            if panel is None or of[panel[0].name] == panel[1]:
                grid[rows.labels.index(of[down]), columns.labels.index(of[across])] = means[cell]
        image = axes.imshow(grid, cmap="viridis_r", vmin=means.min(), vmax=means.max(), aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            if math.isnan(value):
                continue
            dark = value - means.min() > 0.6 * (means.max() - means.min())
            axes.text(
                x,
                y,
                f"{value:.4f}\n± {half:.4f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
            if value == means.min():
                axes.add_patch(
                    matplotlib.patches.Rectangle(
                        (x - 0.47, y - 0.45), 0.94, 0.9, fill=False, edgecolor="#D55E00", linewidth=2.5
                    )
                )
        axes.set_xticks(range(len(columns.labels)), columns.values)
        axes.set_yticks(range(len(rows.labels)), rows.values)
        axes.set_xlabel(across)
        axes.set_title(
            "" if panel is None else panel[0].shown[panel[0].labels.index(panel[1])], loc="left", fontsize=10
        )
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(down)
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label="validation loss, nats", shrink=0.9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()
