"""The report as one HTML page that needs nothing beside it: `report.md` with its figures inside.

No script, no font, no address of anything outside; the page forbids itself to load any (Content-Security-Policy), and
HTML inside the Markdown is shown and not obeyed. Tables that are too wide scroll in a box of their own.
"""

import base64
import html
import re
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import markdown
from markdown.extensions.toc import TocExtension
from markdown.treeprocessors import Treeprocessor

from sweeps.reporting.page_style import STYLE

LONG = 1_000
"""Characters; a longer item of a list (hundreds of missing trials) scrolls in a box of its own."""
_NUMBER = re.compile(r"[<>≤≥]? ?[+−-]?\d|–$")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def render(report: str, files: Mapping[str, bytes]) -> bytes:
    """The page of a report in Markdown; pictures and links that it names are those of `files` (name → content).

    A picture that is not there is its alternative text, and a link elsewhere is the text of the link.
    """
    text = markdown.Markdown(extensions=["tables", TocExtension(marker="")], output_format="html")
    text.preprocessors.deregister("html_block")
    text.inlinePatterns.deregister("html")
    text.treeprocessors.register(_Page(text, files), "page", 1)  # after the table of contents
    body = text.convert(report)
    title = next((token["name"] for token in text.toc_tokens), "Report")  # type: ignore[attr-defined]
    return _PAGE.format(title=title, style=STYLE, body=body).encode()


class _Page(Treeprocessor):
    """Makes the page's parts out of the headings and paragraphs of the Markdown."""

    def __init__(self, text: markdown.Markdown, files: Mapping[str, bytes]) -> None:
        super().__init__(text)
        self.figures = {name: content for name, content in files.items() if name.endswith(".png")}

    def run(self, root: Element) -> None:
        """The verdict, the contents, then a section a heading; in place."""
        shown = [image.get("src") for image in root.iter("img")]
        parts = [Element("header")]
        for part in list(root):
            root.remove(part)
            if part.tag == "h2":
                parts.append(Element("section"))
            parts[-1].append(_in_a_box(part) if part.tag == "table" else part)
            links = self._links(part)
            if part.find("img") is not None:
                self._show(part)
            elif alone := [name for name in links if name not in shown]:
                parts[-1].append(self._gallery(alone))
        for item in (item for part in parts for item in part.iter("li")):
            if len("".join(item.itertext())) > LONG:
                _box_inside(item)
        root.extend([parts[0], self._contents(), *parts[1:]])

    def _contents(self) -> Element:
        """Links to the sections."""
        nav = Element("nav", {"aria-label": "Contents"})
        for title in self.md.toc_tokens:  # type: ignore[attr-defined]
            for token in title["children"]:
                SubElement(nav, "a", {"href": f"#{token['id']}"}).text = html.unescape(token["name"])
        return nav

    def _links(self, part: Element) -> list[str]:
        """Leads links to figures to their places on the page and takes all others away; names of those figures."""
        found = []
        for link in part.iter("a"):
            name = link.get("href", "")
            if name in self.figures:
                link.set("href", f"#{_place(name)}")
                found.append(name)
            else:
                link.tag = "span"
                link.attrib.clear()
        return found

    def _show(self, part: Element) -> None:
        """A paragraph's pictures as figures in its place."""
        part.tag = "div"
        for image in list(part.iter("img")):
            name, alt = image.get("src", ""), image.get("alt", "")
            image.clear()
            if name in self.figures:
                image.tag, image.attrib = "figure", {"id": _place(name)}
                SubElement(image, "img", {"src": self._data(name), "alt": alt})
            else:
                image.tag, image.text = "em", alt

    def _gallery(self, names: list[str]) -> Element:
        """Figures beside each other, each under its file's name."""
        gallery = Element("div", {"class": "gallery"})
        for name in names:
            figure = SubElement(gallery, "figure", {"id": _place(name)})
            SubElement(figure, "img", {"src": self._data(name), "alt": name.removesuffix(".png")})
            SubElement(figure, "figcaption").text = name
        return gallery

    def _data(self, name: str) -> str:
        return "data:image/png;base64," + base64.b64encode(self.figures[name]).decode()


def _place(name: str) -> str:
    return "figure-" + name.removesuffix(".png")


def _box_inside(item: Element) -> None:
    """Everything in the item into a box that scrolls; the item's own bullet would be cut off by one."""
    box = Element("div", {"class": "long", "tabindex": "0"})
    box.text, item.text = item.text, None
    box.extend(item)
    for part in list(item):
        item.remove(part)
    item.append(box)


def _in_a_box(table: Element) -> Element:
    """The table in a box that scrolls; columns of numbers are marked, and the others keep to the left."""
    rows = [list(row) for row in table.iter("tr")]
    for column in zip(*rows, strict=True):
        head, *cells = column
        numbers = bool(cells) and all(_NUMBER.match("".join(cell.itertext())) for cell in cells)
        for cell in (head, *cells):
            attributes: dict[str, Any] = {"class": "number"} if numbers else {}
            cell.attrib = attributes
    box = Element("div", {"class": "wide", "tabindex": "0"})
    box.append(table)
    return box
