"""The stories are pinned, distinct, consistent with the world they tell of, and ask what cannot be guessed."""

import bisect
import hashlib
import math
import re
from collections import Counter
from dataclasses import fields, replace

import pytest

from lahr.config import DataConfig
from lahr.data import stories
from lahr.data.corpora import find_corpus
from lahr.data.documents import MOST_LABELS, Document, distance_group
from lahr.data.stories import TRAIN_SEEDS, VALIDATION_SEEDS, Stream, story, tell
from lahr.data.story_facts import Asked, groups
from lahr.data.story_grammar import ROLES, Grammar
from lahr.data.story_words import WORDS
from lahr.data.tokenizer import train_bpe
from tests.lahr.data.story_reader import Reader


class Tape:
    """A stream of choices that is written down."""

    def __init__(self, seed: int) -> None:
        self.stream, self.choices = Stream(seed), list[tuple[int, int]]()

    def __call__(self, n: int) -> int:
        self.choices.append((self.stream.pick(n), n))
        return self.choices[-1][0]


@pytest.fixture(scope="module")
def thousand() -> list[Document]:
    return [story(seed) for seed in range(TRAIN_SEEDS, TRAIN_SEEDS + 1000)]


@pytest.fixture(scope="module")
def validation() -> list[Document]:
    return [story(seed) for seed in range(VALIDATION_SEEDS, VALIDATION_SEEDS + 1000)]


def test_first_thousand_stories_are_pinned(thousand: list[Document]) -> None:
    """The same text on every machine and Python. A change of grammar or words changes this on purpose."""
    told = [(text, f"{bits:.6f}", [tuple(answer) for answer in answers]) for text, bits, answers, _ in thousand]
    assert hashlib.sha256(repr(told).encode()).hexdigest()[:16] == "b17b2cfdc4777673"


def test_picks_are_uniform() -> None:
    stream = Stream(1)
    counts = [0] * 7
    for _ in range(70_000):
        counts[stream.pick(7)] += 1
    assert all(abs(count - 10_000) < 500 for count in counts)  # five standard deviations


def test_stories_are_distinct_and_ascii(thousand: list[Document], validation: list[Document]) -> None:
    texts = [document.text for document in thousand + validation]
    assert len(set(texts)) == len(texts)
    assert all(text.isascii() and not re.search(r"  |\n|[{}]|\.\.|,,", text) for text in texts)


@pytest.mark.parametrize("first", [TRAIN_SEEDS, VALIDATION_SEEDS])
def test_floor_is_the_probability_of_the_choices(first: int) -> None:
    for seed in range(first, first + 50):
        tape = Tape(seed)
        told = tell(tape, everything=first == VALIDATION_SEEDS)
        script = iter(tape.choices)
        again = tell(lambda n, script=script: next(script)[0], everything=first == VALIDATION_SEEDS)
        assert "".join(again.parts) == "".join(told.parts) == story(seed).text
        assert next(script, None) is None
        assert story(seed).bits == pytest.approx(sum(math.log2(n) for _, n in tape.choices))


def test_answers_are_what_a_reader_knows(thousand: list[Document], validation: list[Document]) -> None:
    """A reader who follows what is given, hidden, moved, swapped, found and liked finds the same answers, of the same
    kinds, and the same last places that say so; the parts do not overlap."""
    for document in thousand[:500] + validation[:500]:
        found = []
        for start, text, kind, source, pair in Reader(document.text).found:
            held_out = kind == "recall" and pair in stories.GRAMMAR.held_out
            found.append((start, start + len(text), *(("held-out", None) if held_out else (kind, source)), text))
        assert found == [
            (a.start, a.end, a.kind, a.source, document.text[a.start : a.end]) for a in document.answers
        ]
        ends = [0, *(a.end for a in document.answers)]
        assert all(end < a.start for end, a in zip(ends, document.answers, strict=False))
        assert all(a.source is None or a.source <= a.start for a in document.answers)


def test_no_training_story_has_a_pair_that_is_held_out(
    thousand: list[Document], validation: list[Document]
) -> None:
    held_out = stories.GRAMMAR.held_out
    more = [story(seed) for seed in range(1000, 2000)]
    assert not any(Reader(document.text).pairs & held_out for document in thousand + more)
    told = set.union(*(Reader(document.text).pairs for document in validation))
    assert len(told & held_out) > 0.9 * len(held_out)
    kinds = [Counter(a.kind for document in some for a in document.answers) for some in (thousand, validation)]
    assert kinds[0]["held-out"] == 0 and kinds[1]["held-out"] > 0.03 * kinds[1]["recall"]
    setting_pairs = sum(len(s.things) * (len(s.places) + len(WORDS.colours)) for s in WORDS.settings)
    assert 0.05 < len(held_out) / setting_pairs < 0.1
    assert max(Counter(thing for thing, other in held_out if other not in WORDS.colours).values()) == 1


