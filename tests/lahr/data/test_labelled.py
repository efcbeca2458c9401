"""A corpus with answers from its documents to its windows, and a preparation that is cut off and goes on."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from lahr.config import DataConfig
from lahr.data import IGNORED, TokenData, preparation, prepare, shards
from lahr.data.corpora import END_OF_TEXT
from lahr.data.documents import FIRST, UNCOUNTED, Document, Label
from lahr.data.tokenizer import train_bpe, words_alone
from lahr.errors import ConfigError
from tests.lahr.data import labelled

CONFIG = DataConfig(train_tokens=6_000, validation_blocks=8, packing="documents")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenData:
    monkeypatch.setattr(preparation, "LEAST_VALIDATION_TOKENS", 1 << 13)
    labelled.use(monkeypatch, labelled.corpus())
    return prepare(CONFIG, 350, 128, tmp_path / "cache")


def test_windows_say_the_answers_of_their_documents(data: TokenData) -> None:
    """Read back as text. Caught: a target in the place of the text in the inputs; two kinds exchanged; the groups of an
    answer's distance by characters; tokens that are not to be predicted left in the targets."""
    tokenizer = Tokenizer.from_file(str(data.tokenizer_path))
    assert [label.name for label in data.labels][:2] == ["many", "recall/0-16"] and data.labels[0].chance == 0.5
    windows = data.windows
    assert windows.labels_NT is not None
    kinds = set()
    for i in range(8):
        document = labelled.story(10**6 + i)
        text = tokenizer.encode(document.text).ids
        assert windows.inputs_NT[i, : len(text) + 1].tolist() == [data.eot, *text]
        labels, targets = windows.labels_NT[i].tolist(), windows.targets_NT[i].tolist()
        firsts = [place for place, label in enumerate(labels) if label >= FIRST]
        *recalls, many = document.answers
        assert len(firsts) == len(document.answers)
        for place, answer in zip(firsts, recalls, strict=False):
            kinds.add(data.labels[labels[place] - FIRST - 1].name)
            end = place + 1
            while labels[end] == labels[place] - FIRST:
                end += 1
            assert tokenizer.decode(targets[place:end]).strip() == document.text[answer.start : answer.end]
        assert data.labels[labels[firsts[-1]] - FIRST - 1].name == "many"
        assert tokenizer.decode([targets[firsts[-1]]]) == many.target
        assert firsts[-1] == len(text)  # in the place of end-of-text
        predicted = [place for place, target in enumerate(targets) if target != IGNORED]
        if document.answers_only:
            assert predicted == [place for place, label in enumerate(labels) if label % FIRST not in (0, UNCOUNTED)]
        else:
            assert predicted == list(range(len(text) + 1))
    assert {"recall/0-16", "recall/16-32"} <= kinds


@pytest.mark.parametrize("packing", ["documents", "stream"])
def test_bytes_per_token_is_that_of_what_is_predicted(data: TokenData, packing: str) -> None:
    """Caught: the padding decoded; the mean over the split's first tokens."""
    read = prepare(replace(CONFIG, packing=packing), 350, 128, data.folder.parent)  # type: ignore[arg-type]
    assert read.folder == data.folder  # which tokens there are does not depend on how they are cut
    tokenizer = Tokenizer.from_file(str(data.tokenizer_path))
    rows = [[t for t in row if t != IGNORED] for row in read.windows.targets_NT.tolist()]
    size = sum(len(tokenizer.decode(row).encode()) for row in rows)
    assert read.bytes_per_token == pytest.approx(size / sum(map(len, rows)), rel=1e-3)


