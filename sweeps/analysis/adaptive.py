"""The effects of a sweep that adds seed blocks until the question is settled: decisions and intervals by its looks."""

from dataclasses import replace

import numpy as np

from sweeps.analysis import power
from sweeps.analysis.effects import UNMEASURED, Effects, assumptions, fit, unmoved
from sweeps.analysis.sequential import Decisions, decide


def until_decided(effects: Effects, max_seeds: int, first_seed: int = 0) -> Effects:
    """The same effects, with the verdicts, estimates and repeated intervals of the last look that was taken.

    Looks go by the seeds from `first_seed` on, whether or not there is a row of one. `effects` is what `estimate` says
    of all seeds whose trials have ended. What comes back is of the blocks that the look counted. Before the first look
    there are no verdicts, and the intervals stay those of `estimate`.
    """
    decided = _decisions(effects, max_seeds, first_seed)
    looked = 0 if effects.withheld else int(decided.looked_at)
    table = effects.table.assign(p_adjusted=np.nan, settled_at=decided.settled_at if looked else 0)
    if not looked:
        verdict = "withheld" if effects.withheld else "exploratory"
        return replace(effects, table=table.assign(verdict=verdict), max_seeds=max_seeds, looked=0)
    blocks = effects.blocks[: int(decided.blocks)]
    kept = effects.losses.loc[list(blocks)]
    losses = kept.to_numpy(float)
    fitted = fit(losses, effects.design.weights_CT)
    sigma = float(fitted["sigma"])
    for name in ("blocked_low", "blocked_high", "seedwise_low", "seedwise_high", "bound_low", "bound_high"):
        table[name] = getattr(decided, name)
    own = effects.contrasts.loc[list(blocks)].to_numpy(float)
    table["estimate"], table["verdict"] = decided.estimate, np.where(unmoved(own), UNMEASURED, decided.verdict)
    table["p_blocked"], table["p_seedwise"] = fitted["p_blocked"], fitted["p_seedwise"]
    table["p"] = table[["p_blocked", "p_seedwise"]].max(axis=1)
    norms = effects.design.norms_T
    table["detectable"] = [power.smallest_detectable(sigma, len(blocks), w, len(table)) for w in norms]
    return replace(
        effects,
        table=table,
        blocks=blocks,
        losses=kept,
        contrasts=effects.contrasts.loc[list(blocks)],
        sigma=sigma,
        checks=assumptions(losses, blocks),
        max_seeds=max_seeds,
        looked=looked,
    )


def next_look(effects: Effects, max_seeds: int, first_seed: int = 0) -> int | None:
    """Seeds to go on to; None where all is settled, nothing more is allowed, or a divergence withholds everything."""
    following = int(_decisions(effects, max_seeds, first_seed).next_look)
    return following or None if not effects.withheld else None


def _decisions(effects: Effects, max_seeds: int, first_seed: int) -> Decisions:
    last = max((*effects.blocks, *effects.incomplete), default=first_seed - 1)
    seeds = range(first_seed, min(last, first_seed + max_seeds - 1) + 1)
    losses = effects.losses.reindex(seeds).to_numpy(float)
    return decide(losses, effects.design.weights_CT, effects.smallest_effect, max_seeds)
