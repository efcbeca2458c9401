"""What all probes share: a probe is a frozen set of parameters that writes documents with known answers.

A document is made of words such as `<k17>`, without spaces; each is one token, and none is a part of another. All
documents of a probe have the same number of words, so that one document, closed by its end-of-text token, is one row
of a model. Only the answers are predicted. A plain answer is a word of the text, predicted from what stands before
it; a tagged one is predicted from a word of the text and never stands in it, so that it gives no later answer away.

A document depends on its seed alone. Training seeds count from 0, validation seeds from 2⁴⁸. Whatever the seed, the
one tenth of all texts whose hash falls out is drawn for validation alone and the rest for training alone, so that no
document is on both sides; what is learnt for one side and asked on the other is said by each probe.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, ClassVar

from lahr.data.documents import Answer, Document, Label
from lahr.data.stream import Stream
from lahr.errors import check

TRAIN_SEEDS = 0
VALIDATION_SEEDS = 1 << 48
"""First seeds of the splits; each counts up from there."""
HELD_OUT = 10
"""One in so many texts is in the validation split alone."""
LEAST_BITS = 48
"""A probe has at least two to this many texts, so that those drawn are distinct and some can be held out."""

Solved = tuple[int, str, str]
"""An answer: the word (its place in the text) that it is or is predicted from, its group, and its target or ""."""


@dataclass(frozen=True)
class Probe(ABC):
    """Parameters of a synthetic task. `ConfigError` where they are out of range."""

    name: ClassVar[str]
    tagged: ClassVar[bool]
    """Whether its answers have targets."""

    def __post_init__(self) -> None:
        self.check_ranges()
        check(
            self.bits >= LEAST_BITS,
            f"{self.shown} has 2**{self.bits:.0f} texts, too few to hold some out; raise its parameters until there "
            f"are 2**{LEAST_BITS}",
        )

    @abstractmethod
    def check_ranges(self) -> None:
        """`ConfigError` for the first parameter out of range."""

    @property
    @abstractmethod
    def bits(self) -> float:
        """log₂ of the number of texts, or less."""

    @property
    @abstractmethod
    def n_words(self) -> int:
        """Words in every document."""

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """All words, those of the targets too. `draw` gives places in this list."""

    @property
    @abstractmethod
    def labels(self) -> tuple[Label, ...]:
        """What its answers are told apart by, with chance and ceiling."""

    @abstractmethod
    def draw(self, stream: Stream) -> list[int]:
        """A text at random, as places in `words`."""

    @abstractmethod
    def solve(self, ids: list[int]) -> Iterable[Solved]:
        """The answers of a text, in its order."""

    @property
    def tokens(self) -> int:
        """Tokens in every document, its end-of-text token among them: the length of a row."""
        return self.n_words + 1

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters and their values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def shown(self) -> str:
        """Its name as it is given on a command line, with all parameters."""
        return ",".join([self.name, *(f"{name}={value}" for name, value in self.parameters.items())])

    def document(self, seed: int) -> Document:
        """The document of that seed, of the split that the seed belongs to."""
        stream, held_out = Stream(seed), seed >= VALIDATION_SEEDS
        words = self.words
        while True:
            ids = self.draw(stream)
            parts = [words[i] for i in ids]
            text = "".join(parts)
            if is_held_out(text) == held_out:
                break
        ends = [*accumulate(map(len, parts)), 0]  # ends[-1] is where the first word starts
        answers = [
            Answer(ends[at - 1], ends[at], self.name, None, group, target) for at, group, target in self.solve(ids)
        ]
        return Document(text, None, tuple(answers), True)

    def check_range(self, name: str, least: int, most: int) -> None:
        """`ConfigError` unless the parameter is from `least` to `most`."""
        value = getattr(self, name)
        check(least <= value <= most, f"{self.name}: {name} is {value}; it must be from {least} to {most}")


def is_held_out(text: str) -> bool:
    """Whether a text is of the tenth that only the validation split has."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % HELD_OUT == 0


def numbered(letter: str, n: int) -> tuple[str, ...]:
    """The words `<a0>`, `<a1>`, … of that letter."""
    return tuple(f"<{letter}{i}>" for i in range(n))
