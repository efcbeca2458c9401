"""Folders on a disk or in an object store, behind one small value.

A file is serialised to bytes first and then appears whole: on a disk through a temporary file, fsync and rename,
in an object store through one put.
"""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from lahr.errors import ConfigError


@dataclass(frozen=True)
class Folder:
    """A folder on any filesystem that pyarrow reads; names below it are relative and use `/`."""

    uri: str
    """An absolute local path or a URI such as `s3://bucket/results`."""

    @staticmethod
    def at(place: str | os.PathLike[str]) -> "Folder":
        """The folder at a local path or URI; it need not exist yet. `ConfigError` for a URI nobody can read."""
        place = str(place)
        if place.startswith("file://"):
            place = unquote(urlsplit(place).path)
        if "://" not in place:
            return Folder(str(Path(place).expanduser().resolve()))
        try:
            fs.FileSystem.from_uri(place)
        except Exception as error:
            raise ConfigError(
                f"cannot use {place!r}: {error}; give a local path or a URI such as s3://…"
            ) from error
        return Folder(place)

    @property
    def name(self) -> str:
        """Its last part."""
        return PurePosixPath(self.uri.partition("?")[0]).name

    @property
    def parent(self) -> "Folder":
        """The folder that this one lies in."""
        base, query, options = self.uri.partition("?")
        return Folder(f"{base.rstrip('/').rpartition('/')[0]}{query}{options}")

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine (or one mounted on it)."""
        return "://" not in self.uri

    def _open(self) -> tuple[fs.FileSystem, str]:
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        return fs.FileSystem.from_uri(self.uri)

    def path(self, name: str = "") -> str:
        """The path of `name` inside the filesystem. `ConfigError` if it would leave this folder."""
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts:
            raise ConfigError(f"{name!r} would leave {self.uri}; give a name without '..' or a leading '/'")
        return "/".join([self._open()[1], *parts])

    def child(self, name: str) -> "Folder":
        """The folder `name` below this one."""
        self.path(name)
        base, query, options = self.uri.partition("?")  # options of an object store stay at the URI's end
        return Folder(f"{base.rstrip('/')}/{name}{query}{options}")

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of that name is there."""
        return self._open()[0].get_file_info(self.path(name)).type != fs.FileType.NotFound

    def names(self, name: str = "") -> list[str]:
        """What lies directly in the folder `name`, sorted; empty if it is not there."""
        selector = fs.FileSelector(self.path(name), allow_not_found=True)
        return sorted(info.base_name for info in self._open()[0].get_file_info(selector))

    def read(self, name: str) -> bytes:
        """The file's bytes; `FileNotFoundError` if it is not there."""
        with self._open()[0].open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write(self, name: str, data: bytes) -> None:
        """Makes or replaces the file `name`, whole or not at all, with the folders it needs."""
        filesystem, path = self._open()[0], self.path(name)
        if not self.is_local:
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise

    def write_new(self, name: str, data: bytes) -> bool:
        """Makes the file `name`, whole; False if it is there already. Two that try at once: on a disk one succeeds,
        in an object store, which cannot tell, both may, and the later one stands."""
        if not self.is_local:
            if self.exists(name):
                return False
            self.write(name, data)
            return True
        temporary = f"{name}.{uuid.uuid4().hex[:8]}.tmp"
        self.write(temporary, data)
        try:
            os.link(self.path(temporary), self.path(name))
        except FileExistsError:
            return False
        finally:
            self.remove(temporary)
        return True

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all in it; nothing happens if it is not there."""
        filesystem, path = self._open()[0], self.path(name)
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == fs.FileType.File:
            filesystem.delete_file(path)

    def read_json(self, name: str) -> Any:
        """The JSON file's value; `FileNotFoundError` or `ValueError` where it is not there or is not JSON."""
        return json.loads(self.read(name))

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as indented JSON, whole or not at all."""
        self.write(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
