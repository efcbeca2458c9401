"""Documents as they are found: empty, enormous, with NUL characters or broken ones; each is mended and said, or
refused with the place."""

import json
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lahr.config import DataConfig
from lahr.data import cleaning, local
from lahr.data.cleaning import Found, cleaned, pieces
from lahr.data.corpora import END_OF_TEXT, Corpus, find_corpus
from lahr.errors import ConfigError

TEXTS = [f"Document number {i} says something of its own." for i in range(100)]


def corpus(path: Path) -> Corpus:
    return find_corpus(DataConfig(corpus=str(path)))


def texts(found: Corpus) -> list[str]:
    return [document.text for side in (found.train, found.validation) for document in side()]


def write(path: Path, rows: list[str | None]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"text": rows}), path, row_group_size=40)
    else:
        path.write_text("\n\n".join(row or "" for row in rows))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is enormous, and what is read at a time, at a thousandth of their sizes."""
    for module, name, value in (
        (cleaning, "LONGEST", 16_384), (local, "LONGEST", 16_384), (cleaning, "PIECE", 1024), (local, "PIECE", 1024),
        (local, "CHUNK", 1000), (local, "BATCH_BYTES", 65_536),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet", ".marked.txt"])
def test_an_enormous_document_is_cut_at_white_space_and_said(suffix: str, tmp_path: Path, caplog) -> None:
    long = " ".join(f"wörd{i}" for i in range(100_000))
    rows = [*TEXTS[:50], long, *TEXTS[50:]]
    path = write(tmp_path / f"x{suffix}", rows)
    if suffix == ".marked.txt":
        path.write_text(END_OF_TEXT.join(rows))
    found = corpus(path)
    given = texts(found)
    assert max(map(len, given)) <= 3 * 1024
    assert sorted(" ".join(given).split()) == sorted(" ".join(rows).split())  # none lost, doubled or cut in two
    train = [document.text for document in found.train()]
    assert train == sorted(train, key=" \n".join([*TEXTS[:50], long, *TEXTS[50:]]).index)  # in their order
    assert any(set(text.split()) & set(long.split()) for text in (d.text for d in found.validation()))
    assert [record.getMessage() for record in caplog.records] == [
        f"documents of {path}: 1 {cleaning.CUT}"  # once, though it was read four times
    ]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_text_is_parted_wherever_the_chunks_of_reading_end(chunk: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(local, "CHUNK", chunk)
    file = tmp_path / "x.txt"
    file.write_text(f"\n\na b\n \t\nc\n\n\n\nd\ne{END_OF_TEXT}f\n\n".replace("\n", "\r\n"))
    parts = [[part.strip() for part in local._text_parts(file, marked, Found())] for marked in (False, True)]
    assert parts == [["a b", "c", f"d\ne{END_OF_TEXT}f"], ["a b\n \t\nc\n\n\n\nd\ne", "f"]]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("n", range(16_370, 16_400, 3))
def test_the_end_of_an_enormous_document_is_found_wherever_it_is_cut(n: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(local, "CHUNK", 1490)  # eleven are 16 pieces and 6 characters, in which the end may begin
    for marked, end in ((True, END_OF_TEXT), (False, "\n\n")):
        (tmp_path / "x.txt").write_text("d" * n + end + "e" * 16_000 + end + "f")
        *long, second, third = local._text_parts(tmp_path / "x.txt", marked, found := Found())
        assert ("".join(long), second, third) == ("d" * n, "e" * 16_000, "f")
        assert found[cleaning.CUT] == (len(long) > 1)


def test_a_document_that_is_not_enormous_stays_whole(tmp_path: Path, caplog) -> None:
    long = "word " * 100_000
    assert long.strip() in texts(corpus(write(tmp_path / "x.jsonl", [*TEXTS, long])))
    assert not caplog.records


def test_pieces_are_the_text() -> None:
    for text in ("é" * 3_000_000, "word " * 500_000, "line\n" * 500_000, ""):
        cut = list(pieces(text))
        assert "".join(cut) == text and max(map(len, cut), default=0) <= cleaning.PIECE
        assert text[:1] == "é" or not any(
            piece[-1].isalpha() and after[0].isalpha() for piece, after in pairwise(cut)
        )


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_without_text_are_skipped_and_counted(suffix: str, tmp_path: Path, caplog) -> None:
    """Seen to fail: a `null` of JSONL ended reading."""
    rows = [*TEXTS[:30], None, "", " \n\u2003", *TEXTS[30:]]
    assert sorted(texts(corpus(write(tmp_path / f"x{suffix}", rows)))) == sorted(TEXTS)
    assert [r.getMessage() for r in caplog.records] == [f"documents of {tmp_path}/x{suffix}: 3 {cleaning.EMPTY}"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_nul_characters_in_rows_are_dropped_and_counted(suffix: str, tmp_path: Path, caplog) -> None:
    rows = [text.replace(" ", "\0 ") for text in TEXTS[:2]] + TEXTS[2:]
    assert sorted(texts(corpus(write(tmp_path / f"x{suffix}", rows)))) == sorted(TEXTS)
    assert f"2 {cleaning.NUL}" in caplog.text and len(caplog.records) == 1


def test_half_surrogate_pairs_are_replaced_and_counted(tmp_path: Path, caplog) -> None:
    rows = [*TEXTS, "an \ud800 alone, \ud83d\ude00 a pair"]
    given = texts(corpus(write(tmp_path / "x.jsonl", rows)))
    assert "an \ufffd alone, 😀 a pair" in given
    assert all(text.encode() for text in given)
    assert f"1 {cleaning.SURROGATE}" in caplog.text and len(caplog.records) == 1


def test_what_was_found_is_said_when_reading_is_ended_early_and_again_only_if_more_is(caplog) -> None:
    read = cleaned("rows", lambda found: iter_of(["a", "", "b", None, "c"]))
    for n, said in ((1, 0), (2, 1), (2, 1), (3, 2), (3, 2)):
        stream = read()
        assert [next(stream) for _ in range(n)] == ["a", "b", "c"][:n]
        stream.close()
        assert len(caplog.records) == said
    assert caplog.records[0].levelno == logging.WARNING and f"2 {cleaning.EMPTY}" in caplog.records[1].getMessage()


def iter_of(rows):
    yield from rows


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        texts(corpus(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
def test_what_is_not_text_is_refused_with_the_byte(chunk: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(local, "CHUNK", chunk)
    path = tmp_path / "a file.txt"
    assert "byte 5: invalid continuation byte" in refusal(path, b"12345\xe9 more text")
    assert "byte 5: invalid start byte); convert it, for example with iconv -f" in refusal(path, b"12345\xff more")
    assert "byte 7: unexpected end of data" in refusal(path, "1234é 😀".encode()[:-1])
    assert "(byte 6 is NUL)" in refusal(path, b"1\xc3\xa9345\0 more")
    assert f"'{path}' > converted.txt" in refusal(path, "wide".encode("utf-16"))
    assert "NUL" in refusal(tmp_path / "x.jsonl", b'{"text": "a\0b"}')


def test_a_parquet_row_that_is_not_utf_8_is_refused_with_its_place(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(local, "BATCH_BYTES", 1)  # a row at a time
    rows = pa.array([b"fine"] * 30 + [b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": rows}), tmp_path / "x.parquet")
    with pytest.raises(
        ConfigError, match=r"x.parquet, rows 31 to 31, has text that is not UTF-8 in the column 'text'"
    ):
        texts(corpus(tmp_path / "x.parquet"))


def test_a_parquet_file_for_which_memory_runs_out_is_not_called_damaged(tmp_path: Path, monkeypatch) -> None:
    """Seen to fail: Arrow's own error of it is an ArrowException, as of a damaged file."""

    class Full(pq.ParquetFile):
        def iter_batches(self, *_: object, **__: object) -> Iterator[pa.RecordBatch]:
            raise pa.ArrowMemoryError("malloc of size 1000000000 failed")
            yield

    path = write(tmp_path / "x.parquet", TEXTS)
    monkeypatch.setattr(local.pq, "ParquetFile", Full)
    with pytest.raises(MemoryError, match="malloc"):
        texts(corpus(path))


def test_a_parquet_file_whose_body_is_damaged_is_refused(tmp_path: Path) -> None:
    """Seen to fail: it ended in a traceback of pyarrow's."""
    path = write(tmp_path / "x.parquet", TEXTS * 3)
    content = bytearray(path.read_bytes())
    content[60:2000] = bytes(1940)
    path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"x.parquet is damaged behind row 0 \(.*\); get it anew, or give another"
    ):
        texts(corpus(path))
