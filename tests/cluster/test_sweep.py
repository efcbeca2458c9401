"""`cluster/sweep.py`: what it refuses before it asks anyone, and a sweep on hosts from a laptop that is closed."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweep import _check_shared, with_data

from lahr.config import TrialConfig
from lahr.errors import ConfigError
from lahr.presets import preset
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime
from sweeps.engine.recorder import Recorder, result_of
from sweeps.engine.results import Results
from sweeps.factorial import Options
from tests.chaos.stage import Stage
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
        (["cluster/on_prem.yaml", "run", "--name", "a b; touch x"], "--name is 'a b; touch x'; use up to 128"),
        (
            ["cluster/on_prem.yaml", "run", "--results", "s3://KEY:SECRET@bucket/x"],
            "URI carries credentials, which",
        ),
        (["cluster/kuberay.yaml", "run"], "kuberay.yaml"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anyone_is_asked(argv, expected):
    """Seen to fail when the YAML was looked at before the options: a typo cost a wait for machines."""
    status, error = said(*argv)
    assert status == 2
    assert expected in error
    assert len(error.strip().splitlines()) == 1


def test_a_cluster_that_is_not_up_is_said_with_what_to_do(tmp_path):
    """Seen to fail: a traceback of Ray's. What is wrong with the file or the machines is not asked to stop a sweep."""
    path = tmp_path / "own.yaml"
    path.write_text(
        f"cluster_name: {tmp_path.name}\nprovider: {{type: local, head_ip: 127.0.0.77, worker_ips: []}}\n"
        "auth: {ssh_user: me, ssh_private_key: ~/.ssh/lost}\nmax_workers: 0\n"
    )
    for command in ("stop", "fetch"):
        status, error = said(str(path), command, "--preset", "smoke")
        assert status == 2
        assert "is not up, as far as this machine knows" in error and "--no-restart" in error
        assert len(error.strip().splitlines()) == 1
    status, error = said(str(tmp_path / "nowhere.yaml"), "stop")
    assert status == 2 and "nowhere.yaml is no cluster's" in error


@pytest.mark.parametrize(
    ("provider", "results", "fine"),
    [
        ("aws", "results", False),
        ("aws", "/shared/lahr", False),
        ("gcp", "gs://bucket/lahr", True),
        ("local", "results", False),
        ("local", "/shared/lahr", True),
        ("local", "s3://bucket/lahr", True),
    ],
)
def test_results_that_machines_cannot_share_are_refused_before_one_is_paid_for(provider, results, fine):
    """Seen to fail: a GPU machine was started, and said so then."""
    with contextlib.nullcontext() if fine else pytest.raises(ConfigError, match=r"folder of the head alone.*s3://"):
        _check_shared(results, SimpleNamespace(provider=provider))


def test_data_of_the_laptop_has_a_place_of_its_own_for_each_sweep(tmp_path, monkeypatch):
    """A corpus of the project's stays what it is, whatever lies here. Seen to fail: a folder `stories` was copied, and
    corpus and tokenizer of one name overwrote each other."""
    monkeypatch.chdir(tmp_path)
    copied = []
    head = SimpleNamespace(copy=lambda local, remote, anew: copied.append((local, remote, anew)))
    (tmp_path / "stories").mkdir()
    (tmp_path / "a b").mkdir()
    for name in ("a b/x.json", "x.json"):
        (tmp_path / name).write_text("{}")
    options = Options.of("smoke", preset("smoke"))
    assert with_data(options, ["--seeds", "3"], head) == ["--seeds", "3"]
    mine = replace(options, name="mine", data=replace(options.data, corpus="a b/x.json", tokenizer="x.json"))
    assert with_data(mine, [], head) == [
        *("--data.corpus", "data/mine/corpus/x.json"),
        *("--data.tokenizer", "data/mine/tokenizer/x.json"),
    ]
    blank = replace(options, name="b", data=replace(options.data, corpus="a b"))
    assert with_data(blank, [], head)[1] == "data/b/corpus/a_b"
    assert copied[0] == (str(tmp_path / "a b/x.json"), "~/lahr/data/mine/corpus/x.json", True)
    mixed = replace(
        options, name="c", data=replace(options.data, corpus="0.5 stories + 0.3 x.json + 0.2 a b/x.json")
    )
    assert with_data(mixed, [], head) == [
        "--data.corpus",
        "0.5 stories + 0.3 data/c/corpus/1/x.json + 0.2 data/c/corpus/2/x.json",
    ]


