"""Several corpora as one, each with its share: `0.7 stories + 0.3 books.txt`.

A share is one of the BYTES of text, not of tokens: the tokenizer is trained on the mixture, so it cannot be asked
first. The next document is of the corpus that is furthest behind its share (of equals the first named), in both splits,
so the mixture is the same on every machine. No corpus is repeated: where one that is due has run out, reading ends in
an error.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lahr.config import DataConfig
from lahr.data.corpora import Corpus, exists, find_corpus
from lahr.data.documents import MOST_LABELS, Document, Label
from lahr.errors import ConfigError, check

MOST_OFF = 1e-6
"""How far from 1 the weights may sum to."""
BYTES_A_TOKEN = 4
"""Near enough, for advice on a budget of tokens where bytes are known."""
_WEIGHT = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PART = re.compile(rf"({_WEIGHT})\s+(\S.*)", re.DOTALL)
_BETWEEN = re.compile(rf"\s+\+\s+(?={_WEIGHT}\s)")
_PLUS = re.compile(r"\s\+\s")


class RanOut(ConfigError):
    """A corpus of a mixture has no document left, and is due."""


class Part(NamedTuple):
    """A corpus of a mixture, and its share of the bytes."""

    weight: float
    name: str


def is_mixture(name: str) -> bool:
    """Whether a name that is no file's is meant as a mixture."""
    return bool(_PART.fullmatch(name) or _PLUS.search(name))


def parts_of(name: str) -> list[Part]:
    """The parts that a mixture names. `ConfigError` where it is written wrongly or its weights do not sum to 1."""
    parts = []
    for written in _BETWEEN.split(name.strip()):
        found = _PART.fullmatch(written.strip())
        inner = found[2] if found else written
        # A file whose name has ' + ' in it is a part; anything else with one is two parts, the second unweighted.
        missing = not found or (_PLUS.search(inner) is not None and not exists(inner))
        check(
            not missing,
            f"data {name!r}: no such file, and as a mixture {written.strip()!r} lacks a weight; give each part one, "
            "as in '0.7 stories + 0.3 books.txt'",
        )
        assert found
        parts.append(Part(float(found[1]), found[2].strip()))
    check(
        len(parts) > 1,
        f"data {name!r} is no file, and a mixture of one corpus; write {parts[0].name!r} alone, or add ' + ' and "
        "another with its weight",
    )
    names = [part.name for part in parts]
    twice = next((n for n in names if names.count(n) > 1), None)
    check(twice is None, f"data {name!r} has {twice!r} twice; name it once, with the sum of its weights")
    for part in parts:
        check(
            0 < part.weight < math.inf,
            f"data {name!r}: the weight of {part.name!r} is {part.weight:g}; weights are above 0 and sum to 1",
        )
    total = math.fsum(part.weight for part in parts)
    check(
        abs(total - 1) <= MOST_OFF,
        f"data {name!r}: its weights sum to {total:.10g}, and shares sum to 1; write {joined(_normalised(parts))!r}",
    )
    return parts


def joined(parts: Sequence[Part]) -> str:
    """The mixture's name."""
    return " + ".join(f"{part.weight!r} {part.name}" for part in parts)


def mixture(config: DataConfig) -> Corpus:
    """The corpora that `config.corpus` names, interleaved. `ConfigError` where one cannot be had or has a curriculum,
    two have the same text, or their labels cannot stand together."""
    parts = parts_of(config.corpus)
    corpora = [_found(part, config) for part in parts]
    for i, corpus in enumerate(corpora):
        same = [parts[j].name for j in range(i) if corpora[j].identity == corpus.identity]
        check(
            not same,
            f"data {config.corpus!r}: {parts[i].name!r} is the same text as {', '.join(map(repr, same))}; "
            "name it once, with the sum of the weights",
        )
        check(
            corpus.stages == 1,
            f"data {config.corpus!r}: {parts[i].name!r} has {corpus.stages} stages, which are read one after "
            "another, and a mixture has none; give it alone",
        )
    return _mixed(parts, corpora, config.train_tokens)


