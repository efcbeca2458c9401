"""An object store that is away in the middle of a sweep on one machine: for a while, and until the sweep has ended."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from lahr.files import Folder
from tests.chaos.here import SAME, Here
from tests.chaos.sweeps import Running, trials
from tests.cluster.namespaces import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
AWAY_S, PATIENCE_S = 30, 5


class Door:
    """A port before the store's. Shut, nobody listens there, and who was talking is cut off."""

    def __init__(self, store: tuple[str, int]) -> None:
        self._store, self.port = store, 0
        self.open()

    def open(self) -> None:
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        for each in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near = listener.accept()[0]
                far = socket.create_connection(self._store)
            except OSError:
                return
            self._connections += [near, far]
            for here, there in ((near, far), (far, near)):
                threading.Thread(target=_carry, args=(here, there), daemon=True).start()


def _carry(here: socket.socket, there: socket.socket) -> None:
    try:
        while data := here.recv(1 << 16):
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.fixture
def door(object_store) -> Iterator[Door]:
    host, port = parse_qs(object_store.options)["endpoint_override"][0].split(":")
    door = Door((host, int(port)))
    yield door
    door.shut()


def through(door: Door, uri: str) -> str:
    return re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{door.port}", uri)


def fetched(place: str, name: str, to: Path) -> Path:
    """A copy of what the store has of a sweep's results."""
    folder = Folder.at(place).child(name)
    for trial in folder.names("trials"):
        for file in ("metrics.parquet", "result.json"):
            if folder.exists(f"trials/{trial}/{file}"):
                copy = to / "trials" / trial / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(folder.read(f"trials/{trial}/{file}"))
    return to


def until_told(running: Running, count: int) -> None:
    """Waits until so many trials are said to have finished."""
    until(
        lambda: running.said().count(": val_loss ") >= count or running.process.poll() is not None,
        600,
        running.said,
    )
    assert running.process.poll() is None, running.said()


def test_a_store_that_answers_503_for_a_while(here: Here, alone, object_store, row, tmp_path):
    """Seen to fail: ends with the first 503, without patience."""
    expected, usual = alone
    place = object_store.uri("away")
    running = here.start("away", place=place)
    until_told(running, 2)
    object_store.says, before = (503, "SlowDown"), object_store.refused
    time.sleep(AWAY_S)
    object_store.says, refused = None, object_store.refused - before
    seconds = running.wait()
    assert refused > 2
    assert trials(fetched(place, "away", tmp_path)) == expected
    row(
        f"S3 answers 503 for {AWAY_S} s",
        f"waits, and goes on by itself; {SAME}",
        requests_refused=refused,
        seconds=f"{seconds:.0f}, {usual:.0f} undisturbed on a disk",
    )


def test_a_store_that_is_gone(here: Here, alone, object_store, door: Door, row, tmp_path):
    expected, usual = alone
    place = through(door, object_store.uri("gone"))
    running = here.start("gone", place=place, LAHR_STORAGE_PATIENCE=str(PATIENCE_S))
    until_told(running, 2)
    door.shut()
    began = time.monotonic()
    running.wait(90, status=2)
    took = time.monotonic() - began
    errors = [line for line in running.said().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, running.said()
    assert f"127.0.0.1:{door.port}" in errors[0] and "once it answers again, the same command" in errors[0]
    assert "Traceback" not in running.said()
    assert took < PATIENCE_S + 30

    refused = here.start("gone", place=place, LAHR_STORAGE_PATIENCE=str(PATIENCE_S))
    at_once = refused.wait(60, status=2)
    assert len(refused.said().splitlines()) == 1 and "cannot be written to" in refused.said()

    door.open()
    kept = trials(fetched(place, "gone", tmp_path / "before"))
    assert kept == {trial: expected[trial] for trial in kept}
    again = here.start("gone", place=place)
    seconds = again.wait()
    assert trials(fetched(place, "gone", tmp_path / "after")) == expected
    row(
        "S3 gone for good; once it is back, the same command again",
        f"ends with one line that names it, status 2, as does a start meanwhile; then {SAME}",
        seconds_to_the_end=f"{took:.0f} with a patience of {PATIENCE_S}, {at_once:.0f} of a start meanwhile",
        seconds=f"{seconds:.0f} from the last start, {usual:.0f} undisturbed on a disk",
    )
