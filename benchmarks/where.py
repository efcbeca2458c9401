"""Where a step's time goes, by mechanism: the profile of `base` and of the full model, five steps each.

    python benchmarks/where.py

`python -m lahr train --profile` leaves the same table of any run.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import tyro
from cells import cells
from protocol import Section
from rich.console import Console
from steps import SHAPE, Options, Setting, setting_of

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.data import TokenData, prepare
from lahr.files import Folder
from lahr.model_config import ModelConfig
from lahr.presets import PRESETS
from lahr.training.loop import train
from lahr.training.profiling import STEPS, WARM_UP, Profile
from lahr.training.runtime import Runtime
from lahr.training.watch import Watch


def section(options: Options, console: Console) -> Section:
    """Measures."""
    setting, shape = setting_of(options), PRESETS[options.preset].model if options.preset else SHAPE
    configs, texts = cells(shape, options.preset or "quick"), []
    with tempfile.TemporaryDirectory() as place:
        wanted = DataConfig(train_tokens=1_000_000, validation_blocks=1)
        data = prepare(wanted, shape.vocab_size, shape.max_seq_len, Path(place), lambda *_: None)
        for name in ("base", "mod+latent+memory"):
            console.print(f"{name} …")
            texts.append(f"`{name}`:\n\n{profile_of(configs[name], options, setting, data, Folder.at(place))}")
    text = f"{options.batch} windows a step; shares are of what the profiler counts, which slows a step.\n\n"
    return Section("Where a step's time goes", text + "\n".join(texts).rstrip(), ())


def profile_of(config: ModelConfig, options: Options, setting: Setting, data: TokenData, folder: Folder) -> str:
    """The table."""
    steps = WARM_UP + STEPS
    budget = TrainConfig(tokens=steps * options.batch * config.max_seq_len, batch_size=options.batch, evaluations=1)
    trial = TrialConfig(config, replace(DataConfig(), validation_blocks=1), budget)
    trial = replace(trial, precision="bf16" if setting.bf16 else "fp32")
    tables: list[str] = []
    runtime = Runtime(device=options.device, threads=options.threads)
    for _ in train(trial, data, runtime, watch=Profile(Watch(), folder, tables.append)):
        pass
    return tables[0]


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    found = section(options, Console(stderr=True))
    found.save("where" + options.suffix)
    print(found.text)
