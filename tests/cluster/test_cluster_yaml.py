"""Every YAML in cluster/ is a cluster that starts from nothing it should not, lets no one in and holds no secret.

What `cluster/check.py` finds is held by test_check.py; here is what these files are meant to be.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from check import check

from lahr.options import parse
from sweeps.factorial import Options

ROOT = Path(__file__).parents[2]
YAMLS = sorted((ROOT / "cluster").glob("*.yaml"))
LAUNCHED = [path for path in YAMLS if "apiVersion" not in yaml.safe_load(path.read_text())]
CLOUDS = [path for path in LAUNCHED if yaml.safe_load(path.read_text())["provider"]["type"] != "local"]


def name(path: Path) -> str:
    return path.name


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def start_command(cluster: dict[str, Any], node: str) -> str:
    (command,) = [c for c in cluster[f"{node}_start_ray_commands"] if "ray start" in c]
    return command


def gpus(node: dict[str, Any]) -> bool:
    """Whether a node's type has GPUs, by the names of AWS (g6, p5en …) and Google (a2, g2 …)."""
    settings = node["node_config"]
    kind = settings.get("InstanceType") or settings["machineType"]
    return bool(re.match(r"[gp]\d" if "InstanceType" in settings else r"[ag]\d", kind))


def spot(node: dict[str, Any]) -> bool:
    """Whether a node may be taken back by its cloud."""
    settings = node["node_config"]
    if "InstanceType" in settings:
        return settings.get("InstanceMarketOptions") == {"MarketType": "spot"}
    return settings.get("scheduling", {}).get("provisioningModel") == "SPOT"


