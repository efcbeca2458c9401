"""`cluster/sweep.py`: what it refuses before it asks anyone, and a sweep on hosts from a laptop that is closed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.namespaces import PROJECT, until
from tests.cluster.on_prem import OnPrem

SCRIPT = PROJECT / "cluster" / "sweep.py"


def said(*argv: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(SCRIPT), *argv], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "given nothing; usage: python cluster/sweep.py CLUSTER.yaml {run|stop|fetch|down}"),
        (["cluster/on_prem.yaml", "start"], "given cluster/on_prem.yaml start; usage"),
        (["cluster/nowhere.yaml", "run"], "cluster/nowhere.yaml: cannot be read"),
        (["cluster/on_prem.yaml", "run", "--preset", "smal"], "did you mean 'small'?"),
        (["cluster/on_prem.yaml", "run", "plan"], "plan is no command here"),
        (["cluster/kuberay.yaml", "run"], "kuberay.yaml"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anyone_is_asked(argv, expected):
    """Seen to fail when the YAML was looked at before the options: a typo cost a wait for machines."""
    status, error = said(*argv)
    assert status == 2
    assert expected in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.hosts
def test_a_sweep_goes_on_when_the_laptop_is_closed_and_its_report_comes_back(cluster: OnPrem, tmp_path: Path):
    """With data of the laptop's own. Seen to fail with a driver that was a child of the ssh session."""
    text = tmp_path / "mine.txt"
    text.write_text(
        "\n\n".join(f"The {n}th story is about the number {n * n}. It ends there." for n in range(9000))
    )
    options = (
        f"--preset smoke --seeds 1 --train.tokens 30720 --data {text} --results {cluster.hosts.shared}/results "
        f"--name laptop --cache {cluster.hosts.shared}/cache"
    )
    command = f"cd {tmp_path} && exec python {SCRIPT} {cluster.yaml}"
    first = subprocess.Popen(
        cluster.hosts.on_laptop(f"{command} run {options}"), stdin=subprocess.DEVNULL, start_new_session=True
    )
    results = cluster.results("laptop")
    until(
        lambda: len(list(results.glob("trials/*/result.json"))) or first.poll() is not None, 120, "a first result"
    )
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    assert cluster.hosts.pids(1, "factorial.py"), "the sweep died with the laptop's command"

    again = cluster.hosts.laptop(f"{command} run {options}")
    assert "laptop is running already" in again.stdout
    assert "report: results/laptop/report/report.md" in again.stdout
    assert (tmp_path / "results" / "laptop" / "report" / "verdict.json").exists()
    assert "mine.txt" in (tmp_path / "results" / "laptop" / "report" / "report.md").read_text()
    assert len(list(results.glob("trials/*/result.json"))) == 8


@pytest.mark.hosts
def test_stop_is_heard_and_the_same_command_carries_on(cluster: OnPrem, tmp_path: Path):
    options = f"--preset smoke --seeds 1 --results {cluster.hosts.shared}/results --name stopped"
    command = f"cd {tmp_path} && python {SCRIPT} {cluster.yaml}"
    running = subprocess.Popen(cluster.hosts.on_laptop(f"{command} run {options}"), stdin=subprocess.DEVNULL)
    results = cluster.results("stopped")
    until(lambda: len(list(results.glob("trials/*/result.json"))), 120, "a first result")
    assert "stopped is stopped" in cluster.hosts.laptop(f"{command} stop {options}").stdout
    # Interrupted, as Ctrl-C would: the laptop's command ends with the sweep's own status.
    assert running.wait(timeout=60) == 130
    kept = {path: path.stat().st_mtime for path in results.glob("trials/*/result.json")}
    assert 0 < len(kept) < 8
    cluster.hosts.laptop(f"{command} run {options}")
    assert {path: path.stat().st_mtime for path in kept} == kept
    assert len(list(results.glob("trials/*/result.json"))) == 8
