"""Turns are fair, intervals hold what they say, and the page says what is below its goal."""

import random
import time
from pathlib import Path

import pytest

from tests.benchmarks.conftest import load

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


protocol = load("protocol")
page = load("page")


def test_every_round_has_a_turn_of_each_and_rates_are_units_a_second(monkeypatch):
    """Caught: a contestant that is timed after all others; a rate of runs and not of what they hold."""
    monkeypatch.setattr(protocol, "TURN_S", 0.02)
    turns = []

    def work(name, seconds):
        def run():
            turns.append(name)
            time.sleep(seconds)

        return protocol.Contestant(name, run, 10.0)

    rates = protocol.measure([work("a", 0.001), work("b", 0.004)], rounds=6)
    assert len(rates["a"]) == len(rates["b"]) == 6
    order = [name for name, before in zip(turns, [None, *turns[:-1]], strict=True) if name != before][2:]
    assert 6 <= len(order) <= 12  # neither all of one first, nor more than a turn each a round
    assert 500 < min(rates["b"]) <= max(rates["b"]) < 10 / 0.004
    assert protocol.ratio(rates, "a", "b").value > 2


def test_the_interval_covers_the_median_as_often_as_it_says():
    """Of 2,000 skewed samples of nine. Caught: an interval of the mean; ends that are the sample's."""
    draw = random.Random(1)
    median = 0.6931471805599453  # of the exponential distribution
    covered = 0
    for _ in range(2000):
        found = protocol.figure([draw.expovariate(1.0) for _ in range(9)])
        covered += found.low <= median <= found.high
    assert 0.95 <= covered / 2000 <= 0.985  # order statistics of nine cover 96.1 %
    assert str(protocol.figure([1.0, 2.0, 3.0])) == "2"  # too few for one


def test_a_section_is_kept_and_the_page_says_what_is_below_its_goal(tmp_path, monkeypatch):
    """Caught: a goal that is missed and stands nowhere; a section that is gone once another is measured."""
    for module in (protocol, page):
        monkeypatch.setattr(module, "KEPT", tmp_path)
    goals = (
        protocol.Goal("speed", "≥ 2×", "1.5×", False, "Products take it all."),
        protocol.Goal("room", "≤ 1", "0.5", True),
    )
    protocol.Section("A training step", "| a | b |", goals).save("steps")
    kept = protocol.Section.kept("steps")
    assert kept == protocol.Section("A training step", "| a | b |", goals, kept.made)
    assert "commit " in kept.made and "torch " in kept.made
    protocol.Section("The same at small", "| c |", ()).save("steps-cuda-small")
    assert protocol.Section.kept("cells") is None
    text = page.page(["steps"])
    assert "| speed | ≥ 2× | 1.5× | **no** |" in text
    assert "| room | ≤ 1 | 0.5 | yes |" in text
    assert "- **speed**: 1.5×, goal ≥ 2×. Products take it all." in text
    assert f"## A training step\n\n`python benchmarks/steps.py`; {kept.made}.\n\n| a | b |" in text
    assert "## The same at small\n\n`python benchmarks/steps.py`" in text
    assert "- `benchmarks/steps.py` failed when it was run last" in text.split("## Not measured here")[1]
    assert "- `benchmarks/cells.py`" in text.split("## Not measured here")[1]


def test_a_section_that_is_none_is_refused(capsys, monkeypatch):
    """Caught: an hour of other benchmarks for a name that was mistyped."""
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: True)
    assert page.main(page.Options(only=("growth",), device="cuda")) == 2
    assert page.main(page.Options(only=("stpes",))) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'stpes'; with this device and preset it must be of steps, cells" in said


@pytest.mark.parametrize("name", page.SECTIONS)
def test_every_section_is_a_file_that_says_how_it_is_run(name):
    assert f"python benchmarks/{name}.py" in (BENCHMARKS / f"{name}.py").read_text()
