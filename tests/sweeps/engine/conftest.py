"""A small design on the small corpus."""

from collections.abc import Callable

import pytest

from lahr.data import TokenData
from sweeps.engine.design import Design, Extra, Factor
from tests.conftest import TINY

FACTORS = (
    Factor("mod", "mod_capacity", 1.0, (0.25,)),
    Factor("latent", "latent_iterations", 0, (2,)),
    Factor("memory", "memory_slots", 0, (64,)),
)


@pytest.fixture
def make_design(tiny_data: TokenData) -> Callable[..., Design]:
    def build(seeds: int = 2, factors: tuple[Factor, ...] = FACTORS, extras: tuple[Extra, ...] = ()) -> Design:
        return Design(factors, TINY, tiny_data.content_hash, seeds, extras)

    return build