def test_what_a_sweep_has_reached_is_fetched_while_it_runs(tmp_path):
    """Two of its trials, here. Seen to fail: no report before the end."""
    for name in ("cluster", "lahr", "sweeps"):
        (tmp_path / name).symlink_to(PROJECT / name)
    options = Options.of("smoke", preset("smoke"))
    design = options.design(TrialConfig(options.model, options.data, options.train), "0" * 12)
    results = Results.at(str(tmp_path / "results"), "mine")
    fetch = [sys.executable, "cluster/on_head.py", "fetch", "mine", "factorial", str(tmp_path / "results")]
    results.begin(design, Runtime(), {"preset": "smoke", "data": {"corpus": "x", "floor": None}}, {})
    none = subprocess.run(fetch, cwd=tmp_path, capture_output=True, text=True)
    assert none.returncode == 2
    assert none.stderr.startswith("error: no report of mine yet: no trial in ")
    recorder = Recorder(results, design, "code")
    for trial in design.trials()[:2]:
        metrics = {"train_loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "val_loss": 3.0, "tokens_per_second": 9.0}
        end = Progress(24, 24 * 128, 1e9, 2.0, metrics, "ab12", "finished")
        recorder.started(trial)
        recorder.progressed(trial, [replace(end, step=12, status="running"), end])
        recorder.finished(trial, result_of(trial, end))
    done = subprocess.run(fetch, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".fetched" / "mine" / "report" / "verdict.json").exists()
    assert len(list(tmp_path.glob(".fetched/mine/tensorboard/trials/*/*/events*"))) == 2


@pytest.mark.hosts
@pytest.mark.timeout(600)
def test_a_sweep_outlives_the_laptop_is_stopped_and_carried_on_and_its_report_comes_back(
    cluster: OnPrem, tmp_path: Path
):
    """With data of the laptop's own. Seen to fail with a driver that was a child of the ssh session; with an answer of
    the head's that was taken for the last line; with event files fetched twice beside each other."""
    text = tmp_path / "mine.txt"
    text.write_text(
        "\n\n".join(f"The {n}th story is about the number {n * n}. It ends there." for n in range(9000))
    )
    options = (
        f"--preset smoke --seeds 1 --train.tokens 16384 --data {text} --results {cluster.hosts.shared}/results "
        f"--name laptop --cache {cluster.hosts.shared}/cache"
    )
    Stage(cluster, tmp_path).watch(pace=2.0)  # 16 steps a trial
    command = f"cd {tmp_path} && exec python {SCRIPT} {cluster.yaml}"
    results, here = cluster.results("laptop"), "results/on-lahr-test-hosts/laptop"

    def laptop(what: str) -> subprocess.Popen:
        words = cluster.hosts.on_laptop(f"{command} {what} {options}")
        out = (tmp_path / f"{what}.log").open("wb")
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True)

    first = laptop("run")
    until(
        lambda: len(list(results.glob("trials/*/result.json"))) or first.poll() is not None, 120, "a first result"
    )
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    assert cluster.hosts.pids(1, "factorial.py"), "the sweep died with the laptop's command"

    again = laptop("run")
    said = tmp_path / "run.log"
    until(lambda: "laptop is running already" in said.read_text(errors="replace"), 60, said.read_text)
    assert "laptop is stopped" in cluster.hosts.laptop(f"{command} stop {options}").stdout
    assert again.wait(timeout=60) == 130, "the sweep's own status: interrupted"
    kept = {path: path.stat().st_mtime for path in results.glob("trials/*/result.json")}
    assert 0 < len(kept) < 8

    last = cluster.hosts.laptop(f"{command} run {options}").stdout
    assert f"report: {here}/report/report.md" in last
    assert {path: path.stat().st_mtime for path in kept} == kept
    assert len(list(results.glob("trials/*/result.json"))) == 8
    assert (tmp_path / here / "report" / "verdict.json").exists()
    assert "mine.txt" in (tmp_path / here / "report" / "report.md").read_text()
    assert len(list(tmp_path.glob(f"{here}/tensorboard/trials/*/*/events*"))) == 8, "curves would be drawn twice"
