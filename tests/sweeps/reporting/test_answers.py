"""The report's section on answers: figures by hand on a small table, and what is said where something is missing."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from sweeps.analysis.contrasts import switches
from sweeps.reporting import answers

DESIGN = switches("mod", "memory")
CELLS = ("base", "mod", "memory", "mod+memory")
LABELS = [
    {"name": "recall/0-16", "chance": 0.25, "ceiling": 1.0},
    {"name": "recall/16-", "chance": 0.25, "ceiling": 1.0},
    {"name": "count", "chance": 0.5, "ceiling": None},
    {"name": "never", "chance": None, "ceiling": None},
]
RECALL = {"base": (0.50, 0.60), "mod": (0.40, 0.44), "memory": (0.80, 0.86), "mod+memory": (0.70, 0.90)}
"""Accuracy of two seeds."""


def table(seeds: int = 2) -> pd.DataFrame:
    rows = []
    for cell in CELLS:
        for seed in range(seeds):
            value = RECALL[cell][seed]
            rows.append(
                {
                    "trial": f"{cell}-s{seed}",
                    "cell": cell,
                    "seed": seed,
                    "status": "finished",
                    "accuracy": value,
                    "accuracy/recall": value,
                    "accuracy/recall/0-16": value / 2,
                    "accuracy/recall/16-": value / 4,
                    "accuracy/count": 0.5,
                    **({"selected/recall": 0.125, "selected/recall/0-16": 0.25} if "mod" in cell else {}),
                }
            )
    return pd.DataFrame(rows)


def curves_of(trials: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Three records, the middle one without an evaluation."""
    return {
        row["trial"]: pd.DataFrame(
            {
                "tokens": [100, 200, 300],
                "accuracy/recall": [0.1, math.nan, row["accuracy/recall"]],
                "accuracy/count": [0.4, math.nan, 0.5],
            }
        )
        for row in trials.to_dict(orient="records")
    }


def section(trials: pd.DataFrame, design=DESIGN) -> tuple[str, dict[str, bytes]]:
    text, files = answers.section(trials, curves_of(trials), LABELS, design)
    assert "nan" not in text.lower() and "inf" not in text.lower()
    if text:
        assert set(files) == {answers.PICTURE} and f"]({answers.PICTURE})" in text
        assert files[answers.PICTURE].startswith(b"\x89PNG\r\n\x1a\n") and len(files[answers.PICTURE]) > 10_000
    return text, files


def rows_of(text: str, head: str) -> dict[str, dict[str, str]]:
    """A table by its head's first cell: first column → column → figure."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    start = next(i for i, line in enumerate(lines) if line[0] == head)
    names, found = lines[start], {}
    for line in lines[start + 2 :]:
        if len(line) != len(names) or line[1:] == names[1:] or set("".join(line)) <= set("-: "):
            break
        found[line[0]] = dict(zip(names[1:], line[1:], strict=True))
    return found


def half(values) -> float:
    """Half the 95 % interval of two values: t of one degree of freedom."""
    return 12.7062 * np.std(values, ddof=1) / math.sqrt(2)


def test_the_table_is_by_kind_and_group_with_chance_and_ceiling():
    """Caught: fractions for percentages; a kind's bounds where its groups differ; a name that no trial has."""
    text, _ = section(table())
    found = rows_of(text, "accuracy, %")
    assert list(found) == ["recall", "recall/0-16", "recall/16-", "count"]
    assert list(found["recall"]) == ["chance", "ceiling", *CELLS]
    assert found["recall"]["chance"] == "25.0" and found["recall"]["ceiling"] == "100.0"
    assert found["count"]["chance"] == "50.0" and found["count"]["ceiling"] == "–"
    assert found["recall"]["base"] == f"55.0 ± {100 * half((0.5, 0.6)):.1f}"
    assert found["recall/0-16"]["memory"] == f"41.5 ± {100 * half((0.4, 0.43)):.1f}"
    assert found["count"]["mod"] == "50.0 ± 0.0"
    other = [*LABELS, {"name": "recall/far", "chance": 0.1, "ceiling": 1.0}]
    text, _ = answers.section(table(), curves_of(table()), other, DESIGN)
    assert rows_of(text, "accuracy, %")["recall"]["chance"] == "–"


def test_groups_whose_chance_differs_have_a_line_each(monkeypatch):
    """Seen to fail: they had none. One line through all where they agree."""
    drawn: list[tuple[float, float, float]] = []
    monkeypatch.setattr(Axes, "hlines", lambda self, y, first, last, **style: drawn.append((y, first, last)))
    section(table())
    assert not drawn
    other = [*LABELS[:1], {"name": "recall/16-", "chance": 0.1, "ceiling": 1.0}]
    answers.section(table(), curves_of(table()), other, DESIGN)
    assert drawn == [(25.0, -0.4, 0.4), (10.0, 0.6, 1.4)]


