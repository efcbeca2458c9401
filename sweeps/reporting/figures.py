"""The report's figures, drawn with matplotlib and returned as PNG bytes; no file and no screen is touched.

`draw` makes six: the effects as a forest, the interactions as lines from level to level, the paired learning curves,
the effects along the way, the loss against cost with its Pareto front, and what matters most of them on one sheet
(`report.png`). A cell has one colour and one marker everywhere (Okabe & Ito 2008, safe for colour-blind readers); a
further level of a switch borrows its cell's colour with an open marker.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import stats

from sweeps.analysis.comparisons import cells_in_order, pareto_front
from sweeps.analysis.contrasts import Contrasts, Levels
from sweeps.analysis.effects import Effects
from sweeps.analysis.trajectories import effects_along, paired_difference

PALETTE = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#B8A400", "#0072B2", "#D55E00")
MARKERS = "osD^vPXp"
GREY, BAND, THICK, THIN = "#7a7a7a", "#e4e4e4", "#0072B2", "#333333"
STYLE: dict[str, Any] = {"linewidth": 1.6, "markersize": 6.5}
LABELS = {"val_loss": "validation loss (nats a token)"}
EQUAL_OF = {"flops": "flops", "seconds": "time"}
"""Cost → the budget that makes it the same for all cells."""
SHEET_PAIRS, ROW = 3, 3
"""Interactions on the sheet at most, and panels in a row of the figures that have many."""


def draw(
    effects: Effects,
    trials: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    title: str = "",
    equal_at: str = "tokens",
) -> dict[str, bytes]:
    """PNG bytes by file name: report, effects, curves, along, cost and, with two factors or more, interactions.

    `trials` is the table of the sweep, `curves` the progress records by trial id (columns tokens, flops, seconds,
    val_loss). A figure that lacks its data (no complete block, no curve) says so in its place.
    """
    design = effects.design
    files = {}

    def finish(name: str, figure: Figure, cells: Sequence[str], bottom: float) -> None:
        if cells:
            columns = min(len(cells), 8 if figure.get_figwidth() > 12 else 4)
            widest = max(map(len, cells))
            while columns > 1 and columns * (widest + 6) * 0.085 > figure.get_figwidth():
                columns -= 1
            bottom *= math.ceil(len(cells) / columns) / figure.get_figheight()
            handles = _cell_handles(cells, design)
            figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False)
        figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom))  # type: ignore[union-attr, call-arg]
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120, format="png")
        files[name] = buffer.getvalue()

    cells = cells_in_order([str(c) for c in trials["cell"].unique()], design)

    figure = _figure(8.6, max(4.4, 1.6 + 0.4 * len(effects.table)))
    draw_effects(figure.subplots(), effects)
    finish("effects.png", figure, [], 0)

    if design.pairs:
        figure = _figure(4.0 * min(len(design.pairs), ROW), 3.6 * math.ceil(len(design.pairs) / ROW))
        for axes, pair in zip(_panels(figure, len(design.pairs), sharey=True), design.pairs, strict=False):
            draw_interaction(axes, effects, pair)
            axes.label_outer()
        finish("interactions.png", figure, [], 0)

    figure = _figure(9.0, 4.8)
    draw_curves(*_curve_axes(figure), effects, trials, curves)
    finish("curves.png", figure, [c for c in cells if c != "base"], 0.29)

    along = effects_along(trials[trials["seed"].isin(effects.blocks)], curves, design, effects.metric)
    figure = _figure(4.0 * min(len(design.terms), ROW), 2.7 * math.ceil(len(design.terms) / ROW) + 0.3)
    figure.suptitle("Effects along the way; the 95 % bands hold for one point by itself", fontsize=11)
    several = _panels(figure, len(design.terms))
    for place, (axes, term) in enumerate(zip(several, design.terms, strict=True)):
        draw_along(axes, along[along["term"] == term], term)
        if place + ROW < len(several):  # another one stands below
            axes.set_xlabel("")
        if place % ROW:
            axes.set_ylabel("")
    finish("along.png", figure, [], 0)

    figure = _figure(10.0, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    draw_cost(left, effects, trials, "flops", equal_at)
    draw_cost(right, effects, trials, "seconds", equal_at)
    right.set_ylabel("")
    finish("cost.png", figure, cells, 0.3)

    figure = _figure(16.0, max(10.0, 7.2 + 0.4 * len(effects.table)))
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.08, 1))  # type: ignore[misc]
    forest, paired = top.subfigures(1, 2)  # type: ignore[misc]
    draw_effects(forest.subplots(), effects)
    draw_curves(*_curve_axes(paired), effects, trials, curves)
    pairs = _foremost(effects)
    panels = np.atleast_1d(bottom.subplots(1, len(pairs) + 2, width_ratios=[1] * len(pairs) + [1.25, 1.25]))
    for axes, pair in zip(panels, pairs, strict=False):
        draw_interaction(axes, effects, pair)
        if axes is not panels[0]:
            axes.set_ylabel("")
            axes.sharey(panels[0])
            axes.tick_params(labelleft=False)
    draw_cost(panels[-2], effects, trials, "flops", equal_at)
    draw_cost(panels[-1], effects, trials, "seconds", equal_at)
    panels[-1].set_ylabel("")
    finish("report.png", figure, cells, 0.42)
    return files


def cell_style(cell: str, design: Contrasts) -> dict[str, Any]:
    """Colour, marker and marker filling of a cell, the same in every figure."""
    known = cell if cell in design.cells else "+".join(part.split("=")[0] for part in cell.split("+"))
    place = design.cells.index(known) if known in design.cells else None
    colour = GREY if place is None else PALETTE[place % len(PALETTE)]
    # Beyond the palette's end colours come again, with other markers.
    marker = "*" if place is None else MARKERS[(place + place // len(PALETTE)) % len(MARKERS)]
    return {"color": colour, "marker": marker, "markerfacecolor": colour if cell in design.cells else "white"}


def _foremost(effects: Effects) -> list[tuple[Levels, Levels]]:
    """The pairs of factors for the sheet: all of them, or those whose interactions are the least likely by chance."""
    pairs = effects.design.pairs
    if len(pairs) <= SHEET_PAIRS:
        return pairs
    p = effects.table.set_index("term")["p"]

    def least(pair: tuple[Levels, Levels]) -> float:
        terms = [f"{a}:{b}" for a in pair[0].labels[1:] for b in pair[1].labels[1:]]
        return min((float(p[term]) for term in terms if term in p.index and not math.isnan(p[term])), default=1.0)

    return sorted(pairs, key=least)[:SHEET_PAIRS]


def draw_effects(axes: Axes, effects: Effects) -> None:
    """A forest: thick bar the blocked interval, thin bar the seed-wise one, a tick a seed, a grey band for what is
    too small to detect with 80 % probability."""
    table = effects.table
    places = np.arange(len(table))[::-1]
    detectable = effects.smallest_detectable
    axes.axvline(0, color="black", linewidth=0.9, zorder=1)
    handles: list[Artist] = []
    reach = _reach(effects)
    if math.isfinite(detectable):
        for place, seen in zip(places, table["detectable"], strict=True):
            x = min(seen, 9 * reach)
            axes.barh(place, 2 * x, left=-x, height=1.0, color=BAND, zorder=0)
        handles.append(Patch(color=BAND, label=f"too small to detect reliably (±{detectable:.3g})"))
    if effects.smallest_effect is not None:
        for x in (-effects.smallest_effect, effects.smallest_effect):
            axes.axvline(x, color=GREY, linestyle=":", linewidth=1.3, zorder=1)
        handles.append(
            Line2D(
                [],
                [],
                color=GREY,
                linestyle=":",
                label=f"smallest effect of interest (±{effects.smallest_effect:g})",
            )
        )
    for place, row in zip(places, table.to_dict(orient="records"), strict=True):
        axes.hlines(place, row["blocked_low"], row["blocked_high"], color=THICK, linewidth=7, alpha=0.55, zorder=2)
        axes.hlines(place, row["seedwise_low"], row["seedwise_high"], color=THIN, linewidth=1.4, zorder=3)
        axes.plot(row["estimate"], place, "o", color="white", markeredgecolor="black", markersize=6, zorder=5)
        for value in effects.contrasts[row["term"]]:
            axes.vlines(value, place + 0.17, place + 0.36, color=GREY, linewidth=1.2, zorder=2)
    kind = ", repeated" if effects.looked else ""
    handles += [
        Line2D([], [], color=THICK, linewidth=7, alpha=0.55, label=f"95 % blocked{kind}"),
        Line2D([], [], color=THIN, linewidth=1.4, label=f"95 % seed-wise{kind}"),
        Line2D([], [], color=GREY, marker="|", linestyle="none", label="one seed"),
    ]
    axes.set_yticks(places, table["term"])
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.set_xlim(-reach, reach)
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, [_short(v) for v in table["verdict"]])
    right.tick_params(length=0)
    axes.set_xlabel(f"effect on {LABELS.get(effects.metric, effects.metric)}   (left of 0: lower loss, helps)")
    axes.set_title(f"Effects, complete seed blocks: {len(effects.blocks)}", loc="left", fontsize=11)
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def draw_interaction(axes: Axes, effects: Effects, pair: tuple[Levels, Levels]) -> None:
    """Mean loss at each level of the first factor, one line a level of the second; dashed, the sum of both."""
    first, second = pair
    value, half = {}, {}
    blocks, means = len(effects.blocks), effects.losses.mean().to_numpy(float)
    freedom = (len(means) - 1) * (blocks - 1)
    for a in first.labels:
        for b in second.labels:
            weights = effects.design.mean_at({first.name: a, second.name: b})
            value[a, b] = float(weights @ means) if weights.any() else math.nan
            error = effects.sigma * float(np.linalg.norm(weights)) / math.sqrt(max(blocks, 1))
            half[a, b] = stats.t.isf(0.025, freedom) * error if freedom > 0 and weights.any() else math.nan
    places = np.arange(len(first.labels))
    for line, b in enumerate(second.labels):
        shift = 0.06 * (line - (len(second.labels) - 1) / 2)
        axes.errorbar(
            places + shift,
            [value[a, b] for a in first.labels],
            yerr=[half[a, b] for a in first.labels],
            color=PALETTE[line % len(PALETTE)],
            marker=MARKERS[line % len(MARKERS)],
            capsize=3,
            label=second.values[line],
            **STYLE,
        )
    if len(first.labels) == len(second.labels) == 2:
        a, b = first.labels[1], second.labels[1]
        additive = value["", b] + value[a, ""] - value["", ""]
        axes.plot(
            places + 0.03, [value["", b], additive], color=GREY, linestyle="--", linewidth=1.1, label="additive"
        )
    axes.set_xticks(places, first.values)
    axes.set_xlim(-0.25, places[-1] + 0.25)
    axes.set_ylabel(LABELS.get(effects.metric, effects.metric))
    axes.set_title(f"{first.name} × {second.name}", loc="left", fontsize=11)
    axes.margins(y=0.15)
    title = None if second.values == second.shown else second.name
    axes.legend(frameon=False, fontsize=8, title=title, title_fontsize=8)


def draw_along(axes: Axes, along: pd.DataFrame, term: str) -> None:
    """One effect at each evaluation, over tokens, with its pointwise band."""
    axes.axhline(0, color="black", linewidth=0.9)
    axes.fill_between(along["tokens"], along["low"], along["high"], color=THICK, alpha=0.25, linewidth=0)
    axes.plot(along["tokens"], along["estimate"], color=THICK, marker="o", markersize=4, linewidth=1.6)
    axes.set_title(term, loc="left", fontsize=10)
    axes.set_xlabel("training tokens")
    axes.set_ylabel("effect, nats")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.set_xlim(left=0)
    if along.empty:
        _say(axes, "no complete block has curves")


def draw_curves(
    axes: Axes, margin: Axes, effects: Effects, trials: pd.DataFrame, curves: Mapping[str, pd.DataFrame]
) -> None:
    """Mean paired difference of each cell from `base` over its training; in the margin its 95 % interval at the end."""
    cells = [c for c in cells_in_order([str(c) for c in trials["cell"].unique()], effects.design) if c != "base"]
    drawn = False
    budgets = list(trials["tokens"].unique()) if "tokens" in trials else []
    shares = len(budgets) > 1  # at equal FLOPs cells read different numbers of tokens
    for axis in (axes, margin):
        axis.axhline(0, color="black", linewidth=0.9)
    for place, cell in enumerate(cells):
        differences = paired_difference(cell, trials, curves)
        if differences.empty:
            continue
        drawn = True
        style = cell_style(cell, effects.design)
        line = "-" if cell in effects.design.cells else "--"
        mean = differences.mean(axis=1)
        x = mean.index * (100 if shares else budgets[0] if len(budgets) else 1)
        axes.plot(x, mean, linestyle=line, markevery=max(1, len(mean) // 8), **style, **STYLE)
        end = differences.iloc[-1].dropna().to_numpy(float)
        half = (
            stats.t.isf(0.025, len(end) - 1) * end.std(ddof=1) / math.sqrt(len(end)) if len(end) > 1 else math.nan
        )
        margin.errorbar(place, end.mean(), yerr=half, capsize=3, **style, **STYLE)
    axes.set_xlabel("share of its training that a cell has done, %" if shares else "training tokens")
    axes.set_ylabel("validation loss minus base's (nats)")
    axes.set_title("Paired learning curves", loc="left", fontsize=11)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.set_xlim(left=0)
    margin.set_title("at the end, 95 %", loc="left", fontsize=9)
    margin.set_xticks([])
    margin.set_xlim(-0.7, max(len(cells) - 0.3, 0.7))
    margin.tick_params(labelleft=False)
    if not drawn:
        _say(axes, "no cell has curves beside base's")


def draw_cost(axes: Axes, effects: Effects, trials: pd.DataFrame, cost: str, equal_at: str) -> None:
    """Each cell's mean loss against its mean cost (`flops` or `seconds`), and the front that nothing beats; there is
    none in what all were given alike."""
    finished = trials[trials["status"] != "diverged"] if "status" in trials else trials
    finished = finished[finished["seed"].isin(effects.blocks)]
    if finished.empty:
        _say(axes, "no complete seed block")
        return
    means = finished.groupby("cell")[[cost, effects.metric]].mean()
    half = math.nan
    if len(effects.blocks) > 1:
        freedom = (len(effects.design.cells) - 1) * (len(effects.blocks) - 1)
        half = stats.t.isf(0.025, freedom) * effects.sigma / math.sqrt(len(effects.blocks))
    if equal_at != EQUAL_OF[cost]:
        front = pareto_front(means, cost, effects.metric)
        axes.step(
            front[cost], front[effects.metric], where="post", color=GREY, linestyle="--", linewidth=1.2, zorder=1
        )
        axes.legend(
            handles=[Line2D([], [], color=GREY, linestyle="--", label="Pareto front")],
            frameon=False,
            fontsize=8,
            loc="best",
        )
    for cell in cells_in_order([str(c) for c in means.index], effects.design):
        x, y = means.loc[cell].to_numpy(float)
        axes.errorbar(x, y, yerr=half, capsize=3, **cell_style(cell, effects.design), **STYLE)
    name = {"flops": "training FLOPs", "seconds": "training seconds, beside other trials"}[cost]
    axes.set_xlabel(name)
    axes.set_ylabel(LABELS.get(effects.metric, effects.metric))
    axes.set_title("Loss against " + name.split(",")[0].removeprefix("training "), loc="left", fontsize=11)
    if means[cost].max() < 1.02 * means[cost].min():  # what all were given alike: ticks would all have one name
        axes.set_xlim(0.85 * means[cost].min(), 1.15 * means[cost].max())
    if means[cost].max() > 8 * means[cost].min():
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def short_number(value: float) -> str:
    """`409,600` as 410k, `2.5e9` as 2.5G, `3e15` as 3P; below a thousand as it is."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _panels(figure: Figure, count: int, **shared: bool) -> list[Axes]:
    """`count` panels in rows; the places left over at the end are empty."""
    panels = np.atleast_1d(figure.subplots(math.ceil(count / ROW), min(count, ROW), **shared)).ravel()  # type: ignore[call-overload]
    for axes in panels[count:]:
        axes.set_axis_off()
    return list(panels[:count])


