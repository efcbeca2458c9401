"""Datasets of the Hub, streamed: `load_dataset` gives real streams of local rows here, and the Hub a made-up commit."""

import json
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lahr.config import DataConfig
from lahr.data import cleaning, preparation, shards, streams
from lahr.data.corpora import find_corpus
from lahr.data.streams import HubName, hub_name
from lahr.errors import ConfigError

TEXTS = [f"Document number {i} says something of its own." for i in range(400)]
LOAD = datasets.load_dataset


def parquet(folder: Path, **splits: list[str]) -> Any:
    for name, texts in splits.items():
        table = pa.table({"n": range(len(texts)), "text": texts})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=50)
    files = {name: str(folder / f"{name}.parquet") for name in splits}
    return LOAD("parquet", data_files=files, streaming=True)


def generated(rows: Callable[[], Iterator[dict[str, Any]]]) -> Any:
    """One stream whose columns are not known before it is read."""
    return datasets.IterableDatasetDict({"train": datasets.IterableDataset.from_generator(rows)})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], list[Any]]:
    """Puts a dataset on the Hub; what was asked of it is listed."""

    def put(dataset: Any) -> list[Any]:
        asked: list[Any] = []

        def repo_info(self: Any, name: str, **options: Any) -> Any:
            asked.append(name)
            return type("Info", (), {"sha": "c0ffee"})()

        def load_dataset(name: str, config: str | None = None, **options: Any) -> Any:
            asked.append((name, config, options))
            if isinstance(dataset, Exception):
                raise dataset
            return dataset

        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(streams, "PAUSES_S", (0.0, 0.0))
    return put


def corpus(name: str = "owner/name", **config: str) -> Any:
    return find_corpus(DataConfig(corpus=name, **config))


def texts(documents: Iterator[Any]) -> list[str]:
    return [document.text for document in documents]


def test_names_of_the_hub() -> None:
    assert hub_name("owner/na.me-1") == HubName("owner/na.me-1", None, "train")
    assert hub_name("owner/name:2024.en") == HubName("owner/name", "2024.en", "train")
    assert hub_name("owner/name:en:test") == HubName("owner/name", "en", "test")
    assert hub_name("owner/name::test") == HubName("owner/name", None, "test")
    for name in ("name", "owner/name/more", "s3://bucket/name", "owner/name:a:b:c", "probe:copy", "a b/c", "../x"):
        assert hub_name(name) is None
    for name in ("owner/name", "owner/name:en", "owner/name:en:test", "owner/name::test"):
        assert str(hub_name(name)) == name


def test_its_own_validation_split_is_used(hub, tmp_path: Path) -> None:
    asked = hub(parquet(tmp_path, train=TEXTS[:300], validation=TEXTS[300:]))
    found = corpus()
    assert not asked  # prepared shards need no network
    assert texts(found.train()) == TEXTS[:300] and texts(found.validation()) == TEXTS[300:]
    assert asked == ["owner/name", ("owner/name", None, {"revision": "c0ffee", "streaming": True})]  # once
    assert found.taken() == {
        "dataset": "owner/name", "config": None, "column": "text", "revision": "c0ffee",
        "split": {"train": "train", "validation": "validation"},
    }  # fmt: skip
    assert json.dumps(found.taken())


def test_without_one_documents_are_held_out_as_of_a_file(hub, tmp_path: Path) -> None:
    hub(parquet(tmp_path, train=TEXTS))
    found, local = corpus(), corpus(str(tmp_path / "train.parquet"))
    for side in ("train", "validation"):
        assert texts(getattr(found, side)()) == texts(getattr(local, side)())
    assert 5 <= len(texts(found.validation())) <= 40
    assert found.taken()["split"]["validation"] == "held out"


def test_configuration_and_split_are_asked_for(hub, tmp_path: Path) -> None:
    asked = hub(parquet(tmp_path, train=TEXTS[:300], test=TEXTS[300:]))
    found = corpus("owner/name:en:test")
    assert sorted(texts(found.train()) + texts(found.validation())) == sorted(TEXTS[300:])
    assert asked[1][:2] == ("owner/name", "en") and found.taken()["config"] == "en"
    assert len({corpus(f"owner/name{end}").identity for end in ("", ":en", ":en:test", "::test")}) == 4
    hub(parquet(tmp_path, validation=TEXTS))
    found = corpus("owner/name::validation")  # not held against itself
    assert len(texts(found.train())) < 400 and not set(texts(found.train())) & set(texts(found.validation()))
    hub(parquet(tmp_path, train=TEXTS))
    assert corpus("tinystories:en").identity == corpus("roneneldan/TinyStories:en").identity


