"""Whether the machines of a cluster of one's own answer, and let `ray up` in."""

import shutil
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PORT = 22
"""Ray knows no other."""
WAIT_S = 5
# As Ray calls ssh: no questions, this key and no other, and a machine that was set up anew is no stranger.
_SSH = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={WAIT_S}", "-o", "StrictHostKeyChecking=no"]
_SSH += ["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"]


def problems(config: dict[str, Any]) -> list[str]:
    """Which machines of a `local` cluster cannot be used, and why; all are asked at once."""
    provider, auth = config["provider"], config.get("auth", {})
    if provider.get("type") != "local":
        return []
    head = provider.get("external_head_ip") or provider["head_ip"]
    return unreachable([head, *provider["worker_ips"]], auth)


def unreachable(addresses: Sequence[str], auth: dict[str, str]) -> list[str]:
    """Those of the machines that do not answer or refuse the key, a line each; `auth` is a cluster YAML's."""
    if shutil.which("ssh") is None:
        return ["ssh is not installed on this machine; `ray up` needs it, and rsync"]
    with ThreadPoolExecutor(max_workers=32) as pool:
        return [line for line in pool.map(lambda address: _ask(address, auth), addresses) if line]


def _ask(address: str, auth: dict[str, str]) -> str | None:
    proxy = auth.get("ssh_proxy_command")
    if not proxy:
        try:
            socket.create_connection((address, PORT), timeout=WAIT_S).close()
        except OSError as error:
            why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            return f"nobody answers at {address} port {PORT} within {WAIT_S} s: {why}"
    command = [*_SSH, "-p", str(PORT), *(["-o", f"ProxyCommand={proxy}"] if proxy else [])]
    key = auth.get("ssh_private_key")
    command += ["-i", str(Path(key).expanduser())] if key else []
    user = auth.get("ssh_user", "ubuntu")
    command += [f"{user}@{address}", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * WAIT_S)
    except subprocess.TimeoutExpired:
        return f"{address} answers, but ssh gets nowhere within {4 * WAIT_S} s"
    if done.returncode == 0:
        return None
    said = (done.stderr.strip().splitlines() or [f"ssh ended with {done.returncode}"])[-1]
    if "Permission denied" in said:
        what = f"the key {key}" if key else "the keys of this machine (auth.ssh_private_key names none)"
        return (
            f"{address} refuses {what} for the user {user}; put its public half into ~/.ssh/authorized_keys there"
        )
    return f"{address} cannot be logged in to as {user}: {said}"
