"""What a model answers to questions of files."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from lahr.data.prosqa import WORDS, document
from lahr.data.prosqa_graphs import question
from lahr.data.tokenizer import words_alone
from lahr.errors import ConfigError
from tests.benchmarks.conftest import load

load("protocol")
prosqa_files = load("prosqa_files")

TEXTS = [document(question(seed, 3 + seed % 4), 6, 6).text for seed in range(5)]


def trained(wrong: int | None = None, context: int = 112) -> SimpleNamespace:
    """A model that knows what comes next, but for the token so many from the end."""
    tokenizer = words_alone(WORDS, 136)

    def model(tokens_BT: torch.Tensor) -> torch.Tensor:
        rows = [[0, *tokenizer.encode(text).ids] for text in TEXTS]
        logits_BTV = torch.zeros(*tokens_BT.shape, 136)
        for i, tokens_T in enumerate(tokens_BT.tolist()):
            (row,) = (row for row in rows if row[:30] == tokens_T[:30])
            told = list(row)
            if wrong is not None:
                told[-wrong] = 5
            logits_BTV[i, : len(row) - 1] = F.one_hot(torch.tensor(told[1:]), 136).float()
        return logits_BTV

    config = SimpleNamespace(model=SimpleNamespace(max_seq_len=context), precision="fp32")
    return SimpleNamespace(model=model, tokenizer=tokenizer, config=config)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_answer_is_right_where_both_of_its_tokens_are(batch):
    """Caught: one token of the two looked at; a row of another length read at the batch's end."""
    assert prosqa_files.answers(trained(), TEXTS, batch) == [True] * 5
    assert prosqa_files.answers(trained(wrong=1), TEXTS, batch) == [False] * 5
    assert prosqa_files.answers(trained(wrong=2), TEXTS, batch) == [False] * 5
    assert prosqa_files.answers(trained(wrong=3), TEXTS, batch) == [True] * 5


def test_questions_that_do_not_fit_are_left_out():
    lengths = sorted(text.count("<") for text in TEXTS)
    assert len(prosqa_files.answers(trained(context=lengths[2]), TEXTS, 5)) == 3


@pytest.fixture
def swept(monkeypatch):
    """A sweep of two cells in which one trial diverged; what is written is listed."""
    trials = pd.DataFrame(
        {
            "trial": ["a-0", "b-0", "a-1", "b-1"],
            "cell": ["a", "b", "a", "b"],
            "status": ["finished", "finished", "finished", "diverged"],
        }
    )
    results = SimpleNamespace(design=lambda: None, table=lambda design: trials)
    models = {"a-0": trained(), "a-1": trained(wrong=1), "b-0": trained()}
    for model in models.values():
        model.config.data = SimpleNamespace(corpus="prosqa")
    written: list[str] = []
    monkeypatch.setattr(prosqa_files, "Results", SimpleNamespace(at=lambda *_: results))
    monkeypatch.setattr(prosqa_files, "find", lambda place: models[Path(place).name])
    monkeypatch.setattr(prosqa_files, "read_questions", lambda path: list(path.stem))
    monkeypatch.setattr(prosqa_files, "document", lambda question, *_: SimpleNamespace(text=TEXTS[int(question)]))
    monkeypatch.setattr(prosqa_files, "write_rows", lambda *page: written.append(page[-1]))
    return SimpleNamespace(trials=trials, models=models, written=written)


def test_diverged_trials_are_not_asked_and_said(swept, capsys):
    """Seen to fail: their last weights answered, as far as they had any. Caught: an interval of one seed."""
    prosqa_files.main(Path("somewhere/sweep"), [Path("01234.parquet"), Path("02.parquet")])
    assert "1 diverged trials are not asked" in capsys.readouterr().out
    (table,) = swept.written
    assert "| `01234`, 5 of 5 questions | 50.0 ± 635.3 | 100.0 |" in table
    assert "| `02`, 2 of 2 questions |" in table
    swept.trials["status"] = "diverged"
    with pytest.raises(ConfigError, match="has no finished trial"):
        prosqa_files.main(Path("somewhere/sweep"), [Path("0.parquet")])


def test_a_file_of_which_no_question_fits_is_refused(swept):
    """Seen to fail: its share was not a number."""
    swept.models["a-0"].config.model.max_seq_len = 20
    with pytest.raises(ConfigError, match=r"no question of 01 fits into the 20 tokens of a-0"):
        prosqa_files.main(Path("somewhere/sweep"), [Path("01.parquet")])
