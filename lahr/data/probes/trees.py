"""`trees`: values of nested expressions modulo m, for what more passes over the same tokens add.

Expressions stand in postfix order: `<v4><v4><+>` is 4 + 4, and an operator takes the two values before it that none
has taken yet. Each operator is tagged with its value, `<v3>` modulo 5 in the example. At each word where the two
values' heights allow it, an operator or a new leaf is written with equal probability, so that trees have all shapes
up to `height`, one stands behind another, and a document has a fixed length. Answers are grouped by the operator's
height: `height-1` has two leaves.

Why no shallow shortcut: with + and - alone a value would be a signed sum of its leaves, which one layer can count.
`<~>` is the sum with 0 and 1 exchanged: together with + it generates all orders of the m values, which for m ≥ 5 are
no solvable group, so that values are complete for NC¹ (Barrington 1989), as are Boolean formulas (Buss 1987). All
three operators keep values uniform, which a product, with its zeros, would not: at every height each value is equally
likely, whatever all leaves but one are.

Sources: the above; nested lists as in Nangia & Bowman 2018, "ListOps"; Feng et al. 2023, "Towards Revealing the
Mystery behind Chain of Thought" (modular arithmetic expressions).
Size: 127 words, 128 tokens, about 52 answers, from 20 of height 1 to 5 of height 5. Height 2 is hard already: a pilot
(one seed, three layers of width 64, 63 words of height 3, 1,750 steps of 16 documents) reached 1.00, 0.45 and 0.21 in
heights 1 to 3; with 7 values, 127 words and 1,169 steps 1.00, then chance.
Chance: 1/m. Ceiling: 1.
Held out: sequences of words.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from lahr.data.documents import Label
from lahr.data.probes.probe import Probe, Solved, numbered
from lahr.data.stream import Stream

OPERATORS = ("<+>", "<->", "<~>")


@dataclass(frozen=True)
class Trees(Probe):
    """Parameters of `trees`. A document is `length` words."""

    name = "trees"
    tagged = True

    values: int = 5
    """m: values are 0 … m - 1; from 5 on their orders are no solvable group, and fewer are learnt sooner."""
    height: int = 5
    """Height of the tallest trees; one has up to 2^height leaves."""
    length: int = 127
    """Words in a document."""

    def check_ranges(self) -> None:
        self.check_range("values", 3, 4096)
        self.check_range("height", 1, 64)
        self.check_range("length", 3, 1 << 16)

    @property
    def bits(self) -> float:
        return self.length / 2 * math.log2(self.values)

    @property
    def n_words(self) -> int:
        return self.length

    @cached_property
    def words(self) -> tuple[str, ...]:
        return numbered("v", self.values) + OPERATORS

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        return tuple(Label(f"trees/{group}", 1 / self.values, 1.0) for group in self._groups[1:])

    @cached_property
    def _groups(self) -> list[str]:
        return [f"height-{height}" for height in range(self.height + 1)]

    def draw(self, stream: Stream) -> list[int]:
        leaves, kinds = stream.picks(self.values, self.length), stream.picks(2 * len(OPERATORS), self.length)
        ids, heights = [], list[int]()
        for leaf, kind in zip(leaves, kinds, strict=True):
            if kind < len(OPERATORS) and len(heights) > 1:
                above = 1 + max(heights[-2:])
                if above <= self.height:
                    heights[-2:] = [above]
                    ids.append(self.values + kind)
                    continue
            heights.append(0)
            ids.append(leaf)
        return ids

    def solve(self, ids: list[int]) -> list[Solved]:
        m, words, groups = self.values, self.words, self._groups
        open_: list[tuple[int, int]] = []  # value and height
        solved = []
        for at, word in enumerate(ids):
            if word < m:
                open_.append((word, 0))
                continue
            (b, right), (a, left) = open_.pop(), open_.pop()
            value = (a - b if words[word] == "<->" else a + b) % m
            if words[word] == "<~>" and value < 2:
                value = 1 - value
            height = 1 + max(left, right)
            open_.append((value, height))
            solved.append((at, groups[height], words[value]))
        return solved
