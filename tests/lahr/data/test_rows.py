"""Rows say what stands in them, what of it is to be predicted, and which of it is an answer or a whole document.

Each against a reader that goes through the text token by token.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lahr.data import IGNORED, Rows, Split, TokenData
from lahr.data.documents import FIRST, UNCOUNTED
from lahr.errors import ConfigError

EOT = 7
"""The end-of-text of these texts, which is not 0, as it is in a tokenizer that was taken by name."""


class Text(NamedTuple):
    """A text of documents laid end to end."""

    token: list[int]
    target: list[int]
    label: list[int]
    starts: list[int]
    floors: list[float | None]

    def split(self, shards: int, *columns: str) -> Split:
        """It as a split of so many pieces, with these columns beside the tokens."""
        pieces = {
            name: tuple(np.array_split(np.array(getattr(self, name), np.uint16), shards))
            for name in ("token", *columns)
        }
        table = {"start": self.starts, "bytes": [1] * len(self.starts), "bits": self.floors}
        schema = pa.schema([("start", pa.int64()), ("bytes", pa.int64()), ("bits", pa.float64())])
        return Split(pieces, pa.table(table, schema=schema))

    def of(self, place: int) -> tuple[int, int, float | None]:
        """First token, end and floor of the document that has that place."""
        ends = [*self.starts[1:], len(self.token)]
        (found,) = (
            (start, end, floor)
            for start, end, floor in zip(self.starts, ends, self.floors, strict=True)
            if start <= place < end
        )
        return found


@st.composite
def texts(draw: st.DrawFn) -> Text:
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=8))
    n = sum(lengths)
    token = [i + 100 for i in range(n)]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    for start, length in zip(starts, lengths, strict=True):
        token[start + length - 1] = EOT
    changed = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    target = [t + 1000 * other for t, other in zip(token, changed, strict=True)]
    kinds = st.sampled_from([0, UNCOUNTED, 1, 2, 1 + FIRST, 126 + FIRST])
    label = draw(st.lists(kinds, min_size=n, max_size=n))
    floors = draw(st.lists(st.sampled_from([None, 0.0, 5.0]), min_size=len(lengths), max_size=len(lengths)))
    return Text(token, target, label, starts, floors)


def row_starts(text: Text, length: int, segments: int, packing: str) -> list[int]:
    """Place of the first predicted token of every row."""
    if packing == "documents":
        return text.starts
    if segments == 1:
        return [i + 1 for i in range(0, len(text.token), length) if i + length < len(text.token)]
    return [
        place + 1
        for start in text.starts
        for place in range(start, text.of(start)[1], length)
        if place + length < text.of(start)[1]
    ]


@given(
    text=texts(), block=st.integers(1, 5), segments=st.integers(1, 3), shards=st.integers(1, 4),
    packing=st.sampled_from(["stream", "documents"]),
)  # fmt: skip
def test_a_row_is_what_a_slow_reader_finds(
    text: Text, block: int, segments: int, shards: int, packing: str
) -> None:
    """Caught: the padding's targets counted; the token before a document in place of end-of-text before the first one;
    a long document read on into the next row; labels of a document that began before the row; a document that begins
    with the row's first input called whole; targets one place off; padding with token 0."""
    length = block * segments
    rows = Rows(text.split(shards, "label", "target"), block, segments, packing, EOT)  # type: ignore[arg-type]
    firsts = row_starts(text, length, segments, packing)
    assert len(rows) == len(firsts)
    assert not rows.all_count
    if not firsts:
        return
    windows = rows.windows(range(len(rows)))
    assert windows.labels_NT is not None
    for tensor, kind in zip(windows, (torch.int64, torch.int64, torch.uint8, torch.bool), strict=True):
        assert tensor.shape == (len(firsts) * segments, block) and tensor.dtype == kind and tensor.is_contiguous()
    for row, first in enumerate(firsts):
        end = min(first + length, text.of(first)[1]) if packing == "documents" else first + length
        inputs, targets, labels, whole = ([EOT] * length, [IGNORED] * length, [0] * length, [False] * length)
        for i, place in enumerate(range(first, end)):
            start, behind, floor = text.of(place)
            inputs[i] = text.token[place - 1] if place else EOT
            targets[i] = IGNORED if text.label[place] == UNCOUNTED else text.target[place]
            labels[i] = text.label[place] if start >= first - 1 else 0
            whole[i] = first <= start and behind <= end and floor is not None
        found = [tensor.view(-1, length)[row].tolist() for tensor in windows]
        assert found == [inputs, targets, labels, whole]


