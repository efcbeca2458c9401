"""Where a Ray is to be found, and what to say where it is not: asked and said before Ray itself tries for minutes."""

import re
import socket

from lahr.errors import ConfigError, check

_ADDRESS_S = 5.0


def refuse_a_dead_one(address: str) -> None:
    """`ConfigError` where nothing listens at host:port; Ray itself would go on trying for minutes."""
    check(
        "://" not in address,
        f"--address is {address!r}; a sweep has to run inside of the cluster: give its head's host:port (6379), or use "
        "cluster/sweep.py from outside",
    )
    at = re.fullmatch(r"\[?([^/\]]+)\]?:(\d+)", address)
    if at is None:
        return  # `local`, `auto`: nothing to ask
    try:
        socket.create_connection((at[1], int(at[2])), timeout=_ADDRESS_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise no_ray(address, error) from error


def no_ray(address: str, error: Exception) -> ConfigError:
    """What to say where the Ray at `address` cannot be had, by what Ray said."""
    said = str(error).strip()
    reason = said.splitlines()[0] if said else type(error).__name__
    if address == "local":
        return ConfigError(f"Ray could not be started on this machine ({reason}); is it overloaded? Try again")
    if "ersion mismatch" in said:
        return ConfigError(
            f"the Ray at {address!r} is of another version ({' '.join(said.split())}); install the same lock file on "
            "the cluster and here"
        )
    if "oken" in said or "uthenti" in said:
        return ConfigError(
            f"the Ray at {address!r} refuses this process ({reason}); it wants the token that it was started with, in "
            "~/.ray/auth_token, and RAY_AUTH_MODE=token"
        )
    return ConfigError(
        f"no Ray answers at {address!r} ({reason}); start one with `ray start --head`, give another --address, or "
        "leave it out (and unset RAY_ADDRESS) to start one here"
    )
