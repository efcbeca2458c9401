"""The lease: one sweep in a folder, on a disk and in an object store, whatever crashes, sleeps or is away."""

import json
import os
import signal
import threading
import time

import pytest

from lahr.errors import ConfigError, StorageError
from lahr.files import Folder
from sweeps.engine import lease


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lease, "_SETTLE_S", 0.3)


def of(host: str, pid: int = 2**22 + 1, age: float = 0.0) -> dict:
    machine = lease.this_machine() if host == os.uname().nodename else host
    return {"host": host, "machine": machine, "pid": pid, "owner": "them", "time": time.time() - age}


def test_a_living_sweep_keeps_others_out_and_lets_go_at_the_end(place):
    with lease.held(place):
        assert lease.is_held(place)
        with pytest.raises(ConfigError, match="another sweep is running"), lease.held(place):
            pytest.fail("two sweeps hold one folder")
    assert not lease.is_held(place)
    assert place.names() == []


def test_a_dead_sweeps_lease_is_taken_at_once(place):
    place.write_json("lease.json", of(os.uname().nodename))
    with lease.held(place):
        assert place.read_json("lease.json")["pid"] == os.getpid()


def test_another_machine_of_the_same_name_is_not_judged_by_its_process_number(place, monkeypatch):
    """Seen to fail with the name alone: a living sweep was taken for dead, since no process here had its number."""
    monkeypatch.setattr(lease, "_BEAT_S", 0.5)
    theirs = {**of(os.uname().nodename), "machine": f"{os.uname().nodename} of another boot"}
    place.write_json("lease.json", theirs)
    threading.Timer(0.25, place.write_json, ("lease.json", {**theirs, "time": time.time()})).start()
    with pytest.raises(ConfigError, match="another sweep is running"), lease.held(place):
        pytest.fail("two sweeps hold one folder")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"host": "x"}'])
def test_a_lease_that_makes_no_sense_protects_nobody(place, content):
    place.write("lease.json", content)
    with lease.held(place):
        pass


def test_a_sweep_on_another_machine_is_refused_as_soon_as_it_beats(place, monkeypatch):
    """Whatever its clock says. Seen to fail: its clock an hour behind, it was taken for dead."""
    monkeypatch.setattr(lease, "_BEAT_S", 1.0)
    monkeypatch.setattr(lease, "_STALE_S", 5.0)
    for age in (1.0, 3600.0, -3600.0):
        place.write_json("lease.json", of("another", age=age))
        threading.Timer(0.25, place.write_json, ("lease.json", of("another", age=age - 1))).start()
        began = time.monotonic()
        with pytest.raises(ConfigError, match="on another, heard"), lease.held(place):
            pytest.fail("two sweeps hold one folder")
        assert time.monotonic() - began < 4.5
        assert place.read_json("lease.json")["owner"] == "them"


def test_a_crashed_sweep_on_another_machine_is_waited_for_until_it_is_stale(place, monkeypatch, caplog):
    """Seen to fail: refused for half a minute, so that whatever starts it again had to try several times."""
    monkeypatch.setattr(lease, "_BEAT_S", 0.1)
    monkeypatch.setattr(lease, "_STALE_S", 5.0)
    for age, waits in ((4.4, 0.5), (60, 0.2)):
        place.write_json("lease.json", of("another", age=age))
        began = time.monotonic()
        lease.refuse_if_held(place)
        took = time.monotonic() - began
        assert waits <= took < 4
        (warning,) = caplog.records
        assert "process 4194305 on another has a sweep in" in warning.getMessage()
        caplog.clear()
        with lease.held(place):  # and does not wait again
            assert not caplog.records


def test_of_two_that_write_at_once_in_a_store_one_holds_the_lease(place, monkeypatch):
    """Both have seen that nobody holds it. Seen to fail: without the second look both held it, in S3."""
    both = threading.Barrier(2)
    real = Folder.write
    monkeypatch.setattr(Folder, "write", lambda self, *rest: (both.wait(), real(self, *rest))[1])
    monkeypatch.setattr(lease, "_BEAT_S", 60.0)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.8)
    outcomes = []

    def start() -> None:
        try:
            with lease.held(place):
                time.sleep(1.5)
                outcomes.append("held")
        except ConfigError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused, held = sorted(outcomes)
    assert held == "held"
    assert refused.startswith("another sweep has just started in")


