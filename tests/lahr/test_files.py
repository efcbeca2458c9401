"""Folders: files appear whole, names cannot leave, a URI works like a path, and storage that is away is waited for."""

import errno
import os
import pickle
import socket
import subprocess
import threading
import time
from datetime import timedelta

import pytest

from lahr import files, patience, stores
from lahr.errors import ConfigError, StorageError
from lahr.files import Folder
from tests.conftest import fill


@pytest.fixture(params=["path", "uri", "s3"])
def folder(request, tmp_path) -> Folder:
    if request.param == "s3":
        return Folder.at(request.getfixturevalue("object_store").uri(tmp_path.name))
    # Made directly, the URI goes the way of an object store's.
    return Folder.at(tmp_path / "f") if request.param == "path" else Folder(f"file://{tmp_path}/f")


@pytest.fixture
def soon(monkeypatch):
    """Storage is asked again every tenth of a second."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(patience, "_LONGEST_PAUSE_S", 0.1)


def test_what_is_written_is_read_listed_and_removed(folder):
    assert not folder.exists("a/b.json")
    assert folder.names("a") == []
    if folder.uri.startswith("file"):
        folder._open()[0].create_dir(folder.path("a"))  # an object store has no folders to make
    folder.write_json("a/b.json", {"x": 1})
    assert folder.read_json("a/b.json") == {"x": 1}
    assert folder.names("a") == ["b.json"]
    assert folder.child("a").read("b.json") == folder.read("a/b.json")
    with pytest.raises(FileNotFoundError):
        folder.read("a/c.json")
    folder.remove("a/b.json")
    folder.remove("a")
    folder.remove("a")
    assert not folder.exists("a")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x"])
def test_names_that_would_leave_are_refused(folder, name):
    with pytest.raises(ConfigError, match="would leave"):
        folder.write(name, b"")


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    """Seen to fail: with a file that Ctrl-C left behind."""
    folder = Folder.at(tmp_path)
    folder.write("a", b"old")

    for error in (OSError(errno.EROFS, "read-only"), KeyboardInterrupt()):

        def fails(descriptor, error=error):
            raise error

        monkeypatch.setattr("os.fsync", fails)
        with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
            folder.write("a", b"new")
        assert folder.read("a") == b"old"
        assert folder.names() == ["a"]


def test_a_file_uri_is_a_path(tmp_path):
    """Seen to fail: its parents were not made."""
    assert Folder.at(f"file://{tmp_path}/a%20b") == Folder(f"{tmp_path}/a b")


def test_only_one_of_two_makes_a_new_file(place):
    folder = place
    assert folder.write_new("x/lease", b"mine")
    assert not folder.write_new("x/lease", b"yours")
    assert folder.read("x/lease") == b"mine"
    assert folder.names("x") == ["lease"]


def test_a_uri_nobody_reads_is_said():
    with pytest.raises(ConfigError, match="cannot use 'gopher://x'"):
        Folder.at("gopher://x")


def test_options_of_a_store_stay_at_the_end():
    assert Folder("s3://bucket/a?region=x").child("b").uri == "s3://bucket/a/b?region=x"


def test_a_store_that_answers_503_for_a_while_is_waited_for(object_store, soon, tmp_path, caplog):
    """Seen to fail: without patience, in each of the operations."""
    folder = Folder.at(object_store.uri(tmp_path.name))
    folder.write("a", b"old")
    operations = {
        "write": lambda: folder.write("a", b"new"),
        "read": lambda: folder.read("a"),
        "list": folder.names,
        "look for": lambda: folder.exists("a"),
        "remove": lambda: folder.remove("a"),
    }
    for name, operation in operations.items():
        object_store.says, before = (503, "SlowDown"), object_store.refused
        threading.Timer(0.4, setattr, (object_store, "says", None)).start()
        operation()
        assert object_store.refused - before >= 2
        assert [f"{name} " in record.getMessage() for record in caplog.records] == [True, True]
        caplog.clear()


def test_a_store_that_is_gone_for_good_ends_in_a_clear_error(soon, object_store, monkeypatch):
    """Seen to fail: after 6 s, since the S3 client tries again by itself."""
    monkeypatch.setenv("LAHR_STORAGE_PATIENCE", "0.5")
    folder = Folder.at(nobody_at())
    for operation in (lambda: folder.write("a", b""), lambda: folder.read("a"), folder.names):
        began = time.monotonic()
        with pytest.raises(
            StorageError,
            match=r"cannot \w+ (a|files) in s3://.*NETWORK_CONNECTION.*once it answers again, the same",
        ):
            operation()
        assert 0.5 <= time.monotonic() - began < 3


def nobody_at() -> str:
    """The URI of a store where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return f"s3://bucket/x?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


