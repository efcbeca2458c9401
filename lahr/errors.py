"""What is said to a person when something cannot be used: given, allowed, what to do, in one line."""

import difflib


class ConfigError(ValueError):
    """A setting that cannot be used. The message is one line for a person: given, allowed, what to do."""


def check(holds: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `holds`."""
    if not holds:
        raise ConfigError(message)


def nearest(given: str, allowed: list[str]) -> str:
    """`" (did you mean 'x'?)"` for the allowed name closest to `given`, or nothing where none is close or it is one."""
    if given in allowed:  # asked before anything is known to be wrong, thousands of times in a large design
        return ""
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


class StorageError(OSError):
    """Storage that could not be read or written, after waiting where waiting may help.

    The message is one line for a person: what was tried and where, the reason, what to do.
    """
