"""cluster/cluster.yaml is a cluster that `ray up` accepts, checked without a cloud account.

Ray's own validator leaves the `provider` and `node_config` sections unread; those are held against the description
of AWS's RunInstances call that botocore carries.
"""

import copy
import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
YAML = ROOT / "cluster" / "cluster.yaml"

# What Ray's AWS provider reads from `provider` (ray/autoscaler/_private/aws and ray-schema.json).
PROVIDER_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "security_group",
    "use_internal_ips",
    "key_pair",
    "cloudwatch",
    "aws_credentials",
}


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(YAML.read_text())


@pytest.fixture(scope="module")
def ec2():
    return botocore.session.Session().get_service_model("ec2")


def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    return {n: t for n, t in cluster["available_node_types"].items() if n != cluster["head_node_type"]}


def gpus(instance_type: str) -> bool:
    """Whether AWS's name says that the instance has a GPU: families g and p (g6, g6e, p5en …)."""
    return re.match(r"[gp]\d", instance_type) is not None


def start_command(cluster: dict[str, Any], node: str) -> str:
    commands = [c for c in cluster[f"{node}_start_ray_commands"] if "ray start" in c]
    assert len(commands) == 1
    return commands[0]


def test_ray_accepts_it(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_provider_has_only_keys_that_ray_reads(cluster):
    assert set(cluster["provider"]) <= PROVIDER_KEYS
    assert "aws_credentials" not in cluster["provider"]


def test_region_and_zones_exist(cluster):
    region = cluster["provider"]["region"]
    assert region in botocore.session.Session().get_available_regions("ec2")
    for zone in cluster["provider"]["availability_zone"].split(","):
        assert re.fullmatch(region + "[a-f]", zone)


def test_aws_knows_every_setting_of_every_node(cluster, ec2):
    request = ec2.operation_model("RunInstances").input_shape
    for name, node_type in cluster["available_node_types"].items():
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_type["node_config"]}, request)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert node_type["node_config"]["InstanceType"] in ec2.shape_for("InstanceType").enum


def test_head_is_on_demand_and_has_no_gpu(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert not gpus(head["node_config"]["InstanceType"])
    assert "GPU" not in head["resources"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head.get("max_workers", 0) == 0


def test_workers_are_spot_gpu_nodes_that_start_from_none(cluster):
    assert workers(cluster)
    for worker in workers(cluster).values():
        assert worker["min_workers"] == 0
        assert gpus(worker["node_config"]["InstanceType"])
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert cluster["max_workers"] >= 1
    assert cluster["idle_timeout_minutes"] > 0
    assert cluster["provider"]["cache_stopped_nodes"] is False  # a spot instance cannot be stopped


def test_every_node_may_write_results_and_names_its_image(cluster):
    for node_type in cluster["available_node_types"].values():
        assert node_type["node_config"]["IamInstanceProfile"]
        assert node_type["node_config"]["ImageId"]


@pytest.mark.parametrize("node", ["head", "worker"])
def test_start_command_authenticates_and_raises_the_file_limit(cluster, node):
    before, _, _ = start_command(cluster, node).partition("ray start")
    assert re.search(r"export [^;]*\bRAY_AUTH_MODE=token\b", before)
    assert re.search(r"ulimit -n \d{5,};", before)
    assert cluster[f"{node}_start_ray_commands"][0].endswith("ray stop")
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_head_autoscales_with_a_dashboard_on_loopback_only(cluster):
    command = start_command(cluster, "head")
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in command
    # Ray frees a lost trial's resources through the dashboard, so it has to be on.
    assert "--include-dashboard=true" in command
    assert re.findall(r"--dashboard-host[= ](\S+)", command) == ["127.0.0.1"]
    assert start_command(cluster, "worker").partition("ray start")[2].split()[0] == "--address=$RAY_HEAD_IP:6379"


def test_nodes_get_the_project_and_install_its_lock_file(cluster):
    mounts = {remote: local for remote, local in cluster["file_mounts"].items() if remote != "~/.ray/auth_token"}
    assert all(remote == f"~/lahr/{local}" for remote, local in mounts.items())
    assert all((ROOT / local).exists() for local in mounts.values())
    assert {"lahr", "sweeps", "Makefile", "pyproject.toml", "requirements.lock"} <= set(mounts.values())
    assert any(command.startswith("make -C ~/lahr setup") for command in cluster["setup_commands"])


def test_what_is_large_or_local_stays_off_the_nodes(cluster):
    # Ray hashes all files below a mount, excluded ones too, so they have to be outside the mounts.
    assert not {".", "./", "results", ".venv", ".git"} & set(cluster["file_mounts"].values())
    assert {".venv", "results", ".git", "__pycache__"} <= set(cluster["rsync_exclude"])


def test_it_holds_no_secret():
    text = YAML.read_text()
    assert not re.search(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b", text)
    assert "PRIVATE KEY" not in text
    assert not re.search(r"(?i)(secret_access_key|session_token|password|hf_token|RAY_AUTH_TOKEN)\s*[:=]", text)
    assert not re.search(r"\b[0-9a-fA-F]{32,}\b", text)
