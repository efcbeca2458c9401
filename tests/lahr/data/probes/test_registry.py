"""Every probe keeps the promises that are common to all: form, length, determinism, splits, labels, refusals."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields

import pytest

from lahr.data.documents import MOST_LABELS, Document
from lahr.data.probes import PROBES, find_probe, probe, read_probe
from lahr.data.probes.probe import TRAIN_SEEDS, VALIDATION_SEEDS
from lahr.errors import ConfigError

NAMES = [
    *PROBES,
    "facts,facts=1000,values=7,queries=42,table=3",
    "segments,segments=3,window=19,each=4,own=4,keys=24,values=5",
    "segments,segments=2,window=65,each=64,own=0,keys=64,values=4",
    "swaps,objects=7,length=30",
    "hops,hops=9,letters=3,length=63",
    "trees,values=7,height=3,length=62",
    "selective,state=sum,every=4,signals=5,noise=100,length=63",
    "selective,every=1,length=20",
]
LENGTHS = dict(zip(NAMES, (255, 255, 127, 127, 127, 127, 126, 56, 129, 31, 64, 62, 63, 20), strict=True))
GOLDEN = {
    "facts": "6b89a0a3e83e4d3c",
    "segments": "ce189612d53451af",
    "swaps": "6162841c16df743f",
    "hops": "7846586a2871ab31",
    "trees": "2d86ae94b813931b",
    "selective": "2cdd4a12ddc77d06",
}


def some(name: str, n: int, first: int = TRAIN_SEEDS) -> Iterable[Document]:
    return map(read_probe(name).document, range(first, first + n))


def digest(documents: Iterable[Document]) -> str:
    return hashlib.sha256(repr([(d.text, *map(tuple, d.answers)) for d in documents]).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_words_of_the_corpus_and_exactly_as_many_as_promised(name: str) -> None:
    words = set(find_probe(name).words)
    for document in [*some(name, 200), *some(name, 20, VALIDATION_SEEDS)]:
        parts = re.findall("<[^<>]+>", document.text)
        assert "".join(parts) == document.text
        assert len(parts) == LENGTHS[name] == read_probe(name).tokens - 1
        assert words.issuperset(parts)


@pytest.mark.parametrize("name", NAMES)
def test_no_word_is_a_part_of_another(name: str) -> None:
    words = find_probe(name).words
    assert find_probe(name).only_words
    assert all(re.fullmatch("<[^<>]+>", word) for word in words)  # so none begins or ends inside another
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_words_in_order_and_labelled(name: str) -> None:
    corpus = find_probe(name)
    seen = Counter[str]()
    for document in some(name, 300):
        assert document.answers_only and document.answers
        edges = {0, *itertools.accumulate(map(len, re.findall("<[^<>]+>", document.text)))}
        assert all(a.end <= b.start for a, b in itertools.pairwise(document.answers))
        for answer in document.answers:
            assert {answer.start, answer.end} <= edges
            assert re.fullmatch("<[^<>]+>", document.text[answer.start : answer.end])
            assert answer.source is None and answer.kind == name.partition(",")[0]
            assert bool(answer.target) == corpus.tagged
            assert not answer.target or answer.target in corpus.words
            seen["/".join(filter(None, answer[2:5:2]))] += 1
    assert [label.name for label in corpus.labels if label.name in seen] == [label.name for label in corpus.labels]
    assert len(seen) == len(corpus.labels) <= MOST_LABELS
    assert all(label.ceiling == 1 and 0 < label.chance < 1 for label in corpus.labels if label.chance)


@pytest.mark.parametrize("name", PROBES)
def test_documents_are_pinned(name: str) -> None:
    """The same on every machine and Python. A change of a probe changes this on purpose."""
    assert digest([*some(name, 100), *some(name, 10, VALIDATION_SEEDS)]) == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_streams_start_again_and_differ_between_splits(name: str) -> None:
    corpus = find_probe(name)
    first = list(itertools.islice(corpus.train(), 20))
    assert first == list(itertools.islice(corpus.train(), 20)) == list(some(name, 20, 0))
    assert list(itertools.islice(corpus.validation(), 5)) == list(some(name, 5, 1 << 48))


@pytest.mark.parametrize("name", PROBES)
def test_no_document_is_on_both_sides_or_comes_twice(name: str) -> None:
    train, validation = ([d.text for d in some(name, n, s)] for n, s in ((3000, 0), (300, VALIDATION_SEEDS)))
    assert len({*train, *validation}) == 3300
    assert not any(map(probe.is_held_out, train))
    assert all(map(probe.is_held_out, validation))


def test_a_tenth_is_held_out_by_content_whatever_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few texts that both sides have drawn nearly all of theirs."""
    monkeypatch.setattr(probe, "LEAST_BITS", 0)
    train, validation = (
        {d.text for d in some("swaps,objects=3,length=5", 12_000, s)} for s in (0, VALIDATION_SEEDS)
    )
    assert not train & validation
    assert len(train | validation) == 3 * 3**5
    assert 40 < len(validation) < 110