def test_a_full_disk_is_waited_for_and_said_and_what_stands_there_stays(small_disk, soon, monkeypatch, caplog):
    """Seen to fail: without ENOSPC among what may pass; with the temporary file left behind."""
    folder = Folder.at(small_disk / "results")
    folder.write("finished", b"result")
    filler = fill(small_disk)
    monkeypatch.setenv("LAHR_STORAGE_PATIENCE", "0.3")
    with pytest.raises(
        StorageError, match=r"write new in .*: No space left on device \(after .*\); make room there"
    ):
        folder.write("new", bytes(50_000))
    assert folder.names() == ["finished"]
    assert folder.read("finished") == b"result"
    monkeypatch.setenv("LAHR_STORAGE_PATIENCE", "30")
    threading.Timer(0.5, filler.unlink).start()
    folder.write("new", bytes(50_000))
    assert "went through" in caplog.records[-1].getMessage()
    assert folder.read("new") == bytes(50_000)


def test_a_place_that_can_be_written_to_is_left_as_it_was(place):
    place.check_writable()
    assert place.names() == []
    assert not place.is_local or not place.exists()


def test_a_place_that_cannot_be_written_to_is_said_within_seconds(object_store, small_disk, tmp_path, monkeypatch):
    """Seen to fail: when only the folder's own permission bits were looked at; a server that says nothing held it up
    for 99 s, with the S3 client's own patience."""
    monkeypatch.setattr(stores, "_CONNECT_S", 1.0)
    monkeypatch.setattr("lahr.files._PROBE_S", 1.0)
    (tmp_path / "file").write_text("")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    silent = socket.create_server(("127.0.0.1", 0), backlog=50)
    port = silent.getsockname()[1]
    cases = {
        str(tmp_path / "file" / "below"): "file is a file; give a folder",
        str(
            small_disk / "results"
        ): "cannot be written to: Read-only file system; mend that, or give another place",
        object_store.uri("x", bucket="none"): "cannot be written to: .*bucket does not exist",
        nobody_at(): "cannot be written to: .*NETWORK_CONNECTION.*connect",
        f"s3://bucket/x?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1": "Timeout was reached",
    }
    for uri, said in cases.items():
        began = time.monotonic()
        with pytest.raises(ConfigError, match=said):
            Folder.at(uri).check_writable()
        assert time.monotonic() - began < 4
    silent.close()
    object_store.says = (403, "AccessDenied")
    with pytest.raises(ConfigError, match="ACCESS_DENIED"):
        Folder.at(object_store.uri("x")).check_writable()

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # root may write everywhere
    with pytest.raises(ConfigError, match="cannot be written to: Permission denied"):
        Folder.at(tmp_path / "results").check_writable()


def test_a_question_mark_in_a_path_is_a_letter(tmp_path):
    """Seen to fail: what should lie in `a?b` lay beside it."""
    folder = Folder.at(tmp_path / "a?b")
    folder.child("x").write("y", b"z")
    assert (tmp_path / "a?b" / "x" / "y").read_bytes() == b"z"
    assert folder.child("x").parent == folder
    assert folder.name == "a?b"


def test_a_file_is_made_once_where_the_disk_has_no_hard_links(tmp_path, monkeypatch):
    """Seen to fail: no sweep could hold its lease there."""

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    folder = Folder.at(tmp_path)
    assert folder.write_new("lease", b"mine")
    assert not folder.write_new("lease", b"yours")
    assert folder.read("lease") == b"mine"
    assert folder.names() == ["lease"]


