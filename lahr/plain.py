"""Dataclasses from plain values and back: JSON with one form for each value, and fields checked by their types."""

import contextlib
import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from lahr.errors import check, nearest

Value = typing.TypeVar("Value")
Plain = int | float | bool | None | str
"""What has a stable identity by itself. In the order in which a word on a command line is read."""


def check_plain(label: str, values: Mapping[str, Any]) -> None:
    """`ConfigError` unless `values` are names, each with a finite number, text, a truth value or None."""
    for name, value in values.items():
        check(
            isinstance(name, str) and name.isidentifier(),
            f"{label} has the name {name!r}; a name is a word, such as 'width'",
        )
        check(
            _is_a(value, Plain) and not (isinstance(value, float) and not math.isfinite(value)),
            f"{label}.{name} is {value!r}; it must be a finite number, text, true, false or none",
        )


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces. Raises `TypeError` or `ValueError` on what has no stable identity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def from_dict(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """The dataclass `cls` from plain values, nested ones too; `ConfigError` names an unknown or ill-typed field."""
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    filled = {}
    for name, value in values.items():
        label = f"{where}{name}"
        check(name in known, f"unknown field {label!r}{nearest(name, known)}; allowed: {', '.join(known)}")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            check(isinstance(value, Mapping), f"{label} is {value!r}; it must be a mapping of fields")
            value = from_dict(typing.cast(type, hint), value, f"{label}.")
        else:
            check(_is_a(value, hint), f"{label} is {value!r}; it must be {_say(hint)}")
            value = float(value) if hint is float else value
        filled[name] = value
    none = dataclasses.MISSING
    given = {*filled, *(f.name for f in fields(cls) if f.default is not none or f.default_factory is not none)}
    missing = [name for name in known if name not in given]
    check(not missing, f"missing {', '.join(where + name for name in missing)}")
    return cls(**filled)


def changed(value: Value, fields_: Mapping[str, Any]) -> Value:
    """The dataclass `value` with some fields at other values; a name may lead into nested ones (`model.d_model`).

    `ConfigError` for a field that there is none of, for a value of another type, and for what the class refuses.
    """
    values = dataclasses.asdict(value)  # type: ignore[call-overload]
    for name, new in fields_.items():
        *path, last = name.split(".")
        inner = values
        for depth, part in enumerate(path):
            known = [key for key, below in inner.items() if isinstance(below, dict)]
            where = ".".join(path[: depth + 1])
            check(part in known, f"unknown field {where!r}{nearest(part, known)}; allowed: {', '.join(known)}")
            inner = inner[part]
        inner[last] = new
    made: Value = from_dict(type(value), values)
    return made


def read_field(cls: type, name: str, text: str) -> Any:
    """The value that `text` gives to the field `name` of the dataclass `cls`, or as `field.entry` to an entry of a
    mapping; `ConfigError` for what cannot be."""
    known, hints = [f.name for f in fields(cls)], typing.get_type_hints(cls)
    whole, dot, _ = name.partition(".")
    if dot and typing.get_origin(hints.get(whole)) is Mapping:  # one entry of it
        hint = typing.get_args(hints[whole])[1]
    else:
        check(name in known, f"unknown field {name!r}{nearest(name, known)}; allowed: {', '.join(known)}")
        hint = hints[name]
    for value in _readings(text):
        if _is_a(value, hint):
            return float(value) if hint is float else value
    check(False, f"{name} is {text!r}; it must be {_say(hint)}")


def _readings(text: str) -> list[Any]:
    """What a word on a command line may mean, the narrowest first."""
    found: list[Any] = [{"none": None, "true": True, "false": False}.get(text.lower(), text)]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            found.append(kind(text))
    return [*found[1:], found[0]]


def _is_a(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Mapping:
        name, entry = typing.get_args(hint)
        return isinstance(value, Mapping) and all(_is_a(k, name) and _is_a(v, entry) for k, v in value.items())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _say(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_say(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Mapping:
        return f"a mapping of names, each to {_say(typing.get_args(hint)[1])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(hint, str(hint))
