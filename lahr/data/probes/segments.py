"""`segments`: pairs given in an earlier segment, for what a memory of earlier segments adds.

A document is S segments of T tokens. A pair is one word, `<k17v3>`; asked for is its key, `<k17>`, tagged with the
value, `<v3>`. Pairs are given that later segments ask for, and between them stands noise. A pair is given once and
asked once; how many segments back it was given is the answer's group. Segment s is asked `each` times by every later
one. Of itself it asks `own` pairs (`0-back`), which attention inside the segment finds: a memory's keys carry no
gradient (Wu et al. 2022), so it is from those that the model learns to look up, and without them no memory is learnt to
be used. The places of pairs and keys among the noise are drawn.

A pair is one word, since with two a model has to find out first that a value belongs to the key before it (an induction
head, Olsson et al. 2022), which small models did not in 10 M tokens.

A row's inputs are an end-of-text token and then the words: window 0 reads T - 1 words and every later one T. With its
own end-of-text token a document is S · T tokens.

Sources: Wu et al. 2022, "Memorizing Transformers"; associative recall as in Arora et al. 2023, "Zoology".
Size: 4 windows of 64 (model.max_seq_len 64, data.segments 4) with 56 answers in 256 tokens.
Chance: 1 in `values`; beyond `0-back` it is all that a model without a memory reaches. Ceiling: 1.
Held out: documents. Keys get new values in each, so that nothing of one helps in another.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from lahr.data.documents import Label
from lahr.data.probes.probe import Probe, Solved, numbered
from lahr.data.stream import Stream
from lahr.errors import check

NOISE = 32
"""Different noise words."""
MOST_PAIRS = 1 << 14
"""Words for pairs at most."""


@dataclass(frozen=True)
class Segments(Probe):
    """Parameters of `segments`. A document is segments · window - 1 words."""

    name = "segments"
    tagged = True

    segments: int = 4
    """Segments of a document: data.segments."""
    window: int = 64
    """Tokens in a segment: model.max_seq_len."""
    each: int = 4
    """Pairs that a segment asks of each earlier one."""
    own: int = 8
    """Pairs that a segment asks of itself."""
    keys: int = 64
    """Words that can be a key; a document has as many different ones as pairs."""
    values: int = 8
    """Words that can be a value, each drawn equally often."""

    def check_ranges(self) -> None:
        self.check_range("segments", 2, 64)
        self.check_range("window", 3, 1 << 16)
        self.check_range("each", 1, self.window - 1)
        self.check_range("own", 0, self.window // 2)
        self.check_range("keys", 2, 4096)
        self.check_range("values", 2, 4096)
        items = (self.segments - 1) * self.each + 2 * self.own
        check(
            items < self.window,
            f"segments: each is {self.each} and own {self.own}, which makes {items} words in a segment, and it has "
            f"room for {self.window - 1}; lower one of them, or give a longer window or fewer segments",
        )
        check(
            self.keys * self.values <= MOST_PAIRS,
            f"segments: keys is {self.keys} and values {self.values}, and every pair is a word; give at most "
            f"{MOST_PAIRS} pairs",
        )
        check(
            self.n_pairs <= self.keys,
            f"segments: keys is {self.keys}, and a document has {self.n_pairs} pairs of different keys; give at least "
            "as many",
        )

    @property
    def n_pairs(self) -> int:
        """Pairs in a document, each given once and asked once."""
        return self.segments * (self.segments - 1) // 2 * self.each + self.segments * self.own

    @property
    def bits(self) -> float:
        return self.n_pairs * math.log2(self.values) + (self.n_words - 2 * self.n_pairs) * math.log2(NOISE)

    @property
    def n_words(self) -> int:
        return self.segments * self.window - 1

    @cached_property
    def words(self) -> tuple[str, ...]:
        pairs = (f"<k{key}v{value}>" for key in range(self.keys) for value in range(self.values))
        return (*numbered("k", self.keys), *pairs, *numbered("n", NOISE), *numbered("v", self.values))

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        backs = range(0 if self.own else 1, self.segments)
        return tuple(Label(f"segments/{back}-back", 1 / self.values, 1.0) for back in backs)

    @cached_property
    def _pairs_of(self) -> list[list[int]]:
        """The pairs that each segment gives or asks, by number."""
        found: list[list[int]] = [[] for _ in range(self.segments)]
        between = [(given, asked) for given in range(self.segments) for asked in range(given + 1, self.segments)]
        own = [(segment, segment) for segment in range(self.segments)]
        for pair, (given, asked) in enumerate(between * self.each + own * self.own):
            found[given].append(pair)
            found[asked].append(pair)
        return found

    def draw(self, stream: Stream) -> list[int]:
        keys = _some(stream, self.keys, self.n_pairs)
        values = stream.picks(self.values, self.n_pairs)
        noise, given = self.keys * (1 + self.values), set[int]()
        ids: list[int] = []
        for segment, pairs in enumerate(self._pairs_of):
            room = self.window - (segment == 0)
            # Items in random order: the first len(pairs) numbers are pairs, the others noise.
            items = [*pairs, *(-1 - i for i in stream.picks(NOISE, room - len(pairs)))]
            for item in _shuffled(stream, items):
                if item < 0:
                    ids.append(noise - 1 - item)
                elif item in given:
                    ids.append(keys[item])
                else:
                    given.add(item)
                    ids.append(self.keys + keys[item] * self.values + values[item])
        return ids

    def solve(self, ids: list[int]) -> list[Solved]:
        given: dict[int, tuple[int, int]] = {}
        solved: list[Solved] = []
        for at, word in enumerate(ids):
            segment = (at + 1) // self.window
            if word < self.keys:
                before, value = given[word]
                solved.append((at, f"{segment - before}-back", f"<v{value}>"))
            elif word < self.keys * (1 + self.values):
                key, value = divmod(word - self.keys, self.values)
                given[key] = segment, value
        return solved


def _some(stream: Stream, n: int, count: int) -> list[int]:
    """So many different numbers below `n`, in random order."""
    return _shuffled(stream, list(range(n)), count)


def _shuffled(stream: Stream, items: list[int], count: int | None = None) -> list[int]:
    """The items, or the first `count` of them, in an order at random (Fisher-Yates)."""
    n = len(items)
    for i in range(n if count is None else count):
        j = i + stream.pick(n - i)
        items[i], items[j] = items[j], items[i]
    return items[:count]
