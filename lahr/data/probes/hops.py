"""`hops`: chains of look-ups in the context, for what more passes over the same tokens add.

The first word says how many hops are asked, `<p3>`; letters follow, each drawn among all but the one before. A hop
leads from a letter to the one behind its last earlier occurrence (an induction head, Olsson et al. 2022); each letter
from which all p hops can be made is tagged with the letter that they lead to: hop_p of Sanford et al. 2024, with p in
the text as there. Equal neighbours are left out since a hop from the second of them stays where it is. Answers are
grouped by p.

Why no shallow shortcut: every hop needs the one before it. ⌊log₂ p⌋ + 2 layers do, by doubling, and fewer do not
unless they are far wider (conditionally; Sanford et al. 2024, "Transformers, Parallel Computation, and Logarithmic
Depth"); a looped layer does as well as so many layers (Saunshi et al. 2025, "Reasoning with Latent Thoughts: On the
Power of Looped Transformers").
Size: 126 letters of 8, 128 tokens. One hop goes back as many letters as there are different ones, on average, so p
hops are defined from about the p · letters-th letter on. A pilot (one seed, three layers of width 64, 750 steps of 16
documents) reached 1.00, 0.98, 0.81 and 0.26 for p = 1 to 4.
Chance: 1/letters. One hop never leads to the letter it starts from, so knowing that one gives 1/(letters - 1).
Ceiling: 1.
Held out: sequences of letters.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from lahr.data.documents import Label
from lahr.data.probes.probe import Probe, Solved, numbered
from lahr.data.stream import Stream


@dataclass(frozen=True)
class Hops(Probe):
    """Parameters of `hops`. A document is length + 1 words."""

    name = "hops"
    tagged = True

    hops: int = 4
    """Most hops; a document asks 1 to so many, each equally often."""
    letters: int = 8
    """Different letters."""
    length: int = 126
    """Letters in a document."""

    def check_ranges(self) -> None:
        self.check_range("hops", 1, 64)
        self.check_range("letters", 3, 4096)
        self.check_range("length", 2 + self.hops, 1 << 16)

    @property
    def bits(self) -> float:
        return (self.length - 1) * math.log2(self.letters - 1)

    @property
    def n_words(self) -> int:
        return self.length + 1

    @cached_property
    def words(self) -> tuple[str, ...]:
        return (*(f"<p{p}>" for p in range(1, self.hops + 1)), *numbered("x", self.letters))

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        return tuple(Label(f"hops/{group}", 1 / self.letters, 1.0) for group in self._groups)

    @cached_property
    def _groups(self) -> list[str]:
        return [f"p={p}" for p in range(1, self.hops + 1)]

    def draw(self, stream: Stream) -> list[int]:
        ids, n = [stream.pick(self.hops)], self.letters
        letter = stream.pick(n)
        ids.append(self.hops + letter)
        for step in stream.picks(n - 1, self.length - 1):
            letter = (letter + 1 + step) % n
            ids.append(self.hops + letter)
        return ids

    def solve(self, ids: list[int]) -> list[Solved]:
        p, group, words = ids[0] + 1, self._groups[ids[0]], self.words
        behind = [0] * len(words)  # behind the last occurrence of each letter; 0, which is no letter's place: none
        hop = [0] * len(ids)
        solved = []
        for at in range(1, len(ids)):
            hop[at], behind[ids[at]] = behind[ids[at]], at + 1
            reached = at
            for _ in range(p):
                reached = hop[reached]
            if reached:
                solved.append((at, group, words[ids[reached]]))
        return solved