def test_a_name_that_is_a_file_with_a_configuration_is_refused(hub, tmp_path: Path, monkeypatch) -> None:
    hub(parquet(tmp_path, train=TEXTS))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"'owner/name' is here, and files have no configurations; write 'owner/name'"
    ):
        corpus("owner/name:en")


def test_no_row_is_read_ahead_and_the_reader_is_released(hub) -> None:
    read, released = [], []

    def rows() -> Iterator[dict[str, Any]]:
        try:
            for text in TEXTS:
                read.append(text)
                yield {"text": text}
        finally:
            released.append(True)

    hub(generated(rows))
    stream = corpus().train()
    assert len(texts(islice(stream, 50))) == 50
    assert len(read) < 100 and not released
    stream.close()
    assert released == [True]  # and opened no more than once


def test_a_stream_that_breaks_off_is_read_on_where_it_was(hub, caplog) -> None:
    breaks = {0, 57, 200, 201}

    def rows() -> Iterator[dict[str, Any]]:
        for i, text in enumerate(TEXTS):
            if i in breaks:
                breaks.remove(i)
                raise OSError("connection reset\nby peer")
            yield {"text": text}

    hub(generated(rows))
    found = corpus()
    given = texts(found.train())
    assert given == [text for text in TEXTS if text in set(given)] and len(given) >= 360
    messages = [r.getMessage() for r in caplog.records if r.name == streams.__name__]
    assert len(messages) == 4 and all("\n" not in message for message in messages)
    assert messages[1].startswith(
        "the dataset 'owner/name' broke off after 57 rows of 'train' (OSError: connection"
    )
    assert sorted(given + texts(found.validation())) == sorted(TEXTS)


def test_a_stream_that_stays_broken_is_an_error_that_says_how_far_it_came(hub, caplog) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"text": text} for text in TEXTS[:57])
        raise TimeoutError("no answer")

    hub(generated(rows))
    with pytest.raises(
        ConfigError, match=r"broke off after 57 rows .*characters \(TimeoutError: no answer\), and 2 more"
    ):
        texts(corpus().train())
    assert sum(r.name == streams.__name__ for r in caplog.records) == 2


