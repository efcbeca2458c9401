"""A YAML for `ray up`: what Ray's own validator says, and what it leaves unread.

That is the `provider` section, the kinds of machines, and whether anyone but their owner is let in.
"""

import contextlib
import copy
import io
import ipaddress
import json
import logging
import re
from pathlib import Path
from typing import Any

import check_clouds
import check_schema

ROOT = Path(__file__).parents[1]
"""Where `ray up` is to be called: paths on the right of file_mounts are relative to it."""
_COMMON = [
    "type",
    "use_internal_ips",
    "use_external_head_ip",
    "disable_node_updaters",
    "disable_launch_config_check",
]
_COMMON += ["foreground_node_launch", "worker_liveness_check"]
# What Ray 2.60's providers read. Keys of an account (aws_credentials, gcp_credentials) are left out: they are secrets.
PROVIDERS = {
    "aws": ["region", "availability_zone", "cache_stopped_nodes", "security_group", "key_pair", "cloudwatch"],
    "gcp": ["region", "availability_zone", "cache_stopped_nodes", "project_id"],
    "local": ["head_ip", "worker_ips", "external_head_ip", "coordinator_address"],
}
_LOOPBACK = ["127.0.0.1", "localhost", "::1"]


def problems(config: dict[str, Any]) -> list[str]:
    """What is wrong with a cluster for `ray up`, a line each."""
    import ray.autoscaler  # takes a second, and a RayJob needs none of it

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    # What follows relies on the file's shape.
    if found := [*check_schema.problems(config, schema), *_provider(config)] or _ray_says(config):
        return found
    kind = config["provider"]["type"]
    if kind in ("aws", "gcp"):
        found += check_clouds.problems(config)
    if kind == "local" and "coordinator_address" not in config["provider"]:
        found += _machines(config["provider"])
    return [*found, *_let_in(config), *_files(config)]


def _ray_says(config: dict[str, Any]) -> list[str]:
    """Ray's own validator; its schema alone would let pass how parts of the file depend on each other."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)  # it says which defaults it fills in
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            validate_config(prepare_config(copy.deepcopy(config)))
    except (Exception, SystemExit) as error:  # the launcher's own way out prints and exits
        text = str(error) if isinstance(error, Exception) else re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
        return [f"Ray does not take it: {' '.join(text.split())}"]
    return []


def _provider(config: dict[str, Any]) -> list[str]:
    provider = config.get("provider")
    if not isinstance(provider, dict):
        return []
    for secret in ("aws_credentials", "gcp_credentials"):
        if secret in provider:
            return [f"provider.{secret} holds a secret; nodes get their rights from roles and service accounts"]
    keys = PROVIDERS.get(str(provider.get("type")))
    return check_schema.unknown(provider, [*_COMMON, *keys], "provider") if keys else []


def _machines(provider: dict[str, Any]) -> list[str]:
    """Addresses of machines of one's own."""
    addresses: dict[str, Any] = {"provider.head_ip": provider["head_ip"]}
    addresses |= {f"provider.worker_ips.{i}": address for i, address in enumerate(provider["worker_ips"])}
    found = []
    for where, value in addresses.items():
        if not _address(value):
            found.append(f"{where} is {value!r}; it must be an address")
        same = [other for other, address in addresses.items() if address == value]
        if same[0] != where:
            found.append(f"{where} is {value}, as {same[0]}; each machine is named once")
    return found


def _address(value: Any) -> bool:
    """Whether it is an IP address or can be the name of a host."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(value)
        return True
    named = (
        r"(?=.{1,253}$)([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.)*[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    )
    return isinstance(value, str) and bool(re.fullmatch(named, value)) and not re.fullmatch(r"[\d.]+", value)


def _let_in(config: dict[str, Any]) -> list[str]:
    """Token authentication on every node, and the dashboard on loopback."""
    found = []
    for node in ("head", "worker"):
        where = f"{node}_start_ray_commands"
        starts = [command for command in config.get(where, []) if "ray start" in command]
        if len(starts) != 1:
            found.append(f"{where} holds {len(starts)} `ray start`; it must hold one, with RAY_AUTH_MODE=token")
        for start in starts:
            before, _, after = start.partition("ray start")
            if not re.search(r"\bRAY_AUTH_MODE=token\b", before):
                found.append(
                    f"{where}: RAY_AUTH_MODE=token does not stand before `ray start`; anyone could run code"
                )
            for host in re.findall(r"--dashboard-host[= ](\S+)", after):
                if host not in _LOOPBACK:
                    found.append(
                        f"{where}: --dashboard-host is {host}; allowed: {', '.join(_LOOPBACK)} (tunnel to it)"
                    )
    if not any(str(remote).endswith(".ray/auth_token") for remote in config.get("file_mounts", {})):
        found.append("file_mounts lacks ~/.ray/auth_token; without the token no worker can join")
    return found


def _files(config: dict[str, Any]) -> list[str]:
    """Files of this machine that `ray up` will want."""
    wanted = {f"file_mounts {remote}": local for remote, local in config.get("file_mounts", {}).items()}
    wanted |= {f"auth.{key}": path for key, path in config.get("auth", {}).items() if key.endswith("_key")}
    hints = {".ray/auth_token": "; make it: ray get-auth-token --generate"}
    return [
        f"{where}: there is no {path} on this machine{hints.get('/'.join(Path(path).parts[-2:]), '')}"
        for where, path in wanted.items()
        if not (ROOT / Path(path).expanduser()).exists()
    ]
