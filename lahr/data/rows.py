"""A split read as rows: which tokens a window holds, what is to be predicted in it, and what of that is an answer.

A window's inputs are T tokens, and each predicts the next one of the text (or what an answer has in its place). Rows
are cut in one of three ways:

- `stream`: a row is one window, and the windows follow one another through the text laid end to end;
- `stream` with segments: S consecutive windows inside one document, whose rest is left out;
- `documents`: a row begins with a document, behind the end-of-text token that stands before it, and is filled up with
  end-of-text, which predicts nothing; what does not fit is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch

from lahr.data.documents import UNCOUNTED
from lahr.data.shards import Split
from lahr.errors import check

Packing = Literal["stream", "documents"]
IGNORED = -100
"""The target of a token that predicts nothing."""


class Windows(NamedTuple):
    """Some windows, N of T tokens; those of one row follow one another."""

    inputs_NT: torch.Tensor
    """int64."""
    targets_NT: torch.Tensor
    """int64; `IGNORED` where nothing is to be predicted."""
    labels_NT: torch.Tensor | None
    """Bytes as in `documents.py`, of what is predicted, 0 for answers whose document began before the row; None where
    the text has none."""
    whole_NT: torch.Tensor
    """True where what is predicted is of a document whose floor is known and that lies whole in its row."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a split, in the text's order."""

    split: Split
    block: int
    """Tokens in a window."""
    segments: int = 1
    """Windows in a row."""
    packing: Packing = "stream"
    eot: int = 0
    """What stands before a document and fills a row up."""

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.block * self.segments

    @cached_property
    def starts(self) -> np.ndarray:
        """Index of each row's first input in the split, -1 for the end-of-text before the first document: (rows,)."""
        if self.packing == "documents":
            return self.split.document_starts[:-1] - 1
        if self.segments == 1:
            return np.arange(max(0, (self.split.n_tokens - 1) // self.block)) * self.block
        # A document of n tokens gives ⌊(n - 1) / length⌋ rows: the last input of each has a next token in it.
        counts = (np.diff(self.split.document_starts) - 1) // self.length
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self.split.document_starts[:-1], counts) + within * self.length

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def all_count(self) -> bool:
        """Whether every token of every row predicts something."""
        return self.packing == "stream" and "label" not in self.split.columns

    def read(self, ids: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of those rows' windows, as in `Windows`."""
        rows = [self._row(int(self.starts[i])) for i in ids]
        empty = np.empty((0, self.length), np.int64)
        inputs = np.stack([row[0] for row in rows]) if rows else empty
        targets = np.stack([row[1] for row in rows]) if rows else empty
        return self._windows(inputs), self._windows(targets)

    def windows(self, ids: Iterable[int]) -> Windows:
        """Those rows' windows with all that is known of them."""
        ids = [int(i) for i in ids]
        inputs_NT, targets_NT = self.read(ids)
        labels, whole = [], []
        for first in self.starts[ids]:
            label, inside = self._marks(int(first))
            labels.append(label)
            whole.append(inside)
        labelled = "label" in self.split.columns
        return Windows(
            inputs_NT,
            targets_NT,
            self._windows(np.stack(labels)) if labelled else None,
            self._windows(np.stack(whole)),
        )

    def require(self, what: str, n: int) -> None:
        """`ConfigError` where there are fewer than `n` rows of the split named `what`."""
        have, are = len(self), f"{n} {'are' if n > 1 else 'is'} needed"
        if self.segments == 1 or self.packing == "documents":
            unit = "documents" if self.packing == "documents" else f"windows of {self.block}"
            more = (
                "raise --data.train-tokens" if n == 1 else f"give --data.validation-blocks {have * self.segments}"
            )
            check(
                have >= n,
                f"{what} has {self.split.n_tokens} tokens, {have} {unit}, and {are}; give more text"
                + (f", or {more}" if n == 1 or have else ""),
            )
            return
        longest = np.diff(self.split.document_starts).max(initial=0)
        lower = "lower data.segments or model.max_seq_len" + (" or data.validation_blocks" if n > 1 else "")
        check(
            have >= n,
            f"data.segments is {self.segments}: a row takes {self.segments} x {self.block} + 1 = {self.length + 1} "
            f"tokens of one document, and {what} has {have} such rows where {are} (its longest document is {longest} "
            f"tokens); {lower}, or give longer documents",
        )

    def require_whole(self, what: str) -> None:
        """`ConfigError` where a document of which only answers count is longer than a row, and would lose some."""
        longest = self.split.longest_question
        check(
            longest <= self.length,
            f"{what} has a question of {longest} tokens, and a row is {self.length} (model.max_seq_len"
            f"{' x data.segments' if self.segments > 1 else ''}); give --model.max-seq-len "
            f"{-(-longest // self.segments)} or more",
        )

    def _windows(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).reshape(-1, self.block).contiguous()

    def _document(self, first: int) -> tuple[int, int]:
        """First token of the document behind the end-of-text at `first`, and its end or the row's."""
        after = int(np.searchsorted(self.split.document_starts, first + 1, side="right"))
        return first + 1, min(int(self.split.document_starts[after]), first + 1 + self.length)

    def _row(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, int64 (length,) each."""
        split, columns = self.split, self.split.columns
        start, stop = (first + 1, first + 1 + self.length) if self.packing == "stream" else self._document(first)
        before = split.read("token", max(start - 1, 0), stop)
        targets = (
            split.read("target", start, stop) if "target" in columns else before[len(before) - (stop - start) :]
        )
        inputs = np.full(self.length, self.eot, np.int64)
        if start == 0:  # nothing stands before the first document
            inputs[1 : len(before)] = before[:-1]
        else:
            inputs[: len(before) - 1] = before[:-1]
        full = np.full(self.length, IGNORED, np.int64)
        full[: len(targets)] = targets
        if "label" in columns:
            uncounted = split.read("label", start, stop) == UNCOUNTED
            full[: len(targets)][uncounted] = IGNORED
        return inputs, full

    def _marks(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels, uint8, and whether a document is whole, bool: (length,) each."""
        start, stop = (first + 1, first + 1 + self.length) if self.packing == "stream" else self._document(first)
        starts = self.split.document_starts
        labels, whole = np.zeros(self.length, np.uint8), np.zeros(self.length, bool)
        predicted = np.arange(start, stop)
        of = np.searchsorted(starts, predicted, side="right") - 1
        whole[: len(predicted)] = (starts[of] >= start) & (starts[of + 1] <= stop) & self.split.has_floor[of]
        if "label" in self.split.columns:
            given = self.split.read("label", start, stop).astype(np.uint8)
            # An answer follows from its document's beginning: where that is out of sight there is none to give.
            labels[: len(predicted)] = np.where(starts[of] >= first, given, 0)
        return labels, whole
