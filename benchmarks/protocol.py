"""How everything in docs/benchmarks.md is timed: contestants take turns in one process, and ratios are what counts.

A turn repeats a contestant's work for half a second or more. Every round has a turn of each, in a new order, so that
a machine that slows down for a while slows all of them alike, and a ratio is of two turns of one round. Figures are
medians over rounds with the interval that order statistics give, which asks nothing of the noise (`quantile_test`).
"""

import gc
import json
import math
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from scipy import stats

from lahr.machine import processor
from lahr.training.runtime import has_bf16

ROUNDS, TURN_S, WARM_UPS = 9, 0.5, 3
KEPT = Path(__file__).parents[1] / ".tmp" / "bench"
"""Sections that were measured, as JSON, so that the page can be made anew after one of them."""
_PACKAGES = ("torch", "transformers", "x-transformers", "ray")


@dataclass(frozen=True)
class Contestant:
    """Work to be timed. `run` does it once; on a GPU it may leave some of it to be waited for."""

    name: str
    run: Callable[[], object]
    amount: float
    """Units in one run: tokens, or floating-point operations."""


class Figure(NamedTuple):
    """A median over rounds, with its 95 % interval."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        inside = "" if math.isnan(self.low) else f" ({self.low:.3g} to {self.high:.3g})"
        return f"{self.value:.3g}{inside}"


@dataclass(frozen=True)
class Goal:
    """A row of the page's first table."""

    what: str
    goal: str
    got: str
    met: bool
    why: str = ""
    """Why it is not met, where it is not."""


@dataclass(frozen=True)
class Section:
    """What one benchmark found: Markdown for the page, and its goals."""

    title: str
    text: str
    goals: tuple[Goal, ...]
    made: str = ""
    """When and on what; filled in as it is kept."""

    def save(self, name: str) -> None:
        """Keeps it for the page."""
        KEPT.mkdir(parents=True, exist_ok=True)
        (KEPT / f"{name}.json").write_text(json.dumps({**asdict(self), "made": made()}, indent=1))

    @staticmethod
    def kept(name: str) -> "Section | None":
        """The one that was kept under that name."""
        path = KEPT / f"{name}.json"
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        return Section(**{**kept, "goals": tuple(Goal(**goal) for goal in kept["goals"])})


def made() -> str:
    """Today, the commit, and what it is measured on."""

    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"no {name}"

    git = ["git", "-C", str(KEPT.parents[1]), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    bf16 = "bf16 in hardware" if has_bf16("cpu") else "no bf16 in hardware"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return (
        f"{time.strftime('%Y-%m-%d')}, commit {commit}, {os.cpu_count()} cores of {processor()} ({bf16}){gpu}, "
        f"{platform.system()}, Python {platform.python_version()}, {', '.join(map(of, _PACKAGES))}"
    )


def measure(
    contestants: Sequence[Contestant], rounds: int = ROUNDS, console: Console | None = None
) -> dict[str, list[float]]:
    """Contestant → units a second in each round."""
    rates: dict[str, list[float]] = {c.name: [] for c in contestants}
    for contestant in contestants:
        if console:
            console.print(f"warming up {contestant.name} …")
        for _ in range(WARM_UPS):
            contestant.run()
        _wait()
    order = random.Random(0)
    for i in range(rounds):
        if console:
            console.print(f"round {i + 1} of {rounds}")
        for contestant in order.sample(list(contestants), len(contestants)):
            rates[contestant.name].append(_turn(contestant))
    return rates


def _turn(contestant: Contestant) -> float:
    gc.collect()
    _wait()
    runs, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < TURN_S:
        contestant.run()
        _wait()
        runs += 1
    return runs * contestant.amount / took


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def figure(values: Sequence[float]) -> Figure:
    """Of one value a round; with fewer than six rounds there is no such interval."""
    ends = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    return Figure(statistics.median(values), float(ends.low), float(ends.high))


def ratio(rates: Mapping[str, Sequence[float]], one: str, other: str) -> Figure:
    """How many times the rate of `other` that of `one` is."""
    return figure([a / b for a, b in zip(rates[one], rates[other], strict=True)])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; the first column is text, the others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_rows(page: Path, begin: str, end: str, text: str) -> None:
    """Puts `text` between the two marks of a page, in place of what stands there."""
    content = page.read_text()
    before, after = content.index(begin) + len(begin), content.index(end)
    page.write_text(f"{content[:before]}\n{text}\n{content[after:]}")
