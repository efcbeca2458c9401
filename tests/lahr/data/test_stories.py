"""The stories are pinned, distinct, told by one derivation each, and consistent with the world they tell of."""

import hashlib
import itertools
import math
import re
from dataclasses import replace

import pytest

from lahr.data import stories
from lahr.data.stories import story, tell
from lahr.data.story_words import WORDS, Setting, Words
from lahr.data.stream import Stream

SMALL = Words(
    names=(("Ba",), ("ba", "bi", "bo")),
    settings=(
        Setting("park", ("ball", "kite", "drum"), ("under the bench", "by the pond", "near the well", "in it")),
    ),
    colours=("red", "blue", "green"),
    times=("",),
    manners=("",),
    moods=("sad",),
    looks=("old",),
    animals=("cat",),
    motions=("sat",),
    said=("said",),
    thanks=("Thanks",),
    play=(("threw", "up"),),
    use=(("washed", "clean"),),
)
"""Few enough words that every derivation of a short story can be written."""


class Script:
    """A `pick` that follows given choices, modulo the options, then takes the first; it notes how many there were."""

    def __init__(self, choices: tuple[int, ...]) -> None:
        self.choices, self.sizes = choices, list[int]()

    def __call__(self, n: int) -> int:
        self.sizes.append(n)
        i = len(self.sizes) - 1
        return self.choices[i] % n if i < len(self.choices) else 0


class Tape:
    """A stream of choices that is written down."""

    def __init__(self, seed: int) -> None:
        self.stream, self.choices = Stream(seed), list[int]()

    def __call__(self, n: int) -> int:
        self.choices.append(self.stream.pick(n))
        return self.choices[-1]


def test_first_thousand_stories_are_pinned() -> None:
    """The same text on every machine and Python. A change of grammar or words changes this on purpose."""
    text = "\n".join(story(seed)[0] for seed in range(1000))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "fb3c6b703ba36488"


def test_stories_are_distinct_and_ascii() -> None:
    texts = [
        story(seed)[0] for seed in [*range(3000), *range(stories.VALIDATION_SEEDS, stories.VALIDATION_SEEDS + 3000)]
    ]
    assert len(set(texts)) == len(texts)
    assert all(text.isascii() and "  " not in text and "\n" not in text for text in texts)


def test_floor_is_the_probability_of_the_choices() -> None:
    for seed in range(50):
        tape = Tape(seed)
        text = tell(tape)
        script = Script(tuple(tape.choices))
        assert tell(script) == text == story(seed)[0]  # replaying the choices writes the story again
        assert len(script.sizes) == len(tape.choices)
        assert story(seed)[1] == pytest.approx(sum(math.log2(n) for n in script.sizes))


def test_entropy_is_as_documented() -> None:
    some = [story(seed) for seed in range(2000)]
    assert 0.35 < sum(bits for _, bits in some) / sum(len(text) for text, _ in some) < 0.5


@pytest.mark.parametrize(("events", "asides"), [(1, 2), (2, 1)])
def test_every_derivation_of_a_small_grammar_writes_its_own_text(
    monkeypatch: pytest.MonkeyPatch, events: int, asides: int
) -> None:
    """So a text's probability is that of its one derivation; the probabilities of all texts add up to 1."""
    monkeypatch.setattr(stories, "SHORTEST", events)
    monkeypatch.setattr(stories, "LENGTHS", 1)
    monkeypatch.setattr(stories, "ASIDES", asides)
    # The draws of names, things and colours come first and are read off the opening: one of them stands for all.
    seen, total, choices = set(), 0.0, [0] * 10
    while True:
        script = Script(tuple(choices))
        text = tell(script, SMALL)
        assert text not in seen
        seen.add(text)
        total += 1 / math.prod(script.sizes[10:])
        choices = (choices + [0] * len(script.sizes))[: len(script.sizes)]
        while len(choices) > 10 and choices[-1] + 1 == script.sizes[len(choices) - 1]:
            choices.pop()
        if len(choices) == 10:
            break
        choices[-1] += 1
    assert total == pytest.approx(1)
    assert len(seen) > 1000


def test_opening_draws_are_read_off_the_text() -> None:
    openings = {
        " ".join(tell(Script((0, *draws)), SMALL).split()[:30])
        for draws in itertools.product(*map(range, (3, 2, 1) * 3))
    }
    assert len(openings) == 6**3


def test_changing_any_choice_changes_the_text() -> None:
    """With all words: no option of any choice writes the same story as another one."""
    for seed in range(6):
        tape = Tape(seed)
        tell(tape)
        sizes = Script(tuple(tape.choices))
        tell(sizes)
        for i, n in enumerate(sizes.sizes):
            texts = {tell(Script((*tape.choices[:i], other, *tape.choices[i + 1 :]))) for other in range(n)}
            assert len(texts) == n


def test_no_list_holds_a_word_twice() -> None:
    names = ["".join(parts) for parts in itertools.product(*WORDS.names)]
    lists = [
        names,
        WORDS.colours,
        WORDS.times,
        WORDS.manners,
        WORDS.moods,
        WORDS.looks,
        WORDS.animals,
        WORDS.motions,
    ]
    lists += [
        WORDS.said,
        WORDS.thanks,
        [verb for verb, _ in WORDS.play + WORDS.use],
        [s.name for s in WORDS.settings],
    ]
    for options in [*lists, *(s.things for s in WORDS.settings), *(s.places for s in WORDS.settings)]:
        assert len(set(options)) == len(options)
    assert len(names) >= 1000


def test_what_is_told_at_the_end_follows_from_the_story() -> None:
    """A reader who only follows the gifts, hidings, finds and swaps knows who has what."""
    for seed in range(500):
        text = story(seed)[0]
        body, end = text.rsplit("hey went home. ", 1)
        names = re.search(r"(\w+), (\w+) and (\w+) went to", text).groups()  # type: ignore[union-attr]
        holder = {thing: name for name, thing in re.findall(r"(\w+) had an? \w+ (\w+)\.", body)}
        asked = ""
        for sentence in body.split(". "):
            words = [word for word in re.findall(r"\w+", sentence) if word not in WORDS.colours]
            people = [word for word in words if word in names]
            things = [word for word in words if word in holder]
            if '"' in sentence:
                asked = things[0] if "Where" in sentence else asked
            elif "found" in words:
                holder[asked] = people[0]
            elif not people or not things or "had" in words:
                continue
            elif "gave" in words:
                holder[things[0]] = people[1]
            elif "got" in words or "wanted" in words:
                holder[things[0]] = people[0]
            elif "hid" in words or "moved" in words:
                holder[things[0]] = ""
            elif "swapped" in words:
                assert (holder[things[0]], holder[things[1]]) == (people[0], people[1])
                holder[things[0]], holder[things[1]] = people[1], people[0]
            else:
                assert holder[things[0]] == people[0]  # only who holds a thing plays with it
        for name, has in re.findall(r"(\w+) had ([^.]*)\.", end):
            told = set() if has == "nothing" else {part.split()[-1] for part in has.split(" and ")}
            assert told == {thing for thing, who in holder.items() if who == name}, (seed, text)


def test_identity_follows_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stories.identity()
    monkeypatch.setattr(story, "__defaults__", (replace(WORDS, said=WORDS.said[:-1]),))
    assert stories.identity() != before
