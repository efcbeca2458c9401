"""A RayJob of KubeRay: its fields against their schema, and what no schema says.

rayjob.schema.json holds the fields that KubeRay 1.7.0 knows, and of a pod what is used here with its neighbours.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check_schema

_HERE = Path(__file__).parent


def problems(job: dict[str, Any]) -> list[str]:
    """What is wrong with a RayJob, a line each."""
    schema = json.loads((_HERE / "rayjob.schema.json").read_text())
    found = check_schema.problems(job, schema)
    if found:  # what follows relies on the document's shape
        return found
    cluster = job["spec"]["rayClusterSpec"]
    return [*_version(cluster), *_let_in(cluster), *_workers(cluster), *_environment(cluster)]


def _version(cluster: dict[str, Any]) -> list[str]:
    """KubeRay goes by the version that is written here, whatever the image holds."""
    where = "spec.rayClusterSpec.rayVersion"
    given = cluster.get("rayVersion")
    lock = re.search(r"^ray==(\S+)$", (_HERE.parent / "requirements.lock").read_text(), re.MULTILINE)
    if given is None:
        return [f"{where} is missing; KubeRay turns token authentication on only where it stands"]
    if lock and given != lock[1]:
        return [f"{where} is {given!r}; requirements.lock installs {lock[1]} in the image"]
    return []


def _let_in(cluster: dict[str, Any]) -> list[str]:
    found = []
    where = "spec.rayClusterSpec"
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append(
            f"{where}.authOptions.mode is {cluster.get('authOptions', {}).get('mode')!r}; it must be token: whoever "
            "reaches the dashboard runs any code"
        )
    head = cluster["headGroupSpec"]
    if (kind := head.get("serviceType", "ClusterIP")) != "ClusterIP":
        found.append(
            f"{where}.headGroupSpec.serviceType is {kind}; it must be ClusterIP, reached through kubectl port-forward"
        )
    if head.get("enableIngress"):
        found.append(f"{where}.headGroupSpec.enableIngress is true; the dashboard must not be open to the outside")
    for place, pod in _pods(cluster):
        if pod.get("hostNetwork"):
            found.append(f"{place}.hostNetwork is true; the pod's ports would be open on its node's address")
    return found


def _workers(cluster: dict[str, Any]) -> list[str]:
    found = []
    for index, group in enumerate(cluster.get("workerGroupSpecs", [])):
        where = f"spec.rayClusterSpec.workerGroupSpecs.{index}"
        low, high = group["minReplicas"], group["maxReplicas"]
        if not low <= group.get("replicas", low) <= high:
            found.append(f"{where}: minReplicas {low}, replicas {group.get('replicas', low)}, maxReplicas {high}")
        # Ray is given that long after SIGTERM, and then Kubernetes ends it.
        pod = group["template"]["spec"]
        grace = pod.get("terminationGracePeriodSeconds", 30)
        for variable in pod["containers"][0].get("env", []):
            if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" and float(variable["value"]) >= grace:
                found.append(
                    f"{where}: Ray drains for {variable['value']} s, and terminationGracePeriodSeconds gives it {grace}"
                )
    if not cluster.get("workerGroupSpecs"):
        found.append("spec.rayClusterSpec.workerGroupSpecs is missing; nothing would train")
    return found


def _environment(cluster: dict[str, Any]) -> list[str]:
    """Secrets come from a Secret."""
    return [
        f"{place}: {variable['name']} has its value in the file; take it from a Secret (valueFrom.secretKeyRef)"
        for place, pod in _pods(cluster)
        for container in [*pod["containers"], *pod.get("initContainers", [])]
        for variable in container.get("env", [])
        if re.search(r"TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY", variable["name"]) and "value" in variable
    ]


def _pods(cluster: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's specification, and where it stands."""
    yield "headGroupSpec.template.spec", cluster["headGroupSpec"]["template"]["spec"]
    for index, group in enumerate(cluster.get("workerGroupSpecs", [])):
        yield f"workerGroupSpecs.{index}.template.spec", group["template"]["spec"]
