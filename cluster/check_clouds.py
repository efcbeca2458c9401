"""Regions, zones and machines of AWS and Google Cloud in a YAML for `ray up`, without asking either.

AWS: against the description of its calls that botocore carries, where boto3 is installed (extra `aws`). Google: by the
shape of its names, since no such description comes with its client.
"""

import re
from typing import Any

import check_schema

from lahr.errors import nearest

# fmt: off
_GCP_FAMILIES = [
    "a2", "a3", "a4", "a4x", "c2", "c2d", "c3", "c3d", "c4", "c4a", "c4d", "e2", "f1", "g1", "g2", "g4", "h3",
    "h4d", "m1", "m2", "m3", "m4", "n1", "n2", "n2d", "n4", "n4d", "t2a", "t2d", "x4", "z3",
]
_GCP_WITH_GPUS = ("a2", "a3", "a4", "a4x", "g2", "g4")
_GCP_SIZES = [
    "standard", "highmem", "highcpu", "highgpu", "megagpu", "ultragpu", "edgegpu", "maxgpu", "custom", "megamem",
    "ultramem", "hypermem", "highlssd", "standardlssd", "micro", "small", "medium",
]
_GCP_GPUS = [
    "nvidia-tesla-t4", "nvidia-tesla-p4", "nvidia-tesla-p100", "nvidia-tesla-v100", "nvidia-tesla-a100",
    "nvidia-a100-80gb", "nvidia-l4", "nvidia-h100-80gb", "nvidia-h100-mega-80gb", "nvidia-h200-141gb",
    "nvidia-b200", "nvidia-gb200", "nvidia-rtx-pro-6000",
]
# What a machine may be asked for with (instances.insert of the Compute API).
_GCP_NODE = [
    "machineType", "disks", "scheduling", "guestAccelerators", "serviceAccounts", "metadata", "tags", "labels",
    "networkInterfaces", "minCpuPlatform", "canIpForward", "shieldedInstanceConfig", "advancedMachineFeatures",
    "confidentialInstanceConfig", "deletionProtection", "description", "displayDevice", "hostname", "params",
    "networkPerformanceConfig", "reservationAffinity", "resourcePolicies", "sourceMachineImage",
]
# fmt: on


def problems(config: dict[str, Any]) -> list[str]:
    """What AWS or Google Cloud would not take, a line each."""
    return (_aws if config["provider"]["type"] == "aws" else _gcp)(config)


def _aws(config: dict[str, Any]) -> list[str]:
    try:
        import botocore.session
        from botocore.validate import ParamValidator
    except ModuleNotFoundError:
        return []
    session = botocore.session.Session()
    ec2 = session.get_service_model("ec2")
    request = ec2.operation_model("RunInstances").input_shape
    region = config["provider"].get("region", "")
    found = _one_of("provider.region", region, session.get_available_regions("ec2"))
    if not found:
        found += _zones(config["provider"], rf"{region}[a-f]")
    for name, node in config["available_node_types"].items():
        where, settings = f"available_node_types.{name}.node_config", node["node_config"]
        unknown = check_schema.unknown(settings, list(request.members), where)
        # Of some eighty settings, the nearest says enough.
        found += [line.partition("; allowed")[0] for line in unknown]
        if not unknown:
            report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **settings}, request)
            found += [f"{where}: {line}" for line in report.generate_report().splitlines() if report.has_errors()]
        if "InstanceType" in settings:
            found += _one_of(f"{where}.InstanceType", settings["InstanceType"], ec2.shape_for("InstanceType").enum)
    return found


def _gcp(config: dict[str, Any]) -> list[str]:
    provider = config["provider"]
    found = []
    region = provider.get("region") or ""
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+", region):
        found.append(f"provider.region is {region!r}; it must look like us-central1")
    elif "," in str(provider.get("availability_zone")):
        found.append("provider.availability_zone names several; Ray's provider for Google Cloud takes one")
    else:
        found += _zones(provider, rf"{region}-[a-f]")
    project = str(provider.get("project_id"))
    if not re.fullmatch(r"[a-z][a-z0-9-]{4,28}[a-z0-9]|YOUR-.*", project):
        found.append(f"provider.project_id is {project!r}; it must be a project's id, in small letters")
    for name, node in config["available_node_types"].items():
        found += _gcp_node(f"available_node_types.{name}", node)
    return found


def _gcp_node(where: str, node: dict[str, Any]) -> list[str]:
    settings = node["node_config"]
    found = check_schema.unknown(settings, _GCP_NODE, f"{where}.node_config")
    if found:
        return found
    machine = str(settings.get("machineType")).rpartition("/")[2]
    family, _, size = machine.partition("-")
    if family not in _GCP_FAMILIES or not re.fullmatch(rf"({'|'.join(_GCP_SIZES)})(-[a-z0-9-]+)?", size):
        found.append(f"{where}.node_config.machineType is {machine!r}{_alike(machine)}; Google has no such machine")
    gpus = settings.get("guestAccelerators", [])
    for gpu in gpus:
        found += _one_of(f"{where}.node_config.guestAccelerators", str(gpu.get("acceleratorType")), _GCP_GPUS)
    if (gpus or family in _GCP_WITH_GPUS) and not node.get("resources", {}).get("GPU"):
        found.append(f"{where}.resources names no GPU; Ray does not ask Google, and would start none for a trial")
    return found


def _alike(machine: str) -> str:
    """The nearest name of the right shape, with the number that was given."""
    number = machine.rpartition("-")[2]
    return nearest(machine, [f"{family}-{size}-{number}" for family in _GCP_FAMILIES for size in _GCP_SIZES])


def _zones(provider: dict[str, Any], shape: str) -> list[str]:
    zones = str(provider.get("availability_zone") or "").split(",")
    return [
        f"provider.availability_zone names {zone!r}; it must be a zone of provider.region"
        for zone in zones
        if zone and not re.fullmatch(shape, zone)
    ]


def _one_of(where: str, given: str, allowed: list[str]) -> list[str]:
    return [] if given in allowed else [f"{where} is {given!r}{nearest(given, allowed)}; there is no such one"]
