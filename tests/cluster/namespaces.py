"""What hosts.py asks of this machine: whether it can, its processes by namespace, commands."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOOLS = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync", "make": "make"}


def missing() -> str | None:
    """What this machine lacks for hosts, in words; None where it lacks nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are Linux namespaces, and only root may make them"
    if lacking := [package for tool, package in _TOOLS.items() if not shutil.which(tool, path=PATH)]:
        return f"hosts need programs that are not here: apt-get install {' '.join(lacking)}"
    if sys.prefix == sys.base_prefix:
        return "hosts take their packages from a virtual environment; run the tests in one: make test-cluster"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for part in ("lower", "upper", "work"):
            Path(folder, part).mkdir()
        overlay = f"mount -t overlay none -o lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
        try:
            do(f"unshare -m -p -n -u -f {overlay} {folder}/lower")
        except RuntimeError as error:
            return f"this machine's root may not make namespaces, or overlays below /var/tmp: {error}"
    return None


def until(true: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> float:
    """Waits until something holds; the seconds that took. `TimeoutError` names what did not come."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.2)
    return time.monotonic() - began


def pids(name: str) -> list[int]:
    """The processes of a network namespace."""
    return [int(pid) for pid in do(f"ip netns pids {name}").split()]


def command_line(pid: int) -> str:
    """A process's command line; nothing for one that is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def end(name: str) -> None:
    """Kills every process of a network namespace, and waits until none is left."""

    def all_gone() -> bool:
        left = [pid for pid in pids(name) if command_line(pid)]
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not left

    until(all_gone, 20, f"the end of {name}'s processes")


def do(command: str | list) -> str:
    """A command's output. `RuntimeError` if it fails, with what it said."""
    words = command.split() if isinstance(command, str) else [str(word) for word in command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def run(words: list[str], command: str, check: bool) -> subprocess.CompletedProcess:
    """Runs `words`, which stand for `command`, in the project's folder; `stdout` has both streams."""
    whole: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "errors": "replace",
    }
    done = subprocess.run(words, cwd=PROJECT, stdin=subprocess.DEVNULL, **whole)
    if check and done.returncode:
        raise RuntimeError(f"{command}\nended with {done.returncode}:\n{done.stdout}")
    return done
