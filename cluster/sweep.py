"""One command from the laptop: a sweep on a cluster that `ray up` has started.

    python cluster/sweep.py cluster/on_prem.yaml run --preset small --results /shared/lahr    start, follow, fetch
    python cluster/sweep.py cluster/on_prem.yaml run …     again: follows what runs, carries on with what was stopped
    python cluster/sweep.py cluster/on_prem.yaml stop …    stops it as Ctrl-C would
    python cluster/sweep.py cluster/on_prem.yaml fetch …   the report so far, into results/on-<cluster>/<name> here
    python cluster/sweep.py cluster/on_prem.yaml down      ends the cluster, workers of one's own too

After the command come the options of `sweeps/factorial.py`, the same each time; `--study ablation` before them takes
`sweeps/ablation.py` instead. `run` checks them and the YAML, copies
the project and local data to the head, and starts the sweep there as a Ray job: it survives this command, and the
laptop. Exit status: the sweep's own; 2 for bad input.
"""

import importlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from check import check as problems_of
from click import ClickException
from on_head import FETCHED, NEVER, RUNNING
from ray.autoscaler import sdk

from lahr.data import anchored
from lahr.data.mixing import is_mixture, joined, parts_of
from lahr.errors import ConfigError, check
from lahr.options import parse, run
from sweeps.engine.options import StudyOptions
from sweeps.engine.results import Results

COMMANDS = ("run", "stop", "fetch", "down")
_PROJECT = Path(__file__).parents[1]
_HOME = "~/lahr"
# As Ray itself: a machine that was installed anew has a new key. Nothing is told to it but to stop.
_SSH = (
    "BatchMode=yes", "ConnectTimeout=10", "IdentitiesOnly=yes", "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null", "LogLevel=ERROR",
)  # fmt: skip
_TOKEN = "auth_token"  # mounted by `ray up`, and none of the project's files


