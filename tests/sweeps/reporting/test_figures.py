import io

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sweeps.analysis.effects import corner_cells, estimate
from sweeps.reporting import figures

FACTORS = ("mod", "latent", "memory")


def test_a_cell_has_a_colour_and_a_marker_of_its_own():
    styles = [figures.cell_style(cell, FACTORS) for cell in corner_cells()]
    assert len({s["color"] for s in styles}) == len({s["marker"] for s in styles}) == 8
    further = figures.cell_style("mod=0.25+latent", FACTORS)
    assert further["color"] == figures.cell_style("mod+latent", FACTORS)["color"]
    assert further["markerfacecolor"] == "white"


def test_paired_differences_end_at_the_difference_of_the_losses(made):
    trials = made.trials(4)
    differences = figures.paired_difference("latent", trials, made.curves(trials))
    wide = trials.pivot(index="seed", columns="cell", values="val_loss")
    np.testing.assert_allclose(differences.iloc[-1], wide["latent"] - wide["base"])
    assert list(differences.index) == [409_600 * k // 8 for k in range(1, 9)]


def test_paired_differences_leave_out_a_diverged_seed_and_interpolate_base(made):
    trials = made.trials(2)
    curves = made.curves(trials)
    ids = trials.set_index(["cell", "seed"])["trial"]
    curves[ids["base", 1]] = pd.DataFrame({"tokens": [0, 400_000], "val_loss": [6.0, 2.0]})
    curves[ids["mod", 1]] = pd.DataFrame({"tokens": [100_000, 300_000, 500_000], "val_loss": [5.0, 3.5, 3.0]})
    trials.loc[(trials["cell"] == "base") & (trials["seed"] == 0), "status"] = "diverged"
    differences = figures.paired_difference("mod", trials, curves)
    assert list(differences.columns) == [1] and list(differences.index) == [100_000, 300_000]
    assert list(differences[1]) == pytest.approx([0.0, 0.5])


def test_the_forest_draws_what_the_table_says(made):
    effects = estimate(made.trials(5), smallest_effect=0.1)
    axes = Figure().subplots()
    figures.draw_effects(axes, effects)
    estimates = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert estimates == pytest.approx(list(effects.table["estimate"]))
    bars = {tuple(np.ravel(c.get_segments())[[0, 2]]) for c in axes.collections if len(c.get_segments()) == 1}
    for row in effects.table.to_dict(orient="records"):
        for name in ("blocked", "seedwise"):
            assert (row[f"{name}_low"], row[f"{name}_high"]) in bars
    ticks = sorted(
        c.get_segments()[0][0][0]
        for c in axes.collections
        if c.get_segments()[0][0][0] == c.get_segments()[0][1][0]
    )
    assert ticks == pytest.approx(sorted(effects.contrasts.to_numpy().ravel()))
    assert [label.get_text() for label in axes.get_yticklabels()] == list(effects.table["term"])
    (band,) = axes.patches
    assert band.get_x() + band.get_width() == pytest.approx(effects.smallest_detectable)


def test_the_pareto_front_is_what_nothing_beats(made):
    trials = made.trials(5)
    axes = Figure().subplots()
    figures.draw_cost(axes, estimate(trials), trials, "flops")
    front = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    means = trials.groupby("cell")[["flops", "val_loss"]].mean()
    unbeaten = [
        tuple(row) for row in means.to_numpy()
        if not ((means["flops"] <= row[0]) & (means["val_loss"] < row[1])).any()
    ]  # fmt: skip
    np.testing.assert_allclose(np.column_stack(front.get_data()), sorted(unbeaten))
    assert 1 < len(unbeaten) < 8


def test_a_sheet_is_drawn_for_any_state_of_a_sweep(made):
    trials = made.trials(2)
    for part in (trials[:11], trials[:0]):
        files = figures.draw(estimate(part), part, {}, "a title")
        for name, png in files.items():
            assert min(matplotlib.image.imread(io.BytesIO(png)).shape[:2]) > 300, name


def test_short_numbers():
    given = {0.0: "0", 12.0: "12", 409_600: "410k", 2.5e9: "2.5G", 3e15: "3P", 2e18: "2E"}
    assert {value: figures.short_number(value) for value in given} == given
