"""What `cluster/sweep.py` asks of the head: to run a sweep as a Ray job, which goes on when the laptop is closed.

    python cluster/on_head.py gather NAME COUNT            waits until so many machines are there
    python cluster/on_head.py start NAME STUDY [options of sweeps/STUDY.py]
    python cluster/on_head.py follow NAME
    python cluster/on_head.py status NAME                  prints `status: ` and "running", its exit status, or an error
    python cluster/on_head.py stop NAME
    python cluster/on_head.py fetch NAME STUDY RESULTS

Run by the environment of the head, in the project's folder there.
"""

import asyncio
import os
import shlex
import subprocess
import sys
import time

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from lahr.errors import ConfigError, StorageError, check
from lahr.files import Folder
from lahr.options import fail

_DASHBOARD = "http://127.0.0.1:8265"
FETCHED = ".fetched"
"""Folder of the project on the head where what is to be fetched is laid."""
_GATHERED_S, _NODES = 300.0, 10_000
RUNNING, NEVER = "running", "never started"
_FILES = ("design.json", "trials.parquet")


def _jobs(client: JobSubmissionClient, name: str) -> list[JobDetails]:
    """The jobs of this sweep: what runs first, then the newest (a second start of it may have been refused)."""
    ours = [job for job in client.list_jobs() if (job.metadata or {}).get("sweep") == name]
    return sorted(ours, key=lambda job: (not job.status.is_terminal(), job.start_time or 0), reverse=True)


def gather(count: int) -> int:
    """Waits until so many machines are in the cluster, a while: what they have decides how a sweep is begun."""
    began, said = time.monotonic(), 0
    while (there := sum(node.state == "ALIVE" for node in list_nodes(_DASHBOARD, limit=_NODES))) < count:
        if time.monotonic() - began > _GATHERED_S:
            print(f"going on with {there} of {count} machines; what the others have is not counted on", flush=True)
            break
        if there != said:
            said = there
            print(f"{there} of {count} machines are there; waiting for the others", flush=True)
        time.sleep(2)
    return 0


def start(client: JobSubmissionClient, name: str, study: str, argv: list[str]) -> int:
    """Starts the sweep of a study."""
    script = shlex.join([sys.executable, f"sweeps/{study}.py", *argv])
    try:
        client.submit_job(
            entrypoint=f"cd {shlex.quote(os.getcwd())} && exec {script}",
            submission_id=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            metadata={"sweep": name},
            # Ray ends a job that is to stop with SIGTERM, and three seconds later for good: too soon for last words.
            runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}},
        )
    except RuntimeError as error:
        raise ConfigError(f"Ray does not take the sweep: {' '.join(str(error).split())[-300:]}") from error
    return 0


def follow(client: JobSubmissionClient, name: str) -> int:
    """Prints what the sweep says until it ends; its exit status."""
    jobs = _jobs(client, name)
    check(bool(jobs), f"no sweep {name} was started on this cluster")
    job = str(jobs[0].submission_id)

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
    except RuntimeError as error:  # Ray's, where the connection is lost
        raise ConfigError(f"cannot follow {name} any further: {error}") from error
    while not (info := client.get_job_info(job)).status.is_terminal():
        time.sleep(0.5)
    if info.driver_exit_code is None and info.status != JobStatus.STOPPED:  # it never began, or its head was lost
        print(f"{info.status}: {info.message}", file=sys.stderr)
    return _exit_status(info)


def _exit_status(job: JobDetails) -> int:
    if job.status == JobStatus.STOPPED:  # of which Ray keeps no exit status: as after Ctrl-C
        return 130
    return 1 if job.driver_exit_code is None else job.driver_exit_code


def status(client: JobSubmissionClient, name: str) -> int:
    """Prints whether the sweep runs, or its exit status; 1 where there is none."""
    jobs = _jobs(client, name)
    known = RUNNING if jobs and not jobs[0].status.is_terminal() else _exit_status(jobs[0]) if jobs else NEVER
    print(f"status: {known}")
    return 0


def stop(client: JobSubmissionClient, name: str) -> int:
    """Stops the sweep as Ctrl-C would, and waits for it."""
    running = [str(job.submission_id) for job in _jobs(client, name) if not job.status.is_terminal()]
    check(bool(running), f"no sweep {name} is running on this cluster")
    client.stop_job(running[0])
    while not client.get_job_status(running[0]).is_terminal():
        time.sleep(0.5)
    print(f"{name} is stopped; run it again to go on")
    return 0


def fetch(name: str, study: str, results: str) -> int:
    """Lays the report so far, the table of trials and the curves into a folder of the head, wherever results are."""
    sweep, here = Folder.at(results).child(name), Folder.at(FETCHED).child(name)
    report = [sys.executable, f"sweeps/{study}.py", "report", "--allow-mixed", "--name", name, "--results", results]
    made = subprocess.run(report, capture_output=True, text=True)
    check(made.returncode == 0, f"no report of {name} yet: {made.stderr.strip().removeprefix('error: ')}")
    here.remove("")
    for name in [
        *(one for one in _FILES if sweep.exists(one)),
        *sweep.files("report"),
        *sweep.files("tensorboard"),
    ]:
        here.write(name, sweep.read(name))
    return 0


def main(argv: list[str]) -> int:
    """Runs one command; the exit status."""
    command, name, *rest = argv
    if command == "fetch":
        return fetch(name, *rest)
    try:
        client = JobSubmissionClient(_DASHBOARD)
    except Exception as error:
        raise ConfigError(f"Ray's dashboard does not answer on the head ({error}); run `ray up` first") from error
    if command == "gather":
        return gather(int(rest[0]))
    if command == "start":
        return start(client, name, rest[0], rest[1:])
    return {"follow": follow, "status": status, "stop": stop}[command](client, name)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ConfigError, StorageError) as error:
        if sys.argv[1] != "status":  # of which the laptop reads the answer
            fail(error)
        print(f"status: error: {error}")