@given(
    text=texts(), block=st.integers(1, 14), segments=st.integers(1, 2), rows=st.integers(1, 8),
    packing=st.sampled_from(["stream", "documents"]),
)  # fmt: skip
def test_the_floor_is_of_the_tokens_that_are_marked_whole(
    text: Text, block: int, segments: int, rows: int, packing: str
) -> None:
    """So that `document_loss` can be compared with it. Caught: a document that ends with its row left out of one."""
    read = Rows(text.split(1), block, segments, packing, EOT)  # type: ignore[arg-type]
    rows = min(rows, len(read))
    data = TokenData(Path(), "", "", 300, EOT, (), read, read, 1, segments)
    tokens = int(read.windows(range(rows)).whole_NT.sum()) if rows else 0
    firsts = row_starts(text, block * segments, segments, packing)[:rows]
    ends = [
        min(f + block * segments, text.of(f)[1]) if packing == "documents" else f + block * segments for f in firsts
    ]
    spans = zip(text.starts, [*text.starts[1:], len(text.token)], text.floors, strict=True)
    bits = [
        floor
        for start, behind, floor in spans
        if floor is not None and any(f <= start and behind <= end for f, end in zip(firsts, ends, strict=True))
    ]
    expected = pytest.approx(math.fsum(bits) * math.log(2) / tokens) if bits else None
    assert data.floor_nats_per_token(rows * segments) == expected
    assert bool(bits) == bool(tokens)


@given(text=texts(), shards=st.integers(1, 4))
def test_text_without_labels_has_none_and_predicts_its_next_tokens(text: Text, shards: int) -> None:
    """Caught: `all_count` for rows that are filled up."""
    rows = Rows(text.split(shards), 3, 1, "documents", EOT)
    windows = rows.windows(range(len(rows)))
    assert windows.labels_NT is None and not rows.all_count
    for row, start in enumerate(text.starts):
        kept = [t for t in windows.targets_NT[row].tolist() if t != IGNORED]
        assert kept == text.token[start : min(start + 3, text.of(start)[1])]
        # What is filled up is the rest of the row, and end-of-text.
        assert set(windows.inputs_NT[row, len(kept) :].tolist()) <= {EOT}
    assert Rows(text.split(shards), 3).all_count


def test_a_question_longer_than_a_row_is_refused_with_the_number_that_would_do() -> None:
    """Caught: a question cut without a word; the rows' segments forgotten in the number."""
    columns, table = {"token": (np.zeros(40, np.uint16),)}, pa.table({"start": [0, 20], "bits": [None, None]})
    split = Split(columns, table, longest_question=20)
    with pytest.raises(
        ConfigError, match=r"the text has a question of 20 tokens, .* is 18 .* x data.segments\)"
    ) as caught:
        Rows(split, 6, 3, "documents").require_whole("the text")
    enough = int(str(caught.value).split("--model.max-seq-len ")[1].split()[0])
    assert enough == 7
    Rows(split, enough, 3, "documents").require_whole("the text")
    Rows(split, 20, 1, "documents").require_whole("the text")
    Rows(split, 20).require_whole("the text")
    with pytest.raises(ConfigError, match="has a question of 20 tokens, and a row is 19"):
        Rows(split, 19).require_whole("the text")  # a stream would cut it too


def test_too_few_documents_are_said() -> None:
    split = Split({"token": (np.zeros(40, np.uint16),)}, pa.table({"start": [0, 20], "bits": [None, None]}))
    with pytest.raises(ConfigError, match=r"has 40 tokens, 2 documents, and 3 are .* --data.validation-blocks 6$"):
        Rows(split, 5, 3, "documents").require("the text", 3)
