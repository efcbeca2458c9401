"""`stories`: short tales whose every word follows from counted choices, so that the least possible loss is known.

A story is a walk through a small world. Three children bring three things to a place; things are given, hidden,
moved, swapped, asked for and found; at the end it is told who has what. Choices (who, what, where, in which words)
are drawn uniformly; everything else follows from them, and so do later references: where a thing is found is where
it was last put. No two sequences of choices write the same text, so a text's probability is the product of 1/n over
its choices, and −log₂ of it is a floor that no model's mean loss can pass.

A story depends on its seed alone, through a stream of whole numbers of its own (`lahr.data.stream`), so it is the same
on every machine.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

from lahr.data.story_words import WORDS, Words
from lahr.data.stream import Stream

TRAIN_SEEDS = 0
VALIDATION_SEEDS = 1 << 48
"""First seeds of the splits; each counts up from there."""
SHORTEST, LENGTHS = 5, 4
"""A story has SHORTEST to SHORTEST + LENGTHS - 1 events."""
ASIDES = 4
"""After an event come 0 to ASIDES - 1 sentences that change nothing."""

HIDDEN = -1
"""In the place of the child who holds a thing."""

Pick = Callable[[int], int]
"""`pick(n)` is a choice among n ≥ 1 equally likely ones: a number from 0 to n - 1."""


def story(seed: int, words: Words = WORDS) -> tuple[str, float]:
    """The story of that seed, and −log₂ of its probability."""
    stream = Stream(seed)
    return tell(stream.pick, words), math.log2(stream.ways)


def identity() -> str:
    """Changes with the grammar and the words, so that shards of another version are never taken for this one's."""
    return hashlib.sha256(
        "".join(story(seed)[0] for seed in range(TRAIN_SEEDS, TRAIN_SEEDS + 200)).encode()
    ).hexdigest()


def tell(pick: Pick, words: Words = WORDS) -> str:
    """The story that those choices write."""
    scene = _Scene(pick, words)
    scene.open()
    for _ in range(SHORTEST + pick(LENGTHS)):
        events = scene.possible()
        events[pick(len(events))]()
        for _ in range(pick(ASIDES)):
            scene.aside()
    scene.close()
    return " ".join(scene.lines)


