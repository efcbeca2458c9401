"""pyproject.toml, requirements.lock, the Makefile and .ci/run agree with each other."""

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lahr.model_config import ModelConfig

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
MAKEFILE = (ROOT / "Makefile").read_text()


def wanted() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(line) for line in [*PROJECT["dependencies"], *extras["dev"], *extras["aws"]]]


def test_lock_pins_every_package_to_one_version():
    for line in LOCK:
        # No local part (+cpu): that build is on one index only.
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    names = [canonicalize_name(line.partition("==")[0]) for line in LOCK]
    assert len(set(names)) == len(names)


def test_lock_names_no_host_and_no_path():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"(^|\s)[/~]\w", text)
    assert not re.search(r"^-", text, re.MULTILINE)


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_lock_is_within_the_stated_range(requirement):
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LOCK)}
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_lock_leaves_cuda_to_the_machine():
    assert not [line for line in LOCK if re.match(r"nvidia-|cuda-|triton", line)]


def test_make_help_lists_every_target():
    plain = {
        k: v for k, v in os.environ.items() if not k.startswith("MAKE")
    }  # `make test` hands its own flags down
    shown = subprocess.run(["make", "help"], cwd=ROOT, env=plain, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert {line.split()[0] for line in shown.splitlines()} == set(phony[1].split()) - {"FORCE"}


@pytest.mark.parametrize("target", ["sweep", "test", "test-cluster", "mutations", "lint", "format"])
def test_targets_set_up_first(target):
    assert re.search(rf"^{target}: \$\(READY\)", MAKEFILE, re.MULTILINE)


def test_a_python_that_is_too_old_is_named(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / "python3.9"
    pretend = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec echo Python 3.9.1\n{sys.executable} -c "{pretend}" "$2"\n'
    )
    python.chmod(0o755)
    made = subprocess.run(["make", "test", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode != 0
    assert "needs Python 3.11 or 3.12" in made.stderr
    assert "Python 3.9.1" in made.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_lint_and_test():
    script = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in script
    assert re.search(r"for target in .*\blint test test-cluster;", script)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_readmes_table_of_mechanisms_names_fields_and_tests_that_exist():
    """Caught: a test renamed; a field misspelt."""
    readme = (ROOT / "README.md").read_text()
    table = readme.split("## The mechanisms and their options")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    tests = "".join(path.read_text() for path in ROOT.glob("tests/lahr/model/test_*.py"))
    known = {field.name for field in fields(ModelConfig)}
    assert len(rows) >= 18
    for _, _, setting, proof in rows:
        named = re.findall(r"`([a-z_]+)=", setting.replace(",", "`"))
        assert named
        assert set(named) <= known, setting
        (name,) = re.findall(r"`(test_\w+)`", proof)
        assert f"def {name}(" in tests, name
    options = {"mod_router", "mod_gate", "latent_mode", "latent_halting", "memory_kind"}
    assert all(f"`{field}" in table or f",{field}" in table for field in options)
