"""Accuracy by kind of answer, for corpora whose text has answers: a table, and each cell's curve and profile."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sweeps.analysis.comparisons import cells_in_order
from sweeps.analysis.contrasts import Contrasts
from sweeps.analysis.effects import t_interval
from sweeps.analysis.trajectories import evaluations
from sweeps.reporting.figures import GREY, STYLE, cell_style, short_number
from sweeps.reporting.literal import markdown_table

PICTURE = "answers.png"
_METRIC, _SELECTED = "accuracy/", "selected/"
_BESIDE, _SHADES = "*h<d>8H", (GREY, "#b0b0b0", "#454545")
"""Markers and colours of cells beside the factorial."""
LINES: dict[str, Any] = {"chance": ":", "ceiling": "--"}


def section(
    trials: pd.DataFrame, curves: Mapping[str, pd.DataFrame], labels: Sequence[Mapping[str, Any]], design: Contrasts
) -> tuple[str, dict[str, bytes]]:
    """Markdown and its picture; nothing where no answer was seen.

    `labels` are those of the corpus (name, chance, ceiling), `trials` the sweep's table, `curves` its records by trial.
    """
    finished = trials[trials["status"] != "diverged"] if "status" in trials else trials
    columns = [name for name in finished.columns if name.startswith(_METRIC)]
    seen = [name.removeprefix(_METRIC) for name in columns if finished[name].notna().any()]
    if not seen:
        return "", {}
    names = [name for name in _names(labels) if name in seen]
    cells = cells_in_order([str(cell) for cell in finished["cell"].unique()], design)
    known = {str(label["name"]): label for label in labels}
    rows = []
    for name in names:
        of = [100 * _values(finished, cell, name) for cell in cells]
        rows.append((name, *_bounds(known, name), *map(_figure_of, of)))
    text = (
        "## Answers\n\n"
        f"![Accuracy of each cell over its training, and by group at its end]({PICTURE})\n\n"
        + markdown_table(("accuracy, %", "chance", "ceiling", *cells), rows)
        + "\n\nThe share of answers of which every token is the model's likeliest, given the true text before it; "
        "answers whose document began before the window are not counted. Mean over seeds ± half its 95 % interval "
        "(one t, each figure by itself, adjusted for nothing). Groups of distance are in tokens."
    )
    text += _differences(finished, names, cells) + _effects(finished, names, design)
    text += _selection(finished, names, cells)
    return text, {PICTURE: _picture(finished, curves, names, known, cells, design)}


def _differences(trials: pd.DataFrame, names: Sequence[str], cells: Sequence[str]) -> str:
    """Each cell's accuracy minus base's, paired by seed."""
    others = [cell for cell in cells if cell != "base"]
    if "base" not in cells or not others:
        return ""
    rows = []
    for name in names:
        by_seed = trials.pivot_table(index="seed", columns="cell", values=_METRIC + name, dropna=False)
        apart = [100 * (by_seed[cell] - by_seed["base"]).dropna().to_numpy(float) for cell in others]
        rows.append((name, *(_figure_of(values, sign=True) for values in apart)))
    return "\n\nThe same minus base's, paired by seed, in percentage points:\n\n" + markdown_table(
        ("accuracy − base's", *others), rows
    )


def _effects(trials: pd.DataFrame, names: Sequence[str], design: Contrasts) -> str:
    """The design's effects on accuracy, where they are not the differences from base already."""
    if len(design.cells) == 2:
        return ""
    rows = []
    for name in names:
        by_seed = trials.pivot_table(index="seed", columns="cell", values=_METRIC + name, dropna=False)
        if set(design.cells) <= set(by_seed):
            whole = by_seed[list(design.cells)].dropna().to_numpy(float)
            own_ST = 100 * whole @ design.weights_CT
            rows.append((name, *(_figure_of(own_ST[:, t], sign=True) for t in range(len(design.terms)))))
    return (
        "\n\nThe effects on accuracy, in percentage points (a factor's level minus its first; interactions as above; "
        "one t over seeds, adjusted for nothing):\n\n" + markdown_table(("effect on accuracy", *design.terms), rows)
        if rows
        else ""
    )


def _selection(trials: pd.DataFrame, names: Sequence[str], cells: Sequence[str]) -> str:
    """Which share of the tokens that answers are predicted from the routers let through."""
    routed = [cell for cell in cells if len(_values(trials, cell, names[0], _SELECTED))]
    if not routed:
        return ""
    rows = [
        (name, *(_figure_of(100 * _values(trials, cell, name, _SELECTED)) for cell in routed)) for name in names
    ]
    return (
        "\n\nWhat routed blocks let through, of the tokens that answers are predicted from:\n\n"
        + markdown_table(("selected, %", *routed), rows)
    )