def test_labels_are_a_part_of_the_content_and_the_size_of_a_shard_is_not(
    data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caught: a hash of tokens alone; of labels without their names; of each shard's bytes."""

    def content(name: str, **changes: object) -> str:
        labelled.use(monkeypatch, replace(labelled.corpus(), **changes))  # type: ignore[arg-type]
        return prepare(CONFIG, 350, 128, tmp_path / name).content_hash

    def regrouped() -> Iterator[Document]:
        for document in labelled.corpus().train():
            yield document._replace(
                answers=tuple(a._replace(source=a.start) if a.source else a for a in document.answers)
            )

    def retargeted() -> Iterator[Document]:
        for document in labelled.corpus().train():
            yield document._replace(
                answers=tuple(a._replace(target=a.target and "<yes>") for a in document.answers)
            )

    names = [Label("much") if label.name == "many" else label for label in labelled.corpus().labels]
    with pytest.raises(KeyError):
        content("renamed", labels=tuple(names))  # what the labels do not list is no answer
    others = {content("grouped", train=regrouped), content("targeted", train=retargeted)}
    assert len({data.content_hash, *others}) == 3
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    assert content("small shards") == data.content_hash


def test_a_question_longer_than_a_row_is_refused_before_training(data: TokenData, tmp_path: Path) -> None:
    """With the number that would do, for both splits. Caught: the longest document, whatever it predicts."""
    with pytest.raises(ConfigError, match=r"split of stories by hand has a question of \d+ tokens") as caught:
        prepare(CONFIG, 350, 40, tmp_path)
    enough = int(str(caught.value).split("--model.max-seq-len ")[1].split()[0])
    longest = max(rows.split.longest_question for rows in (data.train, data.validation))
    assert 40 < enough <= longest < 128
    prepare(CONFIG, 350, longest, tmp_path)
    with pytest.raises(ConfigError, match=rf"a question of \d+ tokens, and a row is {longest - 1}"):
        # Seen to fail: rows that are cut out of a stream took it, and no row had all of it.
        prepare(replace(CONFIG, packing="stream"), 350, longest - 1, tmp_path)
    prepare(replace(CONFIG, packing="stream"), 350, longest, tmp_path)


def test_words_are_single_tokens_wherever_they_stand() -> None:
    """Caught: a word that stands behind another letter in pieces; the words' room not kept."""
    tokenizer = train_bpe(["Ana has a <yes> ball. " * 30], 280, labelled.WORDS)
    assert tokenizer.get_vocab_size() <= 280
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    for text in ("<yes>", "a<yes>b", " <no><yes>.", "é<no>"):
        encoding = tokenizer.encode(text)
        assert sum(token in labelled.WORDS for token in encoding.tokens) == text.count("<")
        assert tokenizer.decode(encoding.ids) == text
    train_bpe(["a"], 259, labelled.WORDS)
    with pytest.raises(ConfigError, match=r"vocab_size is 258; .* at least 259 with the 2 words of this corpus"):
        train_bpe(["a"], 258, labelled.WORDS)


def test_a_corpus_of_words_alone_needs_no_other_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its text is what is decoded. Caught: spaces between the words, which counted as bytes; bytes in the
    vocabulary."""
    monkeypatch.setattr(preparation, "LEAST_VALIDATION_TOKENS", 1 << 10)
    labelled.use(monkeypatch, labelled.words_only())
    with pytest.raises(
        ConfigError, match=r"vocab_size is 20, and this corpus has 20 words .*--model.vocab-size 21"
    ):
        prepare(CONFIG, 20, 16, tmp_path)
    data = prepare(CONFIG, 21, 16, tmp_path)
    assert data.vocab_size == 21 and data.eot == 0
    tokenizer = Tokenizer.from_file(str(data.tokenizer_path))
    first = next(labelled.words_only().validation()).text
    (row,) = data.first_windows(1).inputs_NT.tolist()
    assert row[: first.count("<") + 1] == [0, *tokenizer.encode(first).ids] and tokenizer.decode(row) == first
    assert 4 <= data.bytes_per_token <= 5  # `<w0>` to `<w19>`: only the last word of each is predicted
    assert words_alone(["<a>", "<b>"], 3).decode([2, 1, 0]) == "<b><a>"


PROGRAM = """
import json, os, sys
from pathlib import Path
import pytest
from lahr.data import preparation, prepare, shards
from lahr.data.spans import Encoder
from lahr.data.writing import SplitWriter
from tests.lahr.data import labelled
from tests.lahr.data.test_labelled import CONFIG

cache, split, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
patched = pytest.MonkeyPatch()
labelled.use(patched, labelled.corpus())
shards.SHARD_TOKENS, preparation.LEAST_VALIDATION_TOKENS, preparation.ENCODE_AT_ONCE = 1000, 1 << 12, 4
add = SplitWriter.add
encoded = [0]
encode = Encoder.encode

def dies(writer, *document):
    add(writer, *document)
    if writer.name == split and writer.n_tokens >= at:
        os._exit(9)

def counts(self, *document):
    encoded[0] += 1
    return encode(self, *document)

SplitWriter.add, Encoder.encode = dies, counts
trained = []
train = preparation.train_bpe
preparation.train_bpe = lambda *a: (trained.append(1), train(*a))[1]
data = prepare(CONFIG, 350, 128, cache)
print(json.dumps([data.content_hash, encoded[0], len(trained)]))
"""


def run(cache: Path, split: str = "", at: int = 0) -> tuple[int, list[object]]:
    """Prepares in a process of its own, which dies once `split` has `at` tokens; its status and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(cache), split, str(at)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode in (0, 9), done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else []


def files(cache: Path) -> dict[str, str]:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_preparation_that_is_killed_goes_on_and_ends_in_the_same_files(tmp_path: Path) -> None:
    """In each split, several times, and in the first shard, of which nothing is kept. Every document is encoded once,
    but for those of the shard that was being written.

    Caught: a split that was finished prepared again because the next one was cut off; a tokenizer trained again; a
    document that a shard's end cut, and the limit behind it, cut by the shard's share once more.
    """
    _, (content, whole, trained) = run(tmp_path / "whole")
    assert trained == 1
    assert run(tmp_path / "cut", "train", 500)[0] == 9  # nothing is finished yet
    assert [run(tmp_path / "cut", *at)[0] for at in (("train", 2500), ("train", 4100), ("validation", 300))] == [
        9
    ] * 3
    assert run(tmp_path / "cut", "validation", 7500)[0] == 9
    assert not (tmp_path / "cut" / "manifest.json").exists()
    _, (again, rest, trained) = run(tmp_path / "cut")
    assert (again, trained) == (content, 0)
    assert rest < whole / 8  # a shard of the validation split is a fourteenth of all
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert "train-journal.json" not in files(tmp_path / "cut")


@pytest.mark.parametrize("limit", [2000, 2010, 2040, 2080])
def test_the_last_document_is_cut_at_the_same_token_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Where the limit lies just behind a shard's end, so that both cut one document. Seen to fail: the limit's room was
    taken from the document's beginning, and tokens were missing."""
    monkeypatch.setattr(preparation, "LEAST_VALIDATION_TOKENS", 1 << 10)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    labelled.use(monkeypatch, labelled.corpus())
    config = replace(CONFIG, train_tokens=limit)
    whole = prepare(config, 350, 128, tmp_path / "whole")
    flush, flushed = preparation.SplitWriter._flush, list[int]()

    def dies(writer: preparation.SplitWriter, *where: int) -> None:
        flush(writer, *where)
        flushed.append(1)
        if len(flushed) == 2:
            raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(preparation.SplitWriter, "_flush", dies)
        with pytest.raises(InterruptedError):
            prepare(config, 350, 128, tmp_path / "cut")
    cut = prepare(config, 350, 128, tmp_path / "cut")
    assert len(flushed) == 2 and cut.train.split.n_tokens == limit
    assert np.array_equal(cut.train.split.tokens, whole.train.split.tokens)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
