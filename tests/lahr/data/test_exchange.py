"""Prepared data on its way between machines, and what a machine must have in common with the driver's."""

import shutil
from dataclasses import replace

import pytest

from lahr.data import fetch, prepare, publish, published_at
from lahr.errors import ConfigError, StorageError
from lahr.files import Folder
from lahr.machine import Demands
from tests.conftest import TINY

BLOCK = TINY.model.max_seq_len


def test_data_prepared_on_one_machine_is_the_same_on_another(tiny_data, tmp_path):
    source = publish(tiny_data, Folder.at(tmp_path / "shared"))
    assert source.name == tiny_data.folder.name
    for _ in range(2):
        there = fetch(source, TINY.data, BLOCK, tmp_path / "cache")
        assert there.content_hash == tiny_data.content_hash
        assert there.folder.parent == tmp_path / "cache"
        assert (there.train.split.tokens == tiny_data.train.split.tokens).all()
        shutil.rmtree(tmp_path / "shared", ignore_errors=True)  # the second time it is in the cache


def test_it_is_published_once(tiny_data, tmp_path, monkeypatch):
    place = Folder.at(tmp_path)
    source = publish(tiny_data, place)
    monkeypatch.setattr(Folder, "write", lambda *_: pytest.fail("written again"))
    assert publish(tiny_data, place) == source


def test_neither_way_holds_a_shard_in_memory(tiny_data, tmp_path, monkeypatch):
    """Seen to fail when shards were read whole. What a fetch that was killed has left goes."""
    whole = {"manifest.json"}
    read = Folder.read
    monkeypatch.setattr(
        Folder, "read", lambda self, name: read(self, name) if name in whole else pytest.fail("read whole")
    )
    left = tmp_path / "cache" / f"{tiny_data.folder.name}.part-1"
    left.mkdir(parents=True)
    source = publish(tiny_data, Folder.at(tmp_path / "shared"))
    fetch(source, TINY.data, BLOCK, tmp_path / "cache")
    assert not left.exists()


def test_a_copy_that_was_damaged_is_fetched_again(tiny_data, tmp_path):
    source = publish(tiny_data, Folder.at(tmp_path / "shared"))
    there = fetch(source, TINY.data, BLOCK, tmp_path / "cache")
    shard = next(there.folder.glob("train-*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-9])
    again = fetch(source, TINY.data, BLOCK, tmp_path / "cache")
    assert (again.train.split.tokens == tiny_data.train.split.tokens).all()


def test_what_cannot_be_fetched_is_said_and_leaves_nothing(tiny_data, tmp_path):
    with pytest.raises(ConfigError, match="cannot be seen from this machine"):
        fetch(Folder.at(tmp_path / "nowhere"), TINY.data, BLOCK, tmp_path / "cache")
    source = publish(tiny_data, Folder.at(tmp_path / "shared"))
    source.write("tokenizer.json", b"{}")
    with pytest.raises(ConfigError, match="is damaged"):
        fetch(source, TINY.data, BLOCK, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([".lock"], [".lock", ".lock"])


def test_a_published_copy_that_is_damaged_is_prepared_and_published_anew(tiny_data, tmp_path, caplog):
    """Seen to fail: it stopped what could have been prepared. Caught: its manifest left, for which `publish` took it
    for whole."""
    place = Folder.at(tmp_path / "shared")
    source = publish(tiny_data, place)
    source.write("tokenizer.json", b"{}")
    again = prepare(TINY.data, TINY.model.vocab_size, BLOCK, tmp_path / "cache", elsewhere=published_at(place))
    assert again.content_hash == tiny_data.content_hash
    assert f"the prepared data at {source.uri} is damaged; it is not used any more" in caplog.text
    publish(again, place)
    assert fetch(source, TINY.data, BLOCK, tmp_path / "other").content_hash == tiny_data.content_hash


def test_a_damaged_published_copy_where_nothing_can_be_removed_does_not_stop_who_prepares(
    tiny_data, tmp_path, monkeypatch
):
    """Caught: a place that may only be read."""
    place = Folder.at(tmp_path / "shared")
    publish(tiny_data, place).write("tokenizer.json", b"{}")

    def refuse(folder, name):
        raise StorageError(f"{folder.uri} may not be written to")

    monkeypatch.setattr(Folder, "remove", refuse)
    again = prepare(TINY.data, TINY.model.vocab_size, BLOCK, tmp_path / "cache", elsewhere=published_at(place))
    assert again.content_hash == tiny_data.content_hash


def test_a_machine_says_what_it_lacks(tmp_path):
    """Seen to fail when the marker was only looked for, and another sweep's stood there."""
    results = Folder.at(tmp_path / "results")
    demands = Demands.made(results)
    assert demands.unmet() is None
    other = replace(demands, versions={**demands.versions, "torch": "2.12.1"})
    assert "(the driver has 2.12.1)" in str(other.unmet())
    elsewhere = replace(demands, results=str(tmp_path / "another disk"))
    assert f"files in {tmp_path / 'another disk'}, so it is not the same place there" in str(elsewhere.unmet())
    Demands.made(results)  # another start's
    assert "is not the same place there" in str(demands.unmet())
