"""The trigram is a probability: it sums to 1 after any context, and it backs off as Kneser and Ney say."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SPEC = importlib.util.spec_from_file_location("trigram", Path(__file__).parents[2] / "benchmarks" / "trigram.py")
assert SPEC and SPEC.loader
trigram = sys.modules.setdefault("trigram", importlib.util.module_from_spec(SPEC))
SPEC.loader.exec_module(trigram)

V = 7


@pytest.fixture
def text() -> np.ndarray:
    """Rows of a skewed random text that leaves out token 6, and many contexts."""
    rng = np.random.default_rng(0)
    return rng.choice(V - 1, size=(12, 40), p=np.array([32, 16, 8, 4, 2, 1]) / 63)


def test_probabilities_add_up_to_one_after_every_context(text: np.ndarray) -> None:
    model = trigram.Trigram(text, V)
    u, v, w = np.meshgrid(np.arange(-1, V), np.arange(V), np.arange(V), indexing="ij")
    p = model.probability(u, v, w)
    assert p.min() > 0
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-12)


def test_lower_order_counts_contexts_not_occurrences() -> None:
    # Token 2 follows 1 ten times, token 4 follows 0, 1 and 3 once each: after a new context 4 is the better guess.
    rows = np.array([[1, 2]] * 10 + [[0, 4], [1, 4], [3, 4]])
    rows = np.concatenate([rows, np.full((13, 1), 5)], axis=1)
    model = trigram.Trigram(rows, V)
    unknown = np.array([-1]), np.array([6])
    assert model.probability(*unknown, np.array([4])) > 2 * model.probability(*unknown, np.array([2]))


def test_by_hand_with_absolute_discounting() -> None:
    # 0 1 2 twice, 0 1 3 once: too few counts of counts to estimate discounts, so 0.75 each.
    model = trigram.Trigram(np.array([[0, 1, 2], [0, 1, 2], [0, 1, 3]]), 4)
    one = np.array([0, 0.25, 0.25, 0.25]) / 3 + 0.75 / 4  # 1, 2 and 3 each follow one token
    two = np.array([0, 0, 0.25, 0.25]) / 2 + 0.75 * one  # after 1: 2 and 3, each in one context
    three = np.array([0, 0, 1.25, 0.25]) / 3 + 0.5 * two
    got = model.probability(np.zeros(4, int), np.ones(4, int), np.arange(4))
    np.testing.assert_allclose(got, three, rtol=1e-12)
    at_start = model.probability(np.full(4, -1), np.ones(4, int), np.arange(4))
    np.testing.assert_allclose(at_start, two, rtol=1e-12)


def test_more_of_the_same_text_is_predicted_better(text: np.ndarray) -> None:
    pattern = np.tile([0, 1, 2, 3, 4, 5], (20, 7))
    assert trigram.Trigram(pattern, V).loss(pattern) < 0.1 < trigram.Trigram(text, V).loss(pattern)


def test_windows_do_not_run_into_each_other() -> None:
    rows = np.array([[0, 1, 2], [3, 4, 5]])
    model = trigram.Trigram(rows, V)
    across = model.probability(np.array([1]), np.array([2]), np.array([3]))
    assert across == pytest.approx(model.probability(np.array([-1]), np.array([6]), np.array([3])))