def test_there_is_one_for_each_kind_of_place():
    assert {"cluster.yaml", "gcp.yaml", "kuberay.yaml"} <= {path.name for path in YAMLS}


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_it_is_fine_once_it_is_filled_in(path, tmp_path):
    """Seen to fail: `regoin` in the provider; an apt package's name where a file is mounted."""
    filled = tmp_path / path.name
    filled.write_text(re.sub(r"YOUR-[A-Z-]+", "my-own-things", path.read_text()))
    assert check(filled) == []


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_it_says_at_its_head_what_to_change(path):
    """Seen to fail: a placeholder that the comment does not name."""
    text = path.read_text()
    comment = text[: re.search(r"^[^#\n]", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    assert "To change" in comment
    assert "cluster/check.py" in comment or path.name == "on_prem.yaml"
    for placeholder in set(re.findall(r"YOUR-[A-Z]+", text)):
        assert placeholder in comment.split("To change")[1], placeholder


@pytest.mark.parametrize("path", LAUNCHED, ids=name)
@pytest.mark.parametrize("node", ["head", "worker"])
def test_start_command_authenticates_and_raises_the_file_limit(path, node):
    """Seen to fail: RAY_AUTH_MODE after `ray start`."""
    cluster = load(path)
    before, _, _ = start_command(cluster, node).partition("ray start")
    assert re.search(r"export [^;]*\bRAY_AUTH_MODE=token\b", before)
    assert re.search(r"ulimit -n \d{5,};", before)
    assert cluster[f"{node}_start_ray_commands"][0].endswith("ray stop")
    assert "~/.ray/auth_token" in cluster["file_mounts"]


@pytest.mark.parametrize("path", LAUNCHED, ids=name)
def test_head_autoscales_with_a_dashboard_on_loopback_only(path):
    """Seen to fail: --dashboard-host=0.0.0.0; no dashboard."""
    cluster = load(path)
    command = start_command(cluster, "head")
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in command
    # It is there to be looked at (docs/cluster.md).
    assert "--include-dashboard=true" in command
    assert re.findall(r"--dashboard-host[= ](\S+)", command) == ["127.0.0.1"]
    assert start_command(cluster, "worker").partition("ray start")[2].split()[0] == "--address=$RAY_HEAD_IP:6379"


@pytest.mark.parametrize("path", LAUNCHED, ids=name)
def test_nodes_get_the_project_and_install_its_lock_file(path):
    """Seen to fail: requirements.lock not mounted; another folder's name on the left."""
    cluster = load(path)
    mounts = {remote: local for remote, local in cluster["file_mounts"].items() if remote != "~/.ray/auth_token"}
    assert all(remote == f"~/lahr/{local}" for remote, local in mounts.items())
    needed = {
        "lahr",
        "sweeps",
        "cluster",
        "Makefile",
        "pyproject.toml",
        "requirements.lock",
        "README.md",
        "LICENSE",
    }
    assert needed <= set(mounts.values())
    assert any(command.startswith("bash ~/lahr/cluster/setup.sh") for command in cluster["setup_commands"])


@pytest.mark.parametrize("path", LAUNCHED, ids=name)
def test_what_is_large_or_local_stays_off_the_nodes(path):
    """Seen to fail: `.` as a mount. (Ray hashes all files below a mount, excluded ones too.)"""
    cluster = load(path)
    assert not {".", "./", "results", ".venv", ".git"} & set(cluster["file_mounts"].values())
    assert {".venv", "results", ".git", "__pycache__"} <= set(cluster["rsync_exclude"])


@pytest.mark.parametrize("path", CLOUDS, ids=name)
def test_head_is_on_demand_and_has_no_gpu(path):
    """Seen to fail: the workers' type as the head's; a spot head."""
    cluster = load(path)
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert not gpus(head)
    assert not spot(head)
    assert "GPU" not in head["resources"]
    assert head.get("max_workers", 0) == 0


@pytest.mark.parametrize("path", CLOUDS, ids=name)
def test_workers_are_spot_gpu_nodes_that_start_from_none(path):
    """Seen to fail: min_workers 1; cache_stopped_nodes true; a type without a GPU."""
    cluster = load(path)
    workers = {n: t for n, t in cluster["available_node_types"].items() if n != cluster["head_node_type"]}
    assert workers
    for worker in workers.values():
        assert worker["min_workers"] == 0
        assert gpus(worker)
        assert spot(worker)
    assert cluster["max_workers"] >= 1
    assert cluster["idle_timeout_minutes"] > 0
    assert (
        cluster["provider"]["cache_stopped_nodes"] is False
    )  # a spot machine cannot be stopped, or is of no use then


@pytest.mark.parametrize("path", CLOUDS, ids=name)
def test_workers_listen_for_their_clouds_notice(path):
    """Seen to fail: without the last `&`, which would hold up `ray up`; the other cloud's name."""
    cluster = load(path)
    (command,) = [c for c in cluster["worker_start_ray_commands"] if "spot_notice.py" in c]
    assert f"~/lahr/cluster/spot_notice.py {cluster['provider']['type']} " in command
    assert command.startswith("export RAY_AUTH_MODE=token; setsid ") or " RAY_AUTH_MODE=token " in command
    assert command.rstrip().endswith(">> ~/spot_notice.log 2>&1 < /dev/null &")
    assert not any("spot_notice" in c for c in cluster["head_start_ray_commands"])


def test_every_node_of_a_cloud_may_write_results_and_names_its_image():
    """Seen to fail: workers without a role."""
    aws, gcp = (load(ROOT / "cluster" / f"{which}.yaml")["available_node_types"] for which in ("cluster", "gcp"))
    for node in aws.values():
        assert node["node_config"]["IamInstanceProfile"]
        assert node["node_config"]["ImageId"]
    for node in gcp.values():
        assert node["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
    assert gcp["gpu_worker"]["node_config"]["serviceAccounts"]  # the head gets one from Ray


@pytest.fixture
def job() -> dict[str, Any]:
    return load(ROOT / "cluster" / "kuberay.yaml")["spec"]


def test_the_rayjob_runs_the_sweeps_own_command(job):
    """Seen to fail: a misspelt option; `cd lahr && python …`, which KubeRay's shell would take apart."""
    assert not re.search(r"[&|;<>$'\"`\\]", job["entrypoint"])
    words = shlex.split(job["entrypoint"])
    assert words[:2] == ["python", "sweeps/factorial.py"]
    options = parse(Options, words[2:], Options.of, "")
    assert options.concurrency == job["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert "://" in options.results


def test_the_rayjob_ends_with_its_sweep_and_is_tried_again(job):
    """Seen to fail: without shutdownAfterJobFinishes."""
    assert job["shutdownAfterJobFinishes"] is True
    assert job["backoffLimit"] >= 1
    assert job["activeDeadlineSeconds"] > 0


def test_the_rayjobs_head_trains_nothing_and_its_workers_are_spot_gpus_from_none(job):
    """Seen to fail: a GPU for the head; minReplicas 1; no nodeSelector."""
    cluster = job["rayClusterSpec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["enableInTreeAutoscaling"] is True
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert group["minReplicas"] == group["replicas"] == 0
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert any("spot" in key for key in pod["nodeSelector"])
        assert pod["containers"][0]["image"] == head["image"]


def test_the_image_holds_what_the_rayjob_runs():
    """Seen to fail: a folder that is not copied; another Python than pyproject.toml's."""
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    copied = [
        word for line in re.findall(r"^COPY --chown=\S+ (.*)$", text, re.MULTILINE) for word in line.split()[:-1]
    ]
    assert {"lahr", "sweeps", "requirements.lock", "pyproject.toml"} <= set(copied)
    assert all((ROOT / word).exists() for word in copied)
    assert re.search(r"^FROM python:3\.1[12]-", text, re.MULTILINE)
    assert "requirements.lock" in text.split("RUN python -m venv")[1].splitlines()[0]


def test_the_documented_commands_are_ones():
    """Seen to fail: an option misspelt in docs/cluster.md."""
    text = (ROOT / "docs" / "cluster.md").read_text().replace("\\\n", " ")
    runs = re.findall(r"^    python cluster/sweep.py cluster/(\S+) run (.*)$", text, re.MULTILINE)
    assert len(runs) == 3
    for _, options in runs:
        assert "://" in parse(Options, shlex.split(options), Options.of, "").results or "/shared/" in options
