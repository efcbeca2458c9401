"""Folders on a disk or in an object store, behind one small value.

A file is serialised to bytes first and then appears whole: on a disk through a temporary file, fsync and rename,
in an object store as one object. Every operation is patient with storage that is away for a while (`patience.py`);
one that fails for good is a `StorageError`, but for `FileNotFoundError`, which callers rely on.
"""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from lahr import patience, stores
from lahr.errors import ConfigError, check

TEMPORARY = ".tmp"
"""How names of files end that were never finished: a writer that was killed leaves them."""
_PROBE_S = 3.0
_PIECE = 8 << 20

Value = TypeVar("Value")


@dataclass(frozen=True)
class Folder:
    """A folder on any filesystem that pyarrow reads; names below it are relative and use `/`."""

    uri: str
    """An absolute local path or a URI such as `s3://bucket/results`."""

    @staticmethod
    def at(place: str | os.PathLike[str]) -> "Folder":
        """The folder at a local path or URI; it need not exist yet. `ConfigError` for a URI nobody can read, and for
        one that carries credentials: it would stand in files and logs."""
        place = str(place)
        if place.startswith("file://"):
            place = unquote(urlsplit(place).path)
        if "://" not in place:
            return Folder(str(Path(place).expanduser().resolve()))
        stores.refuse_secrets(place)
        try:
            stores.look_at(place)
        except Exception as error:
            raise ConfigError(
                f"cannot use {place!r}: {error}; give a local path or a URI such as s3://…"
            ) from error
        return Folder(place)

    @property
    def name(self) -> str:
        """Its last part."""
        return PurePosixPath(self._split()[0]).name

    @property
    def parent(self) -> "Folder":
        """The folder that this one lies in."""
        base, options = self._split()
        return Folder(f"{base.rstrip('/').rpartition('/')[0]}{options}")

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine (or one mounted on it)."""
        return "://" not in self.uri

    def _open(self) -> tuple[fs.FileSystem, str]:
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        return stores.opened(self.uri, patience.is_limited(), os.getpid())

    def _parts(self, name: str) -> tuple[str, ...]:
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts:
            raise ConfigError(f"{name!r} would leave {self.uri}; give a name without '..' or a leading '/'")
        return parts

    def path(self, name: str = "") -> str:
        """The path of `name` inside the filesystem. `ConfigError` if it would leave this folder."""
        return "/".join([self._open()[1], *self._parts(name)])

    def child(self, name: str) -> "Folder":
        """The folder `name` below this one."""
        self._parts(name)
        base, options = self._split()
        return Folder(f"{base.rstrip('/')}/{name}{options}")

    def _split(self) -> tuple[str, str]:
        """The place, and options of an object store, which stay at the URI's end."""
        if self.is_local:  # where `?` is a letter
            return self.uri, ""
        base, query, options = self.uri.partition("?")
        return base, query + options

    def _patiently(self, doing: str, name: str, attempt: Callable[[fs.FileSystem, str], Value]) -> Value:
        """`attempt(filesystem, path of name)`; opening is part of it, since S3 may be asked for a bucket's region."""
        parts = self._parts(name)

        def once() -> Value:
            filesystem, base = self._open()
            return attempt(filesystem, "/".join([base, *parts]))

        return patience.patiently(f"{doing} {name or 'files'} in {self.uri}", once)

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of that name is there."""
        kind = self._patiently("look for", name, lambda filesystem, path: filesystem.get_file_info(path).type)
        return kind != fs.FileType.NotFound

    def names(self, name: str = "") -> list[str]:
        """What lies directly in the folder `name`, sorted; empty if it is not there."""

        def listed(filesystem: fs.FileSystem, path: str) -> list[str]:
            selector = fs.FileSelector(path, allow_not_found=True)
            return sorted(info.base_name for info in filesystem.get_file_info(selector))

        return self._patiently("list", name, listed)

    def files(self, name: str = "") -> list[str]:
        """The files in the folder `name` and in all folders below it, as names below this one, sorted."""

        def listed(filesystem: fs.FileSystem, path: str) -> list[str]:
            below = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
            start = len(path.rstrip("/")) + 1
            inside = [info.path[start:] for info in below if info.type == fs.FileType.File]
            return sorted(f"{name}/{one}" if name else one for one in inside)

        return self._patiently("list", name, listed)

    def read(self, name: str) -> bytes:
        """The file's bytes; `FileNotFoundError` if it is not there."""

        def content(filesystem: fs.FileSystem, path: str) -> bytes:
            while True:
                with filesystem.open_input_stream(path, compression=None) as stream:
                    data = stream.read()
                # An object store is asked for the size first, then for so many bytes: one that was replaced by a
                # longer one in between would come cut off.
                if self.is_local or len(data) == filesystem.get_file_info(path).size:
                    return data

        return self._patiently("read", name, content)

    def write(self, name: str, data: bytes) -> None:
        """Makes or replaces the file `name`, whole or not at all, with the folders it needs."""

        def put(filesystem: fs.FileSystem, path: str) -> None:
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)

        def replace(_: fs.FileSystem, path: str) -> None:
            _replace_on_disk(path, lambda file: file.write(data))

        self._patiently("write", name, replace if self.is_local else put)

    def copy_in(self, name: str, source: Path) -> None:
        """`write` of a file of this machine, which need not fit into memory."""

        def put(filesystem: fs.FileSystem, path: str) -> None:
            with open(source, "rb") as file, filesystem.open_output_stream(path) as stream:
                shutil.copyfileobj(file, stream, _PIECE)

        def replace(_: fs.FileSystem, path: str) -> None:
            with open(source, "rb") as file:
                _replace_on_disk(path, lambda target: shutil.copyfileobj(file, target, _PIECE))

        self._patiently("write", name, replace if self.is_local else put)

    def copy_out(self, name: str, target: Path) -> None:
        """Makes or overwrites the local file `target` with the file `name`, which need not fit into memory."""

        def get(filesystem: fs.FileSystem, path: str) -> None:
            with filesystem.open_input_stream(path, compression=None) as stream, open(target, "wb") as file:
                shutil.copyfileobj(stream, file, _PIECE)

        self._patiently("read", name, get)

    def write_new(self, name: str, data: bytes) -> bool:
        """Makes the file `name`, whole; False if it is there already. Two that try at once: on a disk one succeeds,
        in an object store, which cannot tell, both may, and the later one stands."""
        if not self.is_local:
            if self.exists(name):
                return False
            self.write(name, data)
            return True
        temporary = f"{name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
        self.write(temporary, data)
        try:
            self._patiently("write", name, lambda _, path: _link(self.path(temporary), path))
        except FileExistsError:
            # An NFS server may have made it and its answer been lost: then it is this one's second name.
            return os.stat(self.path(temporary)).st_nlink == 2
        finally:
            self.remove(temporary)
        return True

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all in it; nothing happens if it is not there."""

        def gone(filesystem: fs.FileSystem, path: str) -> None:
            kind = filesystem.get_file_info(path).type
            with contextlib.suppress(FileNotFoundError):
                if kind == fs.FileType.Directory:
                    filesystem.delete_dir(path)
                elif kind == fs.FileType.File:
                    filesystem.delete_file(path)

        self._patiently("remove", name, gone)

    def read_json(self, name: str) -> Any:
        """The JSON file's value; `FileNotFoundError` or `ValueError` where it is not there or is not JSON."""
        return json.loads(self.read(name))

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as indented JSON, whole or not at all."""
        self.write(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def check_writable(self) -> None:
        """`ConfigError` unless a small file can be written here, read back and removed; within a few seconds."""
        place, probe = self, f"probe-{uuid.uuid4().hex[:8]}{TEMPORARY}"
        if self.is_local:  # the folder itself is made when there is something to put into it
            there = next(p for p in (Path(self.uri), *Path(self.uri).parents) if os.path.exists(p))
            check(there.is_dir(), f"{there} is a file; give a folder")
            place = Folder(str(there))
        with patience.limited(_PROBE_S):
            try:
                place.write(probe, b"LAHR")
                as_written = place.read(probe) == b"LAHR"
                place.remove(probe)
            except OSError as error:
                why = patience.reason(error.__cause__ if isinstance(error.__cause__, OSError) else error)
                raise ConfigError(
                    f"{self.uri} cannot be written to: {why}; mend that, or give another place"
                ) from error
        check(as_written, f"{self.uri} does not give back what is written to it; give another place")


def _link(temporary: str, path: str) -> None:
    """A second name of a file, or where the disk has none (FAT, SMB, some FUSE) a copy that nobody else has made."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        with open(temporary, "rb") as source, open(path, "xb") as target:
            try:
                shutil.copyfileobj(source, target)
                target.flush()
            except BaseException:  # else the next try would take a piece of its own for another's file
                os.remove(path)
                raise


def _replace_on_disk(path: str, fill: Callable[[BinaryIO], object]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