def _names(labels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each kind, and behind it its groups."""
    names: dict[str, None] = {}
    for label in labels:
        names.setdefault(str(label["name"]).partition("/")[0])
    return [name for kind in names for name in (kind, *_groups(labels, kind))]


def _groups(labels: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    return [str(label["name"]) for label in labels if str(label["name"]).startswith(f"{kind}/")]


def _bounds(known: Mapping[str, Mapping[str, Any]], name: str) -> tuple[str, str]:
    """Chance and ceiling, of a kind where its groups agree."""
    found = []
    for what in ("chance", "ceiling"):
        own = {label[what] for key, label in known.items() if key == name or key.startswith(f"{name}/")}
        value = own.pop() if len(own) == 1 else None
        found.append("–" if value is None else f"{100 * value:.1f}")
    return found[0], found[1]


def _values(trials: pd.DataFrame, cell: str, name: str, metric: str = _METRIC) -> np.ndarray:
    """One a seed; empty where there is none."""
    column = metric + name
    return trials.loc[trials["cell"] == cell, column].dropna().to_numpy(float) if column in trials else np.empty(0)


def _figure_of(values: np.ndarray, sign: bool = False) -> str:
    """Mean and half its 95 % interval of percentages."""
    if not len(values):
        return "–"
    mean, low, _ = (float(x) for x in t_interval(values))
    shown = (f"{mean:+.1f}" if sign else f"{mean:.1f}").replace("-", "−")
    return shown + ("" if math.isnan(low) else f" ± {mean - low:.1f}")


def _picture(
    trials: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    names: Sequence[str],
    known: Mapping[str, Mapping[str, Any]],
    cells: Sequence[str],
    design: Contrasts,
) -> bytes:
    """A row a kind: its accuracy over training, and where it has groups by group at the end."""
    kinds = [name for name in names if "/" not in name]
    styles = _styles(cells, design)
    figure = Figure(figsize=(11.0, 3.4 * len(kinds) + 0.6), layout="constrained")
    panels = figure.subplots(len(kinds), 2, squeeze=False, sharey=True)
    for (left, right), kind in zip(panels, kinds, strict=True):
        _over_training(left, trials, curves, kind, styles)
        groups = [name for name in names if name.startswith(f"{kind}/")]
        if groups:
            _by_group(right, trials, groups, styles)
        else:
            right.set_axis_off()
        for axes in (left, right) if groups else (left,):
            for what, line in LINES.items():
                own = [label[what] for key, label in known.items() if key.partition("/")[0] == kind]
                if None not in own and len(set(own)) == 1:
                    axes.axhline(100 * own[0], color=GREY, linestyle=line, linewidth=1.2, zorder=0)
                elif axes is right:
                    for place, name in enumerate(groups):
                        if (value := known[name][what]) is not None:
                            ends = place - 0.4, place + 0.4
                            axes.hlines(100 * value, *ends, color=GREY, linestyle=line, linewidth=1.2, zorder=0)
            axes.set_ylim(-3, 103)
        left.set_ylabel("accuracy, %")
        left.set_title(kind, loc="left", fontsize=11)
    handles = [Line2D([], [], label=cell, **style, **STYLE) for cell, style in styles.items()]
    handles += [Line2D([], [], color=GREY, linestyle=line, label=what) for what, line in LINES.items()]
    # Long names in few columns, or the picture's edges cut them off.
    widest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), 6, int(figure.get_figwidth() / ((widest + 6) * 0.085))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


def _styles(cells: Sequence[str], design: Contrasts) -> dict[str, dict[str, Any]]:
    """How each cell is drawn; those beside the factorial in shades of grey, each with a marker of its own."""
    styles = {cell: cell_style(cell, design) for cell in cells}
    for number, style in enumerate(style for style in styles.values() if style["color"] == GREY):
        style |= {"color": _SHADES[number % len(_SHADES)], "marker": _BESIDE[number % len(_BESIDE)]}
    return styles


def _over_training(
    axes: Axes,
    trials: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    kind: str,
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    for cell, style in styles.items():
        ids = trials.loc[trials["cell"] == cell, "trial"]
        own = [evaluations(curves.get(str(trial)), _METRIC + kind) for trial in ids]
        own = [curve for curve in own if len(curve)]
        points = min(map(len, own), default=0)
        if not points:
            continue
        tokens = np.mean([curve["tokens"].to_numpy(float)[:points] for curve in own], axis=0)
        mean, low, high = t_interval(
            np.array([100 * curve[_METRIC + kind].to_numpy(float)[:points] for curve in own])
        )
        axes.plot(tokens, mean, markevery=max(1, points // 8), **style, **STYLE)
        axes.fill_between(tokens, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel("training tokens")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.set_xlim(left=0)


def _by_group(
    axes: Axes, trials: pd.DataFrame, groups: Sequence[str], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    places = np.arange(len(groups))
    for number, (cell, style) in enumerate(styles.items()):
        of = [t_interval(100 * _values(trials, cell, name)) for name in groups]
        mean, low, _ = (np.array(figures, float) for figures in zip(*of, strict=True))
        shift = 0.3 * (number - (len(styles) - 1) / 2) / max(len(styles), 1)
        axes.errorbar(places + shift, mean, yerr=mean - low, capsize=3, **style, **STYLE)
    axes.set_xticks(places, [name.partition("/")[2] for name in groups], fontsize=8)
    axes.set_title("at the end, by group, 95 %", loc="left", fontsize=10)