@contextmanager
def quietly(doing: str) -> Iterator[None]:
    """Keeps what Ray's launcher and its commands print; `ConfigError` with its last lines where they fail."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as said, _redirected(said.fileno()):
        try:
            yield
        except (ClickException, subprocess.CalledProcessError, RuntimeError) as error:
            said.seek(0)
            lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
            reason = getattr(error, "message", "") or str(error)
            raise ConfigError(f"cannot {doing}: {' '.join([*lines[-4:], reason])}") from error


@contextmanager
def _redirected(target: int) -> Iterator[None]:
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        for stream, _ in kept:
            os.dup2(target, stream)
        yield
    finally:
        for stream, copy in kept:
            os.dup2(copy, stream)
            os.close(copy)


class Cluster:
    """A cluster that `ray up` has started, as its YAML describes it."""

    def __init__(self, path: str, to_start: bool) -> None:
        self.path = path
        # All that is wrong matters to who starts a sweep; with a machine or a key lost, one is still to be stopped.
        problems = problems_of(path, reach=True) if to_start else []
        check(not problems, f"{path}: {'; '.join(problems)}")
        try:
            self.config: dict[str, Any] = yaml.safe_load(Path(path).read_text())
            check(
                "kind" not in self.config,
                f"{path} is a {self.config.get('kind')}, which is the sweep itself: kubectl create -f {path} "
                "starts it, and kubectl delete stops it",
            )
            self.name, self.provider = str(self.config["cluster_name"]), self.config["provider"]["type"]
        except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
            raise ConfigError(f"{path} is no cluster's: {' '.join(str(error).split())}") from error

    def on_head(self, *command: str) -> bool:
        """Runs `cluster/on_head.py` on the head, its output here; whether it went well, all that Ray tells of it."""
        try:
            self._ask(*command)
        except (ClickException, subprocess.CalledProcessError):
            return False
        return True

    def _ask(self, *command: str, with_output: bool = False) -> Any:
        there = shlex.join([".venv/bin/python", "cluster/on_head.py", *command])
        try:
            return sdk.run_on_cluster(
                self.path, cmd=f"cd {_HOME} && RAY_AUTH_MODE=token {there}", with_output=with_output
            )
        except RuntimeError as error:  # Ray's, where it knows of no head
            again = f"start it with `ray up {self.path}`"
            if self.provider == "local":  # Ray knows it from a file in this machine's /tmp/ray
                again += (
                    ", and if Ray runs there already (this laptop restarted, or is another one) with --no-restart"
                )
            raise ConfigError(
                f"the cluster of {self.path} is not up, as far as this machine knows ({error}); {again}"
            ) from error

    def status(self, name: str) -> str:
        """What the head says of the sweep: that it is running, or its exit status."""
        with quietly("ask the head"):
            said = self._ask("status", name, with_output=True)
        text = said.decode(errors="replace") if isinstance(said, bytes) else said or ""
        answer = re.search(r"^status: (error: )?(.*?)\s*$", text, re.MULTILINE)  # among what ssh and log-ins print
        if answer is None:
            raise ConfigError(f"the head gave no answer that is understood: {' '.join(text.split())}")
        check(answer[1] is None, answer[2])
        return answer[2]

    def copy_project(self) -> None:
        """Copies the project's files to the head, as they are now; workers get the code from there."""
        print("copying the project to the head ...", flush=True)
        for remote, local in self.config["file_mounts"].items():
            if _TOKEN not in remote:
                self.copy(str(_PROJECT / Path(local).expanduser()), remote)

    def copy(self, local: str, remote: str, down: bool = False, anew: bool = False) -> None:
        """Copies a file, or what is in a folder, to the head, or from it; `anew`, nothing that was there stays."""
        source, target = (remote, local) if down else (local, remote)
        slash = "/" if down or Path(local).is_dir() else ""
        if down:
            Path(local).mkdir(parents=True, exist_ok=True)
        with quietly(f"copy {source} to {target}"):
            if not down:
                clear = f"rm -rf {remote}; " if anew else ""
                folder = remote if slash else remote.rpartition("/")[0]
                sdk.run_on_cluster(self.path, cmd=f"{clear}mkdir -p {folder}")
            sdk.rsync(self.path, source=source + slash, target=target + slash, down=down)

    def down(self) -> int:
        """Ends the cluster: `ray down`, and Ray on workers of one's own, which it leaves running; 1 if one is left."""
        sdk.teardown_cluster(self.path)
        left = 0
        auth = self.config["auth"]
        for host in self.config["provider"].get("worker_ips", ()):
            key = ["-i", os.path.expanduser(auth["ssh_private_key"])] if "ssh_private_key" in auth else []
            proxy = [f"ProxyCommand={auth['ssh_proxy_command']}"] if auth.get("ssh_proxy_command") else []
            ways = [word for way in (*_SSH, *proxy) for word in ("-o", way)]
            where = ["ssh", *key, *ways, f"{auth['ssh_user']}@{host}"]
            done = subprocess.run([*where, f"{_HOME}/.venv/bin/ray stop"], capture_output=True, text=True)
            print(f"{host}: {'stopped' if done.returncode == 0 else f'not stopped: {done.stderr.strip()}'}")
            left += done.returncode != 0
        return 1 if left else 0


def options_of(study: str) -> type[StudyOptions]:
    """The options of `sweeps/<study>.py`. `ConfigError` if there is no such study."""
    known = sorted(path.stem for path in (_PROJECT / "sweeps").glob("*.py") if "StudyOptions" in path.read_text())
    check(study in known, f"--study is {study!r}; studies are {', '.join(known)}")
    return importlib.import_module(f"sweeps.{study}").Options  # type: ignore[no-any-return]


