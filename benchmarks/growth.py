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
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    qkv = torch.randn(shape, device=setting.device, dtype=dtype, requires_grad=True)

    def run() -> None:
        for _ in range(config.n_layers):
            causal_attention(*qkv).sum().backward()
        qkv.grad = None

    scores = batch * config.n_heads * config.max_seq_len**2 / 2  # those that are seen
    return Contestant("attention", run, config.n_layers * 3 * 4 * scores * config.head_dim)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope between the two largest sizes."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def section(options: Options, console: Console) -> Section:
    """Measures."""
    setting, rows, alone = setting_of(options), [], []
    apart, known = dict[str, float](), dict[str, bool]()
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
            rest = [whole - part for whole, part in zip(seconds, took, strict=True)]
            grows, ought = exponent(sizes, took), exponent(sizes, [each.amount for each in made])
            known[field] = abs(grows - ought) <= NEAR
            alone += [
                (f"{field}: {part} alone", _each(sizes, took), f"{grows:.2f}", f"{ought:.2f}"),
                (f"{field}: the rest of a step", _each(sizes, rest), f"{exponent(sizes, rest):.2f}", ""),
            ]
    text = (
        f"{TOKENS} tokens a step.\n\n"
        + table(("", "seconds a step", "exponent", "of FLOPs"), rows)
        + "\n\nWhat of a step its FLOPs are in, by itself, and what is left of the step without it:\n\n"
        + table(("", "seconds a step", "exponent", "of FLOPs"), alone)
        + "\n\nAttention's products are as narrow as a head, and its softmax counts no FLOPs. Beside the products are "
        "norms, gates and attention, which grow with the width or the number of heads alone. Slots are searched by "
        "their square root. The embedding, the head and the optimiser are there at any number of layers and passes."
    )
    what = "step time over T, width, layers, slots, iterations"
    far = [field for field, distance in apart.items() if distance > NEAR]
    explained = all(known.get(field, False) for field in far)
    got = f"{max(apart.values()):.2f} from FLOPs' at most" + f"; {', '.join(far)}" * bool(far)
    got += ": it lies in the rest" * (bool(far) and explained)
    goal = f"exponents of FLOPs ± {NEAR}, or those of the products are"
    why = "Time does not grow as FLOPs do, nor does that of the products alone."
    return Section("Growth", text, (Goal(what, goal, got, explained, why),))


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
