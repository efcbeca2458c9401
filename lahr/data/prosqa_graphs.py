"""Questions in the form of ProsQA (Hao et al. 2024, "Training Large Language Models to Reason in a Continuous Latent
Space", section 4.1 and appendix A.2), made here: to which of two classes does a person belong?

Facts say that a person is of a class or that every member of a class is of another. Two persons each begin a chain of
`hops` facts to a class that the other's facts do not lead to; these two classes are asked about, of one of the
persons. The rest leads astray. The person asked about is drawn last, so nothing that is said of the classes without
following the facts (how often or where they stand, what leads to or from them) tells which is right: a guess is right
half the time, exactly.

Kinds, all with 20 to 28 facts, so that the longest text is no longer than in training:
- `tree`: every class follows from one fact alone;
- `dag`: several chains lead to each of the two classes; the steps are the shortest one, which no other equals;
- `dense`: 28 facts about 16 classes.
"""

from typing import Any, NamedTuple

from lahr.data.stream import Stream
from lahr.errors import check, nearest

_NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo Jan Kim Leo Mia Nils Olga Pia Rex Sue Tim Una Vic Wes Yan Zoe"
_FIRST, _LAST = "ba de fi go ku la me ni po ru", "bbex chlim dran fsot gmux ldip nkel rvon spay ztic"
NAMES = tuple(_NAMES.split())
CLASSES = tuple(first + last for first in _FIRST.split() for last in _LAST.split())
"""A hundred words that mean nothing."""
FACTS = {"tree": (20, 28), "dag": (22, 26), "dense": (28, 28)}
"""Fewest and most facts in a question of each kind."""
FEWER_CLASSES = {"dag": 18, "dense": 16}
"""Classes in a question; of a tree as many as facts."""
LONGEST = 9
"""Hops for which two chains leave room for what leads astray."""
LONGEST_OF = {"tree": LONGEST, "dag": 6, "dense": 6}
PROPOSALS = 300
"""Facts that are tried for one question before it is begun anew."""

Edge = tuple[int, int]


class Question(NamedTuple):
    """A question, the steps that lead to its answer, and the answer, as text."""

    question: str
    steps: tuple[str, ...]
    answer: str
    hops: int
    """Facts from the person to the answer, the person's own first: as many as steps."""
    kind: str = "tree"


def question(seed: int, hops: int, kind: str = "tree") -> Question:
    """The question of that seed: the same on every machine. `ConfigError` on an unknown kind or hops out of reach."""
    check(kind in FACTS, f"the kind is {kind!r}{nearest(kind, list(FACTS))}; it is one of {', '.join(FACTS)}")
    check(2 <= hops <= LONGEST_OF[kind], f"hops is {hops}; of kind {kind!r} it must be 2 to {LONGEST_OF[kind]}")
    stream = Stream(seed)
    edges = _graph(stream, hops, kind)
    shuffle(stream, edges)
    n_classes = max(child for _, child in edges) - 1
    words = [NAMES[i] for i in draw(stream, len(NAMES), 2)] + [
        CLASSES[i] for i in draw(stream, len(CLASSES), n_classes)
    ]
    asked = stream.pick(2)
    ends = [words[asked + 2 * hops], words[1 - asked + 2 * hops]]
    a, b = ends[:: 1 - 2 * stream.pick(2)]
    facts = [_fact(words, *edge) for edge in edges]
    return Question(
        " ".join((*facts, f"Is {words[asked]} a {a} or a {b}?")),
        tuple(_fact(words, asked + 2 * i, asked + 2 * i + 2) for i in range(hops)),
        f"{words[asked]} is a {ends[0]}.",
        hops,
        kind,
    )


def _fact(words: list[str], parent: int, child: int) -> str:
    return f"{words[parent] if parent < 2 else f'Every {words[parent]}'} is a {words[child]}."


def draw(stream: Stream, n: int, k: int) -> list[int]:
    """k different numbers below n, in an order that matters."""
    numbers = list(range(n))
    shuffle(stream, numbers, k)
    return numbers[:k]


def shuffle(stream: Stream, items: list[Any], k: int | None = None) -> None:
    """Puts a random choice into each of the first k places, by default all, in place (Fisher & Yates 1938)."""
    for i in range(len(items) if k is None else k):
        j = i + stream.pick(len(items) - i)
        items[i], items[j] = items[j], items[i]


def _graph(stream: Stream, hops: int, kind: str) -> list[Edge]:
    """Facts as (what, class): 0 and 1 are the persons, and r, r + 2, …, r + 2·hops is the chain of person r."""
    while True:
        fewest, most = FACTS[kind]
        n_facts = fewest + stream.pick(most - fewest + 1)
        n_nodes = 2 + FEWER_CLASSES.get(kind, n_facts)
        edges = [(node - 2, node) for node in range(2, 2 * hops + 2)]
        edges += [(stream.pick(node), node) for node in range(2 * hops + 2, n_nodes)]
        if kind == "tree":
            return edges
        if kind == "dag":
            for person in (0, 1):
                detours = [
                    (node, on_chain)
                    for node in sorted(_hops_from(edges, person))
                    for on_chain in range(person + 2, person + 2 * hops + 1, 2)
                    if _may_add(edges, (node, on_chain), hops)
                ]
                edges += [detours[stream.pick(len(detours))]] if detours else []
            if len(edges) < n_nodes:  # one of them has none, for lack of side branches
                continue
        for _ in range(PROPOSALS):
            if len(edges) == n_facts:
                return edges
            edge = (stream.pick(n_nodes), 2 + stream.pick(n_nodes - 2))
            if _may_add(edges, edge, hops):
                edges.append(edge)


def _may_add(edges: list[Edge], edge: Edge, hops: int) -> bool:
    """Whether with that fact no class follows from itself, neither person reaches the other's class, and the chains
    stay the shortest ways."""
    parent, child = edge
    after = _hops_from(edges, child)
    if edge in edges or parent in after:
        return False
    for person in (0, 1):
        before = _hops_from(edges, person).get(parent)
        if before is None:
            continue
        if 1 - person + 2 * hops in after:
            return False
        rest = after.get(person + 2 * hops)
        if rest is not None and before + 1 + rest <= hops:
            return False
    return True


def _hops_from(edges: list[Edge], start: int) -> dict[int, int]:
    """What can be reached, with the fewest facts to it."""
    found, latest = {start: 0}, {start}
    while latest:
        latest = {child for parent, child in edges if parent in latest and child not in found}
        found |= dict.fromkeys(latest, max(found.values()) + 1)
    return found
