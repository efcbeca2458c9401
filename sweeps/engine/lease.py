"""One sweep at a time in a results folder: a lease with a heartbeat.

A second start is refused while the first one lives. A lease goes stale when its heart has not beaten for a while,
or at once when its process was on this machine and is gone.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from lahr.config import ConfigError
from lahr.files import Folder

_BEAT_S = 5.0
_STALE_S = 30.0
_NAME = "lease.json"


@contextlib.contextmanager
def held(folder: Folder) -> Iterator[None]:
    """Holds the folder's lease inside the block. `ConfigError` if a living sweep holds it."""
    _refuse_if_held(folder)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "owner": uuid.uuid4().hex}
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_S):
            with contextlib.suppress(OSError):  # a full or slow disk for a moment does not end a sweep
                folder.write_json(_NAME, {**me, "time": time.time()})

    folder.write_json(_NAME, {**me, "time": time.time()})
    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        folder.remove(_NAME)


def _refuse_if_held(folder: Folder) -> None:
    if not folder.exists(_NAME):
        return
    try:
        lease = folder.read_json(_NAME)
        host, pid, age = str(lease["host"]), int(lease["pid"]), time.time() - float(lease["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # a lease nobody can read protects nobody
    gone = host == socket.gethostname() and not _alive(pid)
    if not gone and age < _STALE_S:
        raise ConfigError(
            f"another sweep is running in {folder.uri} (process {pid} on {host}, heard {age:.0f} s ago); "
            f"wait for it, stop it, or give --name another name"
        )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
