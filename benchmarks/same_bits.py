"""What a GPU's order of sums does to a loss, and what holding it fixed costs: each cell four times, on one GPU.

    python benchmarks/same_bits.py                  # `small`, 40 steps a run
    python benchmarks/same_bits.py --steps 200

Twice as a sweep trains (`lahr.training.runtime.same_bits_each_time`) and twice as torch does by default, in turn. The
differences are those of two runs of one trial, in nats of validation loss: 0 has the same bits. The cost is the ratio
of training tokens per second in the second half of the steps, as a sweep trains over the default, means of two.
"""

import contextlib
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lahr.config import TrialConfig
from lahr.data import prepare
from lahr.plain import changed
from lahr.presets import preset
from lahr.training import runtime
from lahr.training.loop import train
from lahr.training.runtime import Runtime

CELLS: dict[str, tuple[str, ...]] = {
    "base": (),
    "mod": ("mod_capacity",),
    "latent": ("latent_iterations",),
    "memory": ("memory_slots",),
    "mod+latent+memory": ("mod_capacity", "latent_iterations", "memory_slots"),
}


@dataclass(frozen=True)
class Options:
    """What to train."""

    preset: str = "small"
    steps: int = 40


def by_default(device: str) -> None:
    """What torch does by itself; cuBLAS keeps the workspaces that it was given."""
    torch.use_deterministic_algorithms(False)


def main(options: Options) -> int:
    """Prints the table; exit status 2 where there is no GPU."""
    if not torch.cuda.is_available():
        print("error: needs a CUDA GPU, and there is none here", file=sys.stderr)
        return 2
    chosen = preset(options.preset)
    data = replace(chosen.data, train_tokens=2_000_000, validation_blocks=64)
    block, batch = chosen.model.max_seq_len, chosen.train.batch_size
    lengths = replace(
        chosen.train, tokens=options.steps * batch * block, evaluations=1, checkpoints=1, log_points=2
    )
    table = Table(title=f"{options.preset}, {options.steps} steps, bf16 on {torch.cuda.get_device_name()}")
    for column in (
        "cell",
        "differ as a sweep trains",
        "differ by default",
        "tokens/s as a sweep",
        "of the default",
    ):
        table.add_column(column, justify="left" if column == "cell" else "right")
    with tempfile.TemporaryDirectory() as cache:
        tokens = prepare(data, chosen.model.vocab_size, block, Path(cache))
        for cell, factors in track(CELLS.items(), description="training …"):
            model = changed(chosen.model, {name: chosen.on[name] for name in factors})
            config = TrialConfig(model, data, lengths, precision="bf16")
            losses: dict[bool, list[float]] = {True: [], False: []}
            rates: dict[bool, list[float]] = {True: [], False: []}
            for fixed in (True, False, True, False):
                with (
                    contextlib.nullcontext() if fixed else patch.object(runtime, "same_bits_each_time", by_default)
                ):
                    *_, last = train(config, tokens, Runtime(device="cuda"))
                losses[fixed].append(last.metrics["val_loss"])
                rates[fixed].append(last.metrics["tokens_per_second"])
            mean = {fixed: sum(both) / 2 for fixed, both in rates.items()}
            table.add_row(
                cell,
                *(f"{abs(a - b):.4f}" if a != b else "0" for a, b in losses.values()),
                f"{mean[True]:,.0f}",
                f"{mean[True] / mean[False]:.2f}",
            )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
