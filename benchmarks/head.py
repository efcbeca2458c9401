"""What leads a launch, and what it takes of the head: memory and processor time of each kind of process of a sweep.

    python benchmarks/head.py                       # two launches on this machine, for 30 s while they train
    python benchmarks/head.py --launches 4

A sweep of `smoke`'s model, long enough to be looked at, is started on this machine and stopped again. All but the
workers run on the head of a cluster. Memory is the proportional set size: what is shared counts once, in parts. `of a
core` is processor time over wall time.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

WORKER = "RayTrainWorker"
_TICKS = os.sysconf("SC_CLK_TCK")
_START_S = 180
_SCRIPT = str(Path(__file__).parents[1] / "sweeps" / "factorial.py")


@dataclass(frozen=True)
class Options:
    """How many launches, watched for how long."""

    launches: int = 2
    seconds: float = 30


def descendants(root: int) -> dict[int, str]:
    """Process number → command line, of all that `root` started, and it."""
    parents: dict[int, list[int]] = defaultdict(list)
    lines: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except (OSError, IndexError):
            continue
        parents[parent].append(int(folder.name))
    found, ahead = {}, [root]
    while ahead:
        pid = ahead.pop()
        found[pid] = lines.get(pid, "")
        ahead += parents[pid]
    return found


def kind(line: str) -> str:
    """What a process is called here: an actor's class, or a program."""
    if actor := re.match(r"ray::([\w:]+)", line):
        return actor[1].partition("::")[0]
    return next(
        (name for name in ("raylet", "gcs_server", "dashboard", "factorial.py") if name in line), "others of Ray"
    )


def memory_mib(pid: int) -> float:
    """Its proportional set size."""
    said = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+)", said, re.MULTILINE)[1]) / 1024  # type: ignore[index]


def cpu_seconds(pid: int) -> float:
    """Processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def main(options: Options) -> int:
    """Prints the table."""
    with tempfile.TemporaryDirectory(prefix="lahr-head-") as folder:
        sweep = subprocess.Popen(
            [
                *(sys.executable, _SCRIPT, "--preset", "smoke", "--seeds", "8", "--results", folder),
                *("--train.tokens", "20000000", "--concurrency", str(options.launches), "--cache", folder),
            ],
            stdout=subprocess.DEVNULL,
            env=os.environ | {"RAY_OVERRIDE_RESOURCES": f'{{"CPU": {options.launches}}}'},
        )
        try:
            show(sweep, options)
        finally:
            sweep.send_signal(signal.SIGTERM)
            sweep.wait()
    return 0


def show(sweep: subprocess.Popen[bytes], options: Options) -> None:
    """Waits until all launches train, looks for a while, and prints."""
    until = time.monotonic() + _START_S
    while sum(kind(line) == WORKER for line in descendants(sweep.pid).values()) < options.launches:
        if sweep.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"error: no {options.launches} workers within {_START_S} s")
        time.sleep(1)
    time.sleep(10)  # the workers' own start
    seen = descendants(sweep.pid)
    before = {pid: cpu_seconds(pid) for pid in seen}
    time.sleep(options.seconds)
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for pid, began in before.items():
        if Path(f"/proc/{pid}").exists():
            kinds[kind(seen[pid])].append((memory_mib(pid), (cpu_seconds(pid) - began) / options.seconds))
    table = Table(title=f"{options.launches} launches, {options.seconds:g} s")
    for column in ("process", "of them", "MiB each", "of a core each"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name, each in sorted(kinds.items(), key=lambda item: -sum(m for m, _ in item[1])):
        memory, cpu = (sum(values) / len(each) for values in zip(*each, strict=True))
        table.add_row(name, str(len(each)), f"{memory:,.0f}", f"{cpu:.1%}")
    leading = [
        one for name, each in kinds.items() if name != WORKER and len(each) == options.launches for one in each
    ]
    table.add_section()
    memory, cpu = (sum(values) / options.launches for values in zip(*leading, strict=True))
    table.add_row("what leads a launch", "", f"{memory:,.0f}", f"{cpu:.1%}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
