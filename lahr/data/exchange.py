"""Prepared data on its way between machines: one prepares, puts it where all can read, and the others take it."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from lahr.config import DataConfig
from lahr.data.preparation import is_whole, locked, opened
from lahr.data.tokens import TokenData
from lahr.errors import check
from lahr.files import Folder

SHARED = ".data"
"""Where prepared data lies below the folder of all sweeps' results."""
_MANIFEST = "manifest.json"
log = logging.getLogger(__name__)


def publish(data: TokenData, place: Folder) -> Folder:
    """Puts prepared data into its own folder below `place`, unless it lies there already; that folder."""
    there = place.child(data.folder.name)
    manifest = (data.folder / _MANIFEST).read_bytes()
    if there.exists(_MANIFEST) and there.read(_MANIFEST) == manifest:
        return there
    for path in sorted(data.folder.iterdir()):
        if path.name != _MANIFEST:
            there.copy_in(path.name, path)
    there.write(_MANIFEST, manifest)  # last: its presence means that the rest is there
    return there


def published_at(place: Folder) -> Callable[[Path], bool]:
    """What `prepare` may ask: puts the folder there if one of its name was published below `place`, and says so.

    A published folder that is damaged counts as none, with a warning, so that `publish` writes it anew.
    """

    def take(folder: Path) -> bool:
        source = place.child(folder.name)
        if not source.exists(_MANIFEST):
            return False
        if _copy(source, folder):
            return True
        log.warning("the prepared data at %s is damaged; it is not used any more", source.uri)
        with contextlib.suppress(OSError):  # who may not write there does not publish either
            source.remove(_MANIFEST)
        return False

    return take


def fetch(source: Folder, config: DataConfig, block: int, cache: Path) -> TokenData:
    """Opens the data published at `source`, copying it into `cache` where it is not there yet, or is damaged there.

    Raises `ConfigError` where `source` cannot be seen from here or is not what its manifest says.
    """
    folder = Path(cache).expanduser().resolve() / source.name
    if not is_whole(folder):
        with locked(folder):
            # Another process may have fetched it while this one waited.
            check(
                is_whole(folder) or _copy(source, folder),
                f"the prepared data at {source.uri} is damaged; remove it and start the sweep again",
            )
    return opened(folder, config, block)


def _copy(source: Folder, folder: Path) -> bool:
    """Whether what came is whole; only then it is there."""
    check(
        source.exists(_MANIFEST),
        f"the prepared data at {source.uri} cannot be seen from this machine; give --results a path that every machine "
        "shares, or a URI such as s3://…; or, where it is one, start the sweep again: what was there was found damaged",
    )
    for left_over in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(left_over)  # of a process that died here: the lock is ours
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        for name in source.names():
            source.copy_out(name, part / name)
        if not is_whole(part):
            return False
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
        return True
    finally:
        shutil.rmtree(part, ignore_errors=True)
