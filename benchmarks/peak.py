"""Peak memory of a training step, `base` beside `transformers`' Llama of the same shape, each in a process of its own.

    pip install -e .[bench]
    python benchmarks/peak.py                        # 125 M parameters, 2 × 1,024 tokens, fp32 or bf16 as detected

The peak is the process's resident set on a CPU (Linux) and what torch has allocated on a GPU, of two steps with AdamW.
"""

import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import tyro
from protocol import Goal, Section, table
from rich.console import Console
from steps import Options as Steps
from steps import ours, setting_of, transformers_llama

from lahr.presets import PRESETS
from lahr.training.runtime import peak_memory_mib, reset_peak_memory


@dataclass(frozen=True)
class Options:
    """What to measure."""

    preset: str = "base"
    batch: int = 2
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    one: Literal["", "ours", "ours, compiled", "transformers"] = ""
    """Only this one, in this process."""


def one(options: Options) -> float:
    """The peak of one of them, MiB."""
    setting = setting_of(Steps(threads=options.threads, device=options.device))
    config = PRESETS[options.preset].model
    if options.one.startswith("ours"):
        contestant = ours(config, options.batch, setting, compiled=options.one != "ours")
    else:
        contestant = transformers_llama(config, options.batch, setting, compiled=False)
    contestant.run()  # which also compiles, and that is not counted
    reset_peak_memory(options.device)
    for _ in range(2):
        contestant.run()
    return peak_memory_mib(options.device)


def section(options: Options, console: Console) -> Section:
    """Measures."""
    found = {}
    for name in ("ours", "ours, compiled", "transformers"):
        console.print(f"{name} …")
        given = ("--preset", options.preset, "--batch", str(options.batch), "--threads", str(options.threads))
        command = [sys.executable, __file__, *given, "--device", options.device, "--one", name]
        found[name] = float(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1]
        )
    share = found["ours, compiled"] / found["transformers"]
    config = PRESETS[options.preset].model
    rows = [(name, f"{mib:,.0f}") for name, mib in found.items()]
    text = f"`{options.preset}`, {options.batch} × {config.max_seq_len} tokens, {options.device}.\n\n" + table(
        ("", "peak, MiB"), rows
    )
    what = "peak memory of `base` at 125 M against `transformers`, same batch"
    return Section("Peak memory", text, (Goal(what, "≤ 0.8×", f"{share:.2f}×", share <= 0.8),))


if __name__ == "__main__":
    asked = tyro.cli(Options, description=__doc__)
    if asked.one:
        print(one(asked))
    else:
        made = section(asked, Console(stderr=True))
        made.save("peak")
        print(made.text)
