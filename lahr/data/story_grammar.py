"""What a story's grammar is made of: words, wordings with slots, and the pairs that may occur.

A wording is a sentence with slots in braces. A slot of one letter is a role in the event that is told, and is filled
by what happens (`ROLES` says which an event has); a longer one stands for any phrase of that list.

    x, y, t, u      children and things; `x` has `t`, `y` has `u`
    p, c, f         where `t` lies, its colour, and what `x` likes best, as they are
    q, k, n         a place, a colour and a food that are new
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

HELD_OUT = 12
"""A thing's place or colour is held out of training where its hash modulo this is one of theirs: about 1 in so many."""

ROLES = {
    "own": "xkt",
    "give": "xtyc",
    "hide": "xtqc",
    "move": "ytpq",
    "find": "ytpc",
    "swap": "xtyu",
    "play": "xtcy",
    "look": "ytc",
    "bring": "kty",
    "like": "xn",
    "turn": "xfn",
    "treat": "xf",
    "aside": "yq",
    "break": "yq",
    "kept": "tx",
    "left": "tp",
}
"""The slots that the world fills, in the order of an event's rows."""
DETERMINED = {
    "x": ("holder", "t"),
    "y": ("holder", "u"),
    "p": ("place", "t"),
    "c": ("colour", "t"),
    "f": ("likes", "x"),
}
"""The fact that leaves one value for a slot, and the slot of its subject, once that is told."""


@dataclass(frozen=True)
class Setting:
    """Where a story plays, and what only this place has."""

    name: str
    things: tuple[str, ...]
    """What the children hold, hide and swap."""
    places: tuple[str, ...]
    """Where a thing can be hidden."""


@dataclass(frozen=True)
class Question:
    """How one relation is asked for; its subject is the slot `s`."""

    asks: str
    """What the answer is: a key of `Words.replies`."""
    direct: tuple[str, ...]
    """In the own words of who asks."""
    indirect: tuple[str, ...]
    """What follows "Mum wondered"."""


@dataclass(frozen=True)
class Words:
    """Everything the grammar picks from. No list holds an entry twice."""

    names: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    """A name's three syllables. Together they are far more names than a small model can know by heart."""
    settings: tuple[Setting, ...]
    colours: tuple[str, ...]
    foods: tuple[str, ...]
    numbers: tuple[str, ...]
    """From nought to the most things there are in a story."""
    times: tuple[str, ...]
    """What a sentence may begin with; the empty one leaves it out."""
    lists: Mapping[str, tuple[str, ...]]
    """Phrases for a slot of that name."""
    events: Mapping[str, tuple[str, ...]]
    """Wordings of every event."""
    asides: tuple[str, ...]
    """Sentences that change nothing."""
    breaks: tuple[str, ...]
    """What stands between two chapters."""
    ends: tuple[str, ...]
    kept: tuple[str, ...]
    """How the end tells of a thing `t` that child `x` has."""
    left: tuple[str, ...]
    """How it tells of one that lies at `p`."""
    recall: Mapping[str, Question]
    """Questions for one fact."""
    hops: Mapping[str, Question]
    """Questions for two or three."""
    counts: Mapping[str, Question]
    replies: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    """What an answer follows in speech, and what in narration."""


class Wording(NamedTuple):
    """A sentence taken apart."""

    upper: str
    """What stands before its first slot where it begins with a capital."""
    lower: str
    slots: tuple[tuple[int, tuple[str, ...], str, int, str], ...]
    """Of each slot: its column in the rows, or -1 and its phrases; the relation that determines it, or "", and the
    column of that relation's subject; what stands behind it."""


def take_apart(wording: str, roles: str, words: Words) -> Wording:
    """A wording of an event with those roles."""
    head, *rest = wording.split("{")
    slots = []
    seen = ""
    for part in rest:
        name, _, literal = part.partition("}")
        relation, subject = DETERMINED.get(name, ("", "-"))
        known = subject in seen
        slots.append(
            (
                roles.find(name) if len(name) == 1 else -1,
                words.lists.get(name, ()),
                relation if known else "",
                roles.find(subject) if known else -1,
                literal,
            )
        )
        seen += name if len(name) == 1 else ""
    return Wording(head[:1].upper() + head[1:], head, tuple(slots))


def _hash(text: str) -> int:
    return crc32(text.encode()) % HELD_OUT


class World(NamedTuple):
    """A setting and the pairs that may occur in it."""

    setting: Setting
    colours: tuple[tuple[str, str], ...]
    """Colours with things."""
    places: dict[str, tuple[str, ...]]
    """Where each thing may lie."""


class Grammar:
    """Words, with every wording taken apart."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.questions = {**words.recall, **words.hops, **words.counts}
        wordings = {
            **words.events,
            **{"aside": words.asides, "break": words.breaks, "kept": words.kept, "left": words.left},
        }
        self.wordings = {
            event: tuple(take_apart(text, ROLES[event], words) for text in texts)
            for event, texts in wordings.items()
        }
        self.held_out = frozenset(
            (thing, other)
            for setting in words.settings
            for thing in setting.things
            for others in (setting.places, words.colours)
            for other in others[_hash(thing + others[0]) :][:1]
        )
        """Things with a place or a colour that they have in no training story: at most one of each for a thing, so
        that there is always a place left."""
        self.training_worlds = tuple(self._world(setting, self.held_out) for setting in words.settings)
        self.all_worlds = tuple(self._world(setting, frozenset()) for setting in words.settings)

    def _world(self, setting: Setting, without: frozenset[tuple[str, str]]) -> World:
        def may(thing: str, others: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(other for other in others if (thing, other) not in without)

        pairs = tuple((colour, thing) for thing in setting.things for colour in may(thing, self.words.colours))
        return World(setting, pairs, {thing: may(thing, setting.places) for thing in setting.things})
