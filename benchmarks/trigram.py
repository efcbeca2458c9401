"""What a trial must beat: an interpolated Kneser-Ney trigram over the same training tokens.

    python benchmarks/trigram.py [--preset quick] [--data stories] [--tokens N]

It counts the windows that a trial at that preset reads with seed 0, and is measured on the same validation windows;
like the model it sees nothing before a window's start. Printed beside it is the least possible loss, where known.
Interpolated modified Kneser-Ney: Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques", section 3.
"""

import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from lahr.data import Batches, prepare
from lahr.presets import preset as find_preset


@dataclass(frozen=True)
class Level:
    """One order of the model: counts of n-grams by key, and for their contexts the total and the mass left over."""

    keys: np.ndarray
    discounted: np.ndarray
    contexts: np.ndarray
    total: np.ndarray
    left: np.ndarray

    @classmethod
    def count(cls, keys: np.ndarray, counts: np.ndarray, vocab_size: int) -> "Level":
        """From distinct n-gram keys (context · V + last token, ascending) and their counts."""
        discount = np.minimum(_discounts(counts)[np.minimum(counts, 3)], counts)
        contexts, where = np.unique(keys // vocab_size, return_inverse=True)
        total = np.bincount(where, counts)
        return cls(keys, counts - discount, contexts, total, np.bincount(where, discount) / total)

    def mix(self, context: np.ndarray, last: np.ndarray, vocab_size: int, lower: np.ndarray) -> np.ndarray:
        """P(last | context) given `lower`, the next lower order's probability of it."""
        known, at = _find(self.contexts, context)
        seen, entry = _find(self.keys, context * vocab_size + last)
        mine = np.where(seen, self.discounted[entry], 0.0) / self.total[at]
        return np.where(known, mine + self.left[at] * lower, lower)


class Trigram:
    """Interpolated modified Kneser-Ney over the rows of `windows`, int (n, T + 1), of tokens below `vocab_size`."""

    def __init__(self, windows: np.ndarray, vocab_size: int) -> None:
        self.vocab_size = v = vocab_size
        rows = windows.astype(np.int64)
        threes, counts = np.unique((rows[:, :-2] * v + rows[:, 1:-1]) * v + rows[:, 2:], return_counts=True)
        twos = np.unique(rows[:, :-1] * v + rows[:, 1:])
        self.three = Level.count(threes, counts, v)
        # Lower orders count in how many different contexts a token was seen, not how often.
        self.two = Level.count(*np.unique(threes % (v * v), return_counts=True), v)
        self.one = Level.count(*np.unique(twos % v, return_counts=True), v)

    def probability(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        """P(w | u, v), all int arrays of one shape; u = -1 stands for no token before v."""
        p = self.one.mix(np.zeros_like(w), w, self.vocab_size, np.full(w.shape, 1 / self.vocab_size))
        p = self.two.mix(v, w, self.vocab_size, p)
        return np.where(u < 0, p, self.three.mix(np.maximum(u, 0) * self.vocab_size + v, w, self.vocab_size, p))

    def loss(self, windows: np.ndarray, where: np.ndarray | None = None) -> float:
        """Mean −ln P over every token but the first of each row, or over those of them that `where` marks."""
        rows = windows.astype(np.int64)
        before = np.concatenate([np.full((len(rows), 1), -1), rows[:, :-2]], axis=1)
        losses = -np.log(self.probability(before, rows[:, :-1], rows[:, 1:]))
        return float((losses if where is None else losses[where]).mean())


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Taken off a count of 0, 1, 2, and 3 or more: Chen & Goodman's estimate from the counts of counts."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):  # too few n-grams to estimate from: absolute discounting
        return np.array([0.0, 0.75, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    return np.clip([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3], 0, [0, 1, 2, 3])


def _find(ascending: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each wanted value is there, and where (a valid index in any case)."""
    at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return ascending[at] == wanted, at


CACHE = Path(os.environ.get("LAHR_CACHE", "~/.cache/lahr"))


def main(
    preset: str = "quick",
    data: str | None = None,
    tokens: int | None = None,
    prepared_tokens: int | None = None,
    validation_blocks: int | None = None,
    cache: Path = CACHE,
) -> None:
    """Prints what a trigram reaches on the data of a preset.

    Args:
        preset: Whose data, vocabulary and number of training tokens to take.
        data: Another corpus than the preset's.
        tokens: Another number of training tokens.
        prepared_tokens: Another number of tokens that are prepared (`data.train_tokens`).
        validation_blocks: Another number of validation windows.
        cache: Where prepared data lies.
    """
    chosen = find_preset(preset)
    config = chosen.data if data is None else replace(chosen.data, corpus=data)
    config = replace(config, train_tokens=prepared_tokens) if prepared_tokens else config
    config = replace(config, validation_blocks=validation_blocks) if validation_blocks else config
    block, batch = chosen.model.max_seq_len, chosen.train.batch_size
    prepared = prepare(config, chosen.model.vocab_size, block, cache)
    steps = (tokens or chosen.train.tokens) // (batch * block)
    batches = Batches(prepared.train, batch, seed=0)
    started = time.perf_counter()
    read = np.concatenate([windows(*batches.batch(step)) for step in range(steps)])
    model = Trigram(read, prepared.vocab_size)
    read_at_evaluation = windows(*prepared.windows[:2])
    loss = model.loss(read_at_evaluation)
    floor = prepared.floor_nats_per_token()
    bits = 1 / math.log(2) / prepared.bytes_per_token
    print(
        f"{prepared.description}: {steps * batch * block:,} training tokens, vocabulary {prepared.vocab_size}, "
        f"{prepared.bytes_per_token:.3f} bytes a token, {time.perf_counter() - started:.1f} s"
    )
    print(f"Kneser-Ney trigram  {loss:.4f} nats a token  {loss * bits:.4f} bits a byte")
    if floor is not None:
        whole = model.loss(read_at_evaluation, prepared.windows.whole_NT.numpy())
        print(
            f"of documents that lie whole in a window: trigram {whole:.4f}, least possible {floor:.4f} nats a token"
        )


def windows(inputs_BT, targets_BT) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The windows with their last target: int64 (B, T + 1)."""
    return np.concatenate([inputs_BT.numpy(), targets_BT[:, -1:].numpy()], axis=1)


if __name__ == "__main__":
    tyro.cli(main)
