"""Columns of the HParams tab for whatever a factor's levels are."""

import numpy as np
import pandas as pd
import pytest

from sweeps.reporting.hparams import columns


def test_levels_are_numbers_or_text_and_a_column_is_one_of_them():
    """Seen to fail: True as 1.0; a number among texts; NaN, which a table makes of None, as a number."""
    cells = {
        "base": {"lr": 1e-3, "norm": "rms", "tied": True, "window": None, "slots": 0},
        "wide": {"lr": 2, "norm": "layer", "tied": False, "window": 128.0, "slots": 4096},
    }
    shown = columns(cells)
    assert shown["base"] == {"cell": "base", "lr": 0.001, "norm": "rms", "tied": "true", "window": "none"}
    assert shown["wide"] == {"cell": "wide", "lr": 2.0, "norm": "layer", "tied": "false", "window": "128"}
    table = pd.DataFrame.from_dict(cells, orient="index")  # 128 and None become 128.0 and NaN, True numpy's
    assert columns({cell: dict(row) for cell, row in table.iterrows()}) == shown


def test_there_are_five_columns_and_the_levels_that_differ_come_first():
    cells = {
        "base": {f"same{place}": place for place in range(4)} | {"a": 1, "b": 1},
        "a": {f"same{place}": place for place in range(4)} | {"a": 2, "b": 1},
        "a+b": {f"same{place}": place for place in range(4)} | {"a": 2, "b": 2},
    }
    assert list(columns(cells)["a+b"]) == ["cell", "same0", "same1", "a", "b"]
    assert columns({}) == {}


@pytest.mark.parametrize("value", [np.float64(0.125), np.int64(3), 0.125, 3])
def test_numpys_numbers_are_numbers(value):
    assert columns({"base": {"x": value}})["base"] == {"cell": "base", "x": float(value)}
