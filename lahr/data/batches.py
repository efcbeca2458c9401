"""Batches as a pure function of (seed, step).

Epoch e is a permutation of all whole blocks, drawn by Philox (Salmon et al. 2011, "Parallel Random Numbers: As Easy
as 1, 2, 3") keyed by (seed, e). Batch `step` holds entries step·B … step·B + B - 1 of the epochs' permutations laid
end to end, so it may span an epoch's end, and resuming needs nothing but the step. A block is one window of the text,
or with segments a row of several consecutive windows of one document, and B is then the batch's rows.

A corpus with a curriculum has the same rows in several stages, laid end to end. Which row is drawn does not depend on
the stage, so trials with and without the curriculum stay paired.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from lahr.data.rows import IGNORED, Rows
from lahr.errors import check


class Batches:
    """The training batches of one trial: `batch_size` windows a step, over all ranks."""

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int,
        stages: int = 1,
        stage_of: Callable[[int], int] = lambda step: 0,
    ) -> None:
        """`rows` are those of so many stages, and `stage_of` says which is read in a step. `ConfigError` where there is
        no whole row, where rows do not make up the batch, or where the seed is outside 0 … 2⁶⁴ - 1."""
        self.rows, self.batch_size, self.seed, self.stage_of = rows, batch_size, seed, stage_of
        rows.require("the training text", stages)
        self.n_blocks = len(rows) // stages
        """Rows of one stage."""
        check(
            batch_size % rows.segments == 0,
            f"train.batch_size is {batch_size}, which is no whole number of rows of {rows.segments} windows "
            "(data.segments); give a multiple",
        )
        check(0 <= seed < 2**64, f"the seed is {seed}; it must be from 0 to 2**64 - 1")

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, both int64 (batch_size / world, block), of `rank` among `world` ranks.

        Rank r takes rows r, r + world, … of the global batch, which is the same for every world size; a row's windows
        follow one another. `ConfigError` where `world` ranks cannot share the batch in whole rows.
        """
        segments = self.rows.segments
        check(
            self.batch_size % (world * segments) == 0,
            f"train.batch_size is {self.batch_size}, which {world} workers cannot share evenly"
            + (f" in rows of {segments} windows (data.segments)" if segments > 1 else "")
            + f"; give a multiple of {world * segments}",
        )
        return self.rows.read(self._rows(step)[rank::world])

    def predicted(self, step: int) -> int:
        """Tokens that all ranks together predict in step `step`."""
        if self.rows.all_count:
            return self.batch_size * self.rows.block
        _, targets_BT = self.rows.read(self._rows(step))
        return int((targets_BT != IGNORED).sum())

    def block_ids(self, step: int) -> np.ndarray:
        """The blocks (rows) that step `step` (from 0) reads, in whichever stage: int64 (batch_size / segments,)."""
        rows = self.batch_size // self.rows.segments
        return self._entries(step * rows, (step + 1) * rows)

    def _rows(self, step: int) -> np.ndarray:
        return self.block_ids(step) + self.stage_of(step) * self.n_blocks

    def digest(self, steps: int) -> str:
        """Twelve hex digits over the block ids of steps 0 … steps - 1: equal where trials saw the same."""
        entries = self._entries(0, steps * (self.batch_size // self.rows.segments))
        return hashlib.sha256(entries.astype("<i8").tobytes()).hexdigest()[:12]

    def _entries(self, start: int, stop: int) -> np.ndarray:
        """Entries start … stop - 1 of the epochs' permutations laid end to end."""
        epochs = range(start // self.n_blocks, (stop - 1) // self.n_blocks + 1)
        parts = []
        for epoch in epochs:
            first = epoch * self.n_blocks
            order = _permutation(self.seed, epoch, self.n_blocks)
            parts.append(order[max(start - first, 0) : stop - first])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of 0 … n - 1. Sorting raw draws, unlike `Generator.permutation`, is the same in every numpy."""
    draws = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    order = np.argsort(draws, kind="stable")
    order.flags.writeable = False
    return order
