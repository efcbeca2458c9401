"""What a corpus is made of: documents, and in some the answers that their text determines.

An answer is a part of a document that follows from what stands before it, or a word that is to be predicted at some
place and never stands in the text. Each has a label, `kind` or `kind/group`, and losses and accuracies are told apart
by it. A label is a byte beside each token that is predicted:

    0           text without a label
    1 … 126     an answer of that label, counted from 1 in `Corpus.labels`; + 128 on an answer's first token
    127         not to be predicted: it counts in no loss
"""

from dataclasses import dataclass
from typing import NamedTuple

FIRST = 128
"""Added to the label of an answer's first token, so that answers that follow one another stay apart."""
UNCOUNTED = 127
MOST_LABELS = 126
DISTANCES = (16, 32, 64, 128, 256, 512)
"""Limits, in tokens, of the groups that answers with a source fall into."""


class Answer(NamedTuple):
    """A part of a document that follows from what stands before it."""

    start: int
    end: int
    """It is the text's characters start … end - 1."""
    kind: str
    """Its class, such as `recall`."""
    source: int | None = None
    """The character behind what it follows from (the last thing said of it): its distance in tokens from there to the
    answer's first token is its group."""
    group: str = ""
    """What else it is told apart by, such as the number of swaps; only without a source."""
    target: str = ""
    """A word that is one token: it is to be predicted from the token that ends at `end`, with all text up to there
    seen, in place of what the text goes on with. Empty: the part itself is predicted, from what stands before it."""


class Document(NamedTuple):
    """One text, and what is known of it."""

    text: str
    bits: float | None = None
    """−log₂ of the probability with which its generator writes it, where that is known."""
    answers: tuple[Answer, ...] = ()
    """In the text's order, none over another."""
    answers_only: bool = False
    """Whether nothing but the answers is to be predicted: the rest is noise, or is given."""


@dataclass(frozen=True)
class Label:
    """What answers are told apart by."""

    name: str
    """`kind`, or `kind/group`."""
    chance: float | None = None
    """Accuracy of guessing without reading, where it is known."""
    ceiling: float | None = None
    """The best accuracy that is possible, where it is known; an answer that follows from the text has 1."""


def distance_group(tokens: int) -> str:
    """The group of an answer so many tokens behind its source: `0-16`, `16-32`, …, `512-`."""
    low = 0
    for limit in DISTANCES:
        if tokens < limit:
            return f"{low}-{limit}"
        low = limit
    return f"{low}-"


def distance_labels(kind: str, chance: float | None = None, ceiling: float | None = None) -> tuple[Label, ...]:
    """A label for each group of distances."""
    groups = map(distance_group, (0, *DISTANCES))
    return tuple(Label(f"{kind}/{group}", chance, ceiling) for group in groups)
