"""Presets of the probes: small models on tasks with known answers, minutes a trial on one core.

Each is as large as its task needs to tell a model with the mechanism that the task is for from one without
(docs/probes.md has what they show).
"""

from typing import Any

from lahr.config import DataConfig, TrainConfig
from lahr.model_config import ModelConfig


def _model(vocab_size: int, max_seq_len: int, **shape: Any) -> ModelConfig:
    usual = {"d_model": 64, "n_layers": 2, "n_heads": 2, "memory_key_dim": 64}
    return ModelConfig(vocab_size=vocab_size, max_seq_len=max_seq_len, **{**usual, **shape})


def _data(probe: str, train_tokens: int, validation_blocks: int, segments: int = 1) -> DataConfig:
    return DataConfig(
        f"probe:{probe}",
        train_tokens=train_tokens,
        validation_blocks=validation_blocks,
        segments=segments,
        packing="documents",
    )


def _train(tokens: int, batch_size: int, lr: float = 3e-3, capacity_warmup: float = 0.0) -> TrainConfig:
    return TrainConfig(
        tokens=tokens,
        batch_size=batch_size,
        lr=lr,
        capacity_warmup=capacity_warmup,
        evaluations=10,
        checkpoints=1,
        log_points=20,
    )


_ON = {"mod_capacity": 0.125, "latent_iterations": 4, "memory_slots": 256}
"""What turns each mechanism on, where a probe asks for nothing else."""

PROBES = {
    "facts": (
        _model(324, 256, d_model=32, memory_key_dim=32),
        _data("facts,facts=16384", 8_000_000, 64),
        _train(8_000_000, 8),
        {**_ON, "memory_slots": 4096},
    ),
    "segments": (
        _model(640, 64, memory_kind="knn"),
        _data("segments", 2_000_000, 512, segments=4),
        _train(2_000_000, 32),
        {**_ON, "memory_slots": 192},
    ),
    "swaps": (
        _model(64, 32),
        _data("swaps,length=30", 12_000_000, 256),
        _train(12_000_000, 64),
        _ON,
    ),
    "hops": (
        _model(64, 128),
        _data("hops", 8_000_000, 128),
        _train(8_000_000, 16),
        _ON,
    ),
    "trees": (
        _model(64, 128),
        _data("trees", 4_000_000, 128),
        _train(4_000_000, 16),
        _ON,
    ),
    "selective": (
        _model(80, 128),
        _data("selective,asked=itself", 2_000_000, 128),
        # Without the warm-up learned routers choose none of the signals in most seeds (docs/probes.md).
        _train(2_000_000, 16, capacity_warmup=0.5),
        {**_ON, "mod_capacity": 0.1875},
    ),
    "prosqa": (
        # Its words' first is `<thought>`, after the end-of-text token. With this shape and rate steps began
        # to be learnt in the first stage by one seed in five (docs/probes.md).
        _model(136, 112, n_layers=4, thoughts="pause", thought_token=1),
        DataConfig("prosqa:questions=50000", train_tokens=40_000_000, validation_blocks=800, packing="documents"),
        TrainConfig(
            tokens=24_000_000,
            batch_size=32,
            lr=3e-3,
            warmup=0.02,
            first_stage=6,
            evaluations=5,
            checkpoints=1,
            log_points=40,
        ),
        _ON,
    ),
}
"""Model, data, training, and what turns each mechanism on."""
