"""Puts what sweeps of probes found into docs/probes.md: sentences, tables and pictures, as their reports have them.

    python benchmarks/probes.py results/probe-segments results/probe-selective …

A sweep has the marks `<!-- probe: NAME -->` and `<!-- end: NAME -->` on the page, NAME being its folder's without
`probe-`. Beside the page its picture is `probes/NAME.png`, and its table of trials `probes/NAME.csv`.
"""

import json
import re
import shutil
from pathlib import Path

import tyro
from protocol import write_rows

from lahr.errors import check
from sweeps.engine.results import Results

PAGE = Path(__file__).parents[1] / "docs" / "probes.md"
KEPT = ("trial", "cell", "seed", "status", "val_loss", "tokens", "flops", "seconds")
"""Columns of the table of trials that are kept, beside those of answers."""


def main(sweeps: tyro.conf.Positional[list[Path]]) -> None:
    """Writes each sweep's part of the page."""
    for sweep in sweeps:
        name = sweep.name.removeprefix("probe-")
        report = (sweep / "report" / "report.md").read_text()
        verdict = json.loads((sweep / "report" / "verdict.json").read_text())
        results = Results.at(str(sweep.parent), sweep.name)
        trials = results.table(results.design())
        check(
            len(trials) > 0,
            f"{sweep} has no finished trial that this version of the code would make; run this with the version that "
            "made it, which its report names (Environment, commit)",
        )
        kept = [column for column in trials if column in KEPT or column.startswith(("accuracy", "selected"))]
        trials[kept].to_csv(PAGE.parent / "probes" / f"{name}.csv", index=False, float_format="%.6g")
        shutil.copyfile(sweep / "report" / "answers.png", PAGE.parent / "probes" / f"{name}.png")
        text = "\n>\n".join(f"> {sentence}" for sentence in verdict["sentences"])
        text += f"\n\n![Accuracy of each cell](probes/{name}.png)\n\n" + "\n\n".join(tables(report))
        again = re.sub(r" --results \S+", "", verdict["rerun"])
        text += f"\n\n`{again}`; [every trial](probes/{name}.csv)"
        write_rows(PAGE, f"<!-- probe: {name} -->", f"<!-- end: {name} -->", text)
        print(f"{name}: {len(trials)} trials")


def tables(report: str) -> list[str]:
    """The tables of accuracies, of what routers let through, and of controls."""
    answers = report.split("## Answers", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"(?:^\|.*\n?)+", answers, re.MULTILINE)
    if "## Cells beside the factorial" in report:
        beside = report.split("## Cells beside the factorial", 1)[1].split("\n## ", 1)[0]
        found += re.findall(r"(?:^\|.*\n?)+", beside, re.MULTILINE)
    return [table.strip() for table in found]


if __name__ == "__main__":
    tyro.cli(main)
