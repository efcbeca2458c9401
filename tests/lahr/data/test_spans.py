"""Answers become labels of the very tokens that hold them, whatever the text's bytes and the tokenizer's merges."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from lahr.data.documents import (
    DISTANCES,
    FIRST,
    UNCOUNTED,
    Answer,
    Document,
    Label,
    distance_group,
    distance_labels,
)
from lahr.data.spans import Encoded, Encoder
from lahr.data.tokenizer import train_bpe
from lahr.errors import ConfigError

LABELS = (Label("plain"), Label("count/two"), *distance_labels("recall"))
NUMBER = {label.name: number for number, label in enumerate(LABELS, 1)}
TEXT = "Señor Ño has the réd ball. The ball is blue, nicht röter. 日本 has a red ball. "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT * 20], 330, ("<k1>", "<k2>"))


def encoded(tokenizer: Tokenizer, document: Document) -> Encoded:
    return Encoder(tokenizer, LABELS, 0).encode(document, tokenizer.encode(document.text).ids)


def offsets(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """By the tokenizer's slow path: first character of each token, and the one behind it."""
    return tokenizer.encode(text).offsets


@given(
    pieces=st.lists(st.sampled_from([*TEXT.split(), "é", "日", " ", "<k1>", "🎈", "x"]), min_size=1, max_size=12),
    data=st.data(),
)
def test_an_answer_is_the_tokens_that_hold_a_character_of_it(
    tokenizer: Tokenizer, pieces: Sequence[str], data: st.DataObject
) -> None:
    """By the offsets that the slow path gives. Caught: characters taken for bytes; a token too few where an answer ends
    in the middle of one; a space before the answer left outside its first token; FIRST on each token."""
    text = data.draw(st.sampled_from([" ", ""])).join(pieces)
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    found = encoded(tokenizer, Document(text, answers=(Answer(start, end, "plain"),)))
    holds = [a < end and b > start for a, b in offsets(tokenizer, text)]
    expected = [NUMBER["plain"] if has else 0 for has in holds] + [0]
    expected[holds.index(True)] += FIRST
    assert found.label.tolist() == expected
    assert found.token.tolist() == found.target.tolist() == [*tokenizer.encode(text).ids, 0]


def test_a_leading_space_is_a_part_of_the_answers_token(tokenizer: Tokenizer) -> None:
    text = "The ball is blue, nicht röter."
    at = text.index("röter")
    found = encoded(tokenizer, Document(text, answers=(Answer(at, at + 5, "plain"),)))
    tokens = np.flatnonzero(found.label)
    assert tokenizer.decode(found.token[tokens].tolist()) == " röter"
    assert found.label[tokens].tolist() == [NUMBER["plain"] + FIRST] + [NUMBER["plain"]] * (len(tokens) - 1)


def test_a_target_is_predicted_behind_the_text_up_to_its_end(tokenizer: Tokenizer) -> None:
    """In place of what goes on there, or of end-of-text. Caught: one token early; the token itself changed."""
    text = "The ball is blue, has a red ball."
    for end in (text.index(" is"), text.index(", has"), len(text)):
        answer = Answer(0, end, "count", group="two", target="<k2>")
        found = encoded(tokenizer, Document(text, answers=(answer,)))
        (place,) = np.flatnonzero(found.label)
        assert tokenizer.decode(found.token[:place].tolist()) == text[:end]
        assert found.label[place] == NUMBER["count/two"] + FIRST
        assert found.target[place] == tokenizer.token_to_id("<k2>")
        others = np.arange(len(found.token)) != place
        assert (found.target == found.token)[others].all()
        assert found.token.tolist() == [*tokenizer.encode(text).ids, 0]


@pytest.mark.parametrize("tokens", [1, *(limit + less for limit in DISTANCES for less in (-1, 0))])
def test_the_distance_is_from_the_sources_last_token_to_the_answers_first(
    tokenizer: Tokenizer, tokens: int
) -> None:
    """Tokens of one character each. Caught: the distance from the token behind the source; one group off at a limit."""
    text = "é" + "<k1>" * tokens + "<k2>"
    source = len("é" + "<k1>")  # behind the first word
    answer = Answer(len(text) - 4, len(text), "recall", source)
    found = encoded(tokenizer, Document(text, answers=(answer,)))
    (name,) = (name for name, number in NUMBER.items() if number + FIRST == found.label[-2])
    assert name == f"recall/{distance_group(tokens)}"
    low, high = name.removeprefix("recall/").split("-")
    assert int(low) <= tokens and (not high or tokens < int(high))


def test_where_only_answers_are_to_be_predicted_the_rest_counts_in_nothing(tokenizer: Tokenizer) -> None:
    """End-of-text too. Caught: `answers_only` ignored where there is no answer; the question not said to be one."""
    text = "The ball is blue, nicht réd."
    at = text.index("blue")
    found = encoded(tokenizer, Document(text, answers=(Answer(at, at + 4, "plain"),), answers_only=True))
    assert found.is_question
    assert set(found.label.tolist()) <= {UNCOUNTED, NUMBER["plain"], NUMBER["plain"] + FIRST}
    assert found.label[-1] == UNCOUNTED and (found.label == NUMBER["plain"] + FIRST).sum() == 1
    none = encoded(tokenizer, Document(text, answers_only=True))
    assert none.is_question and set(none.label.tolist()) == {UNCOUNTED}
    assert not encoded(tokenizer, Document(text)).is_question


def test_answers_that_follow_one_another_stay_apart(tokenizer: Tokenizer) -> None:
    text = "<k1><k2><k1>"
    answers = tuple(Answer(i, i + 4, "plain") for i in (0, 4, 8))
    assert encoded(tokenizer, Document(text, answers=answers)).label.tolist() == [NUMBER["plain"] + FIRST] * 3 + [0]


def test_a_tokenizer_that_changes_the_text_is_refused_where_there_are_answers(tokenizer: Tokenizer) -> None:
    """Caught: answers placed in what is no more their text."""
    lower = Tokenizer.from_str(tokenizer.to_str())
    lower.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    with pytest.raises(ConfigError, match=r"changes the text .* \(24 bytes become \d+\).*use --data.tokenizer bpe"):
        encoded(lower, Document("The Señor has the ball.", answers=(Answer(0, 3, "plain"),)))
    encoded(lower, Document("The Señor has the ball."))  # without answers it is taken as it is


def test_one_that_only_lower_cases_places_answers_where_they_are(tokenizer: Tokenizer) -> None:
    """As many bytes, so each answer is at its place."""
    lower = Tokenizer.from_str(tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    text = "THE ball is blue"
    found = encoded(lower, Document(text, answers=(Answer(4, 8, "plain"),)))
    assert lower.decode(found.token[np.flatnonzero(found.label)].tolist()) == " ball"
