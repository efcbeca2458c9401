"""Published figures are set against the intervals that a sweep's own table gives."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lahr.errors import ConfigError
from sweeps.analysis.comparisons import second_family
from sweeps.analysis.contrasts import switches
from sweeps.analysis.effects import estimate
from tests.benchmarks.conftest import load
from tests.sweeps.conftest import make_curves, make_trials

load("protocol")
load("quality")
load("steps")
published = load("published")
DESIGN = switches("mod", "latent", "memory")
FULL = "mod+latent+memory"


@pytest.fixture
def trials():
    return make_trials(8)


def test_a_point_is_the_second_family_with_90_percent_bounds_and_the_rules_words(trials):
    """Seen to fail: bounds of the narrower estimator, and "no difference larger than x" of what differs surely."""
    point = published.Point.of("the end", trials, DESIGN, 0.5)
    pd.testing.assert_frame_equal(
        point.rows[["estimate", "p_adjusted"]],
        second_family(trials, DESIGN).set_index("term")[["estimate", "p_adjusted"]],
    )
    losses = estimate(trials, DESIGN).losses
    low, high = stats.ttest_rel(losses[FULL], losses["base"]).confidence_interval(0.90)
    row = point.rows.loc[FULL]
    assert row["bound_low"] <= low + 1e-9 and row["bound_high"] >= high - 1e-9
    narrow = (row["blocked_high"] - row["estimate"]) * stats.t.isf(0.05, 49) / stats.t.isf(0.025, 49)
    assert row["bound_high"] - row["estimate"] == pytest.approx(max(narrow, (high - low) / 2))
    assert point.rows.loc["latent", "verdict"] == "helps, but by less than 0.5"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[t["seed"] < 3], "3 complete blocks claim nothing"),
        (lambda t: t.assign(status=["diverged", *t["status"][1:]]), "trials diverged"),
    ],
)
def test_nothing_is_said_where_the_rule_claims_nothing(trials, change, said):
    """Seen to fail: "worse", of one block and of what a divergence had left."""
    with pytest.raises(ConfigError, match=said):
        published.Point.of("the end", change(trials), DESIGN, 0.02)


def test_a_ratio_of_perplexities_is_the_exponential():
    ends = {
        f"{name}_{end}": math.log(x)
        for name in ("blocked", "seedwise")
        for end, x in (("low", 1.01), ("high", 1.03))
    }
    assert published.perplexity({"estimate": math.log(1.02), **ends}) == "+2.0 % (+1.0 to +3.0; +1.0 to +3.0)"


def test_one_seed_more_lies_in_the_range_of_a_prediction(trials):
    row = published.Point.of("the end", trials, DESIGN, 0.1).rows.loc[FULL]
    losses = estimate(trials, DESIGN).losses
    differences = losses[FULL] - losses["base"]
    half = stats.t.isf(0.025, 7) * differences.std() * math.sqrt(1 + 1 / 8)
    range_ = published._one_seed(row)
    assert (range_["seedwise_low"], range_["seedwise_high"]) == pytest.approx(
        (differences.mean() - half, differences.mean() + half)
    )
    assert published.nats(range_).count(" to ") == published.perplexity(range_).count(" to ") == 1


def test_a_rounded_figure_is_a_band():
    """Seen to fail: 0.125 beside 0.1252 to 0.1258, which print as it does."""
    assert published.held([(0.1252, 0.1258)], 0.1245, 0.1255) == "inside"
    assert published.held([(0.1256, 0.1258)], 0.1245, 0.1255) == "outside"
    assert published.held([(0.1, 0.11), (0.12, 0.13)], 0.1245, 0.1255) == "inside"
    with pytest.raises(ConfigError, match="there is no interval"):
        published.held([(math.nan, math.nan)], 0.1245, 0.1255)


def test_losses_along_the_way_are_those_of_that_step(trials):
    """Seen to fail: the last evaluation for the one that was asked for."""
    curves = make_curves(trials)
    results = SimpleNamespace(curves=lambda names: {name: curves[name] for name in names})
    step = int(next(iter(curves.values())).dropna(subset="val_loss")["step"].iloc[1])
    early = published.at_step(results, trials, step)
    for row in early.to_dict(orient="records"):
        curve = curves[row["trial"]]
        assert row["val_loss"] == curve.loc[curve["step"] == step, "val_loss"].item()
    assert (early["val_loss"] != trials["val_loss"]).all()
    with pytest.raises(ConfigError, match="was not evaluated at step 7"):
        published.at_step(results, trials, 7)
    gone = trials.assign(status=["diverged", *trials["status"][1:]])
    assert len(published.at_step(results, gone, step)) == len(trials) - 1


def test_the_routed_share_is_the_mean_over_layers_of_cells_that_route(trials):
    noisy = trials.assign(**{"mod/capacity_layer1": trials["mod/capacity_layer1"] + 0.001 * trials["seed"]})
    shares = published.routed(noisy)
    assert set(shares) == {"mod", "mod+latent", "mod+memory", FULL}
    own = (0.125 + 0.001 * np.arange(8) + 0.131) / 2
    interval = stats.ttest_1samp(own, 0).confidence_interval(0.95)
    assert shares["mod"] == pytest.approx((own.mean(), *interval))


def test_each_published_figure_is_set_against_what_is_found(trials):
    """Seen to fail: parity from the last point and not from the first; a figure at equal FLOPs, which none claimed."""
    same = trials.copy()
    base = same[same["cell"] == "base"].set_index("seed")["val_loss"]
    for cell, by in (("mod", 0.0), (FULL, math.log(1.017))):
        rows = same["cell"] == cell
        noise = np.random.default_rng(0).normal(0, 1e-4, 8)
        same.loc[rows, "val_loss"] = base[same.loc[rows, "seed"]].to_numpy() + by + noise
    points = [
        published.Point.of(where, table, DESIGN, 0.1)
        for where, table in (
            ("step 100", same),
            ("the end of equal tokens", trials),
            ("the end of equal FLOPs", trials),
        )
    ]
    rates = {"base": [100.0] * 9, "mod": [112.0, 113, 114] * 3, FULL: [70.0, 71, 72] * 3}
    text = published.findings(rates, {"mod": (0.124, 0.12, 0.128)}, points)
    ends = [line.split(" | ")[-1].removesuffix(" |") for line in text.splitlines()[2:]]
    assert ends == [
        "inside", "inside", "no effect larger than 0.1", "outside",
        "inside", "outside", "helps",
    ]  # fmt: skip


def test_a_report_is_copied_with_its_pictures_and_trials(tmp_path, trials):
    from lahr.files import Folder

    (tmp_path / "sweep" / "report").mkdir(parents=True)
    for name, text in (("report.md", "![all](report.png) [one](effects.png)"), ("effects.csv", "term\n")):
        (tmp_path / "sweep" / "report" / name).write_text(text)
    for name in ("report.png", "effects.png", "other.png"):
        (tmp_path / "sweep" / "report" / name).write_bytes(b"png")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "stale.png").write_bytes(b"old")
    published.copy_report(Folder.at(str(tmp_path / "sweep")), tmp_path / "copy", trials)
    names = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert names == ["effects.csv", "effects.png", "report.md", "report.png", "trials.csv"]
    again = pd.read_csv(tmp_path / "copy" / "trials.csv")
    assert again["val_loss"].to_numpy() == pytest.approx(trials["val_loss"].to_numpy(), rel=1e-7)
