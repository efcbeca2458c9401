"""A made-up sweep of 40 trials and one of 320, with their reports, and a browser to look at them.

The browser is Debian's chromium, driven by playwright; without it these tests are skipped. What it saw is kept as
screenshots in `.tmp/screenshots/` of the checkout.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from sweeps.analysis.contrasts import switches
from sweeps.analysis.effects import estimate
from sweeps.reporting.report import render
from tests.sweeps.conftest import make_curves, make_info, make_trials

DESIGN = switches("mod", "latent", "memory")
SCREENSHOTS = Path(__file__).parents[2] / ".tmp" / "screenshots"
HOSTILE = (
    "<script>document.title = 'run'</script><img src=http://127.0.0.1:9/x> | **bold** `tick` [a](http://a.example)"
)
"""What an error may have in it: HTML, Markdown, a table's bar, addresses."""


@dataclass(frozen=True)
class MadeUp:
    """A sweep's table, its curves and the files of its report."""

    trials: pd.DataFrame
    curves: Mapping[str, pd.DataFrame]
    files: Mapping[str, bytes]

    @property
    def name(self) -> str:
        return f"{len(self.trials)}-trials"


@pytest.fixture(scope="session")
def chromium() -> str:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium here (apt-get install chromium)")
    return path


@pytest.fixture(scope="session", params=[5, 40], ids=["40 trials", "320 trials"])
def sweep(request: pytest.FixtureRequest, chromium: str) -> MadeUp:
    trials = make_trials(request.param)
    curves = make_curves(trials)
    failed = [
        {"trial": "x", "cell": "mod", "seed": 3, "error": f"Traceback\n{HOSTILE}"},
        {"trial": "y", "cell": "latent", "seed": 4, "error": "/" + "a" * 700},
    ]
    missing = [f"mod+latent+memory-s{seed}-0123456789ab" for seed in range(request.param)]
    info = make_info(trials, failed=failed, missing=missing)
    return MadeUp(trials, curves, render(estimate(trials, DESIGN), trials, curves, info))


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def keep() -> Callable[..., None]:
    """`keep(page, name)`: a screenshot among `SCREENSHOTS`."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def screenshot(page: Page, name: str, whole: bool = False) -> None:
        page.screenshot(path=str(SCREENSHOTS / f"{name}.png"), full_page=whole)

    return screenshot
