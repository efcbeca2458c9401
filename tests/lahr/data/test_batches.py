"""A batch is a pure function of (seed, step), whatever the number of ranks and wherever an epoch ends."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lahr.data import Batches, Rows, Split
from lahr.errors import ConfigError


def split_of(n_tokens: int, shards: int = 1) -> Split:
    """A split whose i-th token is i, in so many pieces."""
    pieces = tuple(np.array_split(np.arange(n_tokens, dtype=np.uint32), shards))
    return Split({"token": pieces}, pa.table({"start": [0]}))


def batches_of(split: Split, batch: int, block: int, seed: int, segments: int = 1) -> Batches:
    return Batches(Rows(split, block, segments), batch, seed)


@settings(deadline=None)  # a busy machine is no failure
@given(
    n_blocks=st.integers(1, 12), batch=st.integers(1, 9), seed=st.integers(0, 2**64 - 1), epochs=st.integers(1, 4)
)
def test_every_epoch_reads_every_block_once(n_blocks: int, batch: int, seed: int, epochs: int) -> None:
    batches = batches_of(split_of(4 * n_blocks + 1), batch, 4, seed)
    steps = -(-epochs * n_blocks // batch)
    ids = np.concatenate([batches.block_ids(step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(ids[epoch * n_blocks : (epoch + 1) * n_blocks]) == list(range(n_blocks))


def test_epochs_and_seeds_differ_in_order() -> None:
    one = batches_of(split_of(4 * 50 + 1), 50, 4, seed=0)
    assert one.block_ids(0).tolist() != one.block_ids(1).tolist()
    assert one.block_ids(0).tolist() != batches_of(split_of(4 * 50 + 1), 50, 4, seed=1).block_ids(0).tolist()
    # Seed 1 in epoch 0 is not seed 0 in epoch 1 either.
    assert one.block_ids(1).tolist() != batches_of(split_of(4 * 50 + 1), 50, 4, seed=1).block_ids(0).tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_any_number_of_ranks_sees_the_same_global_batch(world: int) -> None:
    batches = batches_of(split_of(4 * 17 + 1), 12, 4, seed=5)
    for step in range(4):
        whole, targets = batches.batch(step)
        assert whole[:, 0].tolist() == (4 * batches.block_ids(step)).tolist()
        joined = torch.empty_like(whole)
        for rank in range(world):
            joined[rank::world] = batches.batch(step, rank, world)[0]
        assert torch.equal(joined, whole)
        assert torch.equal(targets, whole + 1)  # token i of this split is i


def test_steps_can_be_asked_for_in_any_order() -> None:
    forward = batches_of(split_of(4 * 17 + 1), 6, 4, seed=5)
    in_order = [forward.batch(step)[0] for step in range(10)]
    fresh = batches_of(split_of(4 * 17 + 1), 6, 4, seed=5)
    for step in [9, 2, 7, 0]:
        assert torch.equal(fresh.batch(step)[0], in_order[step])


def test_order_is_pinned() -> None:
    """The same in every numpy: results of today pair with those of an older machine."""
    assert batches_of(split_of(4 * 10 + 1), 10, 4, seed=3).block_ids(0).tolist() == [6, 1, 8, 5, 2, 7, 9, 4, 3, 0]


def test_digest_is_of_the_blocks_read() -> None:
    batches = batches_of(split_of(4 * 17 + 1), 6, 4, seed=5)
    assert batches.digest(7) == batches_of(split_of(4 * 17 + 1, shards=3), 6, 4, seed=5).digest(7)
    assert batches.digest(7) == batches_of(split_of(4 * 17 + 1), 42, 4, seed=5).digest(1)
    assert (
        len({batches.digest(7), batches.digest(8), batches_of(split_of(4 * 17 + 1), 6, 4, seed=6).digest(7)}) == 3
    )


@pytest.mark.parametrize("shards", [1, 2, 5, 30])
def test_windows_cross_shards(shards: int) -> None:
    inputs, targets = Rows(split_of(41, shards), 4).read([0, 3, 9])
    assert inputs.tolist() == [[0, 1, 2, 3], [12, 13, 14, 15], [36, 37, 38, 39]]
    assert torch.equal(targets, inputs + 1) and inputs.dtype == targets.dtype == torch.int64


LAST = 10**6
"""Added to the token that closes a document, as an end-of-text is none of the others."""


def documents_of(lengths: list[int], shards: int = 1) -> Split:
    """A split of documents of so many tokens each; token i is i, and i + LAST where it closes a document."""
    ends = np.cumsum(lengths)
    tokens = np.arange(ends[-1], dtype=np.uint32)
    tokens[ends - 1] += LAST
    starts = pa.array(ends - lengths)
    return Split({"token": tuple(np.array_split(tokens, shards))}, pa.table({"start": starts}))


lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(
    lengths=lengths_of_documents, block=st.integers(1, 6), segments=st.integers(2, 4), shards=st.integers(1, 5),
    rows=st.integers(1, 5), seed=st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_a_row_is_consecutive_windows_of_one_document(
    lengths: list[int], block: int, segments: int, shards: int, rows: int, seed: int
) -> None:
    """No row reads over a document's end, which at most its last target is, and an epoch reads each row once.

    Caught: n instead of n - 1 tokens a document, rows cut from the text as one stream, the windows of a row laid out
    one column each, and row ids taken for those of windows.
    """
    split = documents_of(lengths, shards)
    starts = [
        start + i * segments * block
        for start, n in zip(np.cumsum(lengths) - lengths, lengths, strict=True)
        for i in range((n - 1) // (segments * block))
    ]
    assume(starts)
    batches = batches_of(split, rows * segments, block, seed, segments)
    assert batches.n_blocks == len(starts)
    read: list[int] = []
    for step in range(-(-len(starts) // rows)):
        inputs, targets = batches.batch(step)
        assert inputs.shape == targets.shape == (rows * segments, block) and inputs.dtype == torch.int64
        assert inputs.is_contiguous() and targets.is_contiguous()
        inputs_of_row, targets_of_row = inputs.view(rows, -1), targets.view(rows, -1)
        first = inputs_of_row[:, :1]
        assert torch.equal(
            inputs_of_row, first + torch.arange(segments * block)
        )  # so no closing token is among them
        assert torch.equal(targets_of_row[:, :-1], inputs_of_row[:, 1:])
        assert torch.equal(targets_of_row[:, -1] % LAST, inputs_of_row[:, -1] + 1)
        assert [starts[i] for i in batches.block_ids(step)] == first[:, 0].tolist()
        read += first[:, 0].tolist()
    assert sorted(read[: len(starts)]) == starts


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_whole_rows(world: int) -> None:
    """Caught: ranks that take every `world`-th window."""
    batches = batches_of(documents_of([29, 3, 25, 30, 8, 17]), 12, 4, seed=5, segments=2)
    for step in range(4):
        whole, whole_targets = batches.batch(step)
        rows, row_targets = torch.empty(6, 8, dtype=torch.int64), torch.empty(6, 8, dtype=torch.int64)
        for rank in range(world):
            inputs, targets = batches.batch(step, rank, world)
            assert inputs.shape == (12 // world, 4)
            rows[rank::world], row_targets[rank::world] = inputs.view(-1, 8), targets.view(-1, 8)
        assert torch.equal(rows.view(12, 4), whole) and torch.equal(row_targets.view(12, 4), whole_targets)


@given(lengths=lengths_of_documents, block=st.integers(1, 6), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_one_segment_reads_the_text_as_one_stream(lengths: list[int], block: int, batch: int, seed: int) -> None:
    """Whatever its documents are. Caught: rows inside documents for one segment too."""
    split = documents_of(lengths)
    assume(split.n_tokens > block)
    one, plain = (
        batches_of(split, batch, block, seed, segments=1),
        batches_of(split_of(split.n_tokens), batch, block, seed),
    )
    for step in range(3):
        assert one.block_ids(step).tolist() == plain.block_ids(step).tolist()
        for ours, theirs in zip(one.batch(step), plain.batch(step), strict=True):
            assert torch.equal(ours % LAST, theirs)
    assert one.digest(3) == plain.digest(3)


def test_the_digest_of_rows_is_of_the_rows_read() -> None:
    """Caught: a digest of as many entries as there are windows."""
    batches = batches_of(documents_of([29, 25, 30, 17]), 4, 4, seed=5, segments=2)
    read = np.concatenate([batches.block_ids(step) for step in range(3)])
    assert len(read) == 6
    assert batches.digest(3) == hashlib.sha256(read.astype("<i8").tobytes()).hexdigest()[:12]


def test_documents_too_short_for_a_row_are_said_with_the_way_out() -> None:
    """Caught: a permutation of no rows, which failed at the first step."""
    with pytest.raises(ConfigError) as caught:
        batches_of(documents_of([8, 3, 6]), 4, 4, seed=0, segments=2)
    assert str(caught.value) == (
        "data.segments is 2: a row takes 2 x 4 + 1 = 9 tokens of one document, and the training text has 0 such rows "
        "where 1 is needed (its longest document is 8 tokens); lower data.segments or model.max_seq_len, or give "
        "longer documents"
    )
    assert batches_of(documents_of([8, 9, 6]), 4, 4, seed=0, segments=2).n_blocks == 1
    with pytest.raises(ConfigError, match=r"batch_size is 6, which is no whole number of rows of 4 windows"):
        batches_of(documents_of([40]), 6, 2, seed=0, segments=4)
    with pytest.raises(ConfigError, match=r"batch_size is 6, which 2 workers .* in rows of 2 .* a multiple of 4"):
        batches_of(documents_of([40]), 6, 2, seed=0, segments=2).batch(0, 0, 2)


def test_errors_name_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"has 4 tokens, 0 windows of 4, and 1 is needed; give more text"):
        batches_of(split_of(4), 2, 4, seed=0)
    with pytest.raises(ConfigError, match="batch_size is 6, which 4 workers"):
        batches_of(split_of(41), 6, 4, seed=0).batch(0, 0, 4)
    with pytest.raises(ConfigError, match="seed is -1"):
        batches_of(split_of(41), 6, 4, seed=-1)
