"""Text from data inside Markdown, to be read as it stands: names, errors, commands.

What comes out reads the same on GitHub, in TensorBoard and on the page made of the report, and is changed only where
one of them would take it for markup. No line break survives, so nothing ends a table's row or a list's item.
"""

import html
import re
import textwrap
from collections.abc import Sequence

_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_MARKUP = re.compile(r"[\\`*\[|]|(?<![^\W_])_|_(?![^\W_])")
"""Underscores between letters or digits mean nothing, and names are full of them."""


def literal(text: str) -> str:
    """The text for a paragraph, a heading's end, a list's item or a table's cell."""
    escaped = re.sub(r"&(?=[#\w])", "&amp;", _one_line(text))
    escaped = _MARKUP.sub(r"\\\g<0>", re.sub(r"<(?=\S)", "&lt;", escaped))
    # A single tilde is no markup, two strike out what is between them; only GitHub knows a backslash before one.
    return escaped.replace("~", "&#126;") if escaped.count("~") > 1 else escaped


def code(text: str) -> str:
    """The text as code, for a paragraph or a list's item; a table's cell would end at a `|` in it. Empty for none."""
    line = _one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " * (line.startswith("`") or line.endswith("`"))
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""


def _one_line(text: str) -> str:
    return " ".join(_CONTROL.sub("", _TERMINAL.sub("", text)).split())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table; the first column left, the others right."""
    safe = [[literal(cell) for cell in row] for row in rows]
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)]), *(" | ".join(row) for row in safe)]
    return "\n".join(f"| {line} |" for line in lines)


def text_table(table: str) -> str:
    """A pipe table as a block of code, its columns lined up and its heads as narrow as their words allow."""
    head, _, *rows = [[_plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    heads = [
        textwrap.wrap(name, max(len(text) for text in (*column, *name.split(), "-")), break_on_hyphens=False)
        for name, column in zip(head, zip(*rows, strict=True), strict=True)
    ]
    high = max(map(len, heads))
    lines = [*zip(*[[""] * (high - len(words)) + words for words in heads], strict=True), *rows]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "".join(
        "    "
        + "  ".join([line[0].ljust(first), *(cell.rjust(w) for cell, w in zip(line[1:], widths, strict=True))])
        + "\n"
        for line in lines
    )


def _plain(escaped: str) -> str:
    """What `literal` made its text of, in one line."""
    return html.unescape(re.sub(r"\\([\\`*\[|_])", r"\1", escaped.strip()))
