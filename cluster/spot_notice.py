"""Waits for the cloud's notice that it takes this spot machine back, and then has Ray drain it.

    python cluster/spot_notice.py aws|gcp

Runs beside Ray on workers (the start commands of cluster.yaml and gcp.yaml). Ray looks at no cloud's metadata: without
this, a machine that is taken is missed only once it is silent, and what its trials did since their last checkpoint is
done again. A node that is drained gets no new work, and Ray Train tells its trials in time for a checkpoint.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

POLL_S = 2.0
"""AWS advises 5 s or less; Google's notice is short enough to want it sooner."""
GCP_NOTICE_S = 30.0
"""Google says that it is taking the machine, not when; this is what it promises."""
_DRAIN_S = 20.0
# The metadata service answers on the machine itself: a proxy of the environment would not find it.
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    with _OPEN(urllib.request.Request(url, headers=headers, method=method), timeout=2) as answer:
        return answer.read().decode()


def aws(base: str) -> float | None:
    """Seconds until AWS stops this machine; None where it has not said so."""
    # A token each time (IMDSv2, the only kind that recent images answer), so that none has to be kept fresh.
    token = _ask(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    try:
        notice = _ask(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # nothing announced
            return None
        raise
    return (datetime.fromisoformat(json.loads(notice)["time"]) - datetime.now(UTC)).total_seconds()


def gcp(base: str) -> float | None:
    """Seconds until Google stops this machine; None where it has not said so."""
    said = _ask(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return GCP_NOTICE_S if said.strip() == "TRUE" else None


def drain(ray: str, cloud: str, seconds: float) -> bool:
    """Tells Ray that this node goes in so many seconds; whether Ray took it."""
    command = [ray, "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", f"{cloud} takes this spot machine back"]
    command += ["--deadline-remaining-seconds", str(max(int(seconds), 0))]
    try:
        return subprocess.run(command, timeout=_DRAIN_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"could not drain: {error}")
        return False


def say(message: str) -> None:
    """One line of the log, with the time."""
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {message}", flush=True)


def main() -> None:
    """Asks for ever: a notice comes once in a machine's life, and Ray may need to be told twice."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("cloud", choices=["aws", "gcp"])
    parser.add_argument("--metadata", default="http://169.254.169.254", help="where the metadata service answers")
    parser.add_argument("--ray", default=str(Path(sys.executable).with_name("ray")), help="the ray command")
    options = parser.parse_args()
    notice = {"aws": aws, "gcp": gcp}[options.cloud]
    drained = deaf = False
    while True:
        try:
            left = notice(options.metadata)
            deaf = False
        except (OSError, ValueError, KeyError) as error:  # the service restarts now and then
            left = None
            if not deaf:
                say(f"no answer from the metadata service, asking again: {error}")
            deaf = True
        if left is not None and not drained:
            say(f"{options.cloud} takes this machine back in {left:.0f} s: draining it")
            drained = drain(options.ray, options.cloud, left)
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
