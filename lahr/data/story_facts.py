"""What a reader of a story knows by now, and what can be asked of it."""

from itertools import combinations
from typing import NamedTuple

from lahr.data.story_grammar import Words

Fact = tuple[str, int]
"""What holds of a subject, and the character behind the last text that says so."""
HIDDEN = ""
"""In the place of the child whose things are counted."""
NEAR, LEAD = 48, 40
"""Characters: about 16 tokens, and about what stands in a question before its answer."""


class Asked(NamedTuple):
    """A question that could be asked now."""

    kind: str
    relation: str
    """What it is a question for: a key of `Words.recall`, `hops` or `counts`."""
    subject: str
    answer: str
    source: int
    facts: dict[str, Fact]
    key: str
    """The fact that its answer tells again."""


class Facts:
    """Facts of every relation by their subjects, which are things, or children."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.names: list[str] = []
        self.holder: dict[str, Fact] = {}
        """Of each thing that a child has, which child."""
        self.place: dict[str, Fact] = {}
        """Of each other thing, where it lies."""
        self.colour: dict[str, Fact] = {}
        """Of each thing there is, in the order in which they came."""
        self.brought: dict[str, Fact] = {}
        """Of each thing of the beginning, whose it was."""
        self.hider: dict[str, Fact] = {}
        self.giver: dict[str, Fact] = {}
        self.likes: dict[str, Fact] = {}
        """Of a child, the best food."""
        self.counts: dict[str, Fact] = {}
        """How many things a child has, or nobody."""
        self.sums: dict[str, Fact] = {}
        """How many two children have; not noted before it was asked."""

    def count(self, subject: str, more: int, told: int) -> None:
        """A child, or nobody, has so many more things than before."""
        numbers = self.words.numbers
        number = numbers.index(self.counts.get(subject, numbers)[0]) + more
        self.counts[subject] = numbers[number], told

    def recall(self) -> list[Asked]:
        """A question for every fact, from one side or the other."""
        found = [
            Asked("recall", relation, key, value, told, facts, key)
            for relation in self.words.recall
            if (facts := getattr(self, relation, None))
            for key, (value, told) in facts.items()
        ]
        for relation, facts in (("lies", self.place), ("own", self.brought)):
            found += [
                Asked("recall", relation, value, key, told, facts, key) for key, (value, told) in facts.items()
            ]
        return found

    def hops(self) -> list[Asked]:
        """A question for what follows from two facts or more; its source is the one told last."""
        found: list[Asked] = []
        own = {name: thing for thing, (name, _) in self.brought.items()}

        def hop(relation: str, subject: str, facts: dict[str, Fact], key: str, answer: str, *told: int) -> None:
            found.append(Asked("multi-hop", relation, subject, answer, max(facts[key][1], *told), facts, key))

        for t, (x, told) in self.brought.items():
            if t in self.place:
                hop("now at", x, self.place, t, self.place[t][0], told)
                hop("at brought", self.place[t][0], self.brought, t, x, self.place[t][1])
        for t, (p, told) in self.place.items():
            hop("colour at", p, self.colour, t, self.colour[t][0], told)
        for t, (x, told) in self.holder.items():
            if x in self.likes:
                hop("holder likes", t, self.likes, x, self.likes[x][0], told)
            number, counted = self.counts[x]
            if number == self.words.numbers[1]:
                hop("colour with", x, self.colour, t, self.colour[t][0], told, counted)
        moved = [(t, y, told) for t, (y, told) in self.holder.items() if t != own[y]]
        # At most about one of three is for a thing that its child still has, or guessing that would do.
        unmoved = [(t, y, told) for t, (y, told) in self.holder.items() if t == own[y]]
        unmoved = unmoved[: (len(moved) + 1) // 2] if found or moved else unmoved
        for t, y, told in moved + unmoved:
            hop("holder brought", t, self.brought, own[y], own[y], told)
            if t in self.brought:
                x, since = self.brought[t]
                hop("now with", x, self.holder, t, y, since)
        return found

    def how_many(self) -> list[Asked]:
        """How many things one child, two children or hiding places have."""
        numbers = self.words.numbers
        found = [
            Asked("count", "has" if key else "hidden", key, number, told, self.counts, key)
            for key, (number, told) in self.counts.items()
        ]
        for x, y in combinations(self.names, 2):
            (one, told), (other, since), pair = self.counts[x], self.counts[y], f"{x} and {y}"
            number = numbers[numbers.index(one) + numbers.index(other)]
            self.sums[pair] = number, max(told, since, self.sums.get(pair, ("", 0))[1])
            found.append(Asked("count", "have", pair, *self.sums[pair], self.sums, pair))
        return found


def groups(among: list[Asked], size: int) -> list[list[list[Asked]]]:
    """The questions that can be asked behind so many characters, by what is to be about equally frequent.

    That is first the distance to their source, 16-32 tokens, 32-64 and so on, and less only where nothing else can be
    asked, or their answer where it is a number, since most children have one thing most of the time; and then what
    they are questions for.
    """
    found: dict[int | str, dict[str, list[Asked]]] = {}
    for asked in among:
        group = asked.answer if asked.kind == "count" else ((size + LEAD - asked.source) // NEAR).bit_length()
        found.setdefault(group, {}).setdefault(asked.relation, []).append(asked)
    if len(found) > 1:
        found.pop(0, None)
    return [list(group.values()) for group in found.values()]
