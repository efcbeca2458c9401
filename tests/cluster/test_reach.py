"""`cluster/check.py --reach`: machines that do not answer, or do not let one in, are named with the reason.

On this machine's own loopback addresses, and nowhere else.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import check_reach
import pytest
from check import check

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port of loopback where nobody listens yet, for Ray's 22."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    monkeypatch.setattr(check_reach, "PORT", number)
    return number


@pytest.fixture
def listening(port: int) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", port)):
        yield port


def fake_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    ssh = folder / "ssh"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/given\n{script}\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_who_does_not_answer_is_named_within_five_seconds(port, tmp_path):
    """Seen to fail: with ssh alone, which would be asked after the same silence once more."""
    path = tmp_path / "ours.yaml"
    path.write_text(
        "cluster_name: ours\n"
        "provider: {type: local, head_ip: 127.0.0.1, worker_ips: [127.0.0.2]}\n"
        "auth: {ssh_user: me}\n"
        "file_mounts: {~/.ray/auth_token: ~/.ray/auth_token}\n"
        "head_start_ray_commands: [RAY_AUTH_MODE=token ray start --head]\n"
        "worker_start_ray_commands: [RAY_AUTH_MODE=token ray start]\n"
    )
    began = time.monotonic()
    assert check(path) == []
    assert check(path, reach=True) == [
        f"nobody answers at {address} port {port} within 5 s: Connection refused"
        for address in ("127.0.0.1", "127.0.0.2")
    ]
    assert time.monotonic() - began < 10


def test_who_refuses_the_key_is_named_with_the_key(listening, tmp_path, monkeypatch):
    """Seen to fail: with any failure of ssh called "nobody answers"."""
    fake_ssh(tmp_path, monkeypatch, "echo 'me@127.0.0.1: Permission denied (publickey).' >&2; exit 255")
    assert check_reach.unreachable(["127.0.0.1"], {"ssh_user": "me", "ssh_private_key": "~/.ssh/id_ed25519"}) == [
        "127.0.0.1 refuses the key ~/.ssh/id_ed25519 for the user me; put its public half into ~/.ssh/authorized_keys "
        "there"
    ]
    given = (tmp_path / "given").read_text().split("\n")
    assert {"BatchMode=yes", "ConnectTimeout=5", "IdentitiesOnly=yes"} <= set(given)
    assert given[given.index("-i") + 1] == str(Path.home() / ".ssh" / "id_ed25519")
    assert given[-3:] == ["me@127.0.0.1", "true", ""]


def test_any_other_failure_is_said_in_sshs_own_words(listening, tmp_path, monkeypatch):
    fake_ssh(tmp_path, monkeypatch, "echo 'kex_exchange_identification: no' >&2; exit 255")
    assert check_reach.unreachable(["127.0.0.1"], {"ssh_user": "me"}) == [
        "127.0.0.1 cannot be logged in to as me: kex_exchange_identification: no"
    ]


def test_behind_a_proxy_only_ssh_knows_the_way(port, tmp_path, monkeypatch):
    """Seen to fail: with the machine asked directly, which nobody can."""
    fake_ssh(tmp_path, monkeypatch, "exit 0")
    assert check_reach.unreachable(["127.0.0.1"], {"ssh_user": "me", "ssh_proxy_command": "nc %h %p"}) == []
    assert "ProxyCommand=nc %h %p" in (tmp_path / "given").read_text()


@pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="no sshd (openssh-server) on this machine")
@pytest.mark.skipif(os.getuid() != 0, reason="sshd started by another user than root checks no one else's login")
def test_a_real_sshd_takes_the_right_key_and_refuses_another(port, tmp_path):
    """Seen to fail: with the two keys exchanged."""
    for name in ("host", "right", "wrong"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd gives up its rights; it starts nowhere else
    lines = [f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {tmp_path}/host", "PidFile none", "UsePAM no"]
    lines += [f"AuthorizedKeysFile {tmp_path}/right.pub", "StrictModes no", "PasswordAuthentication no"]
    (tmp_path / "config").write_text("\n".join([*lines, "PermitRootLogin prohibit-password", ""]))
    assert SSHD is not None
    server = subprocess.Popen([SSHD, "-D", "-f", str(tmp_path / "config"), "-E", str(tmp_path / "log")])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        auth = {"ssh_user": getpass.getuser()}
        assert check_reach.unreachable(["127.0.0.1"], {**auth, "ssh_private_key": str(tmp_path / "right")}) == []
        (refused,) = check_reach.unreachable(["127.0.0.1"], {**auth, "ssh_private_key": str(tmp_path / "wrong")})
        assert f"refuses the key {tmp_path}/wrong" in refused
    finally:
        server.terminate()
        server.wait()
