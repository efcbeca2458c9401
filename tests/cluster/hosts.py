"""Hosts on one machine, for tests that drive a real `ray up`: enough of a computer each to be lost, cut off, set up.

    with Hosts(3) as hosts:                     # 10.78.0.1 to .3
        hosts.laptop("ray up -y cluster.yaml")  # this machine, at 10.78.0.254, with a home of its own
        hosts.run(2, "ray status")              # in the second host: in its home, with its ~/.bashrc

A host is a set of namespaces (network, processes, mounts, name) with an sshd. It has its own home, /tmp, /dev/shm and
log-ins; `hosts.shared` is a folder that all see at the same path, as NFS would give; the rest of the file system is
this machine's. There is no internet. `~/lahr/.venv` is an overlay over the environment that the tests run in, left as
a set-up of an older lock file would have left it: `make setup` runs, and has nothing to download.

Its process table is its own because `ray stop` ends every Ray process that it sees.
"""

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.cluster.namespaces import PATH, command_line, do, end, pids, run, until

_ROOT = Path("/var/tmp/lahr-hosts")  # not below /tmp, of which each host has its own
_LOCK = Path("/run/lock/lahr-hosts")
_BRIDGE, _NETWORK = "lahrbr0", "10.78.0"
_LAPTOP = f"{_NETWORK}.254"

# What a host does first, in its namespaces: mounts, then sshd, then nothing, as the parent of what loses its own.
# The interpreter may lie in the home that is hidden here.
_BOOT = """set -e
mount -t overlay overlay -o lowerdir={venv},upperdir={disk}/venv,workdir={disk}/work {disk}/home/lahr/.venv
case {python}/ in {home}/*)
  inner={disk}/home/$(realpath --relative-to={home} {python}); mkdir -p $inner; mount --bind {python} $inner;;
esac
mount --bind {disk}/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mount --rbind {disk}/home {home}
mount -t tmpfs tmpfs /dev/shm
mount --bind {disk}/tmp /tmp
hostname {name}
/usr/sbin/sshd -f {disk}/sshd_config
while :; do sleep 3600 & wait $!; done
"""


