"""Patience: what may pass by itself is waited for and said; what cannot is said at once."""

import errno
import logging
import os

import pytest

from lahr import patience
from lahr.errors import ConfigError, StorageError
from lahr.files import Folder


def failing(*errors):
    """An operation that fails with each of the errors in turn, and then works."""
    left = list(errors)

    def attempt():
        attempt.calls += 1
        if left:
            raise left.pop(0)
        return "done"

    attempt.calls = 0
    return attempt


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(patience, "_LONGEST_PAUSE_S", 0.02)


def aws(code: str) -> OSError:
    return OSError(f"When reading key 'x': AWS Error {code} during GetObject operation: No response body.")


@pytest.mark.parametrize(
    "error",
    [
        *map(os_error, (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)),
        aws("SLOW_DOWN"),
        aws("NETWORK_CONNECTION"),
        aws("UNKNOWN (HTTP status 503)"),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again_and_said_when_it_begins_and_when_it_ends(error, caplog):
    """Seen to fail: with each number taken out of `_MAY_PASS`; a warning at every attempt."""
    attempt = failing(error, error, error)
    assert patience.patiently("write it", attempt) == "done"
    assert attempt.calls == 4
    began, ended = (record.getMessage() for record in caplog.records)
    assert began.startswith("cannot write it: ") and began.endswith("waiting up to 120 s")
    assert ended.startswith("write it: went through after 0 s")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.parametrize(
    "error",
    [
        *map(os_error, (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENAMETOOLONG)),
        aws("ACCESS_DENIED"),
        aws("NO_SUCH_BUCKET"),
        aws("INVALID_ACCESS_KEY_ID"),
        aws("SIGNATURE_DOES_NOT_MATCH"),
        aws("UNKNOWN (HTTP status 301)"),
        aws("UNKNOWN (HTTP status 400)"),
        OSError("Bucket 'lahr' not found"),
    ],
    ids=str,
)
def test_what_cannot_pass_is_said_at_once(error, caplog):
    """Seen to fail: with each alternative taken out of `_STAYS`, and EROFS put into `_MAY_PASS`."""
    attempt = failing(error)
    with pytest.raises(StorageError, match=r"cannot write it: .*; mend that, and the same command carries on"):
        patience.patiently("write it", attempt)
    assert attempt.calls == 1
    assert not caplog.records


@pytest.mark.parametrize("kind", [FileNotFoundError, FileExistsError])
def test_a_file_that_is_missing_or_there_is_for_the_caller_to_judge(kind):
    with pytest.raises(kind):
        patience.patiently("read it", failing(kind(errno.ENOENT, "x")))


def test_patience_ends_with_the_reason_and_what_to_do(monkeypatch):
    """Seen to fail: the advice of a full disk for all."""
    monkeypatch.setenv("LAHR_STORAGE_PATIENCE", "0.1")
    for number, advice in ((errno.ENOSPC, "make room there"), (errno.EIO, "once it answers again")):
        with pytest.raises(StorageError, match=f"cannot write it: {os.strerror(number)} .after 0 s.*{advice}"):
            patience.patiently("write it", failing(*[os_error(number)] * 1000))


def test_a_limit_holds_inside_its_block_alone():
    attempt = failing(os_error(errno.EIO))
    with patience.limited(0), pytest.raises(StorageError, match="Input/output error; once"):
        patience.patiently("write it", attempt)
    assert patience.patiently("write it", failing(os_error(errno.EIO))) == "done"


@pytest.mark.parametrize("given", ["soon", "-1", "nan"])
def test_a_patience_that_is_no_number_is_refused(given, monkeypatch):
    monkeypatch.setenv("LAHR_STORAGE_PATIENCE", given)
    with pytest.raises(ConfigError, match=r"LAHR_STORAGE_PATIENCE is .*; it must be a number of seconds"):
        patience.seconds()


def test_who_waits_shows_life():
    """Seen to fail: a worker that waited for storage for longer than --hang-after was ended as hung."""
    calls: list[int] = []
    with patience.showing_life(lambda: calls.append(1)):
        patience.patiently("read x", failing(os_error(errno.EIO), os_error(errno.EIO)))
    patience.patiently("read x", failing(os_error(errno.EIO)))
    assert len(calls) == 2


def test_what_may_be_done_is_asked_before_each_try():
    """Not before all of them: what holds can change while one waits. It may ask storage itself."""
    asked, folder = [], Folder.at("/")

    def may() -> None:
        folder.exists("tmp")
        asked.append(1)
        if len(asked) == 3:
            raise RuntimeError("another has it now")

    with pytest.raises(RuntimeError, match="another has it now"), patience.before_each_try(may):
        patience.patiently("write x", failing(*[os_error(errno.ENOSPC)] * 9))
    assert len(asked) == 3
    assert patience.patiently("look", lambda: 7) == 7
