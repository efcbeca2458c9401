"""cluster/on_prem.yaml on three hosts: `ray up`, a sweep over them, who may come in, and an end that leaves nothing.

They run in this order: a sweep is started, and what is to be seen while it runs is looked at while it runs.
"""

import http.client
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.stage import Stage
from tests.cluster.namespaces import until
from tests.cluster.on_prem import RAY, OnPrem

pytestmark = pytest.mark.hosts
_LISTENS = re.compile(r"^LISTEN +\d+ +\d+ +(\S+):(\d+) ", re.MULTILINE)


@pytest.fixture(scope="module")
def stage(cluster: OnPrem, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(cluster, tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def sweep(
    cluster: OnPrem, stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A sweep that runs from the head, and its output."""
    stage.watch(pace=1.25)  # eight steps a trial: half a minute
    log = tmp_path_factory.mktemp("sweep") / "log"
    process = cluster.hosts.start(1, cluster.sweep("one"), log)
    until(lambda: (cluster.results("one") / "lease.json").exists() or process.poll() is not None, 60, log.read_text)
    yield process, log
    cluster.hosts.kill(1, "factorial.py")
    process.wait()


def test_ray_up_makes_every_host_a_node_with_the_project(cluster):
    """By the commands of the file's comment. Seen to fail without the token's mount: the head did not start."""
    assert "3 local.cluster.node" in cluster.hosts.laptop(f"ray exec {cluster.yaml} 'ray status'").stdout
    for host in cluster.hosts.all:
        home, *found = cluster.hosts.run(
            host, "echo ~; cd /; python -c 'import lahr, sys; print(lahr.__file__, sys.prefix)'"
        ).stdout.split()
        assert found == [f"{home}/lahr/lahr/__init__.py", f"{home}/lahr/.venv"]


def test_setting_up_again_changes_nothing(cluster):
    """Without network. Seen to fail with the line appended to ~/.bashrc each time."""
    before = cluster.hosts.run(2, "cat ~/.bashrc; stat -c %y ~/lahr/.venv/ready").stdout
    cluster.hosts.run(2, "bash ~/lahr/cluster/setup.sh", timeout=20)
    assert cluster.hosts.run(2, "cat ~/.bashrc; stat -c %y ~/lahr/.venv/ready").stdout == before


def test_a_second_start_of_a_sweep_is_refused_on_another_host(cluster, sweep):
    """Seen to fail with another --name: it started."""
    second = cluster.hosts.run(2, cluster.sweep("one"), check=False)
    assert second.returncode == 2, second.stdout
    assert "another sweep is running" in second.stdout


def test_trials_run_on_every_host_and_end_in_a_verdict(cluster, stage, sweep):
    """Seen to fail with one lane: all on the head."""
    process, log = sweep
    assert process.wait(timeout=240) == 0, log.read_text()
    assert set(stage.took_steps("one").values()) == {1, 2, 3}
    assert len(list(cluster.results("one").glob("trials/*/result.json"))) == 8
    assert (cluster.results("one") / "report" / "verdict.json").exists()


def test_a_driver_without_the_clusters_token_is_refused(cluster, tmp_path):
    """Ray asks for 20 s before it gives up. Seen to fail without RAY_AUTH_MODE in start commands and log-ins."""
    ways = {
        "none": "RAY_AUTH_MODE=disabled",
        "another": f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0123456789abcdef' * 4}",
    }
    drivers = {
        name: cluster.hosts.start(3, f"export {way}; {cluster.sweep(name)}", tmp_path / name)
        for name, way in ways.items()
    }
    for name, driver in drivers.items():
        assert driver.wait(timeout=90) == 2, name
        assert "InvalidAuthToken" in (tmp_path / name).read_text()
        assert not cluster.results(name).exists()


def test_no_port_answers_who_has_no_token_and_the_dashboard_is_on_loopback(cluster):
    """Prometheus' metrics excepted: Ray guards them with nothing. Seen to fail with --dashboard-host=0.0.0.0."""
    for host in cluster.hosts.all:
        sockets = _LISTENS.findall(cluster.hosts.run(host, "ss -ltnH").stdout)
        assert sockets
        assert [address for address, port in sockets if port == "8265"] == ["127.0.0.1"] * (host == 1)
        for port in {port for address, port in sockets if address != "127.0.0.1"}:
            for path in ("", "api/jobs/", "api/cluster_status", "logs"):
                answer = _asked(f"http://{cluster.hosts.address(host)}:{port}/{path}")
                assert answer is None or answer == "401" or answer.startswith("# HELP"), (host, port, path, answer)


def test_the_dashboard_and_its_jobs_answer_only_who_has_the_token(cluster):
    """Asked on the head itself, as through a tunnel. Seen to fail with RAY_AUTH_MODE left out of the start command."""

    def answer(path: str, token: str) -> str:
        ask = (
            "import sys, urllib.error, urllib.request as r\n"
            "asked = r.Request('http://127.0.0.1:8265/' + sys.argv[1])\n"
            "if sys.argv[2]: asked.add_header('Authorization', 'Bearer ' + sys.argv[2])\n"
            "try: print(r.urlopen(asked, timeout=20).status)\n"
            "except urllib.error.HTTPError as error: print(error.code)"
        )
        return cluster.hosts.run(1, f'python3 -c "{ask}" "{path}" "{token}"').stdout.strip()

    for path in ("api/jobs/", "api/cluster_status", "nodes?view=summary"):
        assert answer(path, "") in ("401", "403"), path
        assert answer(path, "0123456789abcdef" * 4) in ("401", "403"), path
        assert answer(path, "$(cat ~/.ray/auth_token)") == "200", path


def test_tear_down_leaves_no_process_of_rays(cluster):
    """Seen to fail without what the file's comment says to do after `ray down`: raylets stayed."""
    assert all(cluster.hosts.pids(host, RAY) for host in cluster.hosts.all)
    cluster.down()
    assert {host: cluster.hosts.pids(host, RAY) for host in cluster.hosts.all} == {1: [], 2: [], 3: []}


def _asked(url: str) -> str | None:
    """What a web server answers: its status where it refuses, else its page; None where there is no web server."""
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return answer.read(2000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (OSError, http.client.HTTPException):  # nobody, or one who speaks another protocol
        return None
