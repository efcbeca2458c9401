"""The cluster of cluster/on_prem.yaml, up on hosts of tests/cluster/hosts.py: that file's commands are what is run.

cluster.hosts.kill(2, "RayTrainWorker")      # the hosts; 1 is the head
cluster.sweep("mine", "--seeds 1")           # the command of a small sweep, for hosts.run or hosts.start
"""

import re
from pathlib import Path

import yaml

from tests.cluster.hosts import Hosts
from tests.cluster.namespaces import PROJECT, until

RAY = r"raylet|gcs_server|ray::|site-packages/ray/"
"""In the command line of every process of Ray's."""
_YAML = PROJECT / "cluster" / "on_prem.yaml"


class OnPrem:
    """`on_prem.yaml` with the first of these hosts as its head, the others as workers."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.address = f"{hosts.address(1)}:6379"
        self.yaml = hosts.home / "on_prem.yaml"
        config = yaml.safe_load(_YAML.read_text())
        head, *workers = [hosts.address(host) for host in hosts.all]
        config["cluster_name"] = "lahr-test-hosts"
        config["provider"] |= {"head_ip": head, "worker_ips": workers}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
        self.yaml.write_text(yaml.safe_dump(config))

    def up(self) -> None:
        """`ray up`, and every worker in the cluster."""
        self.hosts.laptop(self._said("ray get-auth-token"))
        self.hosts.laptop(self._said("ray up").replace("ray up", "ray up -y"))
        until(lambda: self.nodes() == len(self.hosts.all), 120, self.log)

    def nodes(self) -> int:
        """How many nodes are in the cluster, as its autoscaler has it: that learns of a loss within 40 s."""
        said = self.hosts.run(1, "ray status", check=False).stdout
        active = re.search(r"Active:\n (\d+) local\.cluster\.node", said)
        return int(active[1]) if active else 0

    def bring_back(self, host: int) -> None:
        """Starts Ray on a worker that Ray's autoscaler has given up."""
        said = self._said("ray start").replace("root@WORKER", f"root@{self.hosts.address(host)}")
        self.hosts.laptop(said.replace("HEAD", self.hosts.address(1)), check=False)

    def log(self) -> str:
        """The end of what the autoscaler wrote."""
        return self.hosts.run(1, "tail -n 60 /tmp/ray/session_latest/logs/monitor.out", check=False).stdout

    def down(self) -> None:
        """`ray down`, and what has to be done after it."""
        self.hosts.laptop(self._said("ray down").replace("ray down", "ray down -y"))
        self.hosts.laptop(self._said("for host in"))

    def sweep(self, name: str, options: str = "") -> str:
        """The command of a sweep of small trials, for the head; what it keeps is in the hosts' shared folder."""
        return (
            "cd ~/lahr && .venv/bin/python sweeps/factorial.py --preset smoke --seeds 1 --train.tokens 8192 "
            f"--address {self.address} --results {self.results(name).parent} --cache {self.hosts.shared}/cache "
            f"--name {name} {options}"
        )

    def results(self, name: str) -> Path:
        """Where that sweep's results are."""
        return self.hosts.shared / "results" / name

    def _said(self, words: str) -> str:
        """The command with those words that on_prem.yaml's comment names, for these hosts."""
        said = re.search(rf"^#   (.*{words}.*?)(?: {{2,}}#.*)?$", _YAML.read_text(), re.MULTILINE)
        assert said, f"{_YAML.name} names no command {words}"
        workers = " ".join(self.hosts.address(host) for host in self.hosts.all[1:])
        ssh = f"ssh -i {self.hosts.key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@"
        return (
            said[1].replace(f"cluster/{_YAML.name}", str(self.yaml))
            .replace("WORKER1 WORKER2", workers).replace("ssh USER@", ssh)
        )  # fmt: skip
