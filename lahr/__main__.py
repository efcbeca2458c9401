"""One run without Ray, and what can be done with a trained model; for machines that have only torch, too.

    python -m lahr train                                        the `quick` preset, every mechanism off
    python -m lahr train --mod --latent --memory --seed 1       the full model
    python -m lahr train --data text.txt --train.lr 1e-3        any field of the configuration
    python -m lahr prepare tinystories --preset small           the token shards alone, beforehand
    python -m lahr generate PLACE --prompt "Once upon a time"   text from a trial, a run, a checkpoint or an export
    python -m lahr export PLACE FOLDER                          safetensors, configuration and tokenizer

Training again goes on from the newest checkpoint. `--help` after a command lists its options.
"""

import dataclasses
import io
import os
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.data import SHARED, prepare, publish, published_at
from lahr.errors import ConfigError, check, nearest
from lahr.files import Folder
from lahr.model.flops import parameter_counts
from lahr.model_config import ModelConfig
from lahr.options import parse, preset_name, run
from lahr.plain import from_dict
from lahr.presets import Preset, preset
from lahr.trained import SamplingOptions, export, find
from lahr.training import compilation
from lahr.training.loop import train
from lahr.training.profiling import Profile
from lahr.training.progress import Progress as Record
from lahr.training.runtime import Runtime, choose_micro_batch, choose_precision, require
from lahr.training.watch import Watch

LEVELS = {"mod": "mod_capacity", "latent": "latent_iterations", "memory": "memory_slots"}
"""Mechanism → the field that turns it on."""


@dataclass(frozen=True)
class Options:
    """Trains one model."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    preset: str = "quick"
    """smoke, quick, small, paper or base, or a probe: sizes and defaults of everything below."""
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
    compile: compilation.Asked = "auto"
    """torch.compile; `auto` on a CPU where the run is long enough to gain by it."""
    profile: bool = False
    """Leaves a trace of five steps, which are slower for it, and a table of where their time goes, in the run's folder,
    and goes on."""
    cache: str = os.environ.get("LAHR_CACHE", "~/.cache/lahr")
    """Where prepared data lies."""

    @staticmethod
    def of(name: str, preset: Preset) -> "Options":
        """A preset's options."""
        return Options(preset.model, preset.data, preset.train, preset=name)


@dataclass(frozen=True)
class PrepareOptions:
    """Makes a corpus's token shards, so that runs and sweeps with the same options find them."""

    model: ModelConfig
    data: DataConfig
    preset: str = "quick"
    """smoke, quick, small, paper or base, or a probe: sizes and defaults of everything below."""
    results: str | None = None
    """The folder of all sweeps' results, a path or URI that every machine sees: the shards are put there too, once for
    all of them."""
    cache: str = os.environ.get("LAHR_CACHE", "~/.cache/lahr")
    """Where prepared data lies on this machine."""

    @staticmethod
    def of(name: str, preset: Preset) -> "PrepareOptions":
        """A preset's options."""
        return PrepareOptions(preset.model, preset.data, preset=name)


