"""Mixtures: shares of bytes, the same for everyone; what is written wrongly or runs out is said with the way out."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lahr.config import DataConfig
from lahr.data import corpora, mixing
from lahr.data.corpora import Corpus, anchored, find_corpus
from lahr.data.documents import Document, Label
from lahr.data.mixing import Part, RanOut, parts_of
from lahr.errors import ConfigError


def write(path: Path, word: str, n: int = 400) -> Path:
    path.write_text("\n\n".join(f"{word} {i} " + f"{word} " * (i % 50) for i in range(n)))
    return path


def corpus(name: str, **config: int) -> Corpus:
    return find_corpus(DataConfig(corpus=name, **config))


def refusal(name: str, **config: int) -> str:
    with pytest.raises(ConfigError) as caught:
        corpus(name, **config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_until_it_ends(documents: Iterator[Document]) -> tuple[list[Document], str]:
    """What came before the mixture ran out, and what it said then."""
    came: list[Document] = []
    with pytest.raises(RanOut) as caught:
        came.extend(documents)
    return came, str(caught.value)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Corpus], None]:
    """Puts a corpus of one's own under a name."""
    known: dict[str, Corpus] = {}
    monkeypatch.setattr(mixing, "find_corpus", lambda config: known.get(config.corpus) or find_corpus(config))
    return known.__setitem__


def endless(identity: str, size: int = 10, **more) -> Corpus:
    def documents() -> Iterator[Document]:
        while True:
            yield Document(identity * size, bits=1.0)

    return Corpus(identity, identity, documents, documents, **more)


