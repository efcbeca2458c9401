"""A disk that fills up in the middle of a sweep, on one machine: under its checkpoints, and under its results."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.here import SAME, Here
from tests.chaos.sweeps import trials
from tests.conftest import fill

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


@pytest.fixture
def disk_at() -> Iterator[Callable[[Path, str], Path]]:
    """`disk_at(folder, size)` mounts a disk of that size there."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "lahr", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command).returncode:
            pytest.skip("only root may mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


DISKS = {"checkpoint": ("checkpoints", "32m"), "result": ("trials", "1m"), "file": ("", "96m")}
"""What is being written when there is no room: the folder that is a disk of its own, and its size. Under all of the
sweep, whatever comes first finds it full: its curves, the configuration of the next trial, a checkpoint."""


@pytest.fixture
def full(request, here: Here, disk_at):
    """A sweep's name, its place, its disk, and what is being written there."""
    folder, size = DISKS[request.param]
    name = f"disk-{request.node.name.partition('[')[0].removeprefix('test_')}-{request.param}"
    place = here.folder / f"place-{name}"
    return name, place, disk_at(place / name / folder, size), f"while a {request.param} is written"


@pytest.mark.parametrize("full", DISKS, indirect=True)
def test_no_room_until_the_end(full, here, alone, row):
    """Seen to fail: ends in Ray's and Python's tracebacks, where the relay does not take the error of storage."""
    name, place, disk, when = full
    expected, usual = alone
    running = here.start(name, place=place, LAHR_STORAGE_PATIENCE="5")
    running.until_finished(3, 600)
    filler, began = fill(disk), time.monotonic()
    running.wait(120, status=2)
    took = time.monotonic() - began
    errors = [line for line in running.said().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, running.said()
    assert (
        "No space left on device" in errors[0]
        and str(running.results) in errors[0]
        and "make room there" in errors[0]
    )
    assert "Traceback" not in running.said()
    kept = trials(running.results)
    assert 3 <= len(kept) < len(expected)
    assert kept == {trial: expected[trial] for trial in kept}
    filler.unlink()
    again = here.start(name, place=place)
    seconds = again.wait()
    assert trials(again.results) == expected
    row(
        f"the disk full {when}, room made after the end; the same command again",
        f"ends with one line that names the place, status 2, finished results whole; then {SAME}",
        seconds_to_the_end=f"{took:.0f} with a patience of 5",
        seconds=f"{seconds:.0f} from the last start, {usual:.0f} undisturbed",
    )


@pytest.mark.parametrize("full", ["checkpoint", "result"], indirect=True)
def test_room_made_in_time(full, here, alone, row):
    name, place, disk, when = full
    expected, usual = alone
    running = here.start(name, place=place, LAHR_STORAGE_PATIENCE="100")
    running.until_finished(3, 600)
    filler = fill(disk)
    time.sleep(20)
    assert running.process.poll() is None, running.said()
    before = running.finished()
    filler.unlink()
    seconds = running.wait()
    assert before < len(expected), "the disk was not full in the middle"
    assert trials(running.results) == expected
    assert "Traceback" not in running.said()
    row(
        f"the disk full for 20 s {when}",
        f"waits, and goes on by itself; {SAME}",
        seconds=f"{seconds:.0f}, {usual:.0f} undisturbed",
    )
