"""docs/reliability.md: its table, from the rows that the tests of chaos have measured."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- rows: make chaos -->", "<!-- end of rows -->"


def write(rows: Sequence[dict[str, Any]]) -> None:
    """Puts the rows into the page, between its two marks."""
    days = sorted(row["measured"] for row in rows)
    when = " to ".join(sorted({days[0], days[-1]}))
    lines = [
        f"Measured {when} on {os.cpu_count()} cores, {platform.system()}, by `make chaos`.",
        "",
        "| fault, in the middle of a sweep | what held | figures |",
        "|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["fault"]):
        figures = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["figures"].items())
        lines.append(f"| {row['fault']} | {row['held']} | {figures} |")
    before, _, rest = _PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _PAGE.write_text(f"{before}{_BEGIN}\n" + "\n".join(lines) + f"\n{_END}{after}")
