"""What the tests of training and of sweeps share: a small corpus, prepared once, and configurations on it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.data import TokenData, prepare
from lahr.model_config import ModelConfig
from lahr.presets import with_levels

LEVELS = {"mod": {"mod_capacity": 0.25}, "latent": {"latent_iterations": 2}, "memory": {"memory_slots": 64}}
CELLS = ("base", "mod", "latent", "memory", "mod+latent", "mod+memory", "latent+memory", "mod+latent+memory")
TINY = TrialConfig(
    ModelConfig(
        vocab_size=300, d_model=16, n_layers=2, n_heads=2, max_seq_len=32, memory_heads=1, memory_top_k=2,
        memory_key_dim=8,
    ),
    # Small enough that a trial of 24 steps reads its corpus more than once.
    DataConfig(train_tokens=1_600, validation_blocks=8),
    TrainConfig(tokens=24 * 4 * 32, batch_size=4, lr=3e-3, evaluations=3, checkpoints=4, log_points=8),
)  # fmt: skip

Tiny = Callable[..., TrialConfig]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_data(cache: Path) -> TokenData:
    return prepare(TINY.data, TINY.model.vocab_size, TINY.model.max_seq_len, cache)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """A trial's configuration at a size that trains in a fraction of a second."""

    def build(cell: str = "base", seed: int = 0, precision: str = "fp32", **train: object) -> TrialConfig:
        levels = {k: v for name in cell.split("+") if name != "base" for k, v in LEVELS[name].items()}
        return replace(
            TINY,
            model=with_levels(TINY.model, levels),
            train=replace(TINY.train, **train),
            seed=seed,
            precision=precision,
        )

    return build
