"""Shards hold what was written, and tell nothing of where writing was cut off."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lahr.data import shards
from lahr.data.shards import open_split
from lahr.data.spans import Encoded
from lahr.data.writing import SplitWriter, begin, begun, forget, is_begun

COLUMNS = {"token": np.dtype(np.uint16), "label": np.dtype(np.uint8), "target": np.dtype(np.uint16)}


@contextmanager
def shards_of(tokens: int) -> Iterator[None]:
    """A monkeypatch for tests that hypothesis calls many times."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "SHARD_TOKENS", tokens)
        yield


def documents(lengths: list[int]) -> list[tuple[Encoded, int, float | None]]:
    """Documents whose every token is another, some with floors, some questions."""
    found = []
    for i, n in enumerate(lengths):
        token = np.arange(sum(lengths[:i]), sum(lengths[:i]) + n)
        encoded = Encoded(token, token + 1, token % 251, is_question=i % 3 == 1)
        found.append((encoded, 2 * n, None if i % 2 else n / 2))
    return found


def write(folder: Path, given: list[tuple[Encoded, int, float | None]], stop: int | None = None) -> dict[str, Any]:
    """Goes on to the end, or only to document `stop`, as a process that is killed."""
    writer = SplitWriter(folder, "train", COLUMNS)
    for document in given[writer.documents : stop]:
        writer.add(*document)
    return writer.close() if stop is None else {}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


lengths_of_documents = st.lists(st.integers(1, 30), max_size=12)


@given(lengths=lengths_of_documents, size=st.integers(1, 40))
def test_a_split_is_its_documents_laid_end_to_end(lengths: list[int], size: int) -> None:
    """Whatever the size of a shard. Caught: a document counted again in the shard that it ends in; starts counted from
    the shard's beginning; columns exchanged; a question in pieces taken for as long as its last piece."""
    given_ = documents(lengths)
    with tempfile.TemporaryDirectory() as folder, shards_of(size):
        entry = write(Path(folder), given_)
        split = open_split(Path(folder), entry)
        n = sum(lengths)
        assert entry["tokens"] == split.n_tokens == n and entry["documents"] == len(lengths)
        pieces = [len(piece) for piece in split.columns["token"]]
        assert pieces == [size] * (n // size) + [n % size] * (n % size > 0 or n == 0)
        for name, kind in COLUMNS.items():
            assert all(piece.dtype == kind for piece in split.columns[name])
            if n:
                together = np.concatenate([getattr(encoded, name) for encoded, *_ in given_])
                assert split.read(name, 0, n).tolist() == together.tolist()
        assert split.document_starts.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        assert split.documents["bytes"].to_pylist() == [n_bytes for _, n_bytes, _ in given_]
        assert split.documents["bits"].to_pylist() == [bits for *_, bits in given_]
        assert split.longest_question == max(lengths[1::3], default=0)


@given(lengths=lengths_of_documents, size=st.integers(1, 40), stops=st.lists(st.integers(0, 12), max_size=3))
def test_a_writer_that_was_cut_off_goes_on_to_the_same_files(
    lengths: list[int], size: int, stops: list[int]
) -> None:
    """Bit for bit, with the same entry, at any document and more than once; and an entry whose hashes do not tell the
    size of a shard. Caught: the piece of a document that a finished shard has written again; its row written twice or
    not at all; a document passed over; the longest question forgotten; digests that begin anew."""
    given_ = documents(lengths)
    with tempfile.TemporaryDirectory() as place, shards_of(size):
        whole, cut = Path(place, "whole"), Path(place, "cut")
        whole.mkdir()
        cut.mkdir()
        entry = write(whole, given_)
        for stop in stops:
            write(cut, given_, stop)
        assert write(cut, given_) == entry
        assert contents(cut) == contents(whole)
        assert write(cut, given_) == entry  # what is finished is passed over
        assert contents(cut) == contents(whole)
        assert is_begun(cut)
        forget(cut)
        assert not is_begun(cut) and "train-00000.arrow" in contents(cut)
        other = Path(place, "other")
        other.mkdir()
        with shards_of(1000):
            assert write(other, given_)["content"] == entry["content"]


@pytest.mark.parametrize(
    "damage",
    ["no journal", "journal cut", "journal changed", "not a journal", "shard cut", "shard flipped", "no table"],
)
def test_where_the_journal_or_a_shard_is_damaged_it_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Caught: a journal that lacks a value, or whose number of documents is another, believed."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", 16)
    given_ = documents([7, 20, 3, 9, 30, 2])
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    entry = write(tmp_path / "whole", given_)
    write(tmp_path / "cut", given_, 4)
    assert SplitWriter(tmp_path / "cut", "train", COLUMNS).documents == 3
    journal, shard = (tmp_path / "cut" / name for name in ("train-journal.json", "train-00001.arrow"))
    content = shard.read_bytes()
    if damage == "no journal":
        journal.unlink()
    elif damage == "journal cut":
        journal.write_text(journal.read_text()[:-5])
    elif damage == "journal changed":
        journal.write_text(json.dumps({**json.loads(journal.read_text()), "documents": 2}))
    elif damage == "not a journal":
        journal.write_text("[]")
    elif damage == "no table":
        (tmp_path / "cut" / "train-00000-documents.parquet").unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        shard.write_bytes(content[:-9] if damage == "shard cut" else flipped)
    assert SplitWriter(tmp_path / "cut", "train", COLUMNS).documents == 0
    assert write(tmp_path / "cut", given_) == entry
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_what_all_shards_depend_on_is_found_again_whole_or_not_at_all(tmp_path: Path, monkeypatch, caplog) -> None:
    """Seen to fail: the tokenizer of finished shards was taken as it lay there. Caught: a journal that names none."""
    (tmp_path / "tokenizer.json").write_text("entries")
    begin(tmp_path, "tokenizer.json", {"revision": None, "parts": [1.5, "x"]})
    assert begun(tmp_path) is None  # there is no shard yet
    monkeypatch.setattr(shards, "SHARD_TOKENS", 16)
    write(tmp_path, documents([7, 20, 3]), 2)
    assert begun(tmp_path) == {"revision": None, "parts": [1.5, "x"]} and not caplog.records
    for path in (tmp_path / "tokenizer.json", tmp_path / "begun.json"):
        content = path.read_bytes()
        for damaged in (content[:-2], content.replace(b"e", b"f", 1), None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            says_nothing = path.name == "begun.json" and damaged is None
            assert begun(tmp_path) is None
            assert ("does not say where its text is from" if says_nothing else "is damaged") in caplog.text
            caplog.clear()
            path.write_bytes(content)
    assert begun(tmp_path)
    forget(tmp_path)
    assert begun(tmp_path) is None and not caplog.records and not (tmp_path / "begun.json").exists()


def test_what_was_being_written_when_it_was_cut_off_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard without its line in the journal. Caught: the journal written before the shard."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", 16)
    given_ = documents([7, 20, 3, 9, 30, 2])
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    entry = write(tmp_path / "whole", given_)
    replace, done = os.replace, list[object]()

    def dies(source: Path, target: Path) -> None:
        if len(done) == 2:
            raise InterruptedError
        done.append(target)
        replace(source, target)

    monkeypatch.setattr("lahr.data.writing.os.replace", dies)
    with pytest.raises(InterruptedError):
        write(tmp_path / "cut", given_)
    monkeypatch.setattr("lahr.data.writing.os.replace", replace)
    assert (tmp_path / "cut" / "train-00002.arrow").exists()
    assert len(SplitWriter(tmp_path / "cut", "train", COLUMNS).shards) == 2
    assert write(tmp_path / "cut", given_) == entry
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
