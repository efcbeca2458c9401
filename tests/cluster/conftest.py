"""What tests of clusters share: a home, the way to cluster/'s scripts, and a cluster on three hosts.

cluster/ holds scripts, not a package: they import each other from where they lie, and so do their tests.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.namespaces import missing
from tests.cluster.on_prem import OnPrem

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with what the clusters' YAMLs take from it: the token, and a key."""
    home = tmp_path_factory.mktemp("home")
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        (home / name).parent.mkdir()
        (home / name).write_text("of a test\n")
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture(scope="session")
def cluster() -> Iterator[OnPrem]:
    """Three hosts with the cluster of cluster/on_prem.yaml up on them. A test that breaks something mends it."""
    if reason := missing():
        pytest.skip(reason)
    with Hosts(3) as hosts:
        made = OnPrem(hosts)
        made.up()
        yield made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes the cluster down comes after all that use it."""
    items.sort(key=lambda item: item.get_closest_marker("hosts") is not None and "tear_down" in item.name)
