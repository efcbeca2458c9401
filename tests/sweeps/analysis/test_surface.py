import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from lahr.errors import ConfigError
from sweeps.analysis.contrasts import Levels, crossed
from sweeps.analysis.effects import estimate
from sweeps.analysis.surface import coordinates, response_surface

CAPACITY = Levels("capacity", ("", "capacity=gated", "capacity=0.5", "capacity=0.25"), first="capacity=plain")
PASSES = Levels("iterations", ("", "iterations=2", "iterations=4"), first="iterations=1")
DESIGN = crossed([CAPACITY, PASSES], order=1)
VALUES = {
    "capacity": dict(zip(CAPACITY.labels, (1.0, 1.0, 0.5, 0.25), strict=True)),
    "iterations": dict(zip(PASSES.labels, (1.0, 2.0, 4.0), strict=True)),
}


def truth(capacity: float, passes: float, plain: bool) -> float:
    x, z = math.log2(capacity), math.log2(passes)
    return 3.0 + 0.02 * x - 0.05 * z + 0.01 * x * x + 0.004 * z * z + 0.03 * x * z + 0.1 * plain


def swept(sigma: float, seeds: int = 4) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    block = generator.normal(0, 0.1, seeds)
    rows = []
    for cell, labels in DESIGN.labels.items():
        capacity, passes = (VALUES[name][labels[name]] for name in ("capacity", "iterations"))
        loss = truth(capacity, passes, not labels["capacity"])
        for seed in range(seeds):
            value = loss + block[seed] + generator.normal(0, sigma)
            rows.append({"cell": cell, "seed": seed, "status": "finished", "val_loss": value,
                         "x": math.log2(capacity), "z": math.log2(passes),
                         "plain": float(not labels["capacity"])})  # fmt: skip
    return pd.DataFrame(rows)


def fitted(trials: pd.DataFrame):
    return response_surface(estimate(trials, DESIGN), coordinates(DESIGN, VALUES, {"capacity": ""}))


def test_a_surface_without_noise_is_found_again_and_the_plain_arm_stands_apart():
    """Caught: the plain arm taken for a point of the polynomial; a square of the jump."""
    surface = fitted(swept(0.0))
    of = surface.coefficients.set_index("term")["estimate"]
    assert dict(of) == pytest.approx(
        {
            "log₂ capacity": 0.02, "log₂ iterations": -0.05, "log₂ capacity²": 0.01, "log₂ iterations²": 0.004,
            "log₂ capacity × log₂ iterations": 0.03, "jump: capacity plain": 0.1,
        },
        abs=1e-9,
    )  # fmt: skip
    assert surface.fitted["base"] - surface.fitted["capacity=gated"] == pytest.approx(0.1)


def test_estimates_equal_least_squares_with_blocks_and_the_error_is_that_within_blocks():
    """Held to statsmodels; its residual has the lack of fit in it, ours is that of cells + seeds."""
    trials = swept(0.02)
    surface = fitted(trials)
    model = smf.ols("val_loss ~ x + z + I(x**2) + I(z**2) + x:z + plain + C(seed)", trials).fit()
    names = ["x", "z", "I(x ** 2)", "I(z ** 2)", "x:z", "plain"]
    np.testing.assert_allclose(surface.coefficients["estimate"], model.params[names], atol=1e-10)
    saturated = smf.ols("val_loss ~ C(cell) + C(seed)", trials).fit()
    table = surface.coefficients
    half = (table["blocked_high"] - table["blocked_low"]) / 2
    ratio = half.to_numpy() / (model.bse[names].to_numpy() / math.sqrt(model.scale))
    assert ratio == pytest.approx(np.full(6, math.sqrt(saturated.scale) * stats.t.isf(0.025, saturated.df_resid)))
    _, p, _ = saturated.compare_f_test(model)
    assert surface.lack_of_fit_p == pytest.approx(p)


def test_what_the_surface_misses_is_found():
    trials = swept(0.01)
    assert fitted(trials).lack_of_fit_p > 0.01
    trials.loc[trials["cell"] == "capacity=0.5+iterations=2", "val_loss"] += 0.1
    assert fitted(trials).lack_of_fit_p < 1e-6


def test_cells_that_are_too_few_are_said():
    design = crossed([Levels("capacity", ("", "capacity=0.5")), PASSES], order=1)
    at = coordinates(design, {"capacity": {"": 1.0, "capacity=0.5": 1.0}, **VALUES}, {})
    assert len(at.columns) == 2
    trials = swept(0.01)
    trials = trials[trials["cell"].isin(["base", "iterations=2"])]
    small = crossed([Levels("iterations", ("", "iterations=2"))])
    of = pd.DataFrame({"log₂ iterations": [0.0, 1.0], "jump: x": [0.0, 1.0]}, index=["base", "iterations=2"])
    with pytest.raises(ConfigError, match="2 cells cannot tell the 3 terms of the surface apart"):
        response_surface(estimate(trials, small), of)