def with_data(options: StudyOptions, argv: Sequence[str], cluster: Cluster) -> list[str]:
    """The options for the head: a corpus, a part of a mixture or a tokenizer that lies here is copied there and named
    by its place there.

    Each sweep has its own copy, by a name that needs no quoting.
    """
    here, there = anchored(options.data), list(argv)

    def moved(name: str, given: str) -> str:
        place = Path(given)
        if not place.is_absolute():
            return given
        remote = f"data/{options.sweep_name}/{name}/{re.sub(r'[^A-Za-z0-9._-]', '_', place.name)}"
        cluster.copy(str(place), f"{_HOME}/{remote}", anew=True)
        return remote

    mixed = is_mixture(here.corpus) and not Path(here.corpus).exists()
    parts = parts_of(here.corpus) if mixed else []
    corpus = (
        joined([part._replace(name=moved(f"corpus/{i}", part.name)) for i, part in enumerate(parts)])
        if mixed
        else moved("corpus", here.corpus)
    )
    tokenizer = moved("tokenizer", here.tokenizer)
    there += ["--data.corpus", corpus] if corpus != here.corpus else []
    return there + (["--data.tokenizer", tokenizer] if tokenizer != here.tokenizer else [])


def main(argv: list[str]) -> int:
    """Runs one command; the exit status."""
    usage = (
        f"usage: python cluster/sweep.py CLUSTER.yaml {{{'|'.join(COMMANDS)}}} [--study NAME] [the study's options]"
    )
    check(len(argv) >= 2 and argv[1] in COMMANDS, f"given {shlex.join(argv) or 'nothing'}; {usage}")
    path, command, *rest = argv
    study, rest = (rest[1], rest[2:]) if rest[:1] == ["--study"] and len(rest) > 1 else ("factorial", rest)
    kind = options_of(study)
    options = parse(kind, rest, kind.of, f"python cluster/sweep.py {path} {command}")
    check(options.command == "run", f"{options.command} is no command here; {usage}")
    name = options.sweep_name
    Results.at(options.results, name)  # before either stands in a command, or a job's description
    cluster = Cluster(path, to_start=command == "run")
    sdk.configure_logging(log_style="record", color_mode="false", verbosity=-1)
    logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
    if command == "down":
        return cluster.down()
    if command == "stop":
        return 0 if cluster.on_head("stop", name) else 2
    status = 0
    if command == "run":
        _check_shared(options.results, cluster)
        if cluster.status(name) == RUNNING:  # its code is not to change under it
            print(f"{name} is running already; following it", flush=True)
        else:
            cluster.copy_project()
            if workers := cluster.config["provider"].get("worker_ips"):
                cluster.on_head("gather", name, str(1 + len(workers)))
            if not cluster.on_head("start", name, study, *with_data(options, rest, cluster), "--name", name):
                return 2
        again = f"to follow it again:\n  {shlex.join(['python', *sys.argv])}"
        try:
            if not cluster.on_head("follow", name):
                ended = cluster.status(name)
                check(ended != RUNNING, f"lost sight of {name}, which goes on; {again}")
                check(ended != NEVER, f"the head knows no more of {name} (was its Ray started anew?); {again}")
                status = int(ended)
        except KeyboardInterrupt:
            print(f"\nthe sweep goes on; {again}")
            return 130
    if not cluster.on_head("fetch", name, study, options.results):
        return status or 2
    here = Path("results") / f"on-{cluster.name}" / name  # beside sweeps of this machine, which may have its name
    for part in ("report", "tensorboard"):  # event files have new names each time, and would be drawn twice
        shutil.rmtree(here / part, ignore_errors=True)
    cluster.copy(str(here), f"{_HOME}/{FETCHED}/{name}", down=True)
    print(f"report: {here}/report/report.md (as a page: report.html)")
    return status


def _check_shared(results: str, cluster: Cluster) -> None:
    """`ConfigError` for results that the machines cannot share, before a machine is paid for."""
    if "://" not in results:
        check(
            cluster.provider == "local" and Path(results).is_absolute(),
            f"--results is {results}, a folder of the head alone; give "
            + ("a folder that all machines see at the same path (NFS), or " * (cluster.provider == "local"))
            + "a URI such as s3://bucket/lahr",
        )


if __name__ == "__main__":
    run(main, "stopped")