class Hosts:
    """`count` hosts, numbered from 1, between `up()` and `down()`."""

    def __init__(self, count: int, cpus: int = 1) -> None:
        self.all = range(1, count + 1)
        self.cpus = cpus
        """What Ray takes each host to have, so that trials spread over hosts on a machine with few cores."""
        self.shared = _ROOT / "shared"
        """A folder of all of them."""
        self.home = _ROOT / "laptop"
        """The home of `laptop`."""
        self.key = self.home / "id"
        """What lets root in on every host."""
        self._machines: dict[int, subprocess.Popen] = {}

    def __enter__(self) -> "Hosts":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Makes the hosts, after removing what a killed run has left. `RuntimeError` while another run has them."""
        self._lock = _LOCK.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RuntimeError("another run of these tests has the hosts of this machine; wait for it") from None
        self._remove()
        for folder in (self.shared, self.home / "ray", Path("/run/sshd")):
            folder.mkdir(parents=True, exist_ok=True)
        do(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key])
        try:
            do(f"ip link add {_BRIDGE} type bridge")
            do(f"ip addr add {_LAPTOP}/24 dev {_BRIDGE}")
            do(f"ip link set {_BRIDGE} up")
            for host in self.all:
                name, link = _name(host), _link(host)
                do(f"ip netns add {name}")
                do(f"ip link add {link} type veth peer name eth0 netns {name}")
                do(f"ip link set {link} master {_BRIDGE} up")
                do(f"ip -n {name} addr add {self.address(host)}/24 dev eth0")
                do(f"ip -n {name} link set lo up")
                do(f"ip -n {name} link set eth0 up")
                # Ray finds its own address by asking for a route; nothing is forwarded.
                do(f"ip -n {name} route add default via {_LAPTOP}")
                self.restore(host)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Ends every process of every host, and removes all of it."""
        self._remove()
        self._lock.close()

    def _remove(self) -> None:
        for name in re.findall(r"^lahr\d+", do("ip netns list"), re.MULTILINE):
            end(name)
            do(f"ip netns del {name}")  # and its link with it, a little later
        for machine in self._machines.values():
            machine.wait()
        links = Path("/sys/class/net")
        until(
            lambda: not list(links.glob(f"{_link(0)[:-1]}*")), 20, "the end of the hosts' links"
        )  # the kernel's time
        if Path("/sys/class/net", _BRIDGE).exists():
            do(f"ip link del {_BRIDGE}")
        shutil.rmtree(_ROOT, ignore_errors=True)

    def address(self, host: int) -> str:
        """A host's address."""
        return f"{_NETWORK}.{host}"

    def run(self, host: int, command: str, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess:
        """Runs a command in a host, as a log-in there would; `stdout` has both streams. 124: it took too long."""
        return run(self._inside(host, command, _limit(timeout)), command, check)

    def start(self, host: int, command: str, log: Path) -> subprocess.Popen:
        """Starts a command in a host and does not wait for it; `kill` ends it, as nothing outside of the host can."""
        with log.open("wb") as said:
            return subprocess.Popen(self._inside(host, command), stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def laptop(self, command: str, timeout: float = 280, check: bool = True) -> subprocess.CompletedProcess:
        """Runs a command in the project's folder on this machine, with a home and a /tmp/ray of its own."""
        return run(self.on_laptop(command, timeout), command, check)

    def on_laptop(self, command: str, timeout: float = 280) -> list[str]:
        """The words that run it so."""
        Path("/tmp/ray").mkdir(exist_ok=True)  # where `ray up` keeps its state, whatever TMPDIR says
        own = ["env", "-i", f"HOME={self.home}", "USER=root", f"PATH={sys.prefix}/bin:{PATH}", "LC_ALL=C.UTF-8"]
        bound = f"mount --bind {self.home}/ray /tmp/ray; {command}"
        return ["unshare", "-m", *own, *_limit(timeout), "bash", "-ec", bound]

    def pids(self, host: int, pattern: str = "") -> list[int]:
        """This machine's numbers of the processes in a host whose command line has a match."""
        return [pid for pid in pids(_name(host)) if (line := command_line(pid)) and re.search(pattern, line)]

    def kill(self, host: int, pattern: str, number: int = signal.SIGKILL) -> list[int]:
        """Sends those processes a signal; their numbers."""
        pids = self.pids(host, pattern)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself just now
                os.kill(pid, number)
        return pids

    def lost(self) -> list[int]:
        """Those that `lose` has ended, and nothing has restored."""
        return [host for host in self.all if host not in self._machines]

    def cut(self, host: int) -> None:
        """Pulls the host's network cable."""
        do(f"ip link set {_link(host)} down")

    def mend(self, host: int) -> None:
        """Plugs it in again, and waits until the host can be reached."""
        do(f"ip link set {_link(host)} up")
        until(lambda: _has_sshd(self.address(host)), 20, f"a way to {_name(host)}")

    def lose(self, host: int) -> None:
        """Ends all that runs on the host, and its disk with it: a preemption, a fire."""
        machine = self._machines.pop(host)
        end(_name(host))
        machine.wait()
        shutil.rmtree(_ROOT / _name(host))

    def reboot(self, host: int) -> None:
        """Ends all that runs on the host, and starts it again with its disk as it was."""
        end(_name(host))
        self._machines.pop(host).wait()
        self._boot(host)

    def restore(self, host: int) -> None:
        """Starts a new, empty machine at the address of one that was lost; waits for its sshd."""
        name = _name(host)
        disk = _ROOT / name
        for folder in ("home/.ssh", "home/lahr/.venv", "tmp", "venv/bin", "work"):
            (disk / folder).mkdir(parents=True)
        (disk / "tmp").chmod(0o1777)
        shutil.copy(self.key.with_suffix(".pub"), disk / "home/.ssh/authorized_keys")
        do(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", disk / "key"])
        files = {
            "home/.bashrc": f"export PATH={sys.base_prefix}/bin:$PATH\n"
            f"export RAY_OVERRIDE_RESOURCES='{{\"CPU\": {self.cpus}}}' RAY_worker_niceness=0\n",
            "sshd_config": f"HostKey {disk}/key\nPidFile none\nUsePAM no\nPermitRootLogin prohibit-password\n",
            "hosts": "127.0.0.1 localhost\n" + "".join(f"{self.address(h)} {_name(h)}\n" for h in self.all),
            "boot": _BOOT.format(disk=disk, home=_home(), venv=sys.prefix, python=sys.base_prefix, name=name),
        }
        for file, text in files.items():
            (disk / file).write_text(text)
        _seed(disk / "venv")
        self._boot(host)

    def _boot(self, host: int) -> None:
        name = _name(host)
        disk = _ROOT / name
        command = ["nsenter", f"--net=/run/netns/{name}", "unshare", "-m", "-p", "-u", "-f", "--kill-child"]
        with (disk / "log").open("wb") as log:
            self._machines[host] = subprocess.Popen(
                [*command, "--mount-proc", "env", "-i", f"PATH={PATH}", "bash", disk / "boot"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(lambda: _has_sshd(self.address(host)), 20, lambda: f"{name}'s sshd: {(disk / 'log').read_text()}")

    def _inside(self, host: int, command: str, limit: list[str] | None = None) -> list[str]:
        outer = self._machines[host].pid
        init = Path(f"/proc/{outer}/task/{outer}/children").read_text().strip()
        own = ["env", "-i", f"HOME={_home()}", "USER=root", f"PATH={PATH}", "LC_ALL=C.UTF-8"]
        inside = [*(limit or []), "bash", "-c", f"cd; . ~/.bashrc; {command}"]
        return ["nsenter", "-t", init, "-m", "-p", "-n", "-u", *own, *inside]


def _seed(upper: Path) -> None:
    """What differs in a host's environment: the path in its scripts, and a mark of a finished set-up that is old."""
    there = f"{_home()}/lahr/.venv"
    for script in (Path(sys.prefix) / "bin").iterdir():
        if script.is_file() and not script.is_symlink() and script.stat().st_size < 100_000:
            (upper / "bin" / script.name).write_bytes(
                script.read_bytes().replace(sys.prefix.encode(), there.encode())
            )
            shutil.copymode(script, upper / "bin" / script.name)
    (upper / "ready").write_text(f"{_home()}/lahr\n")
    os.utime(upper / "ready", (0, 0))


def _limit(seconds: float) -> list[str]:
    """From inside of a host: ended from outside, nsenter leaves what it started."""
    return ["timeout", "-k", "5", str(seconds)]


def _home() -> str:
    return pwd.getpwuid(0).pw_dir


def _name(host: int) -> str:
    return f"lahr{host}"


def _link(host: int) -> str:
    return f"lahrv{host}"


def _has_sshd(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
