"""A prepared corpus, open for reading: both splits as rows, and what its text is worth."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lahr.data.documents import Label
from lahr.data.rows import Rows, Windows


@dataclass(frozen=True, eq=False)
class TokenData:
    """A prepared corpus, open for reading."""

    folder: Path
    description: str
    """What the text is, for a person."""
    content_hash: str
    """Hex sha256 of both splits' tokens and labels and of the tokenizer; paths do not enter."""
    vocab_size: int
    """Entries of the tokenizer; at most the model's."""
    eot: int
    """Id of the end-of-text token, which closes every document."""
    labels: tuple[Label, ...]
    """What its answers are told apart by: label n of a window is the n-th, counted from 1."""
    train: Rows
    validation: Rows
    stages: int
    """Equal parts of the training rows, each the same questions; 1 without a curriculum."""
    n_validation: int
    """Windows that every evaluation reads, the first of the validation split."""

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's JSON, for `tokenizers.Tokenizer.from_file`."""
        return self.folder / "tokenizer.json"

    def said_to_repeat(self, windows: int) -> str:
        """A sentence, where a trial that reads so many windows finds no more new ones and reads them again; else ""."""
        rows = len(self.train) // self.stages
        times = windows / self.train.segments / rows
        if times < 1.005:
            return ""
        what = f"{self.train.split.n_tokens:,} tokens" if self.stages == 1 else f"{rows:,} questions"
        return f"the training text has {what}, and a trial reads them {times:.3g} times"

    @cached_property
    def windows(self) -> Windows:
        """The windows that every evaluation reads."""
        return self.first_windows(self.n_validation)

    def first_windows(self, n: int) -> Windows:
        """The first `n` validation windows, in whole rows. `ConfigError` if there are too few."""
        rows = -(-n // self.validation.segments)
        self.validation.require(f"the validation split of {self.description}", rows)
        return self.validation.windows(range(rows))

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes of text for each token that the validation windows predict."""
        rows, split = self.validation, self.validation.split
        if rows.segments > 1 or not rows.all_count:
            # Rows are beginnings of documents, or parts of them, whose tokens are shorter or longer than the rest's, so
            # their text is measured as it is. End-of-text is no text, and decodes to none.
            targets_NT = self.windows.targets_NT
            each = [[t for t in row if t >= 0] for row in targets_NT.tolist()]
            texts = Tokenizer.from_file(str(self.tokenizer_path)).decode_batch(each)
            return sum(len(text.encode()) for text in texts) / max(1, sum(map(len, each)))
        total = np.concatenate([[0], np.cumsum(split.documents["bytes"].to_numpy())])
        read = self.n_validation * rows.block
        # Inside a document bytes are taken as even; only the first and the last document are cut.
        first, last = np.interp([1, read + 1], split.document_starts, total)
        return float((last - first) / read)

    def floor_nats_per_token(self, n_windows: int | None = None) -> float | None:
        """Least possible mean loss on the documents that lie whole in a row of the first `n_windows` windows (default:
        all that are read): what `document_loss` of an evaluation is compared with.

        None where the corpus's own probabilities are not known, or no document fits.
        """
        rows = self.validation
        starts, ends = rows.split.document_starts[:-1], rows.split.document_starts[1:]
        bits = rows.split.documents["bits"].to_numpy()  # a null reads as NaN
        n = (self.n_validation if n_windows is None else n_windows) // rows.segments
        first = rows.starts[:n] + 1
        if not len(first):
            return None
        of = np.searchsorted(first, starts, side="right") - 1
        counted = (of >= 0) & (ends <= first[of] + rows.length) & rows.split.has_floor
        if rows.packing == "documents":  # behind a short one its row is filled up, and not with the next
            counted &= starts == first[of]
        if not counted.any():
            return None
        return float(bits[counted].sum() * math.log(2) / (ends - starts)[counted].sum())