def test_differences_are_paired_by_seed():
    """Caught: half the interval of two samples; the difference the other way round."""
    found = rows_of(section(table())[0], "accuracy − base's")
    assert list(found["recall"]) == list(CELLS[1:])
    assert found["recall"]["mod"] == f"−13.0 ± {half((-10, -16)):.1f}"
    assert found["recall"]["memory"] == f"+28.0 ± {half((30, 26)):.1f}"
    assert found["count"]["mod+memory"] == "+0.0 ± 0.0"


def test_effects_are_those_of_the_design():
    """Of a 2²: the mean difference that a factor makes, and half the difference of differences."""
    found = rows_of(section(table())[0], "effect on accuracy")
    base, mod, memory, both = (100 * np.array(RECALL[cell]) for cell in CELLS)
    for term, own in {
        "mod": (mod - base + both - memory) / 2,
        "memory": (memory - base + both - mod) / 2,
        "mod:memory": (both - memory - mod + base) / 2,
    }.items():
        assert found["recall"][term] == f"{own.mean():+.1f} ± {half(own):.1f}".replace("-", "−")
    assert list(found["recall"]) == ["mod", "memory", "mod:memory"]


def test_selection_is_of_the_cells_that_route():
    found = rows_of(section(table())[0], "selected, %")
    assert list(found["recall"]) == ["mod", "mod+memory"]
    assert found["recall"]["mod"] == "12.5 ± 0.0" and found["recall/0-16"]["mod"] == "25.0 ± 0.0"
    assert found["count"]["mod"] == "–"
    assert "selected" not in section(table().drop(columns=["selected/recall", "selected/recall/0-16"]))[0]


def test_with_one_factor_the_differences_are_the_effects():
    trials = table()
    text, _ = section(trials[trials["cell"].isin(["base", "mod"])], switches("mod"))
    assert "accuracy − base's" in text and "effect on accuracy" not in text


def test_a_trial_that_diverged_counts_nowhere():
    """Neither with what it had reached, nor its seed in what is paired."""
    trials = table()
    gone = (trials["cell"] == "memory") & (trials["seed"] == 1)
    trials.loc[gone, "status"] = "diverged"
    text, _ = section(trials)
    assert rows_of(text, "accuracy, %")["recall"]["memory"] == "80.0"
    assert rows_of(text, "accuracy, %")["recall"]["mod"] == f"42.0 ± {half((40, 44)):.1f}"
    assert rows_of(text, "accuracy − base's")["recall"]["memory"] == "+30.0"
    assert rows_of(text, "effect on accuracy")["recall"]["mod"] == "−10.0"


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_that_is_missing(cell):
    """No effects without it, no differences without base; the others' figures stay."""
    trials = table()
    text, _ = section(trials[trials["cell"] != cell])
    assert list(rows_of(text, "accuracy, %")["recall"])[2:] == [c for c in CELLS if c != cell]
    assert "effect on accuracy" not in text
    assert ("accuracy − base's" in text) == (cell != "base")


def test_a_cell_without_a_finished_trial():
    trials = table()
    trials.loc[trials["cell"] == "mod", "status"] = "diverged"
    text, _ = section(trials)
    assert list(rows_of(text, "accuracy, %")["recall"])[2:] == ["base", "memory", "mod+memory"]


def test_one_seed_has_no_interval():
    text, _ = section(table(1))
    figures = re.findall(r"± \S+", text.replace("± half", ""))
    assert figures == []
    assert rows_of(text, "accuracy − base's")["recall"]["memory"] == "+30.0"
    assert rows_of(text, "effect on accuracy")["recall"]["memory"] == "+30.0"


@pytest.mark.parametrize(
    "trials", [table().drop(columns=[c for c in table() if "accuracy" in c]), table().iloc[:0]]
)
def test_without_answers_nothing_is_said(trials):
    """Of a corpus without them, and of a sweep of which no trial has finished."""
    text, files = answers.section(trials, {}, LABELS, DESIGN)
    assert (text, files) == ("", {})


def test_all_diverged_is_no_section():
    trials = table()
    trials["status"] = "diverged"
    assert answers.section(trials, curves_of(trials), LABELS, DESIGN) == ("", {})


def test_cells_beside_the_factorial_are_told_apart():
    """Seen to fail: all of them were drawn in one grey with one mark."""
    design = switches("mod")
    cells = ["base", "mod", *(f"mod~mod_noise={i}" for i in range(4)), "mod@frozen"]
    styles = answers._styles(cells, design)
    assert list(styles) == cells
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == len(cells)
    assert styles["mod"]["marker"] != styles["mod@frozen"]["marker"]
