"""Whether compiled training ends where the code as written does: loss after 200 steps, five seeds.

    python benchmarks/same_loss.py

The full model at the shape of `smoke`. The yardstick is what rounding does anyway: how far the plain bf16 run ends from
the plain fp32 run of the same seed. Compiled and plain are compared in both types, the compiled run in bf16 also with
the plain one in fp32. Where the processor has no bf16 it is computed in software, slowly and to the same bits.
"""

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import tyro
from protocol import Goal, Section, table
from rich.console import Console

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.data import prepare
from lahr.plain import changed
from lahr.presets import PRESETS
from lahr.training.loop import train
from lahr.training.runtime import Runtime

STEPS = 200


@dataclass(frozen=True)
class Options:
    """What to run."""

    seeds: int = 5


def section(options: Options, console: Console) -> Section:
    """Measures."""
    smoke = PRESETS["smoke"]
    model = changed(smoke.model, dict(smoke.on))
    budget = TrainConfig(tokens=STEPS * 2 * model.max_seq_len, batch_size=2, lr=5e-3, evaluations=1)
    data_config = DataConfig(train_tokens=200_000, validation_blocks=32)
    rows = []
    names = (
        "compiled fp32 − plain fp32", "plain bf16 − plain fp32",
        "compiled bf16 − plain fp32", "compiled bf16 − plain bf16",
    )  # fmt: skip
    off: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as cache, mock.patch("lahr.training.runtime.has_bf16", return_value=True):
        data = prepare(data_config, model.vocab_size, model.max_seq_len, Path(cache), lambda *_: None)

        def loss(seed: int, precision: str, compile_: str) -> float:
            console.print(f"seed {seed}, {precision}, compile {compile_} …")
            config = replace(TrialConfig(model, data_config, budget), seed=seed, precision=precision)  # type: ignore[arg-type]
            *_, last = train(config, data, Runtime(compile=compile_))  # type: ignore[arg-type]
            return last.metrics["val_loss"]

        for seed in range(options.seeds):
            losses = [loss(seed, p, c) for p in ("fp32", "bf16") for c in ("off", "on")]
            plain, compiled, bf16, compiled_bf16 = losses
            apart = *(abs(other - plain) for other in (compiled, bf16, compiled_bf16)), abs(compiled_bf16 - bf16)
            for values, each in zip(off.values(), apart, strict=True):
                values.append(each)
            rows.append((seed, *(f"{x:.5f}" for x in (*losses, *apart))))
    mean = {name: statistics.mean(values) for name, values in off.items()}
    header = ("as written, fp32", "compiled, fp32", "as written, bf16", "compiled, bf16")
    text = f"Validation loss after {STEPS} steps, nats a token, and the absolute differences.\n\n"
    rows.append(("mean", *("" for _ in header), *(f"{value:.5f}" for value in mean.values())))
    most = f"≤ plain bf16 − plain fp32: {mean[names[1]]:.2g} nats"
    why = "Either run in bf16 rounds in its own way, so they may be further from each other than each is from fp32."
    goals = [
        Goal(f"loss after {STEPS} steps, {name}, mean over seeds", most, f"{mean[name]:.2g} nats",
             mean[name] <= mean[names[1]], why)
        for name in (names[0], names[3], names[2])
    ]  # fmt: skip
    return Section("The same loss", text + table(("seed", *header, *names), rows), tuple(goals))


if __name__ == "__main__":
    found = section(tyro.cli(Options, description=__doc__), Console(stderr=True))
    found.save("same_loss")
    print(found.text)
