"""The simulations simulate what they say: the way losses come about, its σ, the tests that rival ours, the page."""

import numpy as np
import pytest
from scipy import stats

from tests.benchmarks.conftest import load

load("protocol")
simulation = load("simulation")


@pytest.mark.parametrize("way", simulation.WAYS, ids=lambda way: way.name)
def test_losses_have_the_effects_and_the_sigma_that_are_stated(way):
    truth = np.array([0.01, 0, -0.02, 0, 0, 0, 0.005])
    losses = way.losses(20_000, 5, truth, np.random.default_rng(0))
    fit = simulation.effects.fit(losses, simulation.WEIGHTS_CT)
    np.testing.assert_allclose(fit["estimate"].mean(0), truth, atol=5e-4)
    assert np.sqrt((fit["sigma"] ** 2).mean()) == pytest.approx(way.sigma, rel=0.01)


def test_the_unpaired_t_is_that_of_two_samples():
    losses = simulation.WAYS[0].losses(3, 5, np.zeros(7), np.random.default_rng(0))
    for sweep, p in zip(losses, simulation.unpaired_p(losses), strict=True):
        for term in range(7):
            on = simulation.SIGNS_CT[:, term] > 0
            by_scipy = stats.ttest_ind(sweep[:, on].ravel(), sweep[:, ~on].ravel()).pvalue
            assert p[term] == pytest.approx(by_scipy)


def test_the_variant_that_changes_nothing_is_what_decides():
    losses = simulation.WAYS[0].losses(500, 12, simulation.alone(0.018, 1), np.random.default_rng(0))
    as_it_is = simulation.variant(losses, 0.012)
    decided = simulation.decide(losses, simulation.WEIGHTS_CT, 0.012)
    np.testing.assert_array_equal(as_it_is.equivalent, decided.equivalent_at > 0)
    np.testing.assert_array_equal(as_it_is.blocks, decided.looked_at)


def test_a_share_counts_a_sweep_once():
    hits = np.repeat([[True], [False]], 7, axis=1)
    assert simulation.Share.of(hits) == simulation.Share.of(hits[:, 0])
    assert simulation.Share.of(np.arange(100) < 5).margin == pytest.approx(1.96 * np.sqrt(0.05 * 0.95 / 100))


def test_what_stands_around_the_rows_of_the_page_stays(tmp_path, monkeypatch, capsys):
    page = tmp_path / "statistics.md"
    page.write_text(f"before\n{simulation.BEGIN}\nold rows\n{simulation.END}\nafter\n")
    monkeypatch.setattr(simulation, "PAGE", page)
    simulation.main(simulation.Options(sweeps=40, write=True))
    text = page.read_text()
    assert text.startswith(f"before\n{simulation.BEGIN}\n40 simulated") and text.endswith(
        f"{simulation.END}\nafter\n"
    )
    assert "old rows" not in text and text.count("| --- |") == 4 and "Goals:" in text


def test_the_page_has_the_place_for_the_rows():
    page = simulation.PAGE.read_text()
    assert page.count(simulation.BEGIN) == page.count(simulation.END) == 1
    assert f"\n{simulation.BEGIN}\n{simulation.Options().sweeps:,} simulated sweeps a figure" in page
