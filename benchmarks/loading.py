"""How much faster batches can be read than they are trained on: `base` at the shape of `steps.py`.

    python benchmarks/loading.py

Batches are read as training does, from token shards on this disk in a shuffled order, pages of the file in memory.
"""

import tempfile
from itertools import count
from pathlib import Path

import tyro
from protocol import Contestant, Goal, Section, figure, measure, ratio, table
from rich.console import Console
from steps import SHAPE, Options, ours, setting_of

from lahr.config import DataConfig
from lahr.data import Batches, prepare


def section(options: Options, console: Console) -> Section:
    """Measures."""
    setting = setting_of(options)
    with tempfile.TemporaryDirectory() as cache:
        with console.status("preparing 4 M tokens …"):
            data = prepare(
                DataConfig(train_tokens=4_000_000),
                SHAPE.vocab_size,
                SHAPE.max_seq_len,
                Path(cache),
                lambda *_: None,
            )
        batches, steps = Batches(data.train, options.batch, seed=0), count()
        amount = options.batch * SHAPE.max_seq_len
        reading = Contestant("reading", lambda: batches.batch(next(steps)), amount)
        rates = measure([reading, ours(SHAPE, options.batch, setting, "training")], console=console)
    faster = ratio(rates, "reading", "training")
    rows = [(name, f"{figure(rate).value:,.0f}") for name, rate in rates.items()]
    goal = Goal("data loading against training rate", "≥ 100×", f"{faster}×", faster.value >= 100)
    return Section("Reading batches", table(("", "tokens/s"), rows), (goal,))


if __name__ == "__main__":
    found = section(tyro.cli(Options, description=__doc__), Console(stderr=True))
    found.save("loading")
    print(found.text)
