"""Answers of a document's text as labels of its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from lahr.data.documents import FIRST, UNCOUNTED, Document, Label, distance_group
from lahr.errors import ConfigError


@dataclass(frozen=True)
class Encoded:
    """A document of n tokens, the closing end-of-text among them: int64 (n,) each."""

    token: np.ndarray
    target: np.ndarray
    """What is to be predicted from the token before: the token, or what an answer has in its place."""
    label: np.ndarray
    """Of what is to be predicted, as in `documents.py`."""
    is_question: bool
    """Whether nothing but answers is to be predicted."""


class Encoder:
    """Places answers in a tokenizer's tokens.

    A byte-level token is as many bytes long as its name has letters, so where each begins follows from the ids, and
    the tokenizer's fast path, which gives no offsets, is enough.
    """

    def __init__(self, tokenizer: Tokenizer, labels: Sequence[Label], eot: int) -> None:
        self.labels = {label.name: number for number, label in enumerate(labels, 1)}
        self.eot = eot
        self.ids: Mapping[str, int] = tokenizer.get_vocab()
        self.lengths = np.zeros(max(self.ids.values()) + 1, np.int64)
        for name, number in self.ids.items():
            self.lengths[number] = len(name)

    def encode(self, document: Document, ids: Sequence[int]) -> Encoded:
        """`ids` are the tokens of the document's text. `ConfigError` where they are not its bytes, and have answers."""
        token = np.array([*ids, self.eot], np.int64)
        label = np.full(len(token), UNCOUNTED if document.answers_only else 0, np.int64)
        if not document.answers:
            return Encoded(token, token, label, document.answers_only)
        ends = np.cumsum(self.lengths[token[:-1]])
        size = len(document.text) if document.text.isascii() else len(document.text.encode())
        if (int(ends[-1]) if len(ends) else 0) != size:
            raise ConfigError(
                f"the tokenizer changes the text that it is given ({size} bytes become {ends[-1:].sum()}), so answers "
                "cannot be placed in it; use --data.tokenizer bpe"
            )
        target = token.copy()
        for answer, first, behind, source in zip(document.answers, *self._place(document, ends), strict=True):
            if answer.target:
                target[behind] = self.ids[answer.target]
                first, behind = behind, behind + 1
            group = distance_group(first - source) if answer.source is not None else answer.group
            label[first:behind] = number = self.labels[f"{answer.kind}/{group}" if group else answer.kind]
            label[first] = number + FIRST
        return Encoded(token, target, label, document.answers_only)

    @staticmethod
    def _place(document: Document, ends: np.ndarray) -> tuple[list[int], list[int], list[int]]:
        """Of each answer the first token, the one behind its last, and the last of its source (its first, without)."""
        text, answers = document.text, document.answers
        edges = [(a.start, a.end, a.start if a.source is None else a.source) for a in answers]
        if not text.isascii():
            edges = [tuple(len(text[:edge].encode()) for edge in three) for three in edges]  # type: ignore[misc]
        starts, stops, sources = np.array(edges).T
        first = np.searchsorted(ends, starts, side="right")
        behind = np.searchsorted(ends, stops, side="left") + 1
        return first.tolist(), behind.tolist(), np.searchsorted(ends, sources, side="left").tolist()