@pytest.mark.parametrize("name", PROBES)
def test_identity_holds_all_parameters_and_the_documents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, kind = find_probe(name), PROBES[name]
    for field in fields(kind):
        assert f"{field.name}={field.default}" in corpus.identity
        words = {"state": "sum", "asked": "itself"}
        given = words[field.name] if field.name in words else field.default * 2 if field.name != "table" else 1
        if field.name not in ("segments", "each", "own", "queries"):
            assert find_probe(f"{name},{field.name}={given}").identity != corpus.identity
        assert find_probe(f" {name} , {field.name} = {field.default}").identity == corpus.identity
    monkeypatch.setattr(kind, "draw", lambda self, stream, draw=kind.draw: draw(self, stream)[::-1])
    monkeypatch.setattr(kind, "solve", lambda self, ids: [(1, "", "")])
    assert find_probe(name).identity != corpus.identity


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "unknown probe ''; allowed: facts, segments, swaps, hops, trees, selective"),
        ("swap", "unknown probe 'swap' (did you mean 'swaps'?)"),
        ("swaps,object=5", "unknown field 'object' (did you mean 'objects'?); allowed: objects, length"),
        ("swaps,objects=five", "objects is 'five'; it must be a whole number"),
        ("swaps,objects=5.5", "objects is '5.5'; it must be a whole number"),
        ("swaps,objects", "'objects' is no parameter; give parameter=value"),
        ("swaps,", "'' is no parameter"),
        ("swaps,objects=5,objects=5", "objects is given twice"),
        ("swaps,objects=1", "objects is 1; it must be from 2 to 64"),
        ("swaps,objects=65", "objects is 65; it must be from 2 to 64"),
        ("swaps,length=0", "length is 0; it must be from 1 to 4096"),
        ("swaps,length=4", "swaps,objects=5,length=4 has 2**16 texts, too few"),
        ("facts,facts=100", "give at most half of them, 50"),
        ("facts,values=1", "values is 1; it must be from 2"),
        ("facts,table=-1", "table is -1; it must be from 0"),
        ("segments,each=16", "each is 16 and own 8, which makes 64 words in a segment, and it has room for 63"),
        ("segments,segments=70,each=1", "segments is 70; it must be from 2 to 64"),
        ("segments,own=33", "own is 33; it must be from 0 to 32"),
        ("segments,keys=55", "keys is 55, and a document has 56 pairs"),
        ("segments,keys=4096,values=5", "every pair is a word; give at most 16384"),
        ("segments,segments=1", "segments is 1; it must be from 2"),
        ("hops,hops=0", "hops is 0; it must be from 1"),
        ("hops,letters=2", "letters is 2; it must be from 3"),
        ("hops,length=5", "length is 5; it must be from 6"),
        ("trees,height=0", "height is 0; it must be from 1"),
        ("trees,values=2", "values is 2; it must be from 3"),
        ("selective,state=last2", "state is 'last2'; it must be one of last, sum"),
        ("selective,signals=1", "signals is 1; it must be from 2"),
        ("selective,every=0", "every is 0; it must be from 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_probe(name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
