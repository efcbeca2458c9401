"""What a machine of a cluster must have in common with the one that drives a sweep, before it may train."""

import os
import platform
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from lahr.errors import StorageError
from lahr.files import TEMPORARY, Folder

_SAME = ("torch", "numpy", "pyarrow", "safetensors", "ray")
"""Packages whose version may change a result, or what files can be read."""
_MARKER = ".reached-from-every-machine"


def versions() -> dict[str, str]:
    """Python's and the packages' versions here; a build's mark (`+cpu`) is none of the version."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _SAME:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found


def processor() -> str:
    """The name of this machine's processor: bit-identity is promised among machines of one kind."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Demands:
    """What a machine is asked for."""

    results: str
    """Path or URI of the sweep's folder, which has to be the same place for all."""
    nonce: str
    """What stands in the marker there."""
    versions: Mapping[str, str]
    """Versions on the driver's machine."""

    @staticmethod
    def made(results: Folder) -> "Demands":
        """Writes the marker, and asks for what this machine has."""
        nonce = uuid.uuid4().hex
        results.write(_MARKER, nonce.encode())
        return Demands(results.uri, nonce, versions())

    def unmet(self, wait: float = 0.0) -> str | None:
        """Why this machine cannot take part, to stand after its name; None where it can.

        The sweep's folder is waited for `wait` seconds: a machine that has just started may not have mounted it yet.
        """
        mine = versions()
        other = [
            f"{name} {mine[name]} (the driver has {want})"
            for name, want in self.versions.items()
            if mine[name] != want
        ]
        if other:
            return f"has {', '.join(other)}; install the same lock file on every machine"
        place = Folder.at(self.results)
        began = time.monotonic()
        try:
            while (seen := place.read(_MARKER).decode() if place.exists(_MARKER) else None) != self.nonce:
                if time.monotonic() - began > wait:
                    break
                time.sleep(1)
            else:
                probe = f"probe-{uuid.uuid4().hex[:8]}{TEMPORARY}"
                place.write(probe, b"")  # what can be read need not be writable here
                place.remove(probe)
        except StorageError as error:
            return str(error)
        if seen != self.nonce:
            return (
                f"does not see the driver's files in {self.results}, so it is not the same place there; give "
                "--results a path that every machine shares, or a URI such as s3://…"
            )
        return None