class _Scene:
    """The world's state while a story is told: who holds what, and where the rest lies."""

    def __init__(self, pick: Pick, words: Words) -> None:
        self.pick, self.words = pick, words
        self.lines: list[str] = []
        self.setting = self._of(words.settings)
        first, second = words.names
        self.names = [
            first[i // len(second)] + second[i % len(second)] for i in self._draw(len(first) * len(second))
        ]
        self.things = [self.setting.things[i] for i in self._draw(len(self.setting.things))]
        self.colours = [words.colours[i] for i in self._draw(len(words.colours))]
        self.holder = [0, 1, 2]
        """Who holds each thing; HIDDEN where nobody does."""
        self.place = ["", "", ""]
        """Where each hidden thing lies."""
        self.hider = [0, 0, 0]
        """Who put it there."""

    def _of(self, options: tuple[Any, ...]) -> Any:
        return options[self.pick(len(options))]

    def _draw(self, n: int) -> list[int]:
        """Three different numbers below n, in an order that matters."""
        drawn: list[int] = []
        for k in range(3):
            number = self.pick(n - k)
            for earlier in sorted(drawn):  # step over the numbers that are gone
                number += number >= earlier
            drawn.append(number)
        return drawn

    def _one(self, among: list[int]) -> int:
        return among[self.pick(len(among))]

    def _with(self, *children: int) -> list[int]:
        """The things that one of those holds."""
        return [thing for thing in range(3) if self.holder[thing] in children]

    def _the(self, thing: int) -> str:
        """A thing, named in short or in full."""
        return f"the {self.things[thing]}" if self.pick(2) else f"the {self.colours[thing]} {self.things[thing]}"

    # What a story is made of: the opening, the events, the end.

    def open(self) -> None:
        a, b, c = self.names
        self._say(f"{a}, {b} and {c} went to the {self.setting.name}.")
        for name, colour, thing in zip(self.names, self.colours, self.things, strict=True):
            self.lines.append(f"{name} had a {colour} {thing}.")

    def possible(self) -> list[Callable[[], None]]:
        """The events that the state allows."""
        events = [self.who]
        held = self._with(0, 1, 2)
        if held:
            events += [self.give, self.hide, self.play, self.use]
        if len({self.holder[thing] for thing in held}) >= 2:
            events.append(self.swap)
        if len(held) < 3:
            events += [self.find, self.move]
        return events

    def give(self) -> None:
        thing = self._one(self._with(0, 1, 2))
        x = self.holder[thing]
        y = self.holder[thing] = self._one([child for child in range(3) if child != x])
        giver, taker = self.names[x], self.names[y]
        if self.pick(2):
            self._act(giver, f"gave {self._the(thing)} to {taker}.")
            self.lines.append(f'"{self._of(self.words.thanks)}, {giver}," {self._of(self.words.said)} {taker}.')
        else:
            self._act(taker, f"got {self._the(thing)} from {giver}.")

    def hide(self) -> None:
        thing = self._one(self._with(0, 1, 2))
        x, place = self.holder[thing], self._new_place()
        self._act(self.names[x], f"hid {self._the(thing)} {place}.")
        self.holder[thing], self.place[thing], self.hider[thing] = HIDDEN, place, x

    def move(self) -> None:
        thing, x = self._one(self._with(HIDDEN)), self.pick(3)
        place = self._new_place()
        self._act(self.names[x], f"moved {self._the(thing)} from {self.place[thing]} to {place}.")
        self.place[thing], self.hider[thing] = place, x

    def find(self) -> None:
        thing, y = self._one(self._with(HIDDEN)), self.pick(3)
        x, place = self.hider[thing], self.place[thing]
        finder, hider = self.names[y], self.names[x]
        if x == y:
            self._act(finder, f"wanted {self._the(thing)} back and looked {place}.")
        else:
            self._say(f'"Where is {self._the(thing)}?" asked {finder}.')
            self.lines.append(f'"It is {place}," {self._of(self.words.said)} {hider}.')
            self._act(finder, f"looked {place} and found it.")
        self.holder[thing], self.place[thing] = y, ""

    def swap(self) -> None:
        first = self._one(self._with(0, 1, 2))
        x = self.holder[first]
        second = self._one([thing for thing in self._with(0, 1, 2) if self.holder[thing] != x])
        y = self.holder[second]
        self.holder[first], self.holder[second] = y, x
        self._act(self.names[x], f"swapped {self._the(first)} with {self.names[y]} for {self._the(second)}.")

    def who(self) -> None:
        thing, x = self.pick(3), self.pick(3)
        z = self._one([child for child in range(3) if child != x])
        holder = self.holder[thing]
        answer = (
            f"It is {self.place[thing]}"
            if holder == HIDDEN
            else {x: "You do", z: "I do"}.get(holder, f"{self.names[holder]} does")
        )
        self._say(f'"Who has {self._the(thing)}?" asked {self.names[x]}.')
        self.lines.append(f'"{answer}," {self._of(self.words.said)} {self.names[z]}.')

    def play(self) -> None:
        self._handle(self.words.play)

    def use(self) -> None:
        self._handle(self.words.use)

    def aside(self) -> None:
        """Something that changes nothing."""
        words, kind = self.words, self.pick(3)
        if kind == 0:
            animal = f"{self._of(words.looks)} {self._of(words.animals)}"
            self._say(f"{_a(animal)} {self._of(words.motions)} {self._of(self.setting.places)}.")
            return
        name = self.names[self.pick(3)]
        if kind == 1:
            self.lines.append(f"{name} felt {self._of(words.moods)} and {self._of(words.motions)}.")
        else:
            self.lines.append(f'"I feel {self._of(words.moods)}," {self._of(words.said)} {name}.')

    def close(self) -> None:
        self._say("they went home.")
        for child, name in enumerate(self.names):
            has = [self._the(thing) for thing in self._with(child)]
            self.lines.append(f"{name} had {' and '.join(has) or 'nothing'}.")

    def _handle(self, verbs: tuple[tuple[str, str], ...]) -> None:
        thing = self._one(self._with(0, 1, 2))
        verb, rest = self._of(verbs)
        self._act(self.names[self.holder[thing]], f"{verb} {self._the(thing)} {rest}.")

    def _new_place(self) -> str:
        return self._of(tuple(place for place in self.setting.places if place not in self.place))

    def _act(self, who: str, deed: str) -> None:
        manner = self._of(self.words.manners)
        self._say(f"{who} {manner} {deed}" if manner else f"{who} {deed}")

    def _say(self, text: str) -> None:
        time = self._of(self.words.times)
        self.lines.append(f"{time} {text}" if time else text[0].upper() + text[1:])


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
