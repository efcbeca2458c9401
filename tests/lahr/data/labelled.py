"""A small corpus with answers, by hand: what the generated ones do not need a network or a grammar for."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lahr.config import DataConfig
from lahr.data import TokenData, preparation, prepare
from lahr.data.corpora import Corpus
from lahr.data.documents import Answer, Document, Label, distance_labels

NAMES = ("Ana", "Bela", "Cem", "Dora", "Eño", "Finn")
COLOURS = ("red", "blue", "green", "pink")
WORDS = ("<yes>", "<no>")


def story(seed: int) -> Document:
    """Some have their colours told again, which are answers, and one is asked at its end with a tag."""
    names = [NAMES[(seed + 5 * i) % 6] for i in range(1 + seed % 3)]
    text, answers, told = f"Story {seed}.", [], {}
    for i, name in enumerate(names):
        colour = COLOURS[(seed * 7 + i * 3) % 4]
        text += f" {name} has a {colour} ball."
        told[name] = (colour, len(text))
    for name, (colour, source) in told.items():
        text += f" The ball of {name} is "
        answers.append(Answer(len(text), len(text) + len(colour), "recall", source))
        text += f"{colour}."
    answers.append(Answer(len(text) - 1, len(text), "many", target=WORDS[len(names) % 2]))
    return Document(text, float(len(text)), tuple(answers), answers_only=seed % 4 == 3)


def corpus(first: int = 0, n: int | None = None) -> Corpus:
    """Stories without an end, or so many in each split."""

    def side(start: int) -> Callable[[], Iterator[Document]]:
        return lambda: map(story, range(start, start + n) if n is not None else itertools.count(start))

    labels = (Label("many", chance=0.5, ceiling=1.0), *distance_labels("recall", chance=0.25))
    return Corpus("by hand", "stories by hand", side(first), side(first + 10**6), labels, WORDS, tagged=True)


def use(monkeypatch: pytest.MonkeyPatch, found: Corpus) -> None:
    """Every corpus is this one."""
    monkeypatch.setattr(preparation, "find_corpus", lambda config: found)


def prepared(config: DataConfig, vocab_size: int, block: int, cache: Path) -> TokenData:
    """The stories by hand as tokens, few of them."""
    with pytest.MonkeyPatch.context() as patched:
        use(patched, corpus())
        patched.setattr(preparation, "LEAST_VALIDATION_TOKENS", 1 << 12)
        return prepare(config, vocab_size, block, cache)


def words_only(n: int = 300) -> Corpus:
    """Documents of nothing but words, no two of which are alike."""
    words = tuple(f"<w{i}>" for i in range(20))

    def document(i: int) -> Document:
        text = "".join(words[(i * 7 + j * j) % 20] for j in range(3 + i % 5))
        return Document(text, answers=(Answer(len(text) - len(words[0]), len(text), "last"),), answers_only=True)

    def side(start: int) -> Callable[[], Iterator[Document]]:
        return lambda: map(document, range(start, start + n))

    return replace(
        corpus(),
        train=side(0),
        validation=side(n),
        labels=(Label("last"),),
        words=words,
        only_words=True,
        tagged=False,
    )


STAGES = 3


def staged(n: int = 24) -> Corpus:
    """The same questions in `STAGES` stages; each stage says its number before the answer."""
    words = tuple(f"<w{i}>" for i in range(40))

    def document(i: int, stage: int) -> Document:
        text = words[i % 20] + words[i // 20] + words[30 + stage]
        last = words[(i * 7) % 20]
        return Document(
            text + last, answers=(Answer(len(text), len(text + last), "last"),), answers_only=i % 2 == 0
        )

    return replace(
        corpus(),
        identity=f"staged {n}",
        train=lambda: (document(i, stage) for stage in range(STAGES) for i in range(n)),
        validation=lambda: (document(i, STAGES - 1) for i in itertools.count(n)),
        labels=(Label("last"),),
        words=words,
        only_words=True,
        tagged=False,
        stages=STAGES,
    )


def prepared_stages(config: DataConfig, vocab_size: int, block: int, cache: Path, n: int = 24) -> TokenData:
    """Those questions as tokens."""
    with pytest.MonkeyPatch.context() as patched:
        use(patched, staged(n))
        patched.setattr(preparation, "LEAST_VALIDATION_TOKENS", 1 << 10)
        return prepare(config, vocab_size, block, cache)
