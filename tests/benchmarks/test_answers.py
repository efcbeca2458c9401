"""The picture of a run's answers: who is drawn, and which tables are refused."""

import pandas as pd
import pytest

from lahr.errors import ConfigError
from tests.benchmarks.conftest import load

answers = load("answers")
CURVE = pd.DataFrame({
    "tokens": [10, 20, 20, 30], "step": [1, 2, 2, 3], "val_loss": [3.0, 2.0, None, 1.0],
    "accuracy/recall": [0.2, 0.5, None, 0.9], "accuracy/recall/16-32": [0.1, 0.4, None, 0.8],
    "accuracy/count": [0.3, 0.3, None, 0.4], "selected/recall": [1.0, 1.0, None, 1.0],
})  # fmt: skip


def test_a_run_becomes_a_table_of_its_evaluations_and_a_picture(tmp_path, monkeypatch):
    """Caught: records without an evaluation; a panel for what routers let through."""
    monkeypatch.setattr(answers, "PROBES", tmp_path)
    (tmp_path / "run").mkdir()
    CURVE.rename(columns={"accuracy/count": "accuracy/swaps"}).to_parquet(tmp_path / "run" / "metrics.parquet")
    with pytest.raises(ConfigError, match="is no table of one run on stories"):
        answers.main(tmp_path / "run", "mine")
    assert not (tmp_path / "mine.csv").exists()  # seen to fail: it was written before it was looked at
    CURVE.to_parquet(tmp_path / "run" / "metrics.parquet")
    answers.main(tmp_path / "run", "mine")
    table = pd.read_csv(tmp_path / "mine.csv")
    assert table["tokens"].tolist() == [10, 20, 30]
    assert "selected/recall" not in table
    assert (tmp_path / "mine.png").stat().st_size > 10_000


def test_a_panel_has_the_answers_of_its_kind_with_chance_and_ceiling():
    figure = answers.picture(CURVE.dropna(), ["recall", "count"])
    shown = [[sorted(set(line.get_ydata())) for line in axes.get_lines()] for axes in figure.axes]
    assert shown == [[[20, 50, 90], [10, 40, 80], [26], [100]], [[30, 40], [38], [100]]]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["all", "16-32 tokens away", "chance", "ceiling"]


@pytest.mark.parametrize("table", [CURVE.assign(trial="a"), CURVE[["tokens", "selected/recall"]]])
def test_a_table_of_something_else_is_refused(tmp_path, table):
    """Caught: a sweep's table, whose picture would be drawn over."""
    table.to_csv(tmp_path / "selective.csv", index=False)
    with pytest.raises(ConfigError, match=r"is no table of one run"):
        answers.main(tmp_path / "selective.csv")
    assert not (tmp_path / "selective.png").exists()
