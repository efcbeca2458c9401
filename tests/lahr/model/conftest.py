"""The eight cells at a size where float64 is quick, and models of them in the states that the properties need."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import reject
from hypothesis import strategies as st

from lahr.errors import ConfigError
from lahr.model import LAHR
from lahr.model_config import ModelConfig

BASE = ModelConfig(
    vocab_size=61,
    d_model=32,
    n_layers=4,
    n_heads=4,
    max_seq_len=24,
    memory_heads=2,
    memory_top_k=3,
    memory_key_dim=12,
)
ON = {"mod": {"mod_capacity": 0.25}, "latent": {"latent_iterations": 3}, "memory": {"memory_slots": 64}}
CELLS = {
    "+".join(names) or "base": replace(BASE, **{k: v for name in names for k, v in ON[name].items()})
    for names in (
        tuple(n for n, on in zip(ON, switches, strict=True) if on) for switches in product((0, 1), repeat=3)
    )
}

FULL = CELLS["mod+latent+memory"]
GATE = {"latent_halting": "gate", "latent_mode": "sampled", "latent_exit": 0.7}
OPTIONS = {
    "router threshold": replace(FULL, mod_router="threshold"),
    "router random": replace(FULL, mod_router="random"),
    "gate raw": replace(FULL, mod_gate="raw"),
    "router losses": replace(FULL, mod_balance_loss=0.1, mod_z_loss=0.1),
    "passes sampled": replace(FULL, latent_mode="sampled"),
    "exit gate": replace(FULL, **GATE),
    "act": replace(FULL, latent_halting="act"),
    "core of 2 in the middle": replace(FULL, latent_core_layers=2, latent_layer=2),
    "act, core of 2 in the middle": replace(FULL, latent_core_layers=2, latent_layer=2, latent_halting="act"),
    "latent capacity": replace(FULL, latent_capacity=0.3),
    "latent capacity, threshold": replace(FULL, latent_capacity=0.3, mod_router="threshold", mod_capacity=1.0),
    "universal transformer": replace(CELLS["latent"], n_layers=0, latent_halting="act"),
    "slots": replace(FULL, memory_kind="slots", memory_slots=30),
    "normalised queries and keys": replace(FULL, qk_norm=True),
    "normalised, act, core of 2": replace(FULL, qk_norm=True, latent_core_layers=2, latent_halting="act"),
    "zero start": replace(FULL, zero_init=True),
    "zero start, routed core": replace(FULL, zero_init=True, latent_capacity=0.3),
    "slots at the end": replace(FULL, memory_kind="slots", memory_slots=30, memory_layer=4),
}
KNN = {"knn": replace(FULL, memory_kind="knn", memory_slots=40, memory_top_k=5)}
KNN["knn, normalised"] = replace(KNN["knn"], qk_norm=True, zero_init=True)
"""Apart, since it remembers nothing without segments."""

Build = Callable[..., LAHR]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Times and sums that do not depend on how many cores there are."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cells() -> dict[str, ModelConfig]:
    return CELLS


@pytest.fixture(params=list(CELLS))
def cell(request: pytest.FixtureRequest) -> ModelConfig:
    """Each cell's configuration in turn."""
    return CELLS[request.param]


@pytest.fixture(params=[*CELLS, *OPTIONS])
def variant(request: pytest.FixtureRequest) -> ModelConfig:
    """Each cell and each option of a mechanism in turn."""
    return {**CELLS, **OPTIONS}[request.param]


@pytest.fixture(params=[*CELLS, *OPTIONS, *KNN])
def every(request: pytest.FixtureRequest) -> ModelConfig:
    """Each variant, and the kNN memory, which has nothing to remember in one segment."""
    return {**CELLS, **OPTIONS, **KNN}[request.param]


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    """Small models: any cell, any options that go together."""
    heads = draw(st.integers(1, 3))
    fields = {
        "vocab_size": 61,
        "d_model": heads * 2 * draw(st.integers(1, 4)),
        "n_layers": draw(st.integers(0, 4)),
        "n_heads": heads,
        "max_seq_len": 24,
        "mod_capacity": draw(st.sampled_from([1.0, 0.6, 0.25, 0.05])),
        "mod_router": draw(st.sampled_from(["top_k", "threshold", "random"])),
        "mod_gate": draw(st.sampled_from(["sigmoid", "raw"])),
        "mod_balance_loss": draw(st.sampled_from([0.0, 0.1])),
        "mod_z_loss": draw(st.sampled_from([0.0, 0.1])),
        "latent_iterations": draw(st.integers(0, 4)),
        "latent_mode": draw(st.sampled_from(["fixed", "sampled"])),
        "latent_core_layers": draw(st.integers(1, 2)),
        "latent_layer": draw(st.sampled_from([None, 0, 2])),
        "latent_halting": draw(st.sampled_from(["none", "none", "gate", "act"])),
        "latent_exit": draw(st.sampled_from([0.3, 0.7, 1.0])),
        "latent_capacity": draw(st.sampled_from([1.0, 1.0, 0.3])),
        "memory_slots": draw(st.sampled_from([0, 9, 25])),
        "memory_kind": draw(st.sampled_from(["product_key", "slots", "knn"])),
        "memory_heads": draw(st.integers(1, 3)),
        "memory_top_k": draw(st.integers(1, 3)),
        "memory_key_dim": draw(st.sampled_from([2, 6])),
        "memory_layer": draw(st.sampled_from([None, 0, 1, 2])),
        "qk_norm": draw(st.booleans()),
        "zero_init": draw(st.booleans()),
    }
    try:
        return ModelConfig(**fields)
    except ConfigError:
        reject()


@pytest.fixture(scope="session")
def tokens_BT() -> torch.Tensor:
    return torch.randint(0, BASE.vocab_size, (5, BASE.max_seq_len), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def targets_BT() -> torch.Tensor:
    return torch.randint(0, BASE.vocab_size, (5, BASE.max_seq_len), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def awake(tokens_BT: torch.Tensor) -> Build:
    """A model in float64 with every mechanism at work: nothing at its zero start, causal thresholds observed."""

    def build(config: ModelConfig, seed: int = 0) -> LAHR:
        model = LAHR(config, seed).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.15 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            if model.routers:
                scores = model.train()(tokens_BT, tokens_BT).causal_scores_LBT
                assert scores is not None
                # A little lower, for the quantile is one of the scores: another order of sums would decide a tie.
                model.observe(scores - 1e-7)
        return model.eval()

    return build
