"""Attempts at a trial: counted, fenced, and ended where they hang."""

import subprocess
import sys
import time

import pytest
import torch

from lahr.files import Folder
from lahr.training import checkpoints
from lahr.training.attempts import DEATHS, ERRORS, Attempt, Superseded
from lahr.training.checkpoints import Checkpoint


def begun(folder: Folder, start: str = "one") -> Attempt:
    attempt = Attempt.begin(folder, start)
    assert isinstance(attempt, Attempt)
    return attempt


def test_a_trial_that_raises_is_given_up_with_its_error(tmp_path):
    folder = Folder.at(tmp_path)
    for _ in range(ERRORS):
        begun(folder).failed("Traceback\n  File\nValueError: no such thing\n")
    assert Attempt.begin(folder, "one") == (
        f"Traceback\n  File\ngiven up after {ERRORS} attempts at step 0; the last one: ValueError: no such thing"
    )
    begun(folder, "two")  # the next start tries again


def test_processes_of_one_attempt_that_all_raise_are_one_error(tmp_path):
    folder = Folder.at(tmp_path)
    for _ in range(ERRORS - 1):
        attempt = begun(folder)
        attempt.failed("ValueError: on one")
        attempt.failed("ValueError: on the other")
    assert isinstance(Attempt.begin(folder, "one"), Attempt)


def test_a_process_that_dies_is_given_more_attempts(tmp_path):
    folder = Folder.at(tmp_path)
    for _ in range(DEATHS):
        begun(folder)
    said = Attempt.begin(folder, "one")
    assert isinstance(said, str) and "the worker died (killed, out of memory, or silent" in said


def test_a_step_further_the_count_begins_anew(tmp_path):
    """Seen to fail when attempts were counted over the whole trial: a long one was given up for old faults."""
    folder = Folder.at(tmp_path)
    for _ in range(DEATHS - 1):
        begun(folder)
    checkpoints.save(folder, Checkpoint(3, {"model.x": torch.ones(2)}, {"fingerprint": "f", "records": []}))
    for _ in range(ERRORS):
        begun(folder).failed("x")
    assert "at step 3" in str(Attempt.begin(folder, "one"))


@pytest.mark.parametrize("start", ["one", "two"])
def test_an_attempt_that_was_overtaken_writes_nothing_more(start, tmp_path):
    """A machine that was cut off comes back while the trial runs elsewhere, or in the sweep's next start.

    Seen to fail when the owner was not compared, and when it was compared within one start alone.
    """
    folder = Folder.at(tmp_path)
    stale = begun(folder)
    stale.check_owner()
    latest = begun(folder, start)
    with pytest.raises(Superseded):
        stale.check_owner()
    stale.failed("of the one that was cut off")
    stale.done()
    latest.check_owner()
    latest.done()
    with pytest.raises(Superseded):
        latest.check_owner()


def test_a_damaged_count_begins_anew(tmp_path):
    folder = Folder.at(tmp_path)
    for damage in (b"", b"{", b"[]", b'{"start": "one"}'):
        folder.write("attempts.json", damage)
        begun(folder)


HUNG = """
import time
from lahr.training.attempts import Watchdog
said = []
watchdog = Watchdog(0.5, lambda text: print(text, flush=True))
for _ in range(4):
    time.sleep(0.2)
    watchdog.alive()
print("alive", flush=True)
{hang}
"""


@pytest.mark.parametrize(
    ("hang", "said"),
    [
        ("time.sleep(60)", "hung: no step for"),
        # Holds the interpreter: no thread of Python runs, and the system's timer has to end it.
        ("import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", "Timeout"),
    ],
)
def test_a_process_that_hangs_is_ended_and_says_where(hang, said):
    """Seen to fail without the watch, when it was never armed again, and the second without the system's timer."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HUNG.format(hang=hang)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 1
    assert done.stdout.startswith("alive")
    assert said in done.stdout + done.stderr
    assert time.monotonic() - began < 40
