"""A training step beside what a user would take instead: `transformers`' Llama, `x-transformers`, the bare products.

    pip install -e .[bench]
    python benchmarks/steps.py                              # one thread of this processor
    python benchmarks/steps.py --device cuda --preset small

All have one shape, vocabulary, batch, type, number of threads and optimiser, and random tokens; the Llama has as many
parameters as ours. A step is forward, backward, clipping and AdamW. `products` are the matrix products of a step's
forward and backward passes at the model's own shapes, and nothing else: what is left to gain. Model FLOPs are those
of `lahr.model.flops`: three times the forward pass, causal attention at half the square.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from protocol import Contestant, Figure, Goal, Section, figure, measure, ratio, table
from quality import llama
from rich.console import Console
from torch import Tensor, nn

from lahr.config import TrainConfig
from lahr.model import LAHR
from lahr.model.flops import training_flops_per_token
from lahr.model_config import ModelConfig
from lahr.presets import PRESETS
from lahr.training.compilation import compile_parts
from lahr.training.optimizer import build_optimizer
from lahr.training.runtime import choose_precision, prepare_process

OURS, RIVAL = "ours, compiled", "transformers Llama, compiled"
SHAPE = ModelConfig(vocab_size=8192, d_model=256, n_layers=8, n_heads=8, max_seq_len=512)


@dataclass(frozen=True)
class Options:
    """What to time."""

    preset: str | None = None
    """A preset's `base`; by default 256 wide, 8 layers, 8 heads, a vocabulary of 8,192, 512 tokens."""
    batch: int = 4
    """Windows a step."""
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    """Of cells.py: whether the cells are compiled, as long trials are. Here ours is timed both ways."""

    @property
    def suffix(self) -> str:
        """To tell what is kept of another device or shape."""
        return "" if (self.device, self.preset) == ("cpu", None) else f"-{self.device}-{self.preset or 'default'}"


@dataclass(frozen=True)
class Setting:
    """Where a step runs."""

    device: str
    bf16: bool

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
        """One step of training."""
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def ours(
    config: ModelConfig, batch: int, setting: Setting, name: str = "ours", compiled: bool = False
) -> Contestant:
    """A cell of ours; routers observe, as in the loop."""
    model = LAHR(config, seed=0)
    if compiled:
        compile_parts(model)
    model.to(setting.device)
    optimizer = build_optimizer(model, TrainConfig(tokens=1, batch_size=1))
    tokens_BT = tokens(config, batch, setting)

    def step() -> None:
        seen: list[Tensor] = []

        def loss() -> Tensor:
            output = model(tokens_BT, tokens_BT)
            if output.causal_scores_LBT is not None:
                seen.append(output.causal_scores_LBT)
            return output.loss

        setting.step(model, optimizer, loss)
        for scores_LBT in seen:
            model.observe(scores_LBT)

    return Contestant(name, step, tokens_BT.numel())


def transformers_llama(config: ModelConfig, batch: int, setting: Setting, compiled: bool) -> Contestant:
    """`LlamaForCausalLM` as it comes, with its own loss."""
    model = llama(config, seed=0).to(setting.device)
    whole: Any = torch.compile(model, dynamic=False) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens_BT = tokens(config, batch, setting)
    run = lambda: setting.step(model, optimizer, lambda: whole(input_ids=tokens_BT, labels=tokens_BT).loss)  # noqa: E731
    return Contestant(f"transformers Llama{', compiled' * compiled}", run, tokens_BT.numel())


def x_transformers(config: ModelConfig, batch: int, setting: Setting, compiled: bool) -> Contestant:
    """The decoder of `x-transformers` with the same parts: RMS norm, rotary, SwiGLU, tied head, no biases."""
    from x_transformers import Decoder, TransformerWrapper

    made = TransformerWrapper(
        num_tokens=config.vocab_size,
        max_seq_len=config.max_seq_len,
        tie_embedding=True,
        use_abs_pos_emb=False,
        attn_layers=Decoder(
            dim=config.d_model,
            depth=config.n_layers,
            heads=config.n_heads,
            attn_dim_head=config.head_dim,
            rotary_pos_emb=True,
            use_rmsnorm=True,
            ff_glu=True,
            ff_swish=True,
            ff_no_bias=True,
            ff_mult=config.hidden_dim / config.d_model,
            attn_flash=True,
        ),
    ).to(setting.device)
    whole: Any = torch.compile(made, dynamic=False) if compiled else made
    optimizer = torch.optim.AdamW(made.parameters(), fused=True)
    tokens_BT = tokens(config, batch, setting)

    def loss() -> Tensor:
        return F.cross_entropy(whole(tokens_BT).flatten(0, 1).float(), tokens_BT.flatten())

    run = lambda: setting.step(made, optimizer, loss)  # noqa: E731
    return Contestant(f"x-transformers{', compiled' * compiled}", run, tokens_BT.numel())


