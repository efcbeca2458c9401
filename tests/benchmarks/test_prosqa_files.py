"""What a model answers to questions of files."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lahr.data.prosqa import WORDS, document
from lahr.data.prosqa_graphs import question
from lahr.data.tokenizer import words_alone
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
