"""A document held against a JSON schema, each fault in one line for a person."""

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from lahr.errors import nearest


def problems(document: Any, schema: dict[str, Any]) -> list[str]:
    """What the schema does not allow: where, what was given, what is allowed."""
    errors = sorted(
        Draft202012Validator(schema).iter_errors(document), key=lambda error: list(map(str, error.path))
    )
    return [line for error in errors for line in _lines(error)]


def unknown(given: Any, allowed: list[str], where: str) -> list[str]:
    """A line for each key that is not allowed there."""
    place = f"{where}." if where else ""
    return [
        f"{place}{key}: there is no such key{nearest(str(key), allowed)}; allowed: {', '.join(sorted(allowed))}"
        for key in given
        if key not in allowed
    ]


def _lines(error: ValidationError) -> list[str]:
    where = ".".join(map(str, error.path))
    given = error.instance
    rule: Any = error.validator_value
    match error.validator:
        case "additionalProperties" if rule is False:
            return unknown(given, list(error.schema.get("properties", {})), where)
        case "required":
            (missing,) = [name for name in rule if f"'{name}' is a required" in error.message]
            if any(nearest(key, [missing]) for key in set(given) - set(error.schema.get("properties", {}))):
                return []  # it is misspelt, which is said
            return [f"{where + '.' if where else ''}{missing} is missing"]
        case "type":
            kinds = rule if isinstance(rule, list) else [rule]
            return [f"{where} is {_short(given)}; it must be of the type {' or '.join(kinds)}"]
        case "enum" | "const":
            allowed = list(map(str, rule)) if isinstance(rule, list) else [str(rule)]
            return [f"{where} is {_short(given)}{nearest(str(given), allowed)}; allowed: {', '.join(allowed)}"]
        case "minimum":
            return [f"{where} is {_short(given)}; it must be at least {rule}"]
        case _:
            return [f"{where} is {_short(given)}, which is not allowed there"]


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else text[:57] + "..."