def test_files_go_in_and_out_in_pieces(place, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE", 1000)
    (tmp_path / "source").write_bytes(bytes(range(256)) * 20)
    place.copy_in("x/y", tmp_path / "source")
    place.copy_out("x/y", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == place.read("x/y") == bytes(range(256)) * 20
    assert place.names("x") == ["y"]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIASECRET:hush@bucket/x",
        "s3://AKIASECRET:hu/sh@bucket/x",
        "s3://AKIASECRET@bucket/x",
        "s3://bucket/x?region=eu-west-1&access_key=AKIASECRET&secret_key=hush",
        "s3://bucket/x?session_token=hush",
        "s3://bucket/x?endpoint_override=http%3A%2F%2FAKIASECRET%3Ahush%40store%3A9000",
        "hdfs://me:hush@host:8020/x",
    ],
)
def test_a_uri_with_credentials_is_refused_without_repeating_them(uri):
    """They would stand in design.json, in Ray's state and in logs. Seen to fail: each form, without its pattern."""
    with pytest.raises(ConfigError, match=r"carries credentials.*AWS_ACCESS_KEY_ID.*AWS_PROFILE") as raised:
        Folder.at(uri)
    assert not any(secret in str(raised.value) for secret in ("AKIASECRET", "hush", "hu/sh", "sh@"))


def test_a_uri_without_credentials_passes_and_nobody_is_asked():
    """Seen to fail: S3 was asked for the region of the bucket, so that a worker failed while it was away."""
    assert Folder.at("s3://bucket/a@b/c").name == "c"


def test_googles_client_leaves_patience_to_us():
    """Seen to fail: it tried for a quarter of an hour, so that nothing was said within seconds."""
    for impatient, seconds in ((True, 3), (False, 10)):
        store, path = stores.opened("gs://anonymous@bucket/x", impatient, 1)
        assert store.__reduce__()[1][0]["retry_time_limit"] == timedelta(seconds=seconds)
        assert path == "bucket/x"


def test_a_store_is_opened_once_in_a_process_and_a_folder_stays_a_plain_value(object_store):
    """Seen to fail: a client for every operation."""
    folder = Folder.at(object_store.uri("x"))
    assert folder._open()[0] is folder._open()[0]
    assert stores.opened(folder.uri, False, 1)[0] is not stores.opened(folder.uri, False, 2)[0], (
        "a fork has its own"
    )
    assert pickle.loads(pickle.dumps(folder)) == folder


def test_an_object_replaced_by_a_longer_one_while_it_is_read_comes_whole(object_store, tmp_path, monkeypatch):
    """Seen to fail: its size was asked for first, and the new one came cut off at the old one's (a lease that made no
    sense protected nobody)."""
    place = Folder.at(object_store.uri(tmp_path.name))
    place.write("a", b"old")
    real, _ = place._open()

    class Replacing:
        """The store, with a writer who is quicker than the reader, once."""

        get_file_info = staticmethod(real.get_file_info)

        def __init__(self) -> None:
            self.content = [b"new and longer"]

        def open_input_stream(self, path, compression):
            stream = real.open_input_stream(path, compression=compression)
            while self.content:
                with real.open_output_stream(path) as writer:
                    writer.write(self.content.pop())
            return stream

    opened = Replacing(), place._open()[1]
    monkeypatch.setattr(Folder, "_open", lambda _: opened)
    assert place.read("a") == b"new and longer"


def test_files_are_those_of_all_folders_below(place):
    """Seen to fail with folders among them, and with names from the filesystem's root."""
    folder = place
    for name in ("a.txt", "x/b.txt", "x/y/c.txt", "z/d.txt"):
        folder.write(name, b"1")
    assert folder.files() == ["a.txt", "x/b.txt", "x/y/c.txt", "z/d.txt"]
    assert folder.files("x") == ["x/b.txt", "x/y/c.txt"]
    assert folder.files("nowhere") == []
