"""All benchmarks, one after another, and the page of what they found: docs/benchmarks.md.

make bench                                    # most of an hour on two cores that do nothing else
make bench ARGS="--only steps cells"          # these anew; the others as they were measured here before
make bench ARGS="--device cuda --preset small --batch 64"
"""

import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from protocol import KEPT, Section, table
from rich.console import Console

from lahr.training.runtime import has_bf16

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
SECTIONS = ("steps", "cells", "where", "same_loss", "loading", "preparing", "growth", "peak", "decoding", "sweep")
"""In the order of the page."""
OF_A_SHAPE = ("steps", "cells", "where")
"""Those that take a shape; those that a GPU has, too."""


@dataclass(frozen=True)
class Options:
    """Measures, and writes docs/benchmarks.md."""

    only: tuple[str, ...] = ()
    """These alone; the others stand on the page as they were measured on this machine before."""
    device: Literal["cpu", "cuda"] = "cpu"
    preset: str | None = None
    """Shape of the steps that are timed; by default 256 wide, 8 layers, 8 heads, vocabulary 8,192, 512 tokens."""
    batch: int = 4
    """Windows of a step."""


def main(options: Options) -> int:
    """Runs each in a process of its own; its exit status is 1 where one of them failed."""
    console = Console(stderr=True, highlight=False)
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("x_transformers") is None:
        console.print(
            "error: the rivals are not installed; run `.venv/bin/pip install transformers x-transformers`"
        )
        return 2
    usual = SECTIONS if (options.device, options.preset) == ("cpu", None) else OF_A_SHAPE
    unknown = [name for name in options.only if name not in usual]
    if unknown:
        console.print(
            f"error: --only names {unknown[0]!r}; with this device and preset it must be of {', '.join(usual)}"
        )
        return 2
    given = ["--device", options.device, "--batch", str(options.batch)]
    given += ["--preset", options.preset] if options.preset else []
    failed, began, chosen = [], time.monotonic(), [name for name in usual if name in (options.only or usual)]
    for i, name in enumerate(chosen):
        console.print(f"{i + 1} of {len(chosen)}: {name}, {(time.monotonic() - began) / 60:.0f} min so far")
        command = [sys.executable, str(HERE / f"{name}.py"), *(given if name in OF_A_SHAPE else [])]
        failed += [name] if subprocess.run(command, check=False).returncode else []
    PAGE.write_text(page(failed))
    console.print(f"{PAGE}" + (f"; failed, and not made anew: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def page(failed: list[str]) -> str:
    """The page, of the sections that are kept on this machine."""
    kept = {path.stem: Section.kept(path.stem) for path in sorted(KEPT.glob("*.json"))}
    order = {name: (SECTIONS.index(name.partition("-")[0]), name) for name in kept}
    sections = {name: kept[name] for name in sorted(kept, key=order.__getitem__)}
    goals = [goal for found in sections.values() if found for goal in found.goals]
    rows = [(goal.what, goal.goal, goal.got, "yes" if goal.met else "**no**") for goal in goals]
    below = [
        f"- **{goal.what}**: {goal.got}, goal {goal.goal}. {goal.why}".rstrip() for goal in goals if not goal.met
    ]
    missing = [f"- `benchmarks/{name}.py`" for name in SECTIONS if name not in sections]
    stale = [f"- `benchmarks/{name}.py` failed when it was run last: what stands here is older" for name in failed]
    parts = [
        "# Benchmarks\n\nMade by `make bench`; each section is a file of `benchmarks/`, which says what is compared. "
        "Contestants take turns in one process, half a second and more each, warmed up, in a new order every round; "
        "figures are medians over the rounds, in brackets the 95 % interval of the median by order statistics. Ratios "
        "are of turns of one round. A figure without an interval was measured once, or in three rounds.",
        table(("what", "goal", "here", "met"), rows) if rows else "",
        "## Below its goal, and why\n\n" + ("\n".join(below) if below else "Nothing that was measured here."),
        *(
            f"## {found.title}\n\n`python benchmarks/{name.partition('-')[0]}.py`; {found.made}.\n\n{found.text}"
            for name, found in sections.items()
            if found
        ),
        "## Not measured here\n\n" + "\n".join([*missing, *stale, *_not_here()]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _not_here() -> list[str]:
    lines = [] if has_bf16("cpu") else ["- steps in bf16 on a CPU: this processor has none"]
    if not torch.cuda.is_available():
        lines.append("- everything on a GPU: model FLOPs utilisation, seeds stacked, CUDA graphs")
    return lines


if __name__ == "__main__":
    KEPT.mkdir(parents=True, exist_ok=True)
    sys.exit(main(tyro.cli(Options, description=__doc__)))
