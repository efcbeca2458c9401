"""Whether our plain transformer learns as well as a Llama of `transformers`: same shape, text, steps and optimiser.

    pip install -e .[bench]
    python benchmarks/quality.py --data FILE [--preset quick] [--seeds 5]

Every seed trains three models on the same batches in the same order:

- ours: the preset's `base` cell, by the project's own loop;
- own start: `LlamaForCausalLM` as `transformers` starts it, N(0, 0.02²) everywhere;
- our start: the same, with the very numbers that ours starts with, which leaves only the code to differ. `at start` is
  then the largest difference of the two models' logits before the first step, over one batch of validation windows.

Both Llamas are trained by a loop of their own below, in torch alone, so that a fault of ours would show. The loss is in
nats a token, over all of the preset's validation windows. All runs on one thread of the CPU. Every field of the
configuration is an option (`--help`).
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from scipy import stats
from torch import Tensor, nn

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.data import Batches, TokenData, prepare
from lahr.errors import ConfigError, check
from lahr.model import LAHR
from lahr.model.layers import EPSILON
from lahr.model_config import ModelConfig
from lahr.options import parse, run
from lahr.presets import Preset
from lahr.training.loop import train
from lahr.training.optimizer import learning_rate
from lahr.training.runtime import Runtime, choose_precision

Advance = Callable[[int], None]
"""Called with the number of steps done since the last call."""


@dataclass(frozen=True)
class Options:
    """Compares `base` with a Llama of `transformers`."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    preset: str = "quick"
    """smoke, quick, small, paper or base: sizes and defaults of everything above."""
    seeds: int = 5
    """Pairs; seed 0 is the first."""
    cache: str = os.environ.get("LAHR_CACHE", "~/.cache/lahr")
    """Where prepared data lies."""

    @staticmethod
    def of(name: str, preset: Preset) -> "Options":
        """A preset's options."""
        return Options(preset.model, preset.data, preset.train, preset=name)


class Outcome(NamedTuple):
    """What one training came to."""

    loss: float
    tokens_per_second: float


def llama(config: ModelConfig, seed: int) -> Any:
    """`LlamaForCausalLM` of that shape, started as `transformers` does. `ConfigError` where the package is missing."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ConfigError(
            "the package 'transformers', whose Llama this is about, is missing; pip install -e .[bench]"
        ) from error
    for mechanism in ("mod", "latent", "memory"):
        check(not config.on(mechanism), f"{mechanism} is on, and a Llama has none; leave its options out")
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "max_position_embeddings": config.max_seq_len,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": EPSILON,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
    }
    return LlamaForCausalLM(LlamaConfig(**shape))


def copy_weights(ours: LAHR, theirs: nn.Module) -> None:
    """Gives `theirs` every weight of `ours`; both must be of one shape. Ours fuses q, k, v, and gate with up."""
    mine = ours.state_dict()
    state = {
        "model.embed_tokens.weight": mine["embedding.weight"],
        "lm_head.weight": mine["embedding.weight"],
        "model.norm.weight": mine["norm.weight"],
    }
    for i in range(ours.config.n_layers):
        block, layer = f"blocks.{i}", f"model.layers.{i}"
        q, k, v = mine[f"{block}.attention.qkv.weight"].chunk(3)
        gate, up = mine[f"{block}.feed_forward.gate_up.weight"].chunk(2)
        state |= {
            f"{layer}.input_layernorm.weight": mine[f"{block}.attention_norm.weight"],
            f"{layer}.self_attn.q_proj.weight": q,
            f"{layer}.self_attn.k_proj.weight": k,
            f"{layer}.self_attn.v_proj.weight": v,
            f"{layer}.self_attn.o_proj.weight": mine[f"{block}.attention.out.weight"],
            f"{layer}.post_attention_layernorm.weight": mine[f"{block}.feed_forward_norm.weight"],
            f"{layer}.mlp.gate_proj.weight": gate,
            f"{layer}.mlp.up_proj.weight": up,
            f"{layer}.mlp.down_proj.weight": mine[f"{block}.feed_forward.down.weight"],
        }
    theirs.load_state_dict(state)


def train_ours(config: TrialConfig, data: TokenData, advance: Advance) -> Outcome:
    """Trains the `base` cell with the project's loop."""
    done = 0
    for record in train(config, data, Runtime()):
        advance(record.step - done)
        done = record.step
    return Outcome(record.metrics.get("val_loss", math.nan), record.tokens / record.seconds)