def _mixed(parts: Sequence[Part], corpora: Sequence[Corpus], train_tokens: int) -> Corpus:
    def taken() -> dict[str, Any]:
        return {"weights": [part.weight for part in parts], "parts": [corpus.taken() for corpus in corpora]}

    def train() -> Iterator[Document]:
        return _interleaved(parts, [corpus.train() for corpus in corpora], "", train_tokens)

    def validation() -> Iterator[Document]:
        return _interleaved(parts, [corpus.validation() for corpus in corpora], "the validation split of ", None)

    def again(taken: dict[str, Any]) -> Corpus | None:
        found = [corpus.at(own) for corpus, own in zip(corpora, taken["parts"], strict=True)]
        known = [corpus for corpus in found if corpus is not None]
        return _mixed(parts, known, train_tokens) if len(known) == len(found) else None

    return Corpus(
        identity="mixture "
        + " + ".join(f"{p.weight!r} ({c.identity})" for p, c in zip(parts, corpora, strict=True)),
        description=joined([Part(p.weight, c.description) for p, c in zip(parts, corpora, strict=True)]),
        train=train,
        validation=validation,
        labels=_labels(parts, corpora),
        words=tuple(dict.fromkeys(word for corpus in corpora for word in corpus.words)),
        only_words=all(corpus.only_words for corpus in corpora),
        tagged=any(corpus.tagged for corpus in corpora),
        taken=taken,
        as_taken=again,
    )


def _found(part: Part, config: DataConfig) -> Corpus:
    try:
        return find_corpus(replace(config, corpus=part.name))
    except ConfigError as error:
        raise ConfigError(f"{part.name!r}, a part of the mixture: {error}") from error


def _labels(parts: Sequence[Part], corpora: Sequence[Corpus]) -> tuple[Label, ...]:
    """The labels of all, each once."""
    labels: dict[str, Label] = {}
    for part, corpus in zip(parts, corpora, strict=True):
        for label in corpus.labels:
            known = labels.setdefault(label.name, label)
            check(
                known == label,
                f"{part.name!r} and another part of the mixture both label answers {label.name!r}, and mean different "
                f"things ({known} and {label}); leave one of them out",
            )
    counts = ", ".join(f"{p.name} {len(c.labels)}" for p, c in zip(parts, corpora, strict=True))
    check(
        len(labels) <= MOST_LABELS,
        f"the mixture's answers have {len(labels)} labels ({counts}), and {MOST_LABELS} can be told apart; leave a "
        "part out",
    )
    return tuple(labels.values())


def _interleaved(
    parts: Sequence[Part], streams: Sequence[Iterator[Document]], split: str, train_tokens: int | None
) -> Iterator[Document]:
    """Documents of all, each from the part that is furthest behind. `RanOut` where that one has none left."""
    total, have = 0, [0] * len(parts)
    while True:
        due = max(range(len(parts)), key=lambda i: parts[i].weight * total - have[i])
        document = next(streams[due], None)
        if document is None:
            part = parts[due]
            raise RanOut(
                f"{split}{part.name!r} ran out after {have[due] / 1e6:.3g} MB, and its share of {part.weight:g} asks "
                f"for more (the mixture has {total / 1e6:.3g} MB so far); "
                + _advice(part.weight, have[due], total, train_tokens)
            )
        size = len(document.text.encode())
        total, have[due] = total + size, have[due] + size
        yield document


def _advice(weight: float, have: int, total: int, train_tokens: int | None) -> str:
    if train_tokens is None or not have:
        return "give more of it, or lower its weight"
    lower = 0.9 * min(have / (BYTES_A_TOKEN * train_tokens), weight)
    tokens = 0.9 * min(total / BYTES_A_TOKEN, train_tokens)
    return (
        f"lower its weight to about {_below(lower):g} or --data.train-tokens to about {max(1, int(_below(tokens)))}"
    )


def _below(value: float) -> float:
    """The next lower number of two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / unit) * unit:.2g}")


def _normalised(parts: Sequence[Part]) -> list[Part]:
    """The same proportions with the fewest digits that sum to 1 and leave each part something."""
    total = math.fsum(part.weight for part in parts)
    for digits in range(1, 17):
        scaled = [Part(round(part.weight / total, digits), part.name) for part in parts]
        near = all(abs(p.weight - q.weight / total) <= 0.005 for p, q in zip(scaled, parts, strict=True))
        if near and min(scaled).weight > 0 and abs(math.fsum(p.weight for p in scaled) - 1) <= MOST_OFF:
            break
    return scaled
