"""A batch is a pure function of (seed, step), whatever the number of ranks and wherever an epoch ends."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lahr.data import Batches, Split
from lahr.errors import ConfigError


def split_of(n_tokens: int, shards: int = 1) -> Split:
    """A split whose i-th token is i, in so many pieces."""
    return Split(tuple(np.array_split(np.arange(n_tokens, dtype=np.uint32), shards)), pa.table({"start": [0]}))


@settings(deadline=None)  # a busy machine is no failure
@given(
    n_blocks=st.integers(1, 12), batch=st.integers(1, 9), seed=st.integers(0, 2**64 - 1), epochs=st.integers(1, 4)
)
def test_every_epoch_reads_every_block_once(n_blocks: int, batch: int, seed: int, epochs: int) -> None:
    batches = Batches(split_of(4 * n_blocks + 1), batch, 4, seed)
    steps = -(-epochs * n_blocks // batch)
    ids = np.concatenate([batches.block_ids(step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(ids[epoch * n_blocks : (epoch + 1) * n_blocks]) == list(range(n_blocks))


def test_epochs_and_seeds_differ_in_order() -> None:
    one = Batches(split_of(4 * 50 + 1), 50, 4, seed=0)
    assert one.block_ids(0).tolist() != one.block_ids(1).tolist()
    assert one.block_ids(0).tolist() != Batches(one.split, 50, 4, seed=1).block_ids(0).tolist()
    # Seed 1 in epoch 0 is not seed 0 in epoch 1 either.
    assert one.block_ids(1).tolist() != Batches(one.split, 50, 4, seed=1).block_ids(0).tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_any_number_of_ranks_sees_the_same_global_batch(world: int) -> None:
    batches = Batches(split_of(4 * 17 + 1), 12, 4, seed=5)
    for step in range(4):
        whole, targets = batches.batch(step)
        assert whole[:, 0].tolist() == (4 * batches.block_ids(step)).tolist()
        joined = torch.empty_like(whole)
        for rank in range(world):
            joined[rank::world] = batches.batch(step, rank, world)[0]
        assert torch.equal(joined, whole)
        assert torch.equal(targets, whole + 1)  # token i of this split is i


def test_steps_can_be_asked_for_in_any_order() -> None:
    forward = Batches(split_of(4 * 17 + 1), 6, 4, seed=5)
    in_order = [forward.batch(step)[0] for step in range(10)]
    fresh = Batches(split_of(4 * 17 + 1), 6, 4, seed=5)
    for step in [9, 2, 7, 0]:
        assert torch.equal(fresh.batch(step)[0], in_order[step])


def test_order_is_pinned() -> None:
    """The same in every numpy: results of today pair with those of an older machine."""
    assert Batches(split_of(4 * 10 + 1), 10, 4, seed=3).block_ids(0).tolist() == [6, 1, 8, 5, 2, 7, 9, 4, 3, 0]


def test_digest_is_of_the_blocks_read() -> None:
    batches = Batches(split_of(4 * 17 + 1), 6, 4, seed=5)
    assert batches.digest(7) == Batches(split_of(4 * 17 + 1, shards=3), 6, 4, seed=5).digest(7)
    assert batches.digest(7) == Batches(split_of(4 * 17 + 1), 42, 4, seed=5).digest(1)
    assert len({batches.digest(7), batches.digest(8), Batches(batches.split, 6, 4, seed=6).digest(7)}) == 3


@pytest.mark.parametrize("shards", [1, 2, 5, 30])
def test_windows_cross_shards(shards: int) -> None:
    inputs, targets = split_of(41, shards).windows([0, 3, 9], 4)
    assert inputs.tolist() == [[0, 1, 2, 3], [12, 13, 14, 15], [36, 37, 38, 39]]
    assert torch.equal(targets, inputs + 1) and inputs.dtype == targets.dtype == torch.int64


def test_errors_name_the_way_out() -> None:
    with pytest.raises(ConfigError, match="has 4 tokens, fewer than one block of 4"):
        Batches(split_of(4), 2, 4, seed=0)
    with pytest.raises(ConfigError, match="batch_size is 6, which 4 workers"):
        Batches(split_of(41), 6, 4, seed=0).batch(0, 0, 4)
    with pytest.raises(ConfigError, match="seed is -1"):
        Batches(split_of(41), 6, 4, seed=-1)