@pytest.mark.parametrize("side", ["train", "validation"])
def test_shares_are_of_bytes_in_order_and_the_same_again(side: str, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", "ä", 4000), write(tmp_path / "b.txt", "word", 4000)
    found = corpus(f"0.25 {a} + 0.75 {b}")
    documents, _ = read_until_it_ends(getattr(found, side)())
    longest = max(len(d.text.encode()) for d in documents)
    total = have = 0
    for document in documents:
        size = len(document.text.encode())
        total, have = total + size, have + size * document.text.startswith("ä")
        assert abs(have - 0.25 * total) <= longest
    assert have > 20 * longest or side == "validation"
    assert documents == read_until_it_ends(getattr(corpus(f"0.25 {a} + 0.75 {b}"), side)())[0]
    for path, word in ((a, "ä"), (b, "word")):
        alone = list(getattr(corpus(str(path)), side)())
        mine = [d for d in documents if d.text.startswith(word)]
        assert mine == alone[: len(mine)]  # in the order that it has alone, none left out or repeated


@given(st.lists(st.integers(1, 100), min_size=2, max_size=5), st.lists(st.integers(1, 500), min_size=5, max_size=5))
def test_no_part_is_ever_further_off_its_share_than_the_longest_documents(weights, sizes) -> None:
    parts = [Part(weight / sum(weights), f"{i}") for i, weight in enumerate(weights)]
    streams = [endless(part.name, size).train() for part, size in zip(parts, sizes, strict=False)]
    have = [0] * len(parts)
    for document in islice(mixing._interleaved(parts, streams, "", 1), 300):
        have[int(document.text[0])] += len(document.text)
        for part, got in zip(parts, have, strict=True):
            assert abs(got - part.weight * sum(have)) <= max(sizes) * len(parts)


def test_equals_go_in_the_order_of_their_names(made) -> None:
    made("x", endless("x"))
    made("y", endless("y"))
    for name, order in (("0.5 x + 0.5 y", "xyxyxy"), ("0.5 y + 0.5 x", "yxyxyx"), ("0.75 x + 0.25 y", "xyxxxy")):
        assert "".join(d.text[0] for d in islice(corpus_of(name).train(), 6)) == order


def corpus_of(name: str) -> Corpus:
    return mixing.mixture(DataConfig(corpus=name))


def test_a_part_that_runs_out_ends_the_mixture_with_what_would_do(tmp_path: Path) -> None:
    a = write(tmp_path / "a.txt", "a", 2000)
    documents, said = read_until_it_ends(corpus(f"0.5 {a} + 0.5 stories", train_tokens=1_000_000).train())
    assert [d for d in documents if d.bits is None] == list(corpus(str(a)).train())  # all of it, once
    total = sum(len(d.text.encode()) for d in documents)
    assert re.search(r"a.txt' ran out after 0.1\d+ MB, and its share of 0.5 asks for more", said)
    weight, tokens = map(
        float, re.search(r"weight to about (\S+) or --data.train-tokens to about (\d+)$", said).groups()
    )
    assert 0.8 * total / 4 <= tokens <= total / 4
    assert 0.009 <= weight <= 0.5 * total / 4e6
    again, _ = read_until_it_ends(corpus(f"{weight} {a} + {1 - weight} stories").train())
    assert sum(len(d.text.encode()) for d in again) >= 4_000_000  # the budget, at four bytes a token
    _, said = read_until_it_ends(corpus(f"0.5 {a} + 0.5 stories").validation())
    assert said.startswith("the validation split of ") and said.endswith("give more of it, or lower its weight")


def test_a_mixture_says_what_it_is_of(tmp_path: Path) -> None:
    a = write(tmp_path / "a.txt", "a")
    found = corpus(f"  0.70  stories  +  .3   {a} ")
    assert found.description == f"0.7 stories (made here) + 0.3 {a}"
    taken = found.taken()
    assert json.loads(json.dumps(taken)) == taken and taken["weights"] == [0.7, 0.3]
    assert taken["parts"] == [corpus("stories").taken(), corpus(str(a)).taken()]
    assert taken["parts"][0]["first seed"] and taken["parts"][1]["files"][0]["bytes"] == a.stat().st_size
    b = write(tmp_path / "b.txt", "a")
    assert found.identity == corpus(f"0.7 stories + 0.3 {b}").identity  # the content, not the path
    assert found.identity != corpus(f"0.3 {a} + 0.7 stories").identity
    assert found.identity != corpus(f"0.6 stories + 0.4 {a}").identity


def test_floors_of_generated_parts_stay(tmp_path: Path) -> None:
    documents = list(islice(corpus(f"0.9 stories + 0.1 {write(tmp_path / 'a.txt', 'a')}").train(), 100))
    assert {d.bits is None for d in documents} == {True, False}
    alone = corpus("stories").train()
    assert all(d == next(alone) for d in documents if d.bits is not None)


def test_a_part_with_stages_is_refused(made) -> None:
    """Seen to fail: its stages were read as one text, mixed up."""
    made("x", endless("x", stages=7))
    made("y", endless("y"))
    with pytest.raises(ConfigError, match=r"'x' has 7 stages, .* a mixture has none; give it alone"):
        corpus_of("0.5 x + 0.5 y")
    assert "'prosqa' has 7 stages" in refusal("0.5 prosqa + 0.5 stories")


def test_a_mixture_goes_on_with_the_text_that_was_taken(made) -> None:
    """A part that can have another text by then is of the old one. Caught: the parts' `taken` exchanged."""

    def part(name: str, revision: str) -> Corpus:
        return endless(
            name + revision, taken=lambda: {"of": name, "at": revision}, as_taken=lambda t: part(t["of"], t["at"])
        )

    made("x", part("x", "2"))
    made("y", part("y", "2"))
    made("z", endless("z"))
    mixed = corpus_of("0.5 x + 0.25 y + 0.25 z")
    then = mixed.taken()
    then["parts"] = [{"of": "x", "at": "1"}, {"of": "y", "at": "0"}, {}]
    assert {d.text[:2] for d in islice(mixed.at(then).train(), 9)} == {"x1", "y0", "zz"}
    assert {d.text[:2] for d in islice(mixed.at(then).validation(), 9)} == {"x1", "y0", "zz"}
    assert mixed.at(then).taken() == then
    made("x", endless("x", as_taken=lambda taken: None))
    assert corpus_of("0.5 x + 0.5 y").at(then | {"parts": then["parts"][:2]}) is None


def test_labels_and_words_are_joined(made) -> None:
    same, own = Label("recall/0-16", 0.1, 1.0), Label("count", 0.2)
    made("x", endless("x", labels=(same,), words=("<a>", "<b>"), only_words=True, tagged=True))
    made("y", endless("y", labels=(own, same), words=("<b>", "<c>"), only_words=True))
    made("z", endless("z"))
    both = corpus_of("0.5 x + 0.5 y")
    assert both.labels == (same, own) and both.words == ("<a>", "<b>", "<c>")
    assert both.only_words and both.tagged
    assert not corpus_of("0.5 x + 0.5 z").only_words and not corpus_of("0.5 y + 0.5 z").tagged
    made("y", endless("y", labels=(replace(same, chance=0.5),)))
    with pytest.raises(ConfigError, match=r"'y' and another part of the mixture both label answers 'recall/0-16'"):
        corpus_of("0.5 x + 0.5 y")
    made("x", endless("x", labels=tuple(Label(f"a/{i}") for i in range(64))))
    made("y", endless("y", labels=tuple(Label(f"b/{i}") for i in range(64))))
    with pytest.raises(
        ConfigError, match=r"have 128 labels \(x 64, y 64\), and 126 can be told apart; leave a part out"
    ):
        corpus_of("0.5 x + 0.5 y")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0.7 stories + 0.4 tinystories", "weights sum to 1.1, .* write '0.64 stories + 0.36 tinystories'"),
        ("70 stories + 30 tinystories", "sum to 100, .* write '0.7 stories + 0.3 tinystories'"),
        ("1 a + 1 stories + 1 c", "write '0.3333333 a \\+ 0.3333333 stories \\+ 0.3333333 c'"),
        ("0.5 stories + 0.500002 c", "sum to 1.000002"),
        ("1.5 stories + -0.5 tinystories", "the weight of 'tinystories' is -0.5; weights are above 0"),
        ("0 stories + 1 tinystories", "the weight of 'stories' is 0;"),
        ("1e999 stories + 1 tinystories", "the weight of 'stories' is inf;"),
        ("stories + tinystories", "as a mixture 'stories \\+ tinystories' lacks a weight; give each part one"),
        ("0.5 stories + tinystories", "'0.5 stories \\+ tinystories' lacks a weight"),
        ("stories + 0.5 tinystories", "'stories' lacks a weight"),
        ("0.5 stories +", "mixture of one corpus"),
        ("1.0 stories", "is no file, and a mixture of one corpus; write 'stories' alone, or add"),
        ("0.5 stories + 0.5 stories", "has 'stories' twice; name it once, with the sum of its weights"),
        ("0.5 tinystories + 0.5 roneneldan/TinyStories", "is the same text as 'tinystories'; name it once"),
        ("0.5 stories + 0.5 storys", "^'storys', a part of the mixture: .* use 'stories'"),
        ("0.5 stories + 0.5 no.txt", "^'no.txt', a part of the mixture: data 'no.txt': no such file"),
        ("0.5 stories + 0.5 0.5 tinystories", "^'0.5 tinystories', a part of the mixture: .* mixture of one"),
    ],
)
def test_what_is_written_wrongly_says_what_to_write(name: str, message: str) -> None:
    assert re.search(message.replace(" + ", r" \+ "), refusal(name))


