"""Rows of docs/reliability.md: each test of chaos adds its own, with the figures that it measured."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.here import Here
from tests.chaos.report import write
from tests.chaos.sweeps import trials
from tests.cluster.conftest import cluster as cluster  # the fixture

_PASSED, _MADE = pytest.StashKey[bool](), pytest.StashKey[bool]()
ROWS = Path(os.environ.get("LAHR_CHAOS", ".tmp/chaos"))


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """`row(fault, held, seconds=…, undisturbed=…, restarts=…, repeated=…)`, kept where the test passes."""
    said: list[dict] = []

    def say(fault: str, held: str, **figures: object) -> None:
        said.append({"fault": fault, "held": held, "figures": figures, "measured": time.strftime("%Y-%m-%d")})

    yield say
    if said and request.node.stash.get(_PASSED, False):
        ROWS.mkdir(parents=True, exist_ok=True)
        (ROWS / f"{request.node.name}.json").write_text(json.dumps(said[0]))
        request.session.stash[_MADE] = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture(scope="session")
def _here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    return Here(tmp_path_factory.mktemp("here"))


@pytest.fixture
def here(_here: Here) -> Iterator[Here]:
    """Sweeps on this machine alone."""
    yield _here
    _here.stop()


@pytest.fixture(scope="session")
def alone(_here: Here) -> tuple[dict[str, dict], float]:
    """What a sweep on this machine comes to that nothing disturbs, and the seconds it takes."""
    running = _here.start("undisturbed")
    seconds = running.wait()
    return trials(running.results), seconds


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes the page from all rows there are, so that rows may be made one by one; not where none was made now."""
    if session.stash.get(_MADE, False):
        write([json.loads(path.read_text()) for path in sorted(ROWS.glob("*.json"))])
