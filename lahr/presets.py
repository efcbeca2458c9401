"""The presets: sizes to run at, and the levels that turn each mechanism on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lahr.config import DataConfig, TrainConfig
from lahr.errors import check, nearest
from lahr.model_config import ModelConfig
from lahr.probe_presets import PROBES


@dataclass(frozen=True)
class Preset:
    """A size to run at: configurations with every mechanism off, and the levels that turn each one on."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    on: Mapping[str, float | int] = field(
        default_factory=lambda: {"mod_capacity": 0.125, "latent_iterations": 4, "memory_slots": 4096}
    )


PRESETS: dict[str, Preset] = {
    "smoke": Preset(
        ModelConfig(vocab_size=512, d_model=64, n_layers=2, n_heads=2, max_seq_len=128, memory_key_dim=64),
        DataConfig(train_tokens=200_000, validation_blocks=32),
        TrainConfig(tokens=61_440, batch_size=8, lr=5e-3, evaluations=4, checkpoints=2, log_points=10),
        {"mod_capacity": 0.125, "latent_iterations": 2, "memory_slots": 256},
    ),
    "quick": Preset(
        ModelConfig(vocab_size=1024, d_model=128, n_layers=4, n_heads=4, max_seq_len=256),
        # So few windows add 6 to 37 % to the variance that seeds give a paired difference (docs/notebook.md).
        DataConfig(train_tokens=2_000_000, validation_blocks=20),
        # What fits 40 trials into 15 minutes on two cores without bf16, and the small steps that make the most of it.
        TrainConfig(tokens=163_840, batch_size=2, lr=6e-3, warmup=0.2, evaluations=3),
    ),
    "small": Preset(
        ModelConfig(vocab_size=4096, d_model=384, n_layers=10, n_heads=6, max_seq_len=512),
        DataConfig(train_tokens=400_000_000, validation_blocks=512),
        TrainConfig(tokens=400_000_000, batch_size=64, lr=1e-3, warmup=0.02, evaluations=40, checkpoints=20),
    ),
    "paper": Preset(
        ModelConfig(vocab_size=50_257, d_model=256, n_layers=8, n_heads=8, max_seq_len=512, memory_kind="slots"),
        DataConfig(corpus="tinystories", tokenizer="gpt2", train_tokens=500_000_000, validation_blocks=512),
        TrainConfig(tokens=163_840_000, batch_size=32, lr=3e-4, final_lr=0.1, evaluations=40, checkpoints=20),
        {"mod_capacity": 0.125, "latent_iterations": 4, "memory_slots": 128},
    ),
    "base": Preset(
        ModelConfig(vocab_size=50_257, d_model=768, n_layers=12, n_heads=12, max_seq_len=1024),
        DataConfig(corpus="tinystories", tokenizer="gpt2", train_tokens=2_500_000_000, validation_blocks=512),
        TrainConfig(tokens=2_500_000_000, batch_size=256, lr=6e-4, warmup=0.02, evaluations=50, checkpoints=50),
        {"mod_capacity": 0.125, "latent_iterations": 4, "memory_slots": 65_536},
    ),
    **{name: Preset(*parts) for name, parts in PROBES.items()},
}


def preset(name: str) -> Preset:
    """The preset of that name; an unknown one is a `ConfigError` that names the nearest."""
    allowed = ", ".join(PRESETS)
    check(name in PRESETS, f"unknown preset {name!r}{nearest(name, list(PRESETS))}; allowed: {allowed}")
    return PRESETS[name]
