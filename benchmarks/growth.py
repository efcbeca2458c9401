"""How a step's time grows with the window, the width, the layers, the slots and the iterations.

    python benchmarks/growth.py

Each is varied alone, at as many tokens a step. An exponent is the slope of log seconds over log size between the two
largest sizes, beside that of the training FLOPs (`lahr.model.flops`): where both agree, time grows as the work does.
"""

import math
from dataclasses import replace

import tyro
from protocol import Goal, Section, figure, measure, table
from rich.console import Console
from steps import SHAPE, Options, ours, setting_of

from lahr.model.flops import training_flops_per_token
from lahr.model_config import ModelConfig

TOKENS, ROUNDS_EACH = 4096, 3
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


def section(options: Options, console: Console) -> Section:
    """Measures."""
    setting, rows, worst = setting_of(options), [], 0.0
    for field, sizes in VARIED.items():
        configs = dict(zip(map(str, sizes), shapes(field), strict=True))
        rates = measure(
            [ours(c, TOKENS // c.max_seq_len, setting, name) for name, c in configs.items()], ROUNDS_EACH, console
        )
        seconds = [TOKENS / figure(rate).value for rate in rates.values()]
        flops = [training_flops_per_token(config) for config in configs.values()]
        time, work = (math.log(x[-1] / x[-2]) / math.log(sizes[-1] / sizes[-2]) for x in (seconds, flops))
        worst = max(worst, abs(time - work))
        each = ", ".join(f"{size}: {s:.2f} s" for size, s in zip(sizes, seconds, strict=True))
        rows.append((field, each, f"{time:.2f}", f"{work:.2f}"))
    text = (
        f"{TOKENS} tokens a step.\n\n"
        + table(("", "seconds a step", "exponent", "of FLOPs"), rows)
        + "\n\nWith the window, attention grows: its products are as narrow as a head, and its softmax over all scores "
        "counts no FLOPs, so time grows faster than FLOPs. With the width, products become squarer and what grows with "
        "the width alone (norms, gates) weighs less. Slots are searched by their square root. The embedding, the head "
        "and the optimiser are there at any number of layers and passes."
    )
    what, goal = "step time over T, width, layers, slots, iterations", "exponents of FLOPs ± 0.2"
    widest = f"{worst:.2f} apart at most"
    why = "It is the window's; attention is explained below."
    return Section("Growth", text, (Goal(what, goal, widest, worst <= 0.2, why),))


if __name__ == "__main__":
    found = section(tyro.cli(Options, description=__doc__), Console(stderr=True))
    found.save("growth")
    print(found.text)
