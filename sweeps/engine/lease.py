"""One sweep at a time in a results folder: a lease with a heartbeat.

A second start is refused while the first one lives. A lease goes stale when its heart has not beaten for a while, or
at once when its process was on this machine and is gone. A sweep that finds its lease taken over (its machine slept,
say) stops as on Ctrl-C, and leaves the other's lease alone.
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
from collections.abc import Iterator
from typing import Any

from lahr.errors import ConfigError
from lahr.files import Folder

_BEAT_S = 5.0
_STALE_S = 30.0
_NAME = "lease.json"


@contextlib.contextmanager
def held(folder: Folder) -> Iterator[None]:
    """Holds the folder's lease inside the block. `ConfigError` if a living sweep holds it."""
    me = {"host": socket.gethostname(), "pid": os.getpid(), "owner": uuid.uuid4().hex}
    refuse_if_held(folder)
    folder.remove(_NAME)  # a dead sweep's
    if not folder.write_new(_NAME, _beat(me)):
        refuse_if_held(folder)
        raise ConfigError(
            f"another sweep has just started in {folder.uri}; wait for it, or give --name another name"
        )
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_S):
            with contextlib.suppress(OSError):  # a full or slow disk for a moment does not end a sweep
                if _owner(folder) not in (me["owner"], None):
                    logging.getLogger(__name__).error("another sweep has taken over %s; stopping", folder.uri)
                    _thread.interrupt_main()
                    return
                folder.write(_NAME, _beat(me))

    heart = threading.Thread(target=beat, daemon=True)
    ignored = (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread()
    )
    if (
        ignored
    ):  # a job that a shell started in the background: it could not be interrupted, by us or by `kill -INT`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if _owner(folder) == me["owner"]:
            folder.remove(_NAME)


def refuse_if_held(folder: Folder) -> None:
    """`ConfigError` if a living sweep holds the folder's lease."""
    lease = _read(folder)
    if lease is None:
        return
    gone = lease["host"] == socket.gethostname() and not _alive(lease["pid"])
    age = time.time() - lease["time"]
    if not gone and age < _STALE_S:
        raise ConfigError(
            f"another sweep is running in {folder.uri} (process {lease['pid']} on {lease['host']}, heard {age:.0f} s "
            "ago); wait for it, stop it, or give --name another name"
        )


def is_held(folder: Folder) -> bool:
    """Whether a living sweep holds the folder's lease."""
    try:
        refuse_if_held(folder)
    except ConfigError:
        return True
    return False


def _beat(me: dict[str, Any]) -> bytes:
    return json.dumps({**me, "time": time.time()}).encode()


def _owner(folder: Folder) -> str | None:
    lease = _read(folder)
    return lease["owner"] if lease else None


def _read(folder: Folder) -> dict[str, Any] | None:
    """The lease that stands there; None where there is none, or one that nobody can read, which protects nobody."""
    try:
        lease = folder.read_json(_NAME)
        return {
            "host": str(lease["host"]),
            "pid": int(lease["pid"]),
            "owner": str(lease["owner"]),
            "time": float(lease["time"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