def _curve_axes(figure) -> tuple[Axes, Axes]:  # type: ignore[no-untyped-def]
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3.6, 1))
    return left, right


def _cell_handles(cells: Sequence[str], design: Contrasts) -> list[Line2D]:
    return [
        Line2D([], [], linestyle="none", label=cell, markersize=8, **cell_style(cell, design)) for cell in cells
    ]


def _reach(effects: Effects) -> float:
    """Half the width of the forest: it shows every blocked interval and seed, and no more of a huge seed-wise one."""
    seen = effects.table[["estimate", "blocked_low", "blocked_high"]].to_numpy(float).ravel()
    seen = np.abs(np.concatenate([seen, effects.contrasts.to_numpy(float).ravel()]))
    widest = np.nanmax(seen, initial=0.0)
    seedwise = np.abs(effects.table[["seedwise_low", "seedwise_high"]].to_numpy(float))
    band = effects.smallest_detectable
    wanted = max(
        widest, min(np.nanmax(seedwise, initial=0.0), 3 * widest), min(band, 3 * widest) if band == band else 0
    )
    return 1.08 * wanted or 1.0


def _short(verdict: str) -> str:
    return verdict.replace("no effect larger than", "no effect >").replace(", but by less than", ", by <")


def _say(axes: Axes, message: str) -> None:
    axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", va="center", color=GREY)
