"""The effects of a sweep that adds seed blocks until the question is settled: decisions and intervals by its looks."""

from dataclasses import replace

import numpy as np

from sweeps.analysis.effects import Effects
from sweeps.analysis.sequential import Decisions, decide


def until_decided(effects: Effects, max_seeds: int) -> Effects:
    """The same effects, with the verdicts, estimates and repeated intervals of the last look that was taken.

    `effects` is what `estimate` says of all blocks so far; before the first look it is given back with no verdict.
    """
    decided = _decisions(effects, max_seeds)
    table = effects.table.assign(p_adjusted=np.nan, settled_at=decided.settled_at)
    if decided.looked_at and not effects.withheld:
        for name in ("estimate", "blocked_low", "blocked_high", "seedwise_low", "seedwise_high", "verdict"):
            table[name] = getattr(decided, name)
    elif not effects.withheld:
        table["verdict"] = "exploratory"
    blocks = effects.blocks[: int(decided.blocks)] if decided.looked_at else effects.blocks
    kept = effects.losses.loc[list(blocks)]
    return replace(
        effects,
        table=table,
        blocks=blocks,
        losses=kept,
        contrasts=effects.contrasts.loc[list(blocks)],
        max_seeds=max_seeds,
    )


def next_look(effects: Effects, max_seeds: int) -> int | None:
    """Seeds to go on to; None where all is settled, nothing more is allowed, or a divergence withholds everything."""
    following = int(_decisions(effects, max_seeds).next_look)
    return following or None if not effects.withheld else None


def _decisions(effects: Effects, max_seeds: int) -> Decisions:
    seeds = sorted({*effects.blocks, *effects.incomplete})
    losses = effects.losses.reindex(seeds).to_numpy(float)
    return decide(losses[:max_seeds], effects.design.weights_CT, effects.smallest_effect, max_seeds)
