"""The eight cells at a size where float64 is quick, and models of them in the states that the properties need."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch

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
            if config.mod_capacity < 1:
                logits = model.train()(tokens_BT, tokens_BT).causal_scores_LBT
                assert logits is not None
                model.observe(logits)
        return model.eval()

    return build
