"""Probes: synthetic tasks with known answers, each for what one mechanism should help with.

    facts       what the weights store               memory
    segments    pairs given some segments ago        the kNN memory
    swaps       the state after many swaps           latent reasoning
    hops        chains of look-ups                   latent reasoning
    trees       values of nested expressions         latent reasoning
    selective   a few signals in much noise          Mixture-of-Depths

`--data probe:swaps,objects=7,length=62` names one with its parameters; what is left out has its default. By default a
document is 128 tokens long with its end-of-text, and 256 in `facts` and `segments` (4 windows of 64), so that one is
one row, or a whole number of them is.
"""

import hashlib
import itertools
from collections.abc import Iterator

from lahr.data.corpora import Corpus
from lahr.data.documents import Document
from lahr.data.probes.facts import Facts
from lahr.data.probes.hops import Hops
from lahr.data.probes.probe import TRAIN_SEEDS, VALIDATION_SEEDS, Probe
from lahr.data.probes.segments import Segments
from lahr.data.probes.selective import Selective
from lahr.data.probes.swaps import Swaps
from lahr.data.probes.trees import Trees
from lahr.errors import ConfigError, check, nearest
from lahr.plain import read_field

__all__ = ["PROBES", "Probe", "find_probe", "read_probe"]

PROBES: dict[str, type[Probe]] = {kind.name: kind for kind in (Facts, Segments, Swaps, Hops, Trees, Selective)}
FINGERPRINTED = 200
"""Documents that enter a probe's identity, so that shards of another version are never taken for this one's."""


def find_probe(name: str) -> Corpus:
    """The corpus of a probe by name and parameters, such as `swaps,objects=7`; `ConfigError` as `read_probe`."""
    probe = read_probe(name)

    def side(first: int) -> Iterator[Document]:
        return (probe.document(seed) for seed in itertools.count(first))

    return Corpus(
        identity=f"probe {probe.shown} {_fingerprint(probe)}",
        description=f"probe {probe.shown} (made here, {probe.tokens} tokens a document)",
        train=lambda: side(TRAIN_SEEDS),
        validation=lambda: side(VALIDATION_SEEDS),
        labels=probe.labels,
        words=probe.words,
        only_words=True,
        tagged=probe.tagged,
    )


def read_probe(name: str) -> Probe:
    """The probe of that name, with the parameters behind it; `ConfigError` for what is unknown, ill-typed, given twice
    or out of range."""
    called, *given = (part.strip() for part in name.split(","))
    check(
        called in PROBES, f"unknown probe {called!r}{nearest(called, list(PROBES))}; allowed: {', '.join(PROBES)}"
    )
    kind, values = PROBES[called], {}
    try:
        for part in given:
            parameter, equals, text = (word.strip() for word in part.partition("="))
            check(bool(equals), f"{part!r} is no parameter; give parameter=value")
            check(parameter not in values, f"{parameter} is given twice")
            values[parameter] = read_field(kind, parameter, text)
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"data 'probe:{name}': {error}") from None


def _fingerprint(probe: Probe) -> str:
    """Hex digits over the texts and answers of the first documents."""
    seeds = range(TRAIN_SEEDS, TRAIN_SEEDS + FINGERPRINTED)
    return hashlib.sha256(repr([tuple(map(tuple, probe.document(seed)[2])) for seed in seeds]).encode()).hexdigest()
