"""Each text has one derivation, so the probability of its choices is that of the text: a parser finds them all."""

import math
from dataclasses import replace
from typing import TypeVar

import pytest

from lahr.data import stories
from lahr.data.story_facts import Facts
from lahr.data.story_grammar import Grammar, Words
from lahr.data.story_teller import Teller
from lahr.data.story_words import WORDS

T = TypeVar("T")


class Refuted(Exception):
    """Raised at a choice behind text that is not the one to parse."""


class Parser:
    """All derivations of a text: a search over the outcomes of every choice, given up where the text says otherwise.

    It knows nothing of the grammar: a step of a teller is told again and again from a copy, each time with another
    script of choices, and with 0 for those behind it. `found` has, for each derivation, in how many ways its choices
    could have gone.
    """

    def __init__(self, text: str, grammar: Grammar, everything: bool) -> None:
        self.text, self.found = text, list[int]()
        hypotheses = [(Teller(self.pick, grammar, everything), 1)]
        while hypotheses:
            hypotheses += self.steps(*hypotheses.pop())

    def pick(self, n: int) -> int:
        made = len(self.made)
        if made < len(self.script):
            choice = self.script[made]
        elif self.agrees():
            choice = 0
            self.scripts += [(*self.made, other) for other in range(1, n)]
        else:
            raise Refuted
        self.made.append(choice)
        self.ways *= n
        return choice

    def agrees(self) -> bool:
        return self.text.startswith("".join(self.parts[self.first :]), self.begin)

    def steps(self, before: Teller, ways: int) -> list[tuple[Teller, int]]:
        """Every next step that the text allows, told; one that ends the story and the text is noted."""
        told, self.scripts = list[tuple[Teller, int]](), [()]
        self.first, self.begin = len(before.parts), before.size
        while self.scripts:
            self.script, self.made, self.ways = self.scripts.pop(), [], ways
            teller = clone(before)
            self.parts = teller.parts
            try:
                going_on = teller.step()
            except Refuted:
                continue
            if self.agrees() and going_on:
                told.append((teller, self.ways))
            elif self.agrees() and teller.size == len(self.text):
                self.found.append(self.ways)
        return told


def clone(told: T) -> T:
    """A copy of a teller that does not share what a step changes."""
    other = object.__new__(type(told))
    other.__dict__ = {
        name: value.copy() if type(value) in (list, dict) else clone(value) if type(value) is Facts else value
        for name, value in vars(told).items()
    }
    return other


@pytest.mark.parametrize("first", [stories.TRAIN_SEEDS, stories.VALIDATION_SEEDS])
def test_every_story_has_one_derivation(first: int) -> None:
    """Of four hundred, all that are short and some of any length: the search takes a second for a long one."""
    documents = [stories.story(seed) for seed in range(first, first + 400)]
    some = [document for i, document in enumerate(documents) if len(document.text) < 500 or i % 40 == 0]
    assert len(some) > 80
    for document in some:
        (ways,) = Parser(document.text, stories.GRAMMAR, first == stories.VALIDATION_SEEDS).found
        assert math.log2(ways) == document.bits


CUT_TWICE = {"mood": ("sad", "sad and sat"), "motion": ("sat", "sat and sat"), "why": ("",)}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (replace(WORDS, lists={**WORDS.lists, "other": ("Tom", *WORDS.lists["other"])}), "Tom "),
        (replace(WORDS, times=(*WORDS.times, "Then ")), "Then "),
        (replace(WORDS, kept=(*WORDS.kept, WORDS.kept[0])), " was with "),
        (replace(WORDS, lists={**WORDS.lists, **CUT_TWICE}), "felt sad and sat and sat."),
    ],
)
def test_the_parser_finds_two_derivations_where_there_are_two(words: Words, part: str) -> None:
    """A name, a phrase and a wording that are there twice, and two phrases that can be cut in two places."""
    grammar = Grammar(words)
    texts = [text for text in (stories.story(seed, grammar).text for seed in range(300)) if part in text]
    text = min(texts, key=len)
    assert len(Parser(text, grammar, False).found) == 2 ** text.count(part)


def test_a_text_that_no_choices_write_has_no_derivation() -> None:
    text = stories.story(0).text
    assert not Parser(text.replace(" and ", " or ", 1), stories.GRAMMAR, False).found
    assert not Parser(text[:-1], stories.GRAMMAR, False).found
    assert not Parser(text + " ", stories.GRAMMAR, False).found
