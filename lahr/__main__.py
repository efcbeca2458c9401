"""One run without Ray, for debugging and for machines that have only torch.

    python -m lahr train                                        the `quick` preset, every mechanism off
    python -m lahr train --mod --latent --memory --seed 1       the full model
    python -m lahr train --data text.txt --train.lr 1e-3        any field of the configuration

Running it again goes on from its newest checkpoint.
"""

import io
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.data import prepare
from lahr.errors import check
from lahr.files import Folder
from lahr.model.flops import parameter_counts
from lahr.model_config import ModelConfig
from lahr.options import parse, run
from lahr.plain import from_dict
from lahr.presets import Preset, preset, with_levels
from lahr.training.loop import train
from lahr.training.progress import Progress as Record
from lahr.training.runtime import Runtime, choose_micro_batch, choose_precision


@dataclass(frozen=True)
class Options:
    """Trains one model."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    command: tyro.conf.Positional[Literal["train"]]
    """What to do."""
    preset: str = "quick"
    """smoke, quick, small, paper or base: sizes and defaults of everything below."""
    mod: bool = False
    """Mixture-of-Depths at the preset's capacity."""
    latent: bool = False
    """Latent reasoning with the preset's iterations."""
    memory: bool = False
    """The memory with the preset's slots."""
    seed: int = 0
    """Decides the initial weights and the order of the data."""
    out: str = "runs"
    """Folder of all such runs, a path or URI; this one's is named by its configuration."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU if there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto` takes bf16 where the hardware has it."""
    threads: int = 1
    """Threads on a CPU."""
    cache: str = os.environ.get("LAHR_CACHE", "~/.cache/lahr")
    """Where prepared data lies."""

    @staticmethod
    def of(name: str, preset: Preset) -> "Options":
        """A preset's options."""
        return Options(preset.model, preset.data, preset.train, command="train", preset=name)


def main(argv: list[str]) -> int:
    """Trains as asked; 0 when finished, 1 when the run diverged."""
    options = parse(Options, argv or ["--help"], Options.of, "python -m lahr")
    import torch

    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    on = preset(options.preset).on
    fields = {"mod": "mod_capacity", "latent": "latent_iterations", "memory": "memory_slots"}
    model = with_levels(
        options.model, {field: on[field] for name, field in fields.items() if getattr(options, name)}
    )
    precision = choose_precision(device) if options.precision == "auto" else options.precision
    config = TrialConfig(model, options.data, options.train, options.seed, precision)
    runtime = Runtime(
        device=device,  # type: ignore[arg-type]
        threads=options.threads,
        micro_batch=choose_micro_batch(config, device, 1),
    )
    console = Console()
    with console.status("") as status:
        cache = Path(options.cache).expanduser().resolve()
        data = prepare(
            config.data, model.vocab_size, model.max_seq_len, cache, lambda what, _: status.update(f"{what} …")
        )
    folder = Folder.at(options.out).child(
        f"{options.preset}-s{config.seed}-{config.fingerprint(data.content_hash)}"
    )
    if folder.exists("config.json"):
        begun = from_dict(Runtime, folder.read_json("config.json")["runtime"])
        differing = [f"{name} {then}, now {now}" for name, (then, now) in begun.differences(runtime).items()]
        check(
            not differing,
            f"{folder.uri} was begun with {'; '.join(differing)}, which would change its bits; give what it was begun "
            "with, or another --out",
        )
    folder.write_json("config.json", {**asdict(config), "runtime": asdict(runtime)})
    console.print(
        f"{parameter_counts(model)['total']:,} parameters, {config.steps:,} steps of {config.tokens_per_step:,} tokens "
        f"of {data.description}, {precision} on {device}\n{folder.uri}"
    )
    records = _show(config, data, runtime, folder, console)
    _write_metrics(folder, records)
    last = records[-1]
    if last.status == "diverged":
        console.print(f"diverged at step {last.step}: the loss is no longer finite; try a lower --train.lr")
        return 1
    console.print(
        f"validation loss {last.metrics['val_loss']:.4f} nats a token under causal routing "
        f"({last.metrics['bits_per_byte']:.4f} bits a byte), {last.tokens / last.seconds:,.0f} tokens/s"
    )
    return 0


def _show(config: TrialConfig, data: object, runtime: Runtime, folder: Folder, console: Console) -> list[Record]:
    """Trains with a progress bar; every record of the run."""
    warnings: list[str] = []
    records = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("training", total=config.steps)
        for record in train(config, data, runtime, folder.child("checkpoints"), warnings):  # type: ignore[arg-type]
            records.append(record)
            while warnings:
                console.print(f"warning: {warnings.pop(0)}")
            loss = next((r.metrics["val_loss"] for r in reversed(records) if "val_loss" in r.metrics), None)
            said = f"loss {record.metrics['train_loss']:.3f}" + (f", validation {loss:.3f}" if loss else "")
            bar.update(task, completed=record.step, description=said)
    return records


def _write_metrics(folder: Folder, records: list[Record]) -> None:
    rows = [record.row() for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    folder.write("metrics.parquet", buffer.getvalue())


if __name__ == "__main__":
    run(main, "stopped; the same command goes on from the newest checkpoint")