def test_a_large_part_is_answers_from_near_and_far(thousand: list[Document]) -> None:
    """In tokens of the vocabulary of 1,024 that the quick preset has."""
    tokenizer = train_bpe((document.text for document in thousand), 1024)
    tokens = answered = 0
    lengths, distances = [], Counter[str]()
    for document in thousand:
        ends = [end for _, end in tokenizer.encode(document.text).offsets]
        tokens += len(ends)
        lengths.append(len(ends))
        for a in document.answers:
            first = bisect.bisect_right(ends, a.start)
            answered += bisect.bisect_left(ends, a.end) - first + 1
            if a.kind == "recall":
                distances[distance_group(first - bisect.bisect_left(ends, a.source or 0))] += 1
    assert answered / tokens > 0.08
    for group in ("16-32", "32-64", "64-128", "128-256", "256-512"):
        assert distances[group] / distances.total() > 0.05, group
    assert distances["0-16"] / distances.total() < 0.05
    lengths.sort()
    assert lengths[0] < 70 and lengths[100] < 130 and 550 < lengths[900] < 700


def test_questions_are_drawn_by_distance_then_by_relation() -> None:
    """Caught: all facts in one group, so that what most facts are like is asked for most."""
    facts = {"kite": ("", 0)}
    near = [Asked("recall", "colour", "kite", "red", 1000 - told, facts, "kite") for told in (20, 30, 40)]
    far = [Asked("recall", relation, "kite", "red", 1000 - 300, facts, "kite") for relation in ("holder", "likes")]
    now = [Asked("recall", "place", "kite", "red", 1000, facts, "kite")]
    assert groups(now + near + far, 1000) == [[near], [far[:1], far[1:]]]
    assert groups(now, 1000) == [[now]]
    one, two = (Asked("count", "has", "", number, 1000, facts, "kite") for number in ("one", "two"))
    assert groups([one, two, one], 1000) == [[[one, one]], [[two]]]


def test_entropy_is_as_documented(thousand: list[Document]) -> None:
    assert 0.35 < sum(d.bits or 0 for d in thousand) / sum(len(d.text) for d in thousand) < 0.5


def test_answers_cannot_be_guessed(thousand: list[Document]) -> None:
    """Neither the child, thing, colour that was named last is the answer, nor the first child, nor one number."""
    recent, first, numbers = Counter[tuple[str, bool]](), Counter[int](), Counter[str]()
    for document in thousand:
        names = re.findall(r"\b(?:[A-Z][aeio])(?:[a-z][aeio]){2}\b", document.text.split(".")[0])[-3:]
        for a in document.answers:
            answer, before = document.text[a.start : a.end], document.text[: a.start]
            if a.kind == "count":
                numbers[answer] += 1
            elif answer in names:
                recent[f"{a.kind} who", max(names, key=before.rfind) == answer] += 1
                if a.kind != "story":
                    first[names.index(answer)] += 1
            elif answer in WORDS.colours:
                recent[f"{a.kind} colour", max(WORDS.colours, key=before.rfind) == answer] += 1
    for kind, _ in list(recent):
        right, wrong = recent[kind, True], recent[kind, False]
        assert right / (right + wrong) < (0.45 if kind.endswith("who") else 0.65), kind
    assert max(first.values()) / first.total() < 0.4
    assert max(numbers.values()) / numbers.total() < 0.4


def test_labels_are_those_of_the_answers(validation: list[Document]) -> None:
    names = {label.name for label in stories.LABELS}
    kinds = {a.kind if a.source is None else f"{a.kind}/0-16" for document in validation for a in document.answers}
    assert kinds == {name for name in names if "/" not in name or name.endswith("/0-16")}
    assert len(names) == len(stories.LABELS) <= MOST_LABELS
    assert find_corpus(DataConfig()).labels == stories.LABELS
    assert next(find_corpus(DataConfig()).validation()) == validation[0]


def test_no_list_holds_an_entry_twice() -> None:
    all_of = [getattr(WORDS, field.name) for field in fields(WORDS)]
    mappings = [group for group in all_of if isinstance(group, dict)]
    lists = [group for group in all_of if isinstance(group, tuple)] + list(WORDS.names)
    lists += [values for mapping in mappings for values in mapping.values() if isinstance(values, tuple)]
    lists += [part for group in WORDS.replies.values() for part in group]
    lists += [part for setting in WORDS.settings for part in (setting.things, setting.places)]
    for form in ("direct", "indirect"):
        questions = (*WORDS.recall.values(), *WORDS.hops.values(), *WORDS.counts.values())
        lists.append([wording for question in questions for wording in getattr(question, form)])
    lists.append([wording for wordings in WORDS.events.values() for wording in wordings] + [*WORDS.asides])
    assert all(len(set(options)) == len(options) for options in lists)
    assert math.prod(map(len, WORDS.names)) >= 10_000


def test_every_wording_says_what_happens() -> None:
    """Every role that changes something is told, or two events would be one text."""
    for event, wordings in WORDS.events.items():
        needed = {"play": "xt", "look": "tc"}.get(event, ROLES[event].replace("c", ""))
        assert all(f"{{{role}}}" in wording for role in needed for wording in wordings), event


def test_identity_follows_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stories.identity()
    lists = {**WORDS.lists, "said": WORDS.lists["said"][:-1]}
    monkeypatch.setattr(story, "__defaults__", (Grammar(replace(WORDS, lists=lists)),))
    assert stories.identity() != before
