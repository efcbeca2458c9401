"""Which documents a corpus has, how they split, and what a person is told when there is none."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lahr.config import DataConfig
from lahr.data import corpora
from lahr.data.corpora import END_OF_TEXT, anchored, find_corpus, hold_out
from lahr.errors import ConfigError

TEXTS = [f"Document number {i} says something of its own." for i in range(400)]


def sides(name: str | Path, **config: str) -> tuple[list[str], list[str]]:
    """Training and validation texts of the corpus of that name."""
    corpus = find_corpus(DataConfig(corpus=str(name), **config))
    return [d.text for d in corpus.train()], [d.text for d in corpus.validation()]


def write_text(path: Path) -> Path:
    path.with_suffix(".txt").write_text("\n\n".join(TEXTS))
    return path.with_suffix(".txt")


def write_marked(path: Path) -> Path:
    path.with_suffix(".txt").write_text(f"\n{END_OF_TEXT}\n".join(TEXTS))
    return path.with_suffix(".txt")


def write_jsonl(path: Path) -> Path:
    path.with_suffix(".jsonl").write_text("\n".join(json.dumps({"n": i, "text": t}) for i, t in enumerate(TEXTS)))
    return path.with_suffix(".jsonl")


def write_parquet(path: Path) -> Path:
    pq.write_table(pa.table({"n": range(len(TEXTS)), "text": TEXTS}), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("write", [write_text, write_marked, write_jsonl, write_parquet])
def test_every_document_is_on_one_side_whatever_the_format(write: Callable[[Path], Path], tmp_path: Path) -> None:
    train, validation = sides(write(tmp_path / "corpus"))
    assert sorted(train + validation) == sorted(TEXTS)
    assert not set(train) & set(validation)
    assert 5 <= len(validation) <= 40  # 5 % of 400
    assert train == [text for text in TEXTS if text in set(train)]  # in their order
    other = tmp_path / "other"
    other.mkdir()
    assert sides(write_parquet(other / "same"))[1] == validation  # the text decides, not the file


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("\n\n".join(TEXTS[100 * i : 100 * i + 100]))
    (tmp_path / "README").write_text("not a part of it")
    single = tmp_path / "single"
    single.mkdir()
    assert sides(tmp_path) == sides(write_text(single / "all"))


def test_markers_inside_rows_part_documents(tmp_path: Path) -> None:
    rows = [{"text": f"{a}{END_OF_TEXT}{b}"} for a, b in zip(TEXTS[::2], TEXTS[1::2], strict=True)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, validation = sides(tmp_path / "x.jsonl")
    assert sorted(train + validation) == sorted(TEXTS)


def test_blank_lines_inside_marked_documents_stay(tmp_path: Path) -> None:
    marked = [text.replace(" of ", "\n\nof ") for text in TEXTS]
    (tmp_path / "x.txt").write_text(END_OF_TEXT.join(marked))
    train, validation = sides(tmp_path / "x.txt")
    assert sorted(train + validation) == sorted(marked)


def test_few_documents_are_held_out_in_blocks(tmp_path: Path) -> None:
    text = " ".join(f"wörd{i}" for i in range(60_000))
    (tmp_path / "one.txt").write_text(text)
    train, validation = sides(tmp_path / "one.txt")
    blocks = len(text.encode()) / corpora.BLOCK_BYTES
    assert 0.04 * blocks <= len("".join(validation).encode()) / corpora.BLOCK_BYTES <= 0.06 * blocks + 1
    joined = "".join(train + validation).split()
    assert sorted(joined) == sorted(text.split())  # nothing lost, doubled or cut in two
    assert all(run in text for run in train + validation)


def test_blocks_without_white_space_keep_every_character() -> None:
    text = "é" * 30_000
    pieces = list(corpora._blocks(text))
    assert "".join(pieces) == text and max(len(piece.encode()) for piece in pieces) <= corpora.BLOCK_BYTES


def test_a_single_short_document_is_not_split() -> None:
    corpus = hold_out("", "", lambda: iter(["short"]))
    assert [d.text for d in corpus.train()] == ["short"] and list(corpus.validation()) == []


def test_identity_is_content_not_path(tmp_path: Path) -> None:
    def identity(path: Path, **config: str) -> str:
        return find_corpus(DataConfig(corpus=str(path), **config)).identity

    one = write_text(tmp_path / "one")
    two = write_text(tmp_path / "two")
    assert identity(one) == identity(two)
    two.write_text(two.read_text() + ".")
    assert identity(one) != identity(two)
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": TEXTS, "other": TEXTS[::-1]}), table)
    assert identity(table) != identity(table, text_column="other")


def test_stories_splits_share_no_story() -> None:
    corpus = find_corpus(DataConfig())
    train, validation = corpus.train(), corpus.validation()
    assert not {next(train).text for _ in range(300)} & {next(validation).text for _ in range(300)}
    assert next(corpus.train()).bits == pytest.approx(find_corpus(DataConfig()).train().__next__().bits)


def test_errors_name_what_was_given_and_the_way_out(tmp_path: Path) -> None:
    def refused(name: str | Path, message: str, **config: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            sides(name, **config)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.txt", "none.txt': no such file or folder")
    refused("some/where/deep", "no such file or folder")
    refused("data/none.parquet", "no such file or folder")
    refused("tinystory", "neither a corpus nor a file here; use 'tinystories'")
    refused("xyz", "use 'stories' or 'tinystories'")
    refused("probe/deep/x:en", "no such file or folder")
    empty = tmp_path / "empty.txt"
    empty.touch()
    refused(empty, "empty.txt is empty")
    empty.write_text("  \n\n ")
    refused(empty, "holds no text")
    (tmp_path / "nul.txt").write_bytes(b"abc\0def" * 10)
    refused(tmp_path / "nul.txt", "binary")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1") * 10)
    refused(tmp_path / "latin.txt", "not text in UTF-8")
    (tmp_path / "cut.txt").write_bytes("café".encode()[:-1])
    refused(tmp_path / "cut.txt", "not text in UTF-8")
    refused(
        write_jsonl(tmp_path / "j"), "no field 'story'; it has n, text: .*--data.text-column", text_column="story"
    )
    refused(
        write_parquet(tmp_path / "p"),
        "no column 'story'; it has n, text: .*--data.text-column",
        text_column="story",
    )
    refused(tmp_path / "p.parquet", "holds int64, not text", text_column="n")
    refused(tmp_path / "j.jsonl", "'n' is not text", text_column="n")
    (tmp_path / "fake.parquet").write_text("not one")
    refused(tmp_path / "fake.parquet", "not a parquet file")
    (tmp_path / "fake.jsonl").write_text('{"text": "a"}\nnot json')
    refused(tmp_path / "fake.jsonl", "line 2, is not JSON")
    refused(tmp_path, "several kinds")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "x.csv").write_text("a,b")
    refused(bare, "no file that can be read")


def test_local_files_are_anchored_and_names_stay_names(tmp_path, monkeypatch):
    """Workers read them from another folder. Seen to fail: a relative path was looked for in a folder of Ray's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a\n\nb")
    (tmp_path / "tokenizer.json").write_text("{}")
    for name in ("stories", "gpt2", "prosqa", "prosqa:c=2", "probe:swaps"):
        (tmp_path / name).mkdir()
    local = anchored(DataConfig(corpus=" text.txt", tokenizer="tokenizer.json"))
    assert (local.corpus, local.tokenizer) == (str(tmp_path / "text.txt"), str(tmp_path / "tokenizer.json"))
    for config in (
        DataConfig(),
        DataConfig(corpus="owner/name", tokenizer="gpt2"),
        DataConfig(corpus="tinystories"),
        DataConfig(corpus="prosqa"),  # seen to fail: sweeps took a folder of that name, and `train` the corpus
        DataConfig(corpus="prosqa:c=2"),
        DataConfig(corpus="probe:swaps"),
    ):
        assert anchored(config) == config
