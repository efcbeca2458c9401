"""A made-up sweep with known effects (eight cells, seed blocks, curves that end at each trial's loss), a small design
on the small corpus, and one Ray."""

from collections.abc import Callable, Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lahr.data import TokenData
from sweeps.analysis.contrasts import switches
from sweeps.engine.design import Design
from sweeps.engine.factors import Extra, Factor
from tests.conftest import LEVELS, TINY

FACTORS = ("mod", "latent", "memory")
TRUTH = {"mod": 0.05, "latent": -0.12, "memory": -0.09, "latent:memory": 0.07}
TOKENS = 409_600


def cell_name(levels) -> str:
    return "+".join(f for f, on in zip(FACTORS, levels, strict=True) if on) or "base"


def make_trials(seeds=5, sigma=0.04, truth=TRUTH, rng=0) -> pd.DataFrame:
    """One row a finished trial; the truth is in the unit of effects (ON − OFF)."""
    generator = np.random.default_rng(rng)
    block = generator.normal(0, 0.06, seeds)
    rows = []
    for seed, levels in product(range(seeds), product((False, True), repeat=3)):
        on = dict(zip(FACTORS, levels, strict=True))
        mean = 2.9
        for term, effect in truth.items():
            mean += effect / 2 * np.prod([1 if on[f] else -1 for f in term.split(":")])
        loss = mean + block[seed] + generator.normal(0, sigma)
        cost = 1e6 * (6 - 1.9 * on["mod"] + 2.2 * on["latent"] + 0.7 * on["memory"])
        seconds = 14 * (1 - 0.1 * on["mod"] + 0.5 * on["latent"] + 0.3 * on["memory"]) * generator.normal(1, 0.02)
        cell = cell_name(levels)
        rows.append(
            {
                "trial": f"{cell}-s{seed}-0123456789ab",
                "cell": cell,
                "seed": seed,
                "status": "finished",
                "val_loss": loss,
                **on,
                "model.mod_capacity": 0.125 if on["mod"] else 1.0,
                "model.latent_iterations": 4 if on["latent"] else 0,
                "model.memory_slots": 4096 if on["memory"] else 0,
                "val_loss_topk": loss - (0.02 if on["mod"] else 0.0),
                "router_gap": 0.02 if on["mod"] else 0.0,
                "bits_per_byte": loss / 2.1,
                "document_loss": loss + 0.01,
                "parameters": 900_000 + 3_000 * on["mod"] + 260_000 * on["latent"] + 600_000 * on["memory"],
                "parameters_without_embeddings": 770_000
                + 3_000 * on["mod"]
                + 260_000 * on["latent"]
                + 600_000 * on["memory"],
                "tokens": TOKENS,
                "flops": cost * TOKENS,
                "flops_per_token": cost,
                "seconds": seconds,
                "tokens_per_second": TOKENS / seconds,
                "peak_memory_mib": 600.0,
                "steps": 200,
                "pairing": f"pair{seed}",
                **({"mod/capacity_layer1": 0.125, "mod/capacity_layer3": 0.131} if on["mod"] else {}),
            }
        )
    return pd.DataFrame(rows)


def make_curves(trials: pd.DataFrame, rng=1) -> dict[str, pd.DataFrame]:
    """Progress records: 40 a trial, an evaluation at every fifth, the last at the trial's own val_loss."""
    generator = np.random.default_rng(rng)
    curves = {}
    for row in trials.to_dict(orient="records"):
        share = np.arange(1, 41) / 40
        end = row["val_loss"] if np.isfinite(row["val_loss"]) else 3.5
        loss = end + 3.2 * (np.exp(-4 * share) - np.exp(-4))
        noisy = loss + generator.normal(0, 0.05, 40)
        evaluated = np.arange(1, 41) % 5 == 0
        wobble = np.where(share < 1, generator.normal(0, 0.02, 40), 0)
        curves[row["trial"]] = pd.DataFrame(
            {
                "step": np.arange(1, 41) * 5,
                "tokens": (share * row["tokens"]).astype(int),
                "flops": share * row["flops"],
                "seconds": share * row["seconds"],
                "train_loss": noisy,
                "val_loss": np.where(evaluated, loss + wobble, np.nan),
                "lr": 1e-3 * (1 - share),
                "grad_norm": 1.0,
                "tokens_per_second": row["tokens_per_second"],
            }
        )
    return curves


def make_info(trials: pd.DataFrame, **changes) -> dict:
    info = {
        "name": "quick",
        "preset": "quick",
        "planned": len(trials),
        "seeds": int(trials["seed"].nunique()),
        "first_seed": 0,
        "failed": [],
        "missing": [],
        "damaged": [],
        "foreign": [],
        "codes": {},
        "horizon": TOKENS,
        "varied": False,
        "flops": 6e6 * TOKENS,
        "equal_at": "tokens",
        "primary": "tokens",
        "max_seeds": None,
        "tuned": None,
        "smallest_effect": None,
        "declared_beforehand": True,
        "floor": 2.05,
        "labels": [],
        "corpus": "stories (made here)",
        "environment": {"commit": "abc1234", "torch": "2.13.0", "machine": "2 × CPU", "seconds": 713.0},
        "rerun": "python sweeps/factorial.py --preset quick",
    }
    return info | changes


@pytest.fixture
def make_design(tiny_data: TokenData) -> Callable[..., Design]:
    """`make_design(seeds, factors, extras)` of the three mechanisms."""
    off = {"mod_capacity": 1.0, "latent_iterations": 0, "memory_slots": 0}
    mechanisms = tuple(
        Factor(n, f"model.{f}", (off[f], v), switch=True) for n in FACTORS for f, v in LEVELS[n].items()
    )

    def build(
        seeds: int = 2, factors: tuple[Factor, ...] = mechanisms, extras: tuple[Extra, ...] = (), **other: Any
    ) -> Design:
        return Design(factors, TINY, tiny_data.content_hash, seeds, extras, **other)

    return build


@pytest.fixture(scope="session")
def made():
    """`made.trials(...)`, `made.curves(trials)`, `made.info(trials)`, the truth they carry and their design."""
    return SimpleNamespace(
        trials=make_trials, curves=make_curves, info=make_info, truth=TRUTH, design=switches(*FACTORS)
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """Ray on this machine, started once for all tests that need it, and named by `RAY_ADDRESS` to processes below."""
    from sweeps.engine import schedule

    with schedule.connected("local") as started:
        yield started
