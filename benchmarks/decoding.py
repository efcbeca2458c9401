"""Decoding with caches beside `transformers`' `generate`: same shape, same prompts, greedy, as many new tokens.

    pip install -e .[bench]
    python benchmarks/decoding.py

The rate is of new tokens over all sequences of the batch. Ours are `base`, which has as many parameters as the Llama
and its very weights, and the full model, whose parts decode token by token too.
"""

from dataclasses import dataclass

import torch
import tyro
from protocol import Contestant, Goal, Section, figure, measure, ratio, table
from quality import copy_weights, llama
from rich.console import Console
from steps import SHAPE

from lahr.model import LAHR
from lahr.model.generation import Sampling, generate, lay_out
from lahr.model_config import ModelConfig
from lahr.plain import changed
from lahr.presets import PRESETS

PROMPT, NEW = 16, 64
_WHY = (
    "A step of one token is hundreds of small operations around its products, which cost a CPU microseconds each, and "
    "at larger batches the products alone take most of half of the rival's time (docs/notebook.md)."
)


@dataclass(frozen=True)
class Options:
    """What to time."""

    batches: tuple[int, ...] = (1, 32)
    threads: int = 1


def ours(model: LAHR, prompts: list[list[int]], name: str) -> Contestant:
    """`lahr.model.generation`."""

    def run() -> None:
        for _ in generate(model, prompts, NEW, Sampling(temperature=0.0)):
            pass

    return Contestant(name, run, NEW * len(prompts))


def theirs(base: LAHR, config: ModelConfig, prompts: list[list[int]]) -> Contestant:
    """`transformers`' `generate` with its own key-value cache."""
    model = llama(config, seed=0).eval()
    copy_weights(base, model)
    prompts_BT = torch.tensor(prompts)

    def run() -> None:
        model.generate(
            prompts_BT, attention_mask=torch.ones_like(prompts_BT), max_new_tokens=NEW, min_new_tokens=NEW,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    return Contestant("transformers generate", run, NEW * len(prompts))


def section(options: Options, console: Console) -> Section:
    """Measures."""
    torch.set_num_threads(options.threads)
    base, full = LAHR(SHAPE).eval(), LAHR(changed(SHAPE, dict(PRESETS["quick"].on))).eval()
    for model in (base, full):
        lay_out(model)  # as `lahr.load` does
    goals, rows = [], []
    for batch in options.batches:
        noise = torch.Generator().manual_seed(batch)
        prompts = torch.randint(SHAPE.vocab_size, (batch, PROMPT), generator=noise).tolist()
        contestants = [ours(base, prompts, "ours"), ours(full, prompts, "full"), theirs(base, SHAPE, prompts)]
        rates = measure(contestants, console=console)
        against = ratio(rates, "ours", "transformers generate")
        what = f"decoded tokens/s against `transformers` generate, batch {batch}"
        goals.append(Goal(what, "≥ 2×", f"{against}×", against.value >= 2, _WHY))
        rows.append((batch, *(f"{figure(rate).value:,.0f}" for rate in rates.values()), against))
    text = f"fp32, {PROMPT} tokens of prompt and {NEW} new ones, greedy, {options.threads} threads.\n\n" + table(
        ("batch", "`base`, tokens/s", "full, tokens/s", "`transformers`, tokens/s", "`base` is times as fast"), rows
    )
    return Section("Decoding", text, tuple(goals))


if __name__ == "__main__":
    found = section(tyro.cli(Options, description=__doc__), Console(stderr=True))
    found.save("decoding")
    print(found.text)
