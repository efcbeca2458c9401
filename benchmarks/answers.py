"""Draws how answers of `stories` are learnt over training, of a run that is of no sweep: a picture beside its table.

    python benchmarks/answers.py docs/probes/stories.csv

A table has a row an evaluation, with columns `tokens` and `accuracy/KIND`, `accuracy/KIND/GROUP`, as
`metrics.parquet` of `python -m lahr train` has them; a folder of such a run is taken for its curve, and the table and
the picture go to `docs/probes/` under `--name`.
"""

from pathlib import Path

import pandas as pd
import tyro
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from lahr.data.stories import LABELS
from lahr.errors import check
from sweeps.reporting.answers import LINES
from sweeps.reporting.figures import GREY, MARKERS, PALETTE, STYLE, short_number

PROBES = Path(__file__).parents[1] / "docs" / "probes"
_METRIC = "accuracy/"
_SHOWN = ("tokens", "step", "seconds", "val_loss")


def main(run: tyro.conf.Positional[Path], name: str = "stories") -> None:
    """Writes the picture, and for a folder the table too.

    Args:
        run: A table, or the folder of a run.
        name: Of table and picture, for a folder.
    """
    path = PROBES / f"{name}.csv" if run.is_dir() else run
    curve = table_of(run) if run.is_dir() else pd.read_csv(run)
    names = [str(name) for name in curve if str(name).startswith(_METRIC)]
    kinds = [name.removeprefix(_METRIC) for name in names if name.count("/") == 1]
    known = {label.name.partition("/")[0] for label in LABELS}
    check(
        kinds and "tokens" in curve and "trial" not in curve and known.issuperset(kinds),
        f"{run} is no table of one run on stories, with columns tokens and {_METRIC}KIND, KIND being "
        f"{', '.join(sorted(known))}; give one, or the run's folder; benchmarks/probes.py draws sweeps",
    )
    if run.is_dir():
        curve.to_csv(path, index=False, float_format="%.6g")
    picture(curve, kinds).savefig(path.with_suffix(".png"), dpi=120)
    print(path.with_suffix(".png"))


def table_of(run: Path) -> pd.DataFrame:
    """The evaluations of a run: a row each."""
    path = run / "metrics.parquet"
    check(path.exists(), f"{run} is no folder of a finished run: it has no {path.name}")
    curve = pd.read_parquet(path)
    kept = [name for name in curve if name in _SHOWN or str(name).startswith(_METRIC)]
    return curve.dropna(subset=["val_loss"])[kept]


def picture(curve: pd.DataFrame, kinds: list[str]) -> Figure:
    """A panel a kind: all of its answers, and those of each group, with chance and ceiling."""
    known = {label.name.partition("/")[0]: label for label in LABELS}
    figure = Figure(figsize=(2.9 * len(kinds), 3.4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    lines: dict[str, Line2D] = {}
    bounds: dict[str, Line2D] = {}
    for axes, kind in zip(panels, kinds, strict=True):
        for name in (str(column) for column in curve):
            what, _, group = name.removeprefix(_METRIC).partition("/")
            if not name.startswith(_METRIC) or what != kind:
                continue
            shown = f"{group} tokens away" if group else "all"
            place = [*lines].index(shown) if shown in lines else len(lines)
            style = {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}
            (line,) = axes.plot(curve["tokens"], 100 * curve[name], **style, **STYLE | {"markersize": 4})
            lines.setdefault(shown, line)
        for what, dashes in LINES.items():
            value = 100 * getattr(known[kind], what)
            bounds[what] = axes.axhline(value, color=GREY, linestyle=dashes, linewidth=1.2, zorder=0)
        axes.set_title(kind, loc="left", fontsize=11)
        axes.set_xlabel("training tokens")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.set_xlim(left=0)
        axes.set_ylim(-3, 103)
    panels[0].set_ylabel("accuracy, %")
    handles = lines | bounds
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False
    )
    return figure


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
