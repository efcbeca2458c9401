"""The report's page as a reader meets it: one file, copied alone into an empty folder, opened without a network."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page

from sweeps.analysis.effects import estimate
from sweeps.reporting.verdict import sentences, signed
from tests.browser.conftest import DESIGN, HOSTILE, MadeUp
from tests.sweeps.conftest import make_info


@pytest.fixture(scope="module")
def address(sweep: MadeUp, tmp_path_factory: pytest.TempPathFactory) -> str:
    file: Path = tmp_path_factory.mktemp("alone") / "report.html"
    file.write_bytes(sweep.files["report.html"])
    return file.as_uri()


@contextmanager
def opened(browser: Browser, address: str, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
    """The page in a window of its own, which must ask for nothing but the page itself and complain of nothing."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True  # type: ignore[arg-type]
    )  # fmt: skip
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    yield page
    context.close()
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert not complaints


def test_it_says_what_the_sweep_shows(browser, address, sweep):
    """Seen to fail: the text of a table's cell not escaped; a figure left out of the page."""
    effects = estimate(sweep.trials, DESIGN)
    with opened(browser, address) as page:
        assert page.title() == "quick: what the sweep shows"
        verdict = page.locator("header p")
        assert verdict.inner_text() == sentences(effects, make_info(sweep.trials))[0]
        box = verdict.bounding_box()
        assert box is not None
        assert box["y"] < 200, "the verdict is not what one sees first"
        rows = page.locator("section:has(#effects) tbody tr")
        shown = [row.locator("td").all_inner_texts() for row in rows.all()]
        table = pd.read_csv(io.BytesIO(sweep.files["effects.csv"]))
        assert [row[0] for row in shown] == list(table["term"])
        assert [row[1] for row in shown] == [signed(estimate) for estimate in table["estimate"]]
        assert [row[5] for row in shown] == list(table["verdict"])
        cost = page.locator("section:has(#cost) tbody tr td:first-child").all_inner_texts()
        assert set(cost) == set(sweep.trials["cell"])
        sizes = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth])")
        assert len(sizes) == 6 and all(complete and width > 900 for complete, width in sizes)
        sheet, *single, along = [image.bounding_box()["width"] for image in page.locator("img").all()]  # type: ignore[index]
        assert sheet == along > 1_100 and all(400 < width < sheet / 1.9 for width in single)


def test_what_a_trial_died_of_is_text(browser, address):
    """Seen to fail with HTML let through: the picture was asked for, and the script complained of."""
    with opened(browser, address) as page:
        assert page.get_by_text(HOSTILE, exact=True).is_visible()
        assert page.locator("script, section:has(#sanity) :is(a, img, strong)").count() == 0


def test_its_links_lead_to_places_on_it(browser, address):
    """Seen to fail: links to PNG files beside the page."""
    with opened(browser, address) as page:
        links = page.locator("a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
        assert len(links) == 14  # eight sections, six figures
        for link in links:
            assert link.startswith("#")
            assert page.locator(f"[id='{link[1:]}']").count() == 1
        page.locator("nav a", has_text="Cost").click()
        page.wait_for_function("document.querySelector('#cost').getBoundingClientRect().top < 100")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_overflows_and_all_can_be_read(browser, address, sweep, keep, width, scheme):
    """Seen to fail: tables without a box of their own at 400; an error of 700 letters that did not break; figures
    without a white ground in the dark."""
    with opened(browser, address, width, scheme) as page:
        keep(page, f"page-{sweep.name}-{width}-{scheme}", whole=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for box in page.locator(".wide").all():
            around = box.bounding_box()
            assert around is not None
            assert around["x"] >= 0 and around["x"] + around["width"] <= width
        cut = page.locator(".wide").evaluate_all("boxes => boxes.map(box => box.scrollWidth > box.clientWidth)")
        assert any(cut) == (width == 400), "tables scroll where they have no room, and only there"
        for column in (2, 5):  # estimates and p line up
            ends = page.locator(f"section:has(#effects) td:nth-child({column})").evaluate_all(
                "cells => cells.map(cell => { const range = document.createRange(); range.selectNodeContents(cell);"
                " return range.getBoundingClientRect().right })"
            )
            assert max(ends) - min(ends) < 1
        dark, ink = (
            sum(int(part) for part in page.evaluate(f"getComputedStyle(document.body).{what}")[4:-1].split(","))
            for what in ("backgroundColor", "color")
        )
        assert (dark < 120 and ink > 600) if scheme == "dark" else (dark > 720 and ink < 150)
        grounds = page.locator("img").evaluate_all("images => images.map(i => getComputedStyle(i).backgroundColor)")
        assert set(grounds) == {"rgb(255, 255, 255)"}


def test_it_prints_without_loss(browser, address, sweep, keep):
    """On paper nothing scrolls: what overflows a box is cut off. Seen to fail: tables as large as on a screen."""
    with opened(browser, address, 718) as page:  # A4 less its margins, at 96 points an inch
        page.emulate_media(media="print")
        keep(page, f"page-{sweep.name}-print", whole=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 718
        assert not page.locator("nav").is_visible()
        for part in page.locator(".wide table, li").all():
            around = part.bounding_box()
            assert around is not None
            assert around["x"] + around["width"] <= 718
