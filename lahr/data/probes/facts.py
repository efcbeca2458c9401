"""`facts`: a table of random facts that has to be learnt by heart, for what a static memory adds.

A fact is a key of two words and a value of one, `<a12><b7><v33>`. The value is drawn at random for each pair, so that
neither half of the key says anything of it and nothing but storage helps. A document is a sequence of queries of
different facts, each key followed by its value; the value is the answer, a plain one. As no fact is asked twice in a
document, it can never be copied from the context.

Sources: Allen-Zhu & Li 2024, "Physics of Language Models: Part 3.3, Knowledge Capacity Scaling Laws" (about 2 bits a
parameter after a thousand exposures, 1 after a hundred); Berges et al. 2024, "Memory Layers at Scale" (memory layers
help most with facts).
Size: a table holds facts · log₂(values) bits, 24,576 by default, which 12 k to 25 k parameters can store. So that a
model of a million parameters can be told from one with a memory, give 65,536 facts and more, and a few hundred
exposures.
Chance: the share of the table's most common value. Ceiling: 1.
Held out: sequences of queries. Validation asks the same facts, as the table is what is to be learnt.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from lahr.data.documents import Label
from lahr.data.probes.probe import Probe, Solved, numbered
from lahr.data.stream import Stream
from lahr.errors import check

TABLE_SEEDS = 1 << 56
"""Seeds of tables count from here, apart from those of the documents."""


@dataclass(frozen=True)
class Facts(Probe):
    """Parameters of `facts`. A document is 3 · queries words."""

    name = "facts"
    tagged = False

    facts: int = 4096
    """Facts in the table; their keys fill a square of ⌈√facts⌉ first by as many second words."""
    values: int = 64
    """Words that can be a value, each drawn equally often."""
    queries: int = 85
    """Queries in a document; 42 for rows of about 128 tokens, 85 for 256."""
    table: int = 0
    """Seed of the table."""

    def check_ranges(self) -> None:
        self.check_range("facts", 2, 1 << 20)
        self.check_range("values", 2, 4096)
        self.check_range("queries", 1, 4096)
        self.check_range("table", 0, (1 << 48) - 1)
        check(
            2 * self.queries <= self.facts,
            f"facts: queries is {self.queries}, and a document asks each fact at most once, of {self.facts}; give at "
            f"most half of them, {self.facts // 2}",
        )

    @property
    def bits(self) -> float:
        return sum(math.log2(self.facts - i) for i in range(self.queries))

    @property
    def n_words(self) -> int:
        return 3 * self.queries

    @cached_property
    def side(self) -> int:
        """Words that can be the first half of a key, and that can be the second."""
        return math.isqrt(self.facts - 1) + 1

    @cached_property
    def words(self) -> tuple[str, ...]:
        return numbered("a", self.side) + numbered("b", self.side) + numbered("v", self.values)

    @cached_property
    def answer_of(self) -> list[int]:
        """The value of each fact."""
        return Stream(TABLE_SEEDS + self.table).picks(self.values, self.facts)

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        (_, most), *_ = Counter(self.answer_of).most_common(1)
        return (Label("facts", most / self.facts, 1.0),)

    def draw(self, stream: Stream) -> list[int]:
        asked: dict[int, None] = {}
        while len(asked) < self.queries:
            asked[stream.pick(self.facts)] = None
        side, answer_of = self.side, self.answer_of
        return list(
            chain.from_iterable((fact // side, side + fact % side, 2 * side + answer_of[fact]) for fact in asked)
        )

    def solve(self, ids: list[int]) -> list[Solved]:
        return [(at, "", "") for at in range(2, len(ids), 3)]
