"""All benchmarks, one after another, and the page of what they found: docs/benchmarks.md.

make bench                                    # an hour on two cores that do nothing else
make bench ARGS="--only steps cells"          # these anew; the others as they were measured here before
make bench ARGS="--device cuda --preset small --batch 64"
"""

import importlib.util
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
import tyro
from protocol import KEPT, Section, table
from rich.console import Console

from lahr.machine import processor
from lahr.training.runtime import has_bf16

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
SECTIONS = ("steps", "cells", "where", "same_loss", "loading", "growth", "peak", "decoding", "sweep")
"""In the order of the page."""
_ON_A_GPU = ("steps", "cells", "where", "peak")
_PACKAGES = ("torch", "transformers", "x-transformers", "ray", "numpy")


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
    console = Console(stderr=True)
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("x_transformers") is None:
        console.print(
            "error: the rivals are not installed; run `.venv/bin/pip install transformers x-transformers`"
        )
        return 2
    usual = SECTIONS if options.device == "cpu" else _ON_A_GPU
    unknown = [name for name in options.only if name not in SECTIONS]
    if unknown:
        console.print(f"error: --only names {unknown[0]!r}; it must be of {', '.join(SECTIONS)}")
        return 2
    given = ["--device", options.device, "--batch", str(options.batch)]
    given += ["--preset", options.preset] if options.preset else []
    failed, began, chosen = [], time.monotonic(), [name for name in usual if name in (options.only or usual)]
    for i, name in enumerate(chosen):
        console.print(
            f"[bold]{i + 1} of {len(chosen)}: {name}[/], {(time.monotonic() - began) / 60:.0f} min so far"
        )
        takes_shape = name in ("steps", "cells", "where", "growth", "loading")
        done = subprocess.run([sys.executable, HERE / f"{name}.py", *(given if takes_shape else [])], check=False)
        failed += [name] if done.returncode else []
    PAGE.write_text(page())
    console.print(f"{PAGE}" + (f"; failed, and not made anew: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def page() -> str:
    """The page, of the sections that are kept on this machine."""
    sections = {name: found for name in SECTIONS if (found := Section.kept(name)) is not None}
    goals = [goal for found in sections.values() for goal in found.goals]
    rows = [(goal.what, goal.goal, goal.got, "yes" if goal.met else "**no**") for goal in goals]
    missing = [name for name in SECTIONS if name not in sections]
    below = [
        f"- **{goal.what}**: {goal.got}, goal {goal.goal}. {goal.why}".rstrip() for goal in goals if not goal.met
    ]
    parts = [
        "# Benchmarks\n\nMade by `make bench`; each section is a file of `benchmarks/`, which says what is compared. "
        "Contestants take turns in one process, half a second and more each, warmed up, in a new order every round; "
        "figures are medians over the rounds, in brackets the 95 % interval of the median by order statistics. Ratios "
        "are of turns of one round. Where there is no such interval, it was measured once.",
        machine(),
        table(("what", "goal", "here", "met"), rows) if rows else "",
        "## Below its goal, and why\n\n" + ("\n".join(below) if below else "Nothing that was measured here."),
        *(f"## {found.title}\n\n`python benchmarks/{name}.py`\n\n{found.text}" for name, found in sections.items()),
        "## Not measured here\n\n" + "\n".join([f"- `benchmarks/{name}.py`" for name in missing] + _not_here()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def machine() -> str:
    """What it ran on."""

    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    bf16 = "bf16 in hardware" if has_bf16("cpu") else "no bf16 in hardware, so fp32"
    return (
        f"{os.cpu_count()} cores of {processor()} ({bf16}){gpu}, {platform.system()}, Python "
        f"{platform.python_version()}; {', '.join(map(of, _PACKAGES))}. {time.strftime('%Y-%m-%d')}."
    )


def _not_here() -> list[str]:
    lines = [] if has_bf16("cpu") else ["- steps in bf16 on a CPU: this processor has none"]
    if not torch.cuda.is_available():
        lines.append("- everything on a GPU: model FLOPs utilisation, seeds stacked, CUDA graphs")
    return lines


if __name__ == "__main__":
    KEPT.mkdir(parents=True, exist_ok=True)
    sys.exit(main(tyro.cli(Options, description=__doc__)))
