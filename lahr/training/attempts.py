"""Attempts at one trial: counted, so that what cannot run is given up; fenced, so that only the latest one writes.

`attempts.json` beside a trial's checkpoints names the attempt that owns it. A machine that was cut off and comes back
finds another's name there, and stops before it writes anything.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lahr.files import Folder
from lahr.training import checkpoints

ERRORS, DEATHS = 3, 6
"""How often one trial may raise, and how often its process may die, at the same checkpoint in one start of the sweep.
A death is as often the machine's doing as the trial's."""
_FILE = "attempts.json"
_DIED = "the worker died (killed, out of memory, or silent for longer than --hang-after)"


class Superseded(Exception):
    """Another attempt at the trial has begun since; this one may no longer write."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a trial, the owner of its folder until another begins."""

    folder: Folder
    start: str
    """The start of the sweep that it belongs to: attempts are counted within one."""
    owner: str

    @staticmethod
    def begin(folder: Folder, start: str) -> "Attempt | str":
        """Takes the trial's folder and counts one attempt more; or why there is none left, in the last line."""
        known = _read(folder, start)
        step = checkpoints.latest_step(folder)
        if known["step"] != step:
            known = {**known, "errors": 0, "deaths": 0}
        if known["errors"] >= ERRORS or known["deaths"] >= DEATHS:
            times = known["errors"] + known["deaths"]
            *where, why = known["error"].strip().splitlines() or [""]
            given_up = f"given up after {times} attempts at step {max(step, 0)}; the last one: {why}"
            return "\n".join([*where, given_up])
        owner = uuid.uuid4().hex
        # Counted as a death until it is known to have ended in another way: who is killed cannot say so.
        folder.write_json(
            _FILE,
            {
                "start": start,
                "step": step,
                "errors": known["errors"],
                "deaths": known["deaths"] + 1,
                "error": _DIED,
                "owner": owner,
            },
        )
        return Attempt(folder, start, owner)

    def check_owner(self) -> None:
        """Raises `Superseded` where another attempt has begun since."""
        owner = _read(self.folder, self.start)["owner"]
        if owner != self.owner:
            raise Superseded(f"another attempt has taken over {self.folder.uri}")

    def failed(self, error: str) -> None:
        """Notes that it raised `error`; once, if several of its processes say so."""
        known = _read(self.folder, self.start)
        if known["owner"] == self.owner and known["error"] == _DIED:
            counted = {"errors": known["errors"] + 1, "deaths": known["deaths"] - 1, "error": error}
            self.folder.write_json(_FILE, {**known, **counted})

    def done(self) -> None:
        """Ends the count: a restart replays what is done, and that is no attempt at it."""
        if _read(self.folder, self.start)["owner"] == self.owner:
            self.folder.remove(_FILE)


def _read(folder: Folder, start: str) -> dict[str, Any]:
    none = {"start": start, "step": -1, "errors": 0, "deaths": 0, "error": "", "owner": ""}
    try:
        known = folder.read_json(_FILE)
    except (FileNotFoundError, ValueError):
        return none
    whole = isinstance(known, dict) and none.keys() <= known.keys()
    if not whole:
        return none
    return known if known["start"] == start else {**none, "owner": known["owner"]}


class Watchdog:
    """Ends this process where `alive` has not been called for `patience` seconds, after `say` was told where it hung.

    A thread of Python looks; where it cannot run, since the interpreter itself is held, a timer of the system does the
    same a little later, without a word.
    """

    def __init__(self, patience: float, say: Callable[[str], None]) -> None:
        self._patience, self._say = patience, say
        self._thread = threading.get_ident()
        self._last = self._armed = time.monotonic()
        self._done = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()
        self._arm()

    def alive(self) -> None:
        """Says that the watched thread goes on."""
        self._last = time.monotonic()
        if self._last - self._armed > self._patience / 10:
            self._armed = self._last
            self._arm()

    def close(self) -> None:
        """Ends the watch."""
        self._done.set()
        faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(self._patience * 1.5 + 10, exit=True, file=2)

    def _look(self) -> None:
        while not self._done.wait(self._patience / 10):
            silent = time.monotonic() - self._last
            if silent > self._patience:
                frame = sys._current_frames().get(self._thread)
                stood = traceback.format_stack(frame)[-1:] if frame else ["unknown"]
                where = " ".join("".join(stood).split())
                try:
                    self._say(f"hung: no step for {silent:.0f} s; it stood in {where}")
                finally:
                    os._exit(1)