def test_the_slower_of_two_that_find_a_dead_lease_is_refused(tmp_path, monkeypatch):
    """It removes what the quicker one has just written. Seen to fail: the quicker one went on."""
    folder = Folder.at(tmp_path)
    folder.write_json("lease.json", of(os.uname().nodename))
    real = Folder.write_new

    def and_the_slower_comes(self, name, content):
        written = real(self, name, content)
        self.write_json(name, of("another"))
        return written

    monkeypatch.setattr(Folder, "write_new", and_the_slower_comes)
    with pytest.raises(ConfigError, match="another sweep has just started"), lease.held(folder):
        pytest.fail("two sweeps hold one folder")
    assert folder.read_json("lease.json")["owner"] == "them"


def test_storage_that_is_away_ends_no_sweep_and_its_heart_beats_again(object_store, tmp_path, monkeypatch):
    """Seen to fail: the heart died of the first error."""
    monkeypatch.setattr(lease, "_BEAT_S", 0.05)
    folder = Folder.at(object_store.uri(tmp_path.name))
    with lease.held(folder):
        object_store.says, before = (503, "SlowDown"), object_store.refused
        eventually(lambda: object_store.refused - before > 2)
        object_store.says = None
        last = folder.read_json("lease.json")["time"]
        eventually(lambda: folder.read_json("lease.json")["time"] > last)


def eventually(holds) -> None:
    """Waits for what a thread does in its own time."""
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("quietly", [False, True])
def test_storage_that_is_gone_for_good_ends_the_sweep_and_is_waited_for_no_more(
    quietly, object_store, tmp_path, monkeypatch
):
    """Whether the sweep ends with an error of Ray's or as on Ctrl-C.

    Seen to fail: every worker waited for it three times over, one trial after another; quietly, as an interruption.
    """
    monkeypatch.setattr(lease, "_BEAT_S", 0.1)
    monkeypatch.setattr(lease, "_STALE_S", 0.3)
    monkeypatch.setenv("LAHR_STORAGE_PATIENCE", "0.6")
    folder = Folder.at(object_store.uri(tmp_path.name))

    def a_sweep() -> None:
        object_store.says = (503, "SlowDown")
        try:
            for _ in range(100):
                time.sleep(0.05)
        except KeyboardInterrupt:
            monkeypatch.setenv("LAHR_STORAGE_PATIENCE", "60")
            with pytest.raises(StorageError, match="cannot remove"):
                folder.remove("x")
            if not quietly:
                raise RuntimeError("a traceback of Ray's") from None

    began = time.monotonic()
    with (
        pytest.raises(StorageError, match=r"cannot read lease.json in .*; once it answers again, the same"),
        lease.held(folder),
    ):
        a_sweep()
    assert 0.6 < time.monotonic() - began < 5
    object_store.says = None
    folder.write("x", b"")


def test_a_lease_that_cannot_be_read_is_not_taken_for_none(place, monkeypatch):
    """Seen to fail: a start took over from a living sweep, since S3 was away for a moment."""
    place.write_json("lease.json", of("another"))

    def away(self, name):
        raise StorageError("away")

    monkeypatch.setattr(Folder, "read", away)
    with pytest.raises(StorageError, match="away"):
        lease.refuse_if_held(place)
    assert place.names() == ["lease.json"]


@pytest.mark.parametrize("start", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def test_a_sweep_that_lost_its_lease_stops_and_leaves_the_others_alone(place, monkeypatch, start):
    """Its machine slept, say. Seen to fail: it overwrote the other's lease, and removed it at the end; and one that a
    shell had started in the background, with Ctrl-C ignored, went on."""
    before = signal.signal(signal.SIGINT, start)
    try:
        _lose_the_lease(place, monkeypatch)
        assert signal.getsignal(signal.SIGINT) == start
    finally:
        signal.signal(signal.SIGINT, before)


def _lose_the_lease(folder, monkeypatch):
    monkeypatch.setattr(lease, "_BEAT_S", 0.5)
    theirs = of("another")

    def sleep_too_long() -> None:
        first = folder.read_json("lease.json")
        assert first["pid"] == os.getpid()
        while folder.read_json("lease.json") == first:
            time.sleep(0.02)
        folder.write("lease.json", json.dumps(theirs).encode())  # its heart has just beaten, and looks again later
        for _ in range(100):  # an interrupt from another thread is heard between sleeps
            time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt), lease.held(folder):
        sleep_too_long()
    assert folder.read_json("lease.json") == theirs
