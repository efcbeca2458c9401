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
    setting, rows, agree = setting_of(options), [], True
    for field, sizes in VARIED.items():
        configs = dict(zip(map(str, sizes), shapes(field), strict=True))
        rates = measure(
            [ours(c, TOKENS // c.max_seq_len, setting, name) for name, c in configs.items()], ROUNDS_EACH, console
        )
        seconds = [TOKENS / figure(rate).value for rate in rates.values()]
        flops = [training_flops_per_token(config) for config in configs.values()]
        time, work = (math.log(x[-1] / x[-2]) / math.log(sizes[-1] / sizes[-2]) for x in (seconds, flops))
        agree &= abs(time - work) < 0.2
        each = ", ".join(f"{size}: {s:.2f} s" for size, s in zip(sizes, seconds, strict=True))
        rows.append((field, each, f"{time:.2f}", f"{work:.2f}"))
    text = f"{TOKENS} tokens a step.\n\n" + table(("", "seconds a step", "exponent", "of FLOPs"), rows)
    what = "step time over T, width, layers, slots, iterations"
    return Section("Growth", text, (Goal(what, "exponents as those of FLOPs ± 0.2", "see below", agree),))


if __name__ == "__main__":
    found = section(tyro.cli(Options, description=__doc__), Console(stderr=True))
    found.save("growth")
    print(found.text)
