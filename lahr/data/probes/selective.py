"""`selective`: a few signals in much noise, labelled everywhere, for what routing by content saves (MoD).

One word in `every` is a signal, `<s3>`, the others noise, `<n17>`, at places that only the content shows. Each word
is tagged with a state of the signals so far: by default the last signal but two (`last`, with `back` 3), or their sum
modulo `signals` (`sum`). Work is needed at the signals: each looks for the one before it and keeps it, and in a next
layer fetches what that one keeps; a noise word has only to fetch what the last signal keeps, or nothing if it is tagged
with itself. So a router that spends its capacity on the signals loses little, and one that chooses at random loses
most. Documents begin with `back` signals; words are tagged from the last of those on.

Labels stand at every word, since with labels only on the signals routers learn to skip exactly those: a block's
output at a signal is then wanted for that word's own answer alone, and learned routers were seen to choose about 0 %
of them.

Sources: selective copying in Gu & Dao 2023, "Mamba" (after Jing et al. 2019); Raposo et al. 2024,
"Mixture-of-Depths".
Size: 127 words, 128 tokens, with `every` 8, which is a capacity of 12.5 %; a little more lets all signals pass where a
document has more of them than most.
Chance: 1/signals, and 1/noise at noise that is asked for itself. Ceiling: 1. Groups: answers `signal` and `noise`, by
the word that they are predicted from.
Held out: documents.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from lahr.data.documents import Label
from lahr.data.probes.probe import Probe, Solved, numbered
from lahr.data.stream import Stream


@dataclass(frozen=True)
class Selective(Probe):
    """Parameters of `selective`. A document is `length` words."""

    name = "selective"
    tagged = True

    state: Literal["last", "sum"] = "last"
    """What is asked: `last`, look-ups; `sum`, which has to be carried on from signal to signal, and is far harder."""
    back: int = 3
    """Of `last`, which signal: 1 is the last one, 2 the one before."""
    asked: Literal["state", "itself"] = "state"
    """What noise words are tagged with: the state too, or themselves."""
    every: int = 8
    """One word in so many is a signal, on average."""
    signals: int = 8
    """Different signals."""
    noise: int = 32
    """Different noise words."""
    length: int = 127
    """Words in a document."""

    def check_ranges(self) -> None:
        self.check_range("back", 1, 64)
        self.check_range("every", 1, 4096)
        self.check_range("signals", 2, 4096)
        self.check_range("noise", 1, 1 << 16)
        self.check_range("length", self.back, 1 << 16)

    @property
    def bits(self) -> float:
        return self.back * math.log2(self.signals) + (self.length - self.back) * math.log2(self._kinds)

    @property
    def _kinds(self) -> int:
        return self.signals if self.every == 1 else min(self.signals, self.noise)

    @property
    def n_words(self) -> int:
        return self.length

    @cached_property
    def words(self) -> tuple[str, ...]:
        return numbered("s", self.signals) + numbered("n", self.noise)

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        chances = {
            "signal": 1 / self.signals,
            "noise": 1 / (self.noise if self.asked == "itself" else self.signals),
        }
        groups = ("signal",) if self.every == 1 else ("signal", "noise")
        return tuple(Label(f"selective/{group}", chances[group], 1.0) for group in groups)

    def draw(self, stream: Stream) -> list[int]:
        signals, noise, every = self.signals, self.noise, self.every
        ids = stream.picks(signals, self.back)
        # One number holds three choices: signal or noise, which signal, which noise.
        for choice in stream.picks(every * signals * noise, self.length - self.back):
            choice, kind = divmod(choice, every)
            ids.append(signals + choice // signals if kind else choice % signals)
        return ids

    def solve(self, ids: list[int]) -> list[Solved]:
        so_far: list[int] = []
        solved, state = [], ""
        for at, word in enumerate(ids):
            is_signal = word < self.signals
            if is_signal:
                so_far.append(word)
            if at < self.back - 1:
                continue
            if is_signal:
                state = self.words[self._state(so_far)]
            own = self.asked == "itself" and not is_signal
            solved.append((at, "signal" if is_signal else "noise", self.words[word] if own else state))
        return solved

    def _state(self, so_far: list[int]) -> int:
        """What is asked after those signals."""
        return so_far[-self.back] if self.state == "last" else sum(so_far) % self.signals