def test_normalised_weights_are_accepted() -> None:
    for weights in ((1, 1, 1), (3, 4), (1, 10_000), (0.1, 0.2, 0.3, 0.5), (7e-9, 1), (1,) * 7):
        name = " + ".join(f"{weight} {i}.txt" for i, weight in enumerate(weights))
        try:
            parts = parts_of(name)
        except ConfigError as error:
            parts = parts_of(str(error).split("write '")[1].rstrip("'"))
        assert [part.weight for part in parts] == pytest.approx([w / sum(weights) for w in weights], abs=0.0051)


def test_the_sum_may_be_off_by_rounding(tmp_path: Path) -> None:
    assert len(parts_of("0.333333 a + 0.333333 b + 0.3333333 c")) == 3
    assert len(parts_of("0.1 a + 0.2 b + 0.7 c")) == 3


def test_a_path_with_a_plus_in_it_is_a_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a + b.txt", "a")
    assert corpus("a + b.txt").description == "a + b.txt"
    assert parts_of("0.5 a + b.txt + 0.5 stories") == [(0.5, "a + b.txt"), (0.5, "stories")]
    assert parts_of("0.5 stories + 0.5 a + b.txt") == [(0.5, "stories"), (0.5, "a + b.txt")]
    write(tmp_path / "0.5 x + 0.5 y", "a")
    assert corpus("0.5 x + 0.5 y").description == "0.5 x + 0.5 y"
    assert "no such file, and as a mixture" in refusal("a + c.txt")


def test_a_long_mixture_is_not_taken_for_the_name_of_a_file() -> None:
    name = " + ".join(f"0.05 part-number-{i}" for i in range(20))
    assert len(name) > 255 and corpora.exists(name) is False
    assert "'part-number-0', a part of the mixture" in refusal(name)


def test_parts_are_anchored_each(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "b + c.txt", "b")
    write(tmp_path / "stories", "s")
    there = anchored(DataConfig(corpus="0.25 a.txt +  0.25 stories + 0.25 b + c.txt + 0.25 owner/name:en"))
    assert there.corpus == (
        f"0.25 {tmp_path}/a.txt + 0.25 stories + 0.25 {tmp_path}/b + c.txt + 0.25 owner/name:en"
    )
    assert anchored(there) == there
    monkeypatch.chdir("/")
    assert parts_of(there.corpus)[2].name == f"{tmp_path}/b + c.txt"
