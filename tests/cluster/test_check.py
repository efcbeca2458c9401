"""cluster/check.py: each way in which a cluster's YAML can be wrong is said in one line, and a right one is fine."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from check import check

ROOT = Path(__file__).parents[2]
LOCAL = """
cluster_name: ours
provider: {type: local, head_ip: 127.0.0.1, worker_ips: [127.0.0.2, node-3.example.org]}
auth: {ssh_user: me, ssh_private_key: ~/.ssh/id_ed25519}
file_mounts: {~/lahr/lahr: lahr, ~/.ray/auth_token: ~/.ray/auth_token}
head_start_ray_commands: ["export RAY_AUTH_MODE=token; ray start --head --dashboard-host=127.0.0.1"]
worker_start_ray_commands: ["export RAY_AUTH_MODE=token; ray start --address=$RAY_HEAD_IP:6379"]
"""
Changed = Callable[[str, str, str], list[str]]


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    """What is said of a YAML of cluster/ (or LOCAL), filled in, with one text of it replaced by another."""

    def problems(which: str, old: str, new: str) -> list[str]:
        text = LOCAL if which == "local" else (ROOT / "cluster" / f"{which}.yaml").read_text()
        text = re.sub(r"YOUR-[A-Z-]+", "my-own-things", text)
        assert old in text
        path = tmp_path / "changed.yaml"
        path.write_text(text.replace(old, new, 1))
        return check(path)

    return problems


@pytest.mark.parametrize(("old", "new"), [("type: local", "type: []"), ("head_ip: 127.0.0.1", "head_ip: {{HEAD}}")])
def test_what_is_no_text_where_text_is_due_is_said(changed, old, new):
    """Seen to fail: TypeError."""
    assert changed("local", old, new)


def test_machines_of_ones_own_are_fine(changed):
    assert changed("local", "ours", "ours") == []


# Which file, what is replaced by what, and what has to be said.
BAD = [
    # for every cluster of `ray up`
    (
        "cluster",
        "max_workers: 8",
        "max_worker: 8",
        "max_worker: there is no such key (did you mean 'max_workers'?)",
    ),
    ("cluster", "max_workers: 8", "max_workers: many", "max_workers is 'many'; it must be of the type integer"),
    (
        "cluster",
        "ssh_user: ubuntu",
        "ssh_usr: ubuntu",
        "auth.ssh_usr: there is no such key (did you mean 'ssh_user'?)",
    ),
    ("cluster", "head_node_type: head", "head_node_type: haed", "`head_node_type` must be one of"),
    ("cluster", "min_workers: 0", "min_workers: 9", "`max_workers` is smaller than the sum"),
    ("cluster", "type: aws", "type: awz", "Unsupported node provider: awz"),
    ("cluster", "~/lahr/lahr: lahr", "~/lahr/lahr: lhar", "file_mounts ~/lahr/lahr: there is no lhar"),
    (
        "cluster",
        "export RAY_AUTH_MODE=token RAY_USAGE",
        "export RAY_USAGE",
        "head_start_ray_commands: RAY_AUTH_MODE=token",
    ),
    (
        "cluster",
        "--dashboard-host=127.0.0.1",
        "--dashboard-host=0.0.0.0",
        "--dashboard-host is 0.0.0.0; allowed: 127.0.0.1",
    ),
    ("cluster", "  ~/.ray/auth_token: ~/.ray/auth_token", "", "file_mounts lacks ~/.ray/auth_token"),
    (
        "cluster",
        "worker_start_ray_commands:",
        "worker_setup_commands:",
        "worker_start_ray_commands holds 0 `ray start`",
    ),
    ("cluster", "cluster_name: lahr", "cluster_name: lahr\nmax_workers: 4", "max_workers is given twice (line"),
    ("cluster", "cluster_name: lahr", "cluster_name: [lahr", "is not YAML: "),
    # AWS
    ("cluster", "  region:", "  regoin:", "provider.regoin: there is no such key (did you mean 'region'?)"),
    (
        "cluster",
        "region: us-west-2",
        "region: us-west-9",
        "provider.region is 'us-west-9' (did you mean 'us-west-2'?)",
    ),
    ("cluster", "us-west-2c", "us-east-1c", "provider.availability_zone names 'us-east-1c'"),
    ("cluster", "g6.2xlarge", "g6.3xlarge", "InstanceType is 'g6.3xlarge' (did you mean 'g6.xlarge'?)"),
    (
        "cluster",
        "InstanceType: g6",
        "InstancType: g6",
        "InstancType: there is no such key (did you mean 'InstanceType'?)",
    ),
    (
        "cluster",
        "MarketType: spot",
        "MarketType: [spot]",
        "Invalid type for parameter InstanceMarketOptions.MarketType",
    ),
    # Google Cloud
    ("gcp", "project_id: my-own-things", "project: my-own-things", "provider.project: there is no such key"),
    ("gcp", "project_id: my-own-things", "project_id: My Project", "provider.project_id is 'My Project'"),
    ("gcp", "region: us-central1", "region: central", "provider.region is 'central'"),
    ("gcp", "us-central1-a", "us-east1-b", "provider.availability_zone names 'us-east1-b'"),
    ("gcp", "us-central1-a", "us-central1-a,us-central1-b", "Ray's provider for Google Cloud takes one"),
    ("gcp", "g2-standard-8", "g2-standrad-8", "machineType is 'g2-standrad-8' (did you mean 'g2-standard-8'?)"),
    ("gcp", "g2-standard-8", "g9-standard-8", "machineType is 'g9-standard-8' (did you mean "),
    ("gcp", "machineType: g2", "machinType: g2", "machinType: there is no such key (did you mean 'machineType'?)"),
    ("gcp", "{CPU: 8, GPU: 1}", "{CPU: 8}", "available_node_types.gpu_worker.resources names no GPU"),
    (
        "gcp",
        "machineType: g2-standard-8",
        "machineType: n1-standard-8\n      guestAccelerators: [{acceleratorType: nvidia-tesla-t5}]",
        "guestAccelerators is 'nvidia-tesla-t5' (did you mean 'nvidia-tesla-t4'?)",
    ),
    # machines of one's own
    ("local", "head_ip:", "head:", "provider.head: there is no such key (did you mean 'head_ip'?); allowed: "),
    ("local", "head_ip: 127.0.0.1, ", "", "Please supply a `head_ip`"),
    ("local", "worker_ips: [", "workers: [], worker_ips: [", "provider.workers: there is no such key"),
    ("local", "127.0.0.2", "127.0.0.256", "provider.worker_ips.0 is '127.0.0.256'; it must be an address"),
    ("local", "127.0.0.2", "me@host", "provider.worker_ips.0 is 'me@host'; it must be an address"),
    ("local", "127.0.0.2", "127.0.0.1", "provider.worker_ips.0 is 127.0.0.1, as provider.head_ip"),
    ("local", "id_ed25519", "id_of_nobody", "auth.ssh_private_key: there is no ~/.ssh/id_of_nobody"),
    # Kubernetes
    ("kuberay", "kind: RayJob", "kind: RayJbo", "kind is 'RayJbo' (did you mean 'RayJob'?); allowed: RayJob"),
    (
        "kuberay",
        "  entrypoint:",
        "  entryPoint:",
        "spec.entryPoint: there is no such key (did you mean 'entrypoint'?)",
    ),
    ("kuberay", "  entrypoint:", "  jobId:", "spec.entrypoint is missing"),
    (
        "kuberay",
        "K8sJobMode",
        "JobMode",
        "spec.submissionMode is 'JobMode' (did you mean 'K8sJobMode'?); allowed: ",
    ),
    ("kuberay", "backoffLimit: 2", "backoffLimit: -1", "spec.backoffLimit is -1; it must be at least 0"),
    (
        "kuberay",
        "maxReplicas: 8",
        "maxReplica: 8",
        "maxReplica: there is no such key (did you mean 'maxReplicas'?)",
    ),
    ("kuberay", "minReplicas: 0", "minReplicas: 9", "minReplicas 9, replicas 0, maxReplicas 8"),
    (
        "kuberay",
        "nodeSelector:",
        "nodeSelektor:",
        "nodeSelektor: there is no such key (did you mean 'nodeSelector'?)",
    ),
    ("kuberay", "image: my", "imag: my", "containers.0.imag: there is no such key (did you mean 'image'?)"),
    ("kuberay", "memory: 24Gi", "memory: 24GiB", "limits.memory is '24GiB'"),
    ("kuberay", "mode: token", "mode: disabled", "authOptions.mode is 'disabled'; it must be token"),
    ("kuberay", "authOptions: {mode: token}", "", "authOptions.mode is None; it must be token"),
    ("kuberay", "rayVersion: 2.60.0", "rayVersion: 2.9.0", "rayVersion is '2.9.0'; requirements.lock installs"),
    ("kuberay", "    rayVersion: 2.60.0", "", "rayVersion is missing"),
    (
        "kuberay",
        "serviceType: ClusterIP",
        "serviceType: LoadBalancer",
        "serviceType is LoadBalancer; it must be ClusterIP",
    ),
    ("kuberay", "serviceType: Cl", "enableIngress: true\n      serviceType: Cl", "enableIngress is true"),
    (
        "kuberay",
        "terminationGracePeriodSeconds: 120",
        "terminationGracePeriodSeconds: 60",
        "Ray drains for 110 s, and",
    ),
    (
        "kuberay",
        "{name: RAY_GRACEFUL",
        "{name: HF_TOKEN, value: x}\n                  - {name: RAY_GRACEFUL",
        "HF_TOKEN has",
    ),
]


@pytest.mark.parametrize(("which", "old", "new", "said"), BAD, ids=[f"{b[0]}-{b[3][:40]}" for b in BAD])
def test_what_is_wrong_is_said_in_one_line(changed, which, old, new, said):
    """Seen to fail: each rule in turn taken out of check_*.py leaves its own lines here unsaid."""
    problems = changed(which, old, new)
    assert any(said in problem for problem in problems), problems
    assert len(problems) == 1
    assert "\n" not in problems[0]


SECRETS = [
    "aws_secret_access_key: x8",
    "export RAY_AUTH_TOKEN=abc",
    "password: hunter2",
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "hf_" + "a" * 34,
    "0123456789abcdef" * 4,
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_even_in_a_comment_and_not_repeated(changed, secret):
    """Seen to fail: with comments left out; with the line itself in the message."""
    problems = changed("cluster", "cluster_name: lahr", f"cluster_name: lahr\n# {secret}")
    assert problems
    assert all("keep it out" in problem and re.search(r"line \d+ holds", problem) for problem in problems)
    assert not any(secret in problem for problem in problems)


def test_credentials_of_an_account_have_no_place(changed):
    problems = changed("cluster", "type: aws", "type: aws\n  aws_credentials: {}")
    assert problems == [
        "provider.aws_credentials holds a secret; nodes get their rights from roles and service accounts"
    ]


def test_a_digest_of_an_image_is_no_secret(changed):
    assert changed("kuberay", "lahr:1", "lahr@sha256:" + "0123456789abcdef" * 4) == []


def test_what_was_not_filled_in_is_named():
    problems = check(ROOT / "cluster" / "gcp.yaml")
    assert problems[0] == "provider.project_id still says YOUR-PROJECT; put yours there"
    assert len(problems) == 2


def test_a_missing_token_is_said_with_how_to_make_one(changed, home):
    (home / ".ray" / "auth_token").unlink()
    assert changed("local", "ours", "ours") == [
        "file_mounts ~/.ray/auth_token: there is no ~/.ray/auth_token on this machine; make it: "
        "ray get-auth-token --generate"
    ]


@pytest.mark.parametrize(
    ("text", "said"), [("", "holds 0 documents"), ("a\n", "holds 1 documents"), (None, "cannot be")]
)
def test_a_file_that_is_no_cluster_is_said(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    (problem,) = check(path)
    assert said in problem


def test_the_command_prints_a_line_each_and_ends_with_2(tmp_path):
    """Seen to fail: with 1 as its status."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "cluster/check.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    bad = tmp_path / "bad.yaml"
    bad.write_text(LOCAL.replace("head_ip: 127.0.0.1", "head_ip: 1.2.3").replace("127.0.0.2", "1.2.3.4.5"))
    done = run(str(bad))
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.partition(": provider")[0] for line in done.stderr.splitlines()] == [f"error: {bad}"] * 2
    fine = run("cluster/cluster.yaml")
    assert (fine.returncode, fine.stdout, fine.stderr) == (0, "cluster/cluster.yaml is fine\n", "")


def test_scripts_of_the_cluster_shadow_no_other_module():
    """`python cluster/check.py` puts cluster/ first on the import path. Seen to fail: a cluster/yaml.py."""
    import importlib.metadata

    ours = {path.stem for path in (ROOT / "cluster").glob("*.py")}
    assert "check" in ours
    assert not ours & (set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions()))
    assert not (ROOT / "cluster" / "__init__.py").exists()
