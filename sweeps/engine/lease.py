"""One sweep at a time in a results folder: a lease with a heartbeat.

A second start is refused while the first one lives. A lease goes stale when its heart has not beaten for a while, or
at once when its process was on this machine and is gone; one from another machine is watched before either is said,
since clocks differ. A sweep that finds its lease taken over (its machine slept, say) stops as on Ctrl-C, and leaves
the other's lease alone. Storage that is away for a while ends no sweep: the heart beats again when it is back, if the
lease is still its own. Storage that is away for longer than anybody waits for it (`lahr.patience`) does, the same way:
workers would only fail one after another.
"""

import _thread
import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lahr import patience
from lahr.errors import ConfigError
from lahr.files import Folder

_BEAT_S = 5.0
_STALE_S = 30.0
_SETTLE_S = 2.0
"""After this long the lease of one of two starts at the same moment stands."""
_LET_GO_S = 5.0
_NAME = "lease.json"


@contextlib.contextmanager
def held(folder: Folder) -> Iterator[None]:
    """Holds the folder's lease inside the block. `ConfigError` if a living sweep holds it."""
    me = {
        "host": socket.gethostname(),
        "machine": this_machine(),
        "pid": os.getpid(),
        "owner": uuid.uuid4().hex,
    }
    _take(folder, me, after_a_dead_one=refuse_if_held(folder))
    done = threading.Event()
    gone: list[OSError] = []
    """Why storage was given up."""

    def beat(give_up: Callable[[], None]) -> None:
        away_since, patient_s = None, max(patience.seconds(), _STALE_S)
        while not done.wait(_BEAT_S):
            try:
                # At once or not at all, for a beat that had waited could come after another sweep's.
                with patience.limited(0):
                    if _owner(folder) not in (me["owner"], None):
                        logging.getLogger(__name__).error("another sweep has taken over %s; stopping", folder.uri)
                        break
                    folder.write(_NAME, _beat(me))
                away_since = None
            except OSError as error:  # a full or slow disk for a moment does not end a sweep
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > patient_s:
                    logging.getLogger(__name__).error("stopping: %s", error)
                    gone.append(error)
                    give_up()
                    break
        else:
            return
        _thread.interrupt_main()

    ignored = (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread()
    )
    if (
        ignored
    ):  # a job that a shell started in the background: it could not be interrupted, by us or by `kill -INT`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with patience.until_given_up() as give_up:
        heart = threading.Thread(target=beat, args=(give_up,), daemon=True)
        heart.start()
        try:
            yield
            if gone:  # it ended as on Ctrl-C, which it was not
                raise gone[0]
        except Exception as error:
            if gone and error is not gone[0]:  # Ray fails in ways of its own then
                raise gone[0] from error
            raise
        finally:
            done.set()
            heart.join()
            if ignored:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            with contextlib.suppress(OSError), patience.limited(_LET_GO_S):  # else it goes stale
                if _owner(folder) == me["owner"]:
                    folder.remove(_NAME)


def _take(folder: Folder, me: dict[str, Any], after_a_dead_one: bool) -> None:
    """Writes the lease, which nobody holds. `ConfigError` if another start is quicker."""
    taken = folder.write_new(_NAME, _beat(me))
    if taken and (after_a_dead_one or not folder.is_local):
        # An object store lets both write, the later one over the other; and of two that find a dead sweep's lease, one
        # may remove what the other has just written.
        time.sleep(_SETTLE_S)
        taken = _owner(folder) == me["owner"]
    if not taken:
        raise ConfigError(
            f"another sweep has just started in {folder.uri}; wait for it, or give --name another name"
        )


def refuse_if_held(folder: Folder) -> bool:
    """`ConfigError` if a living sweep holds the folder's lease; else whether a dead one's was there, and is removed.

    One of another machine is watched for its heart.
    """
    # Looked for before it is read: what comes between the two is another start's, and not to be removed.
    dead = folder.exists(_NAME)
    lease = _read(folder)
    if lease is not None and _lives(folder, lease):
        raise ConfigError(
            f"another sweep is running in {folder.uri} (process {lease['pid']} on {lease['host']}, heard "
            f"{max(0.0, _age(lease)):.0f} s ago); wait for it, stop it, or give --name another name"
        )
    if dead:
        folder.remove(_NAME)
    return dead


def is_held(folder: Folder) -> bool:
    """Whether a living sweep holds the folder's lease, as far as its age tells."""
    lease = _read(folder)
    return lease is not None and not _is_gone(lease) and _age(lease) < _STALE_S


def _lives(folder: Folder, lease: dict[str, Any]) -> bool:
    """Whether the lease's sweep does. Of one on another machine its heart alone tells: clocks differ."""
    if lease["machine"] == this_machine():
        return not _is_gone(lease) and _age(lease) < _STALE_S
    seconds = min(max(_STALE_S - _age(lease), 2 * _BEAT_S), _STALE_S)
    logging.getLogger(__name__).warning(
        "process %s on %s has a sweep in %s; waiting up to %.0f s to hear whether it still runs",
        lease["pid"], lease["host"], folder.uri, seconds,
    )  # fmt: skip
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(_BEAT_S / 5, left))
        now = _read(folder)
        if now != lease:
            return now is not None
    return False


def _is_gone(lease: dict[str, Any]) -> bool:
    """Whether its process was on this machine and is no longer."""
    return lease["machine"] == this_machine() and not _alive(lease["pid"])


def _age(lease: dict[str, Any]) -> float:
    return time.time() - lease["time"]


def _beat(me: dict[str, Any]) -> bytes:
    return json.dumps({**me, "time": time.time()}).encode()


def _owner(folder: Folder) -> str | None:
    lease = _read(folder)
    return lease["owner"] if lease else None


def _read(folder: Folder) -> dict[str, Any] | None:
    """The lease that stands there; None where there is none, or one that makes no sense, which protects nobody.

    `StorageError` where it cannot be told.
    """
    try:
        lease = folder.read_json(_NAME)
        return {
            "host": str(lease["host"]),
            "machine": str(lease["machine"]),
            "pid": int(lease["pid"]),
            "owner": str(lease["owner"]),
            "time": float(lease["time"]),
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def this_machine() -> str:
    """Names where a process's number means this process: machines, and containers on one, may have the same name."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