@dataclass(frozen=True)
class GenerateOptions(SamplingOptions):
    """Continues prompts with a trained model."""

    place: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLACE")]
    """A trial's or a run's folder, one of their checkpoints (step-N), or an exported folder; a path or URI."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to continue, the beginning of a document; may be given several times, for a batch. Without one the model
    begins by itself."""
    seed: int = 0
    """Of the draws; the same one draws alike from every model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU if there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampling(self.seed, "seed")


@dataclass(frozen=True)
class ExportOptions:
    """Writes a trained model's safetensors, configuration and tokenizer into one folder."""

    place: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLACE")]
    """A trial's or a run's folder, or one of their checkpoints (step-N); a path or URI."""
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Where to write; new or empty."""


def main(argv: list[str]) -> int:
    """Runs one command; its exit status."""
    commands = {"train": train_one, "prepare": prepare_corpus, "generate": generate, "export": write_export}
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: python -m lahr {{{','.join(commands)}}} [options]\n\n{__doc__}", end="")
        return 0
    check(
        argv[0] in commands,
        f"unknown command {argv[0]!r}{nearest(argv[0], list(commands))}; it must be one of {', '.join(commands)}",
    )
    return commands[argv[0]](argv[1:])


def prepare_corpus(argv: list[str]) -> int:
    """Prepares a corpus, named first or with `--data`; says what there is then."""
    named = ["--data", argv[0], *argv[1:]] if argv and not argv[0].startswith("-") else argv
    options = parse(PrepareOptions, named, PrepareOptions.of, "python -m lahr prepare")
    console = Console()
    shared = Folder.at(options.results).child(SHARED) if options.results is not None else None
    if shared is not None:
        shared.check_writable()
    started, cpu = time.perf_counter(), time.process_time()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("looking for what is there", total=1.0)

        def progress(what: str, share: float) -> None:
            if what != bar.tasks[task].description:  # what comes next takes its own time
                bar.reset(task, total=1.0, description=what)
            bar.update(task, completed=share)

        data = prepare(
            options.data,
            options.model.vocab_size,
            options.model.max_seq_len,
            Path(options.cache).expanduser().resolve(),
            progress,
            *([published_at(shared)] if shared is not None else []),
        )
        bar.update(task, completed=1.0)
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    splits = {"training": data.train.split, "validation": data.validation.split}
    asked = options.data.train_tokens
    # A corpus with stages has to end, or not all of them would be there.
    ends = data.stages == 1 and data.train.split.n_tokens < asked
    short = f"; it ends before the {asked:,} training tokens asked for" if ends else ""
    said = ", ".join(f"{s.n_tokens:,} {n} tokens in {s.documents.num_rows:,} documents" for n, s in splits.items())
    console.print(
        f"{data.description}: {said}; {data.bytes_per_token:.2f} bytes a token, vocabulary {data.vocab_size:,}"
        f"{short}\n{data.folder} ({took:.0f} s, {cpu:.0f} s of a processor)",
        highlight=False,
        soft_wrap=True,
    )
    if shared is not None:
        console.print(f"for every machine in {publish(data, shared).uri}", highlight=False, soft_wrap=True)
    return 0


def generate(argv: list[str]) -> int:
    """Prints the continuations; one alone as it comes."""
    options = parse(GenerateOptions, argv, None, "python -m lahr generate")
    trained = find(options.place, _device(options.device))
    prompts = options.prompt or ("",)
    # The text itself goes out as it is, not through rich, which would take `:smile:` or `[red]` for its own.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    continuations = trained.continuations(prompts, options.tokens, options.sampling(options.seed, "seed"))
    if len(prompts) == 1:
        shown = 0
        for n, (text,) in enumerate(continuations):
            if n == 0:
                print(prompts[0], end="")  # not before the model has taken it
            if not text.endswith("\ufffd"):  # a character whose last bytes are still to come
                print(text[shown:], end="", flush=True)
                shown = len(text)
        print(text[shown:])
        return 0
    texts: list[str] = []
    with Console(stderr=True).status("") as status:
        for n, so_far in enumerate(continuations, 1):
            texts = so_far
            status.update(f"{n} tokens of each")
    print("\n\n".join(prompt + text for prompt, text in zip(prompts, texts, strict=True)))
    return 0


def write_export(argv: list[str]) -> int:
    """Exports; says what was written."""
    options = parse(ExportOptions, argv, None, "python -m lahr export")
    trained = find(options.place)
    folder = export(trained, options.folder)
    console = Console(highlight=False)
    loss = trained.about["val_loss"]
    console.print(
        f"{parameter_counts(trained.config.model)['total']:,} parameters after {trained.about['tokens']:,} tokens"
        + (f", validation loss {loss:.4f} nats" if loss is not None else "")
        + f", in {folder.uri}; read it with lahr.load({folder.uri!r})",
        soft_wrap=True,
    )
    return 0


def train_one(argv: list[str]) -> int:
    """Trains as asked; 0 when finished, 1 when the run diverged."""
    options = parse(Options, _with_levels(argv), Options.of, "python -m lahr train")
    device = _device(options.device)
    model = options.model
    for name, field in LEVELS.items():
        check(
            model.on(name) or not getattr(options, name),
            f"--{name} is given, and model.{field} is {getattr(model, field)}, which turns it off; leave one out",
        )
    _refuse_unused(model, preset(options.preset).model)
    size = parameter_counts(model)["total"]  # a model of one's own is refused here, before anything is prepared
    precision = choose_precision(device) if options.precision == "auto" else options.precision
    config = TrialConfig(model, options.data, options.train, options.seed, precision)
    console = Console()
    Folder.at(options.out).check_writable()
    with console.status("") as status:
        cache = Path(options.cache).expanduser().resolve()
        data = prepare(
            config.data, model.vocab_size, model.max_seq_len, cache, lambda what, _: status.update(f"{what} …")
        )
    folder = Folder.at(options.out).child(
        f"{options.preset}-s{config.seed}-{config.fingerprint(data.content_hash)}"
    )
    begun = _begun(folder) if folder.exists("config.json") else None
    if begun is not None and options.compile == "auto":
        compile_ = begun.compile  # decided once
    else:
        compile_, said = compilation.decide(options.compile, config, device)
        if said:
            console.print(said, highlight=False, soft_wrap=True)
    runtime = Runtime(
        device=device,  # type: ignore[arg-type]
        threads=options.threads,
        micro_batch=choose_micro_batch(config, device, 1),
        compile=compile_,
    )
    require(config, runtime)
    if begun is not None:
        differing = [f"{name} {then}, now {now}" for name, (then, now) in begun.differences(runtime).items()]
        check(
            not differing,
            f"{folder.uri} was begun with {'; '.join(differing)}, which would change its bits; give what it was begun "
            "with, or another --out",
        )
    folder.write_json("config.json", {**asdict(config), "runtime": asdict(runtime)})
    folder.write("tokenizer.json", data.tokenizer_path.read_bytes())
    console.print(
        f"{size:,} parameters, {config.steps:,} steps of {config.tokens_per_step:,} tokens "
        f"of {data.description}, {precision} on {device}{', compiled' * (compile_ == 'on')}\n{folder.uri}"
    )
    if repeats := data.said_to_repeat(config.steps * config.train.batch_size):
        console.print(repeats, highlight=False, soft_wrap=True)
    watch = Profile(Watch(), folder.child("profile"), console.print) if options.profile else Watch()
    records = _show(config, data, runtime, folder, console, watch)
    if isinstance(watch, Profile):
        console.print(watch.left, soft_wrap=True)
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


def _with_levels(argv: list[str]) -> list[str]:
    """`--mod`, `--latent` and `--memory` as the preset's level of the field that each turns on, unless it is given.

    Before anything is parsed, since a configuration is checked as a whole.
    """
    on = preset(preset_name(argv)).on
    given = {word.partition("=")[0].replace("_", "-") for word in argv}
    turned_on = [field for name, field in LEVELS.items() if f"--{name}" in argv]
    added = [f"--model.{f.replace('_', '-')}={on[f]}" for f in turned_on]
    return [*argv, *(option for option in added if option.partition("=")[0] not in given)]


def _device(asked: str) -> str:
    import torch

    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _begun(folder: Folder) -> Runtime:
    """How the run in `folder` was begun."""
    try:
        return from_dict(Runtime, folder.read_json("config.json")["runtime"])
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # a ConfigError is a ValueError, too
        raise ConfigError(
            f"{folder.uri}/config.json is damaged ({error}); remove it, and the run goes on from its checkpoints"
        ) from error


def _refuse_unused(model: ModelConfig, usual: ModelConfig) -> None:
    """`ConfigError` for a setting that was given to a mechanism that is off."""
    check(
        not model.options or bool(model.build),
        f"model.options is {model.options!r}, which only a model of your own reads; give --model.build too",
    )
    settled = model.settled()
    for field in dataclasses.fields(model):
        given, mechanism = getattr(model, field.name), field.name.partition("_")[0]
        check(
            given in (getattr(settled, field.name), getattr(usual, field.name)),
            f"model.{field.name} is {given!r}, but {mechanism} is off; turn it on with --{mechanism}, or leave it out",
        )


def _show(
    config: TrialConfig, data: object, runtime: Runtime, folder: Folder, console: Console, watch: Watch
) -> list[Record]:
    """Trains with a progress bar, or off a terminal a line an evaluation; every record of the run."""
    warnings: list[str] = []
    records = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Rich's own column forgets what is older than half a minute, and takes a resumed run's records for its pace.
    with Progress(
        *columns, TextColumn("{task.fields[left]}"), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("training", total=config.steps, left="")
        training = train(config, data, runtime, folder.child("checkpoints"), warnings, watch)  # type: ignore[arg-type]
        for record in training:
            records.append(record)
            while warnings:
                console.print(f"warning: {warnings.pop(0)}")
            loss = next((r.metrics["val_loss"] for r in reversed(records) if "val_loss" in r.metrics), None)
            said = f"loss {record.metrics['train_loss']:.3f}" + (f", validation {loss:.3f}" if loss else "")
            left = f"about {timedelta(seconds=round(record.seconds_left(config.steps)))} left"
            bar.update(task, completed=record.step, description=said, left=left)
            if not console.is_terminal and "val_loss" in record.metrics:
                line = f"step {record.step:,} of {config.steps:,}, {said}, {left}"
                console.print(line, highlight=False, soft_wrap=True)
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
