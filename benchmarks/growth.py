"""How a step's time grows with the window, the width, the layers, the slots and the iterations.

    python benchmarks/growth.py

Each is varied alone, at as many tokens a step. An exponent is the slope of log seconds over log size between the two
largest sizes, beside that of the training FLOPs (`lahr.model.flops`): where both agree, time grows as the work does.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import tyro
from protocol import Contestant, Goal, Section, figure, measure, table
from rich.console import Console
from steps import SHAPE, Options, Setting, ours, products, setting_of

from lahr.model.flops import training_flops_per_token
from lahr.model.layers import causal_attention
from lahr.model_config import ModelConfig

TOKENS, ROUNDS_EACH, NEAR = 4096, 3, 0.2
VARIED: dict[str, tuple[int, ...]] = {
    "max_seq_len": (128, 512, 2048, 4096),
    "d_model": (128, 256, 512),
    "n_layers": (4, 8, 16),
    "memory_slots": (1024, 4096, 16384),
    "latent_iterations": (2, 4, 8),
}


def shapes(field: str) -> list[ModelConfig]:
    """The shape with that field at each of its sizes; heads stay 32 wide."""
    return [
        replace(SHAPE, **{field: size}, n_heads=size // 32 if field == "d_model" else SHAPE.n_heads)
        for size in VARIED[field]
    ]


def attention(config: ModelConfig, batch: int, setting: Setting) -> Contestant:
    """Causal attention of every layer and nothing else, forward and backward."""
    shape = (3, batch, config.n_heads, config.max_seq_len, config.head_dim)
    noise = torch.randn(shape, device=setting.device, dtype=torch.bfloat16 if setting.bf16 else torch.float32)
    qkv = noise.requires_grad_()

    def run() -> None:
        for _ in range(config.n_layers):
            causal_attention(*qkv).sum().backward()
        qkv.grad = None

    return Contestant("attention", run, batch * config.max_seq_len)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope between the two largest sizes."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def section(options: Options, console: Console) -> Section:
    """Measures."""
    setting, rows, alone, apart = setting_of(options), [], [], dict[str, float]()
    parts = {"max_seq_len": ("attention", attention), "d_model": ("products", products)}
    for field, sizes in VARIED.items():
        configs = dict(zip(map(str, sizes), shapes(field), strict=True))
        batches = {name: TOKENS // config.max_seq_len for name, config in configs.items()}
        contestants = [ours(c, batches[name], setting, name) for name, c in configs.items()]
        seconds = _seconds(contestants, console)
        flops = [training_flops_per_token(config) for config in configs.values()]
        time, work = exponent(sizes, seconds), exponent(sizes, flops)
        apart[field] = abs(time - work)
        rows.append((field, _each(sizes, seconds), f"{time:.2f}", f"{work:.2f}"))
        if field in parts:
            part, make = parts[field]
            made = [make(c, batches[name], setting) for name, c in configs.items()]
            took = _seconds([replace(each, name=name) for name, each in zip(configs, made, strict=True)], console)
            alone.append((f"{part} alone, by {field}", _each(sizes, took), f"{exponent(sizes, took):.2f}"))
    text = (
        f"{TOKENS} tokens a step.\n\n"
        + table(("", "seconds a step", "exponent", "of FLOPs"), rows)
        + "\n\nWhere time does not grow as FLOPs do, the part that it lies in grows so by itself:\n\n"
        + table(("", "seconds a step", "exponent"), alone)
        + "\n\nWith the window, attention grows: its products are as narrow as a head, which run at a part of the rate "
        "of the others, and its softmax over all scores counts no FLOPs. With the width, products grow as FLOPs do; "
        "norms, gates and attention's softmax grow with the width alone, or with the number of heads. Slots are "
        "searched by their square root. The embedding, the head and the optimiser are there at any number of layers "
        "and passes."
    )
    what = "step time over T, width, layers, slots, iterations"
    far = [field for field, distance in apart.items() if distance > NEAR]
    got = f"{max(apart.values()):.2f} from FLOPs' at most" + f"; {', '.join(far)} explained below" * bool(far)
    goal = f"exponents of FLOPs ± {NEAR}, or explained"
    why = "Its time does not grow as its FLOPs do, and what it lies in was not measured."
    return Section("Growth", text, (Goal(what, goal, got, set(far) <= parts.keys(), why),))


def _seconds(contestants: Sequence[Contestant], console: Console) -> list[float]:
    """Of a step, each."""
    tokens = [replace(each, amount=TOKENS) for each in contestants]
    return [TOKENS / figure(rate).value for rate in measure(tokens, ROUNDS_EACH, console).values()]


def _each(sizes: Sequence[int], seconds: Sequence[float]) -> str:
    return ", ".join(f"{size}: {s:.2f} s" for size, s in zip(sizes, seconds, strict=True))


if __name__ == "__main__":
    found = section(tyro.cli(Options, description=__doc__), Console(stderr=True))
    found.save("growth")
    print(found.text)
