"""Waiting for storage that is away for a while: a disk that is full, an NFS server that restarts, an object store that
answers 503. What cannot pass by itself (no permission, no such bucket) is not waited for.
"""

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from lahr.errors import ConfigError, StorageError

PATIENCE_S = 120.0
"""How long storage is waited for, unless LAHR_STORAGE_PATIENCE says otherwise."""
VARIABLE = "LAHR_STORAGE_PATIENCE"

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_FULL = {errno.ENOSPC, errno.EDQUOT}
_MAY_PASS = _FULL | {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOLCK, errno.EREMOTEIO,
    errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENETDOWN, errno.ENETUNREACH,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENFILE, errno.EMFILE,
}  # fmt: skip
_STAYS = re.compile(
    r"AWS Error (NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|\w*SIGNATURE\w*|INVALID_CLIENT_TOKEN_ID"
    r"|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|OPT_IN_REQUIRED|UNKNOWN \(HTTP status (3\d\d|40[013-7])\))"
    r"|Bucket '[^']*' not found|PERMISSION_DENIED|UNAUTHENTICATED"
)
"""In what an object store says: refused, misaddressed or misconfigured, which no waiting mends."""

Value = TypeVar("Value")
_limit: ContextVar[float | None] = ContextVar("limit", default=None)
_alive: ContextVar[Callable[[], None]] = ContextVar("alive", default=lambda: None)
_may: ContextVar[Callable[[], None]] = ContextVar("may", default=lambda: None)
_given_up = threading.Event()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Inside the block (and this thread) storage is waited for no longer than that; 0 tries once."""
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def until_given_up() -> Iterator[Callable[[], None]]:
    """Yields what to call, from any thread, when storage is known to be gone: until the block's end nobody in this
    process waits for it any more."""
    try:
        yield _given_up.set
    finally:
        _given_up.clear()


@contextmanager
def showing_life(alive: Callable[[], None]) -> Iterator[None]:
    """Inside the block (and this thread) `alive` is called while storage is waited for: who waits does not hang."""
    token = _alive.set(alive)
    try:
        yield
    finally:
        _alive.reset(token)


@contextmanager
def before_each_try(may: Callable[[], None]) -> Iterator[None]:
    """Inside the block (and this thread) `may` is called right before storage is asked, each time; what it raises ends
    the waiting. For what may be done only as long as something holds that can change while one waits."""
    token = _may.set(may)
    try:
        yield
    finally:
        _may.reset(token)


def is_limited() -> bool:
    """Whether this is inside a `limited` block."""
    return _limit.get() is not None


def seconds() -> float:
    """How long storage is waited for here and now. `ConfigError` if the environment's value is no number."""
    limit = _limit.get()
    if _given_up.is_set():
        return 0.0
    if limit is not None:
        return limit
    given = os.environ.get(VARIABLE, "")
    try:
        value = float(given or PATIENCE_S)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise ConfigError(f"{VARIABLE} is {given!r}; it must be a number of seconds, 0 or more, or unset")
    return value


def patiently(doing: str, attempt: Callable[[], Value]) -> Value:
    """What `attempt` returns, tried again with growing pauses while its error may pass by itself.

    `doing` completes "cannot …". A file that is not there (or there already) is the caller's to judge and raised as it
    is; every other `OSError` becomes a `StorageError`, at once or when patience is over. The log says when waiting
    begins and how it ended.
    """
    began, pause, waiting = time.monotonic(), _FIRST_PAUSE_S, False
    while True:
        try:
            may = _may.get()
            with before_each_try(lambda: None):  # it may ask storage itself
                may()
            value = attempt()
        except (FileNotFoundError, FileExistsError, StorageError):
            raise
        except OSError as error:
            waited, patience = time.monotonic() - began, seconds()
            if not may_pass(error):
                raise StorageError(f"cannot {doing}: {reason(error)}; mend that, and {_CARRIES_ON}") from error
            if waited >= patience:
                after = f" (after {waited:.0f} s of waiting)" if waiting else ""
                raise StorageError(f"cannot {doing}: {reason(error)}{after}; {_advice(error)}") from error
            if not waiting and not is_limited():  # else it is short, and its caller says what came of it
                _log().warning("cannot %s: %s; waiting up to %.0f s", doing, reason(error), patience)
            waiting = True
            _alive.get()()
            time.sleep(min(pause, patience - waited))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            if waiting and not is_limited():
                _log().warning("%s: went through after %.0f s", doing, time.monotonic() - began)
            return value


def may_pass(error: OSError) -> bool:
    """Whether trying again later may help."""
    if error.errno is not None:
        return error.errno in _MAY_PASS
    return not isinstance(error, PermissionError) and _STAYS.search(str(error)) is None


def reason(error: OSError) -> str:
    """Why it failed, in one line and without the number."""
    return " ".join(str(error.strerror or error).split())


_CARRIES_ON = "the same command carries on"


def _advice(error: OSError) -> str:
    if error.errno in _FULL:
        return f"make room there, and {_CARRIES_ON}"
    return f"once it answers again, {_CARRIES_ON}"


def _log() -> logging.Logger:
    return logging.getLogger(__name__)