def train_llama(model: Any, config: TrialConfig, data: TokenData, advance: Advance) -> Outcome:
    """Trains `model` as `lahr.training.loop` trains ours, written out once more."""
    chosen = config.train
    torch.set_num_threads(Runtime().threads)
    named = dict(model.named_parameters())  # the head is the embedding, and is in it once
    decayed = [name for name, parameter in named.items() if parameter.ndim >= 2 and "embed" not in name]
    groups: list[dict[str, Any]] = [
        {"params": [named[name] for name in decayed], "weight_decay": chosen.weight_decay},
        {"params": [parameter for name, parameter in named.items() if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=chosen.lr, betas=(chosen.beta1, chosen.beta2), fused=True)
    batches = Batches(data.train, chosen.batch_size, config.seed)

    def nats(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())

    model.train()
    started = time.perf_counter()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(chosen, step, config.steps)
        nats(*batches.batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        advance(1)
    seconds = time.perf_counter() - started

    model.eval()
    inputs_NT, targets_NT, *_ = data.windows
    with torch.no_grad():  # window by window: every one has as many tokens
        losses = [nats(*pair).item() for pair in zip(inputs_NT.split(1), targets_NT.split(1), strict=True)]
    return Outcome(float(np.mean(losses)), config.steps * config.tokens_per_step / seconds)


@torch.no_grad()
def logits_apart(ours: LAHR, theirs: Any, tokens_BT: Tensor) -> float:
    """The largest difference of the two models' logits."""
    return float((ours(tokens_BT) - theirs(input_ids=tokens_BT, use_cache=False).logits).abs().max())


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t-interval of paired differences; the interval is NaN for one."""
    n = len(differences)
    mean = float(np.mean(differences))
    if n < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.isf(0.025, n - 1) * np.std(differences, ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def compare(options: Options, console: Console) -> list[tuple[float, list[Outcome]]]:
    """For each seed the logits' difference at the start, and the outcomes: ours, own start, our start."""
    precision, shape = choose_precision("cpu"), options.model
    trials = [TrialConfig(shape, options.data, options.train, seed, precision) for seed in range(options.seeds)]
    theirs = llama(shape, 0)  # before anything takes time: the package may be missing
    with console.status("") as status:
        data = prepare(
            options.data,
            shape.vocab_size,
            shape.max_seq_len,
            Path(options.cache),
            lambda what, _: status.update(f"{what} …"),
        )
    tokens_BT = data.windows.inputs_NT[:8]
    size, their_size = (sum(p.numel() for p in model.parameters()) for model in (LAHR(shape), theirs))
    assert size == their_size, f"not the same shape: {size} and {their_size} parameters"
    console.print(
        f"{data.description}: {size:,} parameters each, {trials[0].steps} steps of {trials[0].tokens_per_step} tokens, "
        f"{options.data.validation_blocks} validation windows, {precision}",
        soft_wrap=True,
    )
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=3 * len(trials) * trials[0].steps)

        advance = partial(bar.advance, task)
        for config in trials:
            bar.update(task, description=f"seed {config.seed}, ours")
            outcomes = [train_ours(config, data, advance)]
            bar.update(task, description=f"seed {config.seed}, own start")
            outcomes.append(train_llama(llama(shape, config.seed), config, data, advance))
            bar.update(task, description=f"seed {config.seed}, our start")
            start, theirs = LAHR(shape, config.seed), llama(shape, config.seed)
            copy_weights(start, theirs)
            apart = logits_apart(start.eval(), theirs.eval(), tokens_BT)
            outcomes.append(train_llama(theirs, config, data, advance))
            check(
                all(math.isfinite(outcome.loss) for outcome in outcomes),
                f"seed {config.seed} diverged: {[outcome.loss for outcome in outcomes]}; give a lower --train.lr",
            )
            results.append((apart, outcomes))
    return results


def main(argv: list[str]) -> int:
    """Trains all, and prints a table of the seeds and the paired differences."""
    options = parse(Options, argv, Options.of, "python benchmarks/quality.py")
    check(options.seeds >= 1, f"seeds is {options.seeds}; it must be at least 1")
    console = Console()
    results = compare(options, console)
    table = Table("seed", "ours", "own start", "ours − own", "our start", "ours − our", "at start", box=MARKDOWN)
    for seed, (apart, (ours, own, same)) in enumerate(results):
        losses = [f"{outcome.loss:.4f}" for outcome in (ours, own, same)]
        own_less, same_less = f"{ours.loss - own.loss:+.4f}", f"{ours.loss - same.loss:+.1e}"
        table.add_row(str(seed), losses[0], losses[1], own_less, losses[2], same_less, f"{apart:.1e}")
    console.print(table)
    for i, start in ((1, "its own start"), (2, "our start")):
        pairs = [(outcomes[0], outcomes[i]) for _, outcomes in results]
        mean, low, high = interval([ours.loss - theirs.loss for ours, theirs in pairs])
        faster = math.exp(np.mean([math.log(a.tokens_per_second / b.tokens_per_second) for a, b in pairs]))
        console.print(
            f"ours − Llama from {start}: {mean:+.3g} nats a token, 95 % interval {low:+.3g} to {high:+.3g}, "
            f"{len(pairs)} pairs; tokens/s {faster:.2f} of Llama's",
            soft_wrap=True,
        )
    return 0


if __name__ == "__main__":
    run(main, "stopped; nothing is kept")
