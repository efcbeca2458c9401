"""`stories`: short tales whose every word follows from counted choices, so that the least possible loss is known.

A story is a walk through a small world (`story_teller`). Three children bring three things to a place; things are
given, hidden, moved, swapped, found and brought anew, tastes change, and grown-ups ask: for one fact, for what
follows from two, for a number. Choices (who, what, where, in which words) are drawn uniformly; everything else
follows from them. No two sequences of choices write the same text, so a text's probability is the product of 1/n
over its choices, and −log₂ of it is a floor that no model's mean loss can pass.

What follows from the text before it is an answer: `story` in the course of the tale, `recall` of one fact,
`multi-hop` where two or more are needed, `count`. Its source is the last text that says what it follows from, and
questions are drawn so that near and far sources are about as frequent as each other, as far as a story is long.

The splits have seeds of their own, and about a twelfth of all pairs of a thing with a place or a colour, by a fixed
hash, are held out: in training stories no such thing is ever put there or has that colour, since there is no such
choice. Validation stories choose from all, and an answer to a question for one fact that completes such a pair is
`held-out`.

A story depends on its seed alone, through a stream of whole numbers of its own (`stream.py`).
"""

import hashlib
import math

from lahr.data.documents import Document, Label, distance_labels
from lahr.data.story_grammar import Grammar
from lahr.data.story_teller import Pick, Teller
from lahr.data.story_words import WORDS
from lahr.data.stream import Stream

TRAIN_SEEDS = 0
VALIDATION_SEEDS = 1 << 48
"""First seeds of the splits; each counts up from there."""

LABELS: tuple[Label, ...] = (
    *distance_labels("story", 0.27, 1.0),
    *distance_labels("recall", 0.26, 1.0),
    *distance_labels("multi-hop", 0.2, 1.0),
    *distance_labels("count", 0.38, 1.0),
    Label("held-out", 0.125, 1.0),
)
"""Chance is the mean of 1/n over n candidates of the answer's sort, which are three children, eight places, colours
and foods, and the things of the story; for numbers it is the share of the commonest."""

GRAMMAR = Grammar(WORDS)


def story(seed: int, grammar: Grammar = GRAMMAR) -> Document:
    """The story of that seed, −log₂ of its probability, and its answers; from `VALIDATION_SEEDS` with all pairs."""
    stream = Stream(seed)
    teller = tell(stream.pick, grammar, seed >= VALIDATION_SEEDS)
    return Document("".join(teller.parts), math.log2(stream.ways), tuple(teller.answers))


def tell(pick: Pick, grammar: Grammar = GRAMMAR, everything: bool = False) -> Teller:
    """The story that those choices write, told to its end; `everything` allows the pairs that are held out."""
    teller = Teller(pick, grammar, everything)
    while teller.step():
        pass
    return teller


def identity() -> str:
    """Changes with the grammar and the words, so that shards of another version are never taken for this one's."""
    told = [story(seed) for first in (TRAIN_SEEDS, VALIDATION_SEEDS) for seed in range(first, first + 200)]
    return hashlib.sha256(repr(told).encode()).hexdigest()
