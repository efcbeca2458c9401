"""How fast a corpus becomes shards, in how much memory, and what is left of it after `kill -9`.

    python benchmarks/preparing.py                     100 M tokens of generated stories, written to a file first
    python benchmarks/preparing.py --tokens 5000000

`python -m lahr prepare` is run three times on one file: to its end; killed at about half of its shards; and again to
its end. The shards of the last are compared with those of the first, hash by hash. Rates are tokens a second of
processor time, all threads of the process added up.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
from protocol import Goal, Section, table
from rich.console import Console

from lahr.data import stories
from lahr.data.corpora import END_OF_TEXT

BYTES_A_TOKEN = 4.2
"""More than the tokenizer reaches, so that the file is long enough."""


@dataclass(frozen=True)
class Options:
    """What is prepared."""

    tokens: int = 100_000_000
    """Training tokens."""
    vocabulary: int = 4096
    """Entries of the tokenizer."""


def section(options: Options, console: Console) -> Section:
    """Measures."""
    with tempfile.TemporaryDirectory() as place:
        text = Path(place) / "stories.txt"
        with console.status("writing a file of stories …"):
            write(text, round(options.tokens * BYTES_A_TOKEN))
        whole, peaks = prepare(text, Path(place) / "whole", options, console)
        halves = cut_off(text, Path(place) / "cut", options, console)
        again, _ = prepare(text, Path(place) / "cut", options, console)
        same = hashes(Path(place) / "whole") == hashes(Path(place) / "cut")
    rate = options.tokens / whole
    grew = peaks[-1] / peaks[len(peaks) // 4] if len(peaks) > 3 else 1.0
    rows = [
        ("processor seconds, undisturbed", f"{whole:.0f}"),
        ("tokens a processor second", f"{rate:,.0f}"),
        ("memory at a quarter, at the end, MiB", f"{peaks[len(peaks) // 4]:.0f}, {peaks[-1]:.0f}"),
        ("shards there when it was killed", str(halves)),
        ("processor seconds to its end after that", f"{again:.0f}"),
        ("shards identical", "yes" if same else "no"),
    ]
    goals = (
        Goal("preparing, tokens a processor second", "≥ 0.8 M", f"{rate / 1e6:.2f} M", rate >= 8e5),
        Goal("memory, at the end against a quarter", "≤ 1.1×", f"{grew:.2f}×", grew <= 1.1),
        Goal("shards after `kill -9` and again", "identical", "identical" if same else "not", same),
    )
    return Section(f"Preparing {options.tokens / 1e6:.0f} M tokens", table(("", ""), rows), goals)


def write(path: Path, n_bytes: int) -> None:
    """A text file of so many bytes, of the generated corpus."""
    seed = 0
    with open(path, "w") as file:
        while file.tell() < n_bytes:
            for _ in range(1000):
                file.write(stories.story(seed).text + END_OF_TEXT)
                seed += 1


def command(text: Path, cache: Path, options: Options) -> list[str]:
    """The command line that prepares."""
    given = {"data.train-tokens": options.tokens, "model.vocab-size": options.vocabulary, "cache": cache}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "lahr", "prepare", str(text), *words]


def prepare(text: Path, cache: Path, options: Options, console: Console) -> tuple[float, list[float]]:
    """Processor seconds of preparing to the end, and the memory that it held, in MiB, along the way."""
    with console.status("preparing …"):
        process = subprocess.Popen(command(text, cache, options), stdout=subprocess.DEVNULL)
        watched, held, spent = psutil.Process(process.pid), [], 0.0
        while process.poll() is None:
            try:
                held.append(watched.memory_info().rss / 2**20)
                spent = sum(watched.cpu_times()[:2])
            except psutil.Error:
                break
            time.sleep(0.5)
        if process.wait():
            raise SystemExit(f"preparing ended with status {process.returncode}")
    # Without what comes before the first shard: imports, and the training of the tokenizer.
    return spent, held


def cut_off(text: Path, cache: Path, options: Options, console: Console) -> int:
    """Kills the process when half of the shards are there; how many were."""
    wanted = max(1, options.tokens // (1 << 24) // 2)
    with console.status("preparing, to be killed …"):
        process = subprocess.Popen(command(text, cache, options), stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(cache.glob("*.part/train-*.arrow"))) <= wanted:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return len(list(cache.glob("*.part/train-*.arrow")))


def hashes(cache: Path) -> dict[str, str]:
    """File → sha256 of what was prepared there."""
    (manifest,) = cache.glob("*/manifest.json")
    found = json.loads(manifest.read_text())["splits"]
    return dict(re.findall(r'"file": "([^"]+)", "sha256": "([^"]+)"', json.dumps(found)))


if __name__ == "__main__":
    found = section(tyro.cli(Options, description=__doc__), Console(stderr=True))
    found.save("preparing")
    print(found.text)
