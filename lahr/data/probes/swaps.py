"""`swaps`: who stands at a place after many swaps, for what more passes over the same tokens add.

Objects 1 … n stand at places 1 … n. The first word names a place, `<p3>`; each later one swaps what stands at two
places, `<s1-3>`, and is tagged with the object that then stands at the named place, `<o2>`. Answers are tags, as an
answer that stood in the text would leave only the swaps since then to be followed.

Why no shallow shortcut: swaps generate all n! orders, and S₅ is not solvable, so for n ≥ 5 the word problem is
complete for NC¹ (Barrington 1989), which transformers of fixed depth (TC⁰) are believed not to reach at all lengths;
with the depth at hand they reach some length and no further (Liu et al. 2023, "Transformers Learn Shortcuts to
Automata"; Merrill et al. 2024, "The Illusion of State in State-Space Models"). A fixed place is asked, not a fixed
object: an object's place follows from its last place and the swap, n states, but who comes to a place depends on who
stands everywhere, all n!. To read it backwards takes one look-up for each swap that moved it, 2/n of them, one upon
another. Most is known early on: a guess that the place was not disturbed is right in 1/n + (1 - 1/n) (1 - 2/(n - 1))ᵗ
of the cases after t swaps, 0.6 after one of five and 0.25 after four; hence the groups by t.

Sources: the above; Li et al. 2021, "Implicit Representations of Meaning"; Kim & Schuster 2023, "Entity Tracking in
Language Models".
Size: 126 swaps, 128 tokens; 30 for rows of 32, so that fewer answers are beyond reach. A pilot with those (one seed,
three layers of width 64, 1,250 steps of 32 documents) reached 0.91 in `1-4`, 0.45 in `5-8`, 0.25 in `9-12`, and
chance after.
Chance: 1/n. Ceiling: 1.
Held out: sequences of swaps.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from lahr.data.documents import Label
from lahr.data.probes.probe import Probe, Solved
from lahr.data.stream import Stream

LIMITS = (4, 8, 12, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""The last swaps of the groups."""


@dataclass(frozen=True)
class Swaps(Probe):
    """Parameters of `swaps`. A document is length + 1 words."""

    name = "swaps"
    tagged = True

    objects: int = 5
    """Objects, and places; from 5 on their orders are no solvable group."""
    length: int = 126
    """Swaps in a document, each with an answer."""

    def check_ranges(self) -> None:
        self.check_range("objects", 2, 64)
        self.check_range("length", 1, LIMITS[-1])

    @property
    def bits(self) -> float:
        return math.log2(self.objects) + self.length * math.log2(len(self._pairs))

    @property
    def n_words(self) -> int:
        return self.length + 1

    @cached_property
    def words(self) -> tuple[str, ...]:
        places = range(1, self.objects + 1)
        swaps = (f"<s{a + 1}-{b + 1}>" for a, b in self._pairs)
        return (*(f"<p{i}>" for i in places), *swaps, *(f"<o{i}>" for i in places))

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        return tuple(Label(f"swaps/{group}", 1 / self.objects, 1.0) for group in dict.fromkeys(self._group_of))

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """The places that each swap word exchanges."""
        return list(combinations(range(self.objects), 2))

    @cached_property
    def _group_of(self) -> list[str]:
        """The group of each swap: `1-4`, `5-8`, …"""
        found: list[str] = []
        for limit in LIMITS:
            last, first = min(limit, self.length), len(found) + 1
            found += [f"{first}-{last}"] * (last + 1 - first)
        return found

    def draw(self, stream: Stream) -> list[int]:
        place, swaps = stream.pick(self.objects), stream.picks(len(self._pairs), self.length)
        return [place, *(self.objects + swap for swap in swaps)]

    def solve(self, ids: list[int]) -> list[Solved]:
        place, n, pairs = ids[0], self.objects, self._pairs
        standing = list(self.words[-n:])
        solved = []
        for at, (word, group) in enumerate(zip(ids[1:], self._group_of, strict=True), 1):
            a, b = pairs[word - n]
            standing[a], standing[b] = standing[b], standing[a]
            solved.append((at, group, standing[place]))
        return solved