def products(config: ModelConfig, batch: int, setting: Setting) -> Contestant:
    """Every product of a step with a weight, in sequence, at no other cost; its amount is FLOPs."""
    d, hidden, rows = config.d_model, config.hidden_dim, batch * config.max_seq_len
    shapes = [(d, 3 * d), (d, d), (d, 2 * hidden), (hidden, d)] * config.n_layers + [(d, config.vocab_size)]
    made: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    for d_in, d_out in set(shapes):
        sizes = ((rows, d_in), (d_out, d_in), (rows, d_out))
        made[d_in, d_out] = tuple(torch.randn(*s, device=setting.device).to(dtype) for s in sizes)  # type: ignore[assignment]

    def run() -> None:
        for shape in shapes:
            x, w, grad = made[shape]
            F.linear(x, w)
            torch.mm(grad, w)
            torch.mm(grad.T, x)

    return Contestant("products", run, sum(3 * 2 * rows * a * b for a, b in shapes))


def tokens(config: ModelConfig, batch: int, setting: Setting) -> Tensor:
    """Random ones, (batch, T)."""
    made = torch.randint(config.vocab_size, (batch, config.max_seq_len), generator=torch.Generator().manual_seed(0))
    return made.to(setting.device)


def setting_of(options: Options) -> Setting:
    """Where and how the contestants run, with the threads set."""
    prepare_process(options.device, options.threads)
    precision = choose_precision(options.device) if options.precision == "auto" else options.precision
    return Setting(options.device, precision == "bf16")


def section(options: Options, console: Console) -> Section:
    """Measures."""
    config = PRESETS[options.preset].model if options.preset else SHAPE
    setting = setting_of(options)
    given = config, options.batch, setting
    contestants = [
        ours(*given),
        ours(*given, OURS, compiled=True),
        *(make(*given, compiled) for make in (transformers_llama, x_transformers) for compiled in (False, True)),
        products(*given),
    ]
    rates = measure(contestants, console=console)
    flops = training_flops_per_token(config)
    reached = [a * flops / b for a, b in zip(rates[OURS], rates["products"], strict=True)]
    share, against = figure(reached), ratio(rates, OURS, RIVAL)
    most = against.value / share.value
    rows = [
        (name, f"{figure(rate).value:,.0f}", *ratios(rates, name))
        for name, rate in rates.items()
        if name != "products"
    ]
    kind = "bf16" if setting.bf16 else "fp32"
    text = (
        f"{config.d_model} wide, {config.n_layers} layers, {config.n_heads} heads, vocabulary {config.vocab_size:,}, "
        f"{options.batch} × {config.max_seq_len} tokens, {kind}, {options.threads} threads of {options.device}.\n\n"
        + table(("", "tokens/s", "ours, compiled, is so many times as fast"), rows)
        + f"\n\nThe products alone run at {figure(rates['products']).value / 1e9:,.0f} GFLOP/s; ours, compiled, "
        f"reaches {share} of that rate in model FLOPs."
    )
    goals = (
        Goal(
            f"`base` against compiled `transformers` Llama, tokens/s, {kind}", "≥ 1.5×", f"{against}×",
            against.value >= 1.5,
            "A step of nothing but its model FLOPs, attention's too, all at the rate of products with weights, would "
            f"be {most:.2f}× as fast as that Llama in {kind}: that is the bound.",
        ),
        Goal(f"share of the machine's own {kind} matrix rate", "≥ 0.5", str(share), share.value >= 0.5),
    )  # fmt: skip
    return Section("A training step", text, goals)


def ratios(rates: dict[str, list[float]], name: str) -> tuple[Figure | str]:
    """What stands in the last column."""
    return (ratio(rates, OURS, name) if name != OURS else "",)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    found = section(options, Console(stderr=True))
    found.save("steps" + options.suffix)
    print(found.text)
