"""Whether a cluster's YAML holds, found out before anything is started or paid for.

    python cluster/check.py cluster/cluster.yaml            # asks no cloud and no machine
    python cluster/check.py cluster/on_prem.yaml --reach    # also whether each machine answers and takes the key

One line for each thing that is wrong (what was given, what is allowed, the nearest match) and exit status 2, or that
the file is fine. `ray up` finds some of this only when machines are running, and some never.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check_launcher
import check_rayjob
import check_reach
import yaml

# Whole secrets in their usual shapes, and settings that take one. A digest of an image is no secret.
_SECRETS = {
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"PRIVATE KEY",
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{20,}\b",
    "a setting that holds a secret": r"(?i)\b\w*(secret_access_key|session_token|password|hf_token|RAY_AUTH_TOKEN)"
    r"['\"]?\s*[:=]\s*['\"]?[^\s$'\"]",
    "what looks like a token": r"(?<!sha256:)\b[0-9a-fA-F]{32,}\b",
}


def check(path: str | Path, reach: bool = False) -> list[str]:
    """What is wrong with a cluster's YAML, a line each; empty where it is fine.

    `reach` also asks every machine of one's own (provider `local`) whether it answers and takes the key.
    """
    try:
        text = Path(path).read_text()
        documents = [one for one in yaml.load_all(text, Loader=_Once) if one is not None]
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        return ["is not text"]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)
        return [f"is not YAML: {what}" + (f" (line {mark.line + 1})" if mark else "")]
    if len(documents) != 1 or not isinstance(documents[0], dict):
        return [f"holds {len(documents)} documents; one cluster is one document of settings"]
    problems = [*_secrets(text), *_unfilled(documents[0])]
    if "apiVersion" in documents[0]:
        return problems + check_rayjob.problems(documents[0])
    problems += check_launcher.problems(documents[0])
    if reach and not problems:
        problems = check_reach.problems(documents[0])
    return problems


class _Once(yaml.SafeLoader):
    """Plain values only, and each key once: YAML's own loader quietly takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _secrets(text: str) -> list[str]:
    """Lines that hold a secret; the secret itself is not repeated."""
    return [
        f"line {number} holds {kind}; whoever has this file would have it, so keep it out (roles of the cloud, "
        "file_mounts, a Kubernetes Secret)"
        for number, line in enumerate(text.splitlines(), 1)
        for kind, shape in _SECRETS.items()
        if re.search(shape, line)
    ]


def _unfilled(document: Any) -> list[str]:
    """What the template left for its user to fill in."""
    found = ((where, re.search(r"\bYOUR-[A-Z-]+", value)) for where, value in _strings(document, ""))
    return [f"{where} still says {match[0]}; put yours there" for where, match in found if match]


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _strings(part, f"{where}.{key}" if where else str(key))


def main(argv: list[str]) -> int:
    """Checks one file and says what it found; the exit status."""
    parser = argparse.ArgumentParser(prog="python cluster/check.py", description=str(__doc__).splitlines()[0])
    parser.add_argument("yaml", help="a file for `ray up`, or a RayJob")
    parser.add_argument("--reach", action="store_true", help="also ask the machines of provider `local`")
    options = parser.parse_args(argv)
    problems = check(options.yaml, options.reach)
    for problem in problems:
        print(f"error: {options.yaml}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{options.yaml} is fine")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