def test_columns(hub, tmp_path: Path) -> None:
    def refused(message: str, column: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            texts(corpus(text_column=column).train())
        assert "\n" not in str(caught.value)

    for dataset in (
        parquet(tmp_path, train=TEXTS),
        generated(lambda: ({"n": i, "text": text} for i, text in enumerate(TEXTS))),
    ):
        hub(dataset)
        assert len(texts(corpus().train())) > 300
        refused("has no column 'story'; it has n, text: give one as --data.text-column", "story")
        refused("the column 'n' of the dataset 'owner/name' holds int, not text; it has n, text", "n")


def test_what_cannot_be_had_names_the_way_out(hub, tmp_path: Path, monkeypatch) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            texts(corpus(name).train())
        assert "\n" not in str(caught.value) and "'stories'" in str(caught.value)

    hub(parquet(tmp_path, test=TEXTS, other=TEXTS))
    refused("owner/name", "has no split 'train', only test, other; name one as 'owner/name::SPLIT'")
    refused("owner/name:en:dev", "has no split 'dev', only test, other; name one as 'owner/name:en:SPLIT'")
    hub(ValueError("Config name is missing.\nPlease pick one among the available configs: ['de', 'en']"))
    refused(
        "owner/name", r"cannot be loaded .*\['de', 'en'\]\); give its configuration as owner/name:configuration"
    )
    asked = hub(parquet(tmp_path, train=TEXTS))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("owner/name", "cannot be had from the Hub .HF_HUB_OFFLINE is set and no copy")
    assert not asked


@pytest.mark.parametrize("says", [True, False])
def test_offline_a_copy_is_used_and_its_commit_is_known_if_it_says(says, hub, tmp_path: Path, monkeypatch) -> None:
    asked = hub(parquet(tmp_path, train=TEXTS))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    copy = tmp_path / "hub" / "datasets--owner--name"
    copy.mkdir(parents=True)
    if says:
        (copy / "refs").mkdir()
        (copy / "refs" / "main").write_text("abad1dea\n")
    found = corpus()
    assert found.taken()["revision"] == ("abad1dea" if says else None)
    assert texts(found.train())
    assert asked == [("owner/name", None, {"revision": None, "streaming": True})]


@pytest.fixture
def moving(hub, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A dataset with other text in each of its commits, and which of them the Hub has now."""

    def put(commits: dict[str | None, list[str]], now: str) -> None:
        def load_dataset(name: str, config: str | None = None, *, revision: str | None, **options: Any) -> Any:
            if revision not in commits:
                raise ValueError(f"no revision {revision}")
            return generated(lambda: ({"text": text} for text in commits[revision]))

        hub(None)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(
            huggingface_hub.HfApi, "repo_info", lambda *_, **options: type("Info", (), {"sha": now})()
        )

    return put


OLD, NEW = ([f"{word} number {i} is {i * i % 97} and no other." for i in range(3000)] for word in ("One", "New"))


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Prepares the dataset in small shards, below a name; `dies` in the middle of the training split where asked."""
    config = DataConfig(corpus="owner/name", train_tokens=20_000, validation_blocks=4)
    monkeypatch.setattr(preparation, "LEAST_VALIDATION_TOKENS", 1 << 10)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1 << 12)

    def run(name: str, dies: bool = False) -> Any:
        def progress(what: str, share: float) -> None:
            if dies and what == "tokenising train" and share > 0.5:
                raise InterruptedError

        return preparation.prepare(config, 300, 32, tmp_path / name, progress)

    return run


def test_a_preparation_that_was_cut_off_goes_on_with_the_commit_that_it_began_with(moving, prepared) -> None:
    """Seen to fail: after a kill what followed was of the commit of then, at the old one's number of documents."""
    moving({"old": OLD}, "old")
    whole = prepared("whole")

    with pytest.raises(InterruptedError):
        prepared("cut", dies=True)
    moving({"new": NEW}, "new")  # the old one is gone
    with pytest.raises(
        ConfigError, match=r"no revision old.*try again later.*of commit old, .*remove the folder .*\.part to begin"
    ):
        prepared("cut")
    moving({"old": OLD, "new": NEW}, "new")
    cut = prepared("cut")
    assert cut.content_hash == whole.content_hash
    assert json.loads((cut.folder / "manifest.json").read_text())["taken"]["revision"] == "old"
    other = prepared("other")
    assert other.content_hash != whole.content_hash
    assert {path.name for path in cut.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}


def test_a_preparation_whose_commit_was_not_known_begins_anew_and_says_so(
    moving, prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """Of a local copy that names none. Seen to fail: what followed was of the commit that the Hub has by then."""
    (tmp_path / "hub" / "datasets--owner--name").mkdir(parents=True)
    moving({None: OLD, "new": NEW}, "new")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InterruptedError):
        prepared("cut", dies=True)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    cut = prepared("cut")
    assert "of which commit the shards in" in caplog.text
    assert cut.content_hash == prepared("whole").content_hash


def test_text_that_is_not_utf_8_is_said_and_tried_again(hub, caplog) -> None:
    """The file may have come damaged; one that stays so is an error with the row."""

    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"text": text} for text in TEXTS[:57])
        yield {"text": b"caf\xe9".decode()}

    hub(generated(rows))
    with pytest.raises(ConfigError, match=r"broke off after 57 rows of 'train'.*UnicodeDecodeError: 'utf-8' codec"):
        texts(corpus().train())
    assert sum(r.name == streams.__name__ for r in caplog.records) == 2


def test_rows_are_cleaned(hub, caplog) -> None:
    hub(
        generated(lambda: ({"text": text} for text in [*TEXTS, None, "", "a\0b", "\ud800", f"c{'<|endoftext|>'}d"]))
    )
    found = corpus()
    given = set(texts(found.train())) | set(texts(found.validation()))
    assert given - set(TEXTS) == {"ab", "\ufffd", "c", "d"}
    said = [r.getMessage() for r in caplog.records if r.name == cleaning.__name__ and r.levelno == logging.WARNING]
    assert len(said) == 1 and f"2 {cleaning.EMPTY}; 1 {cleaning.NUL}; 1 {cleaning.SURROGATE}" in said[0]
