"""What each mechanism costs beside its FLOPs: a training step of every cell, in turn with `base`.

    python benchmarks/cells.py
    python benchmarks/cells.py --device cuda --preset small --batch 64

The bound of a cell is the ratio of training FLOPs, `base` over the cell, in the useful convention of
`lahr.model.flops`: what its speed over `base` would be if all of its FLOPs ran as fast as those of `base`.
"""

from dataclasses import replace

import tyro
from protocol import Figure, Goal, Section, figure, measure, ratio, table
from rich.console import Console
from steps import SHAPE, Options, ours, setting_of

from lahr.model.flops import training_flops_per_token
from lahr.model_config import ModelConfig
from lahr.plain import changed
from lahr.presets import PRESETS

ON = {"mod": "mod_capacity", "latent": "latent_iterations", "memory": "memory_slots"}
FAST = "full, latent_capacity 0.125"


def cells(shape: ModelConfig, preset: str) -> dict[str, ModelConfig]:
    """`base`, each mechanism, the full model, and that with few tokens in the deeper passes."""
    on = PRESETS[preset].on

    def cell(name: str) -> ModelConfig:
        return changed(shape, {ON[part]: on[ON[part]] for part in name.split("+") if part in ON})

    made = {name: cell(name) for name in ("base", "mod", "latent", "memory", "mod+latent+memory")}
    return {**made, FAST: replace(made["mod+latent+memory"], latent_capacity=0.125)}


def section(options: Options, console: Console) -> Section:
    """Measures."""
    shape, setting = PRESETS[options.preset].model if options.preset else SHAPE, setting_of(options)
    configs = cells(shape, options.preset or "quick")
    made = [ours(c, options.batch, setting, name, options.compile) for name, c in configs.items()]
    rates = measure(made, console=console)
    flops = {name: training_flops_per_token(config) for name, config in configs.items()}
    bounds = {name: flops["base"] / cost for name, cost in flops.items()}
    faster = {name: ratio(rates, name, "base") for name in configs}
    reached = {name: _times(figure_, 1 / bounds[name]) for name, figure_ in faster.items()}
    extra = figure([b / m - 1 / bounds["memory"] for b, m in zip(rates["base"], rates["memory"], strict=True)])
    rows = [
        (name, f"{figure(rates[name]).value:,.0f}", faster[name], f"{bounds[name]:.3g}", reached[name])
        for name in configs
    ]
    text = table(("cell", "tokens/s", "times `base`", "bound by FLOPs", "of the bound"), rows)
    full, mod = "mod+latent+memory", reached["mod"]
    goals = (
        Goal("speed of `mod` over `base`, of its FLOP bound", "≥ 0.95", str(mod), mod.value >= 0.95),
        Goal(
            "full LAHR with `latent_capacity` against `base`, tokens/s", "≥ 1.0×",
            f"{faster[FAST]}×", faster[FAST].value >= 1,
        ),
        Goal("full LAHR against `base`, of its FLOP ratio", "≥ 0.9", str(reached[full]), reached[full].value >= 0.9),
        Goal("memory's cost beyond its FLOPs, of a step", "≤ 0.1", str(extra), extra.value <= 0.1),
    )  # fmt: skip
    return Section("What the mechanisms cost", text, goals)


def _times(of: Figure, factor: float) -> Figure:
    return Figure(*(value * factor for value in of))


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    found = section(options, Console(stderr=True))
    found.save("cells" + options.suffix)
    print(found.text)
