"""Token shards on disk: Arrow IPC files of one record batch each, memory-mapped, with a manifest of hashes.

A prepared folder holds

    tokenizer.json            the tokenizer, whole
    train-00000.arrow …       tokens, uint16 (uint32 above 65,536 entries); `validation-…` likewise
    train-documents.parquet   one row a document: start (token), bytes (of text), bits (its floor, where known)
    manifest.json             written last: token counts, end-of-text id, corpus, sha256 of every file

One record batch a shard is what makes a random window cheap: the column is then one flat array in the map.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from lahr.errors import check
from lahr.plain import canonical_json

SHARD_TOKENS = 1 << 26
"""Tokens in a shard: 128 MiB of uint16."""
FORMAT = 1
"""Version of the folder's layout."""


class Damaged(Exception):
    """A prepared folder whose files are not what its manifest says; the message names the first such file."""


@dataclass(frozen=True, eq=False)
class Split:
    """The tokens of one split, in document order, and where its documents start."""

    shards: tuple[np.ndarray, ...]
    """Memory-mapped token arrays; laid end to end they are the split."""
    documents: pa.Table
    """One row a document: `start` (its first token), `bytes` of its text, and `bits`, its floor or null."""

    @cached_property
    def starts(self) -> np.ndarray:
        """First token of each shard, and last the end: int64 (shards + 1,)."""
        return np.cumsum([0, *(len(shard) for shard in self.shards)])

    @property
    def n_tokens(self) -> int:
        """Tokens in the split, end-of-text tokens among them."""
        return int(self.starts[-1])

    @property
    def tokens(self) -> np.ndarray:
        """The split as one array: the map itself where it is one shard, else a copy in memory."""
        return self.shards[0] if len(self.shards) == 1 else np.concatenate(self.shards)

    def n_blocks(self, block: int) -> int:
        """Whole windows of `block` tokens that have a next token for each."""
        return max(0, (self.n_tokens - 1) // block)

    def windows(self, ids: Iterable[int], block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows of those ids: inputs and next-token targets, int64 (len(ids), block) each."""
        return self.rows((int(i) * block for i in ids), block, 1)

    @cached_property
    def document_starts(self) -> np.ndarray:
        """First token of each document, and last the end: int64 (documents + 1,)."""
        return np.append(self.documents["start"].to_numpy(), self.n_tokens)

    def row_starts(self, block: int, segments: int) -> np.ndarray:
        """First token of every row of `segments` windows of `block` tokens, in the text's order: int64 (rows,).

        A single window is cut from the split as one stream. A row of more lies, with the next token of its last one,
        inside one document: a document of n tokens gives ⌊(n - 1) / (segments·block)⌋, and its rest is not read.
        """
        if segments == 1:
            return np.arange(self.n_blocks(block)) * block
        length = segments * block
        counts = (np.diff(self.document_starts) - 1) // length
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self.document_starts[:-1], counts) + within * length

    def rows(self, starts: Iterable[int], block: int, segments: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that start at those tokens: inputs and next-token targets, int64 (len(starts)·segments, block).

        The windows of a row follow one another, in order.
        """
        length = segments * block
        rows = [self._read(int(start), int(start) + length + 1) for start in starts]
        both = torch.from_numpy(np.stack(rows) if rows else np.empty((0, length + 1), np.int64))
        return both[:, :-1].reshape(-1, block).contiguous(), both[:, 1:].reshape(-1, block).contiguous()

    def require_rows(self, what: str, n: int, block: int, segments: int) -> None:
        """`ConfigError` where this split, named `what`, has fewer than `n` rows of `segments` windows."""
        have, longest = len(self.row_starts(block, segments)), np.diff(self.document_starts).max(initial=0)
        lower = "lower data.segments or model.max_seq_len" + (" or data.validation_blocks" if n > 1 else "")
        check(
            have >= n,
            f"data.segments is {segments}: a row takes {segments} x {block} + 1 = {segments * block + 1} tokens of one "
            f"document, and {what} has {have} such rows where {n} {'are' if n > 1 else 'is'} needed (its longest "
            f"document is {longest} tokens); {lower}, or give longer documents",
        )

    def _read(self, start: int, stop: int) -> np.ndarray:
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while start < stop:
            part = self.shards[first][start - self.starts[first] : stop - self.starts[first]]
            parts.append(part.astype(np.int64))
            start += len(part)
            first += 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class TokenData:
    """A prepared corpus, open for reading."""

    folder: Path
    description: str
    """What the text is, for a person."""
    content_hash: str
    """Hex sha256 of both splits' tokens and of the tokenizer; paths and file layout do not enter."""
    vocab_size: int
    """Entries of the tokenizer; at most the model's."""
    eot: int
    """Id of the end-of-text token, which closes every document."""
    train: Split
    validation: Split
    n_validation: int
    """Windows that every evaluation reads, the first of the validation split."""
    block: int
    """Tokens in a window."""
    segments: int = 1
    """Windows in a row; see `Split.row_starts`."""

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's JSON, for `tokenizers.Tokenizer.from_file`."""
        return self.folder / "tokenizer.json"

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes of text for each token that the validation windows predict."""
        if self.segments > 1:
            # Rows are beginnings of documents, which stories open with shorter tokens than they go on with (1.5 % of
            # this figure), so their text is measured as it is. End-of-text is no text, and decodes to none.
            _, targets_NT = self.validation_blocks(self.n_validation, self.block, self.segments)
            rows = targets_NT.view(-1, self.segments * self.block).tolist()
            texts = Tokenizer.from_file(str(self.tokenizer_path)).decode_batch(rows)
            return sum(len(text.encode()) for text in texts) / targets_NT.numel()
        edges = self.validation.document_starts
        total = np.concatenate([[0], np.cumsum(self.validation.documents["bytes"].to_numpy())])
        read = self.n_validation * self.block
        # Inside a document bytes are taken as even; only the first and the last document are cut.
        return float((np.interp(read + 1, edges, total) - np.interp(1, edges, total)) / read)

    def floor_nats_per_token(self, n_blocks: int | None = None) -> float | None:
        """Least possible mean loss on the documents wholly in the first `n_blocks` windows (default: all read).

        None where the corpus's own probabilities are not known, or no document fits; also with rows of segments, which
        leave out the rest of each document: only of a whole one are the probabilities known.
        """
        if self.segments > 1:
            return None
        documents = self.validation.documents
        starts, ends = self.validation.document_starts[:-1], self.validation.document_starts[1:]
        bits = documents["bits"].to_numpy()  # null, of a document that was cut at the split's end, reads as NaN
        counted = (ends <= (self.n_validation if n_blocks is None else n_blocks) * self.block + 1) & ~np.isnan(bits)
        if not counted.any():
            return None
        return float(bits[counted].sum() * math.log(2) / (ends - starts)[counted].sum())

    def validation_blocks(self, n: int, block: int, segments: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `n` validation windows: inputs and targets, int64 (n, block). `ConfigError` if too few.

        With `segments` they are the windows of the first `n` / `segments` rows, each row's together and in order.
        """
        if segments > 1:
            name = f"the validation split of {self.description}"
            self.validation.require_rows(name, n // segments, block, segments)
            starts = self.validation.row_starts(block, segments)[: n // segments]
            return self.validation.rows(starts, block, segments)
        have = self.validation.n_blocks(block)
        check(
            have >= n,
            f"the validation split of {self.description} has {have} windows of {block} tokens, and {n} were asked "
            + (f"for; give more text or --data.validation-blocks {have}" if have else "for; give more text"),
        )
        return self.validation.windows(range(n), block)


class SplitWriter:
    """Writes one split's shards and documents into a folder, a document at a time."""

    def __init__(self, folder: Path, name: str, dtype: Any) -> None:
        self.folder, self.name, self.dtype = folder, name, np.dtype(dtype)
        self.n_tokens = 0
        self.digest = hashlib.sha256()
        """Over the tokens as little-endian uint32, whatever the shards' type and size."""
        self._pending: list[np.ndarray] = []
        self._n_pending = 0
        self._shards: list[dict[str, Any]] = []
        self._documents: dict[str, list[Any]] = {"start": [], "bytes": [], "bits": []}

    def add(self, ids: np.ndarray, n_bytes: int, bits: float | None) -> None:
        """Adds a document: token ids with the closing end-of-text, bytes of its text, its floor in bits."""
        for name, value in (("start", self.n_tokens), ("bytes", n_bytes), ("bits", bits)):
            self._documents[name].append(value)
        self.digest.update(ids.astype("<u4").tobytes())
        self.n_tokens += len(ids)
        self._pending.append(ids.astype(self.dtype))
        self._n_pending += len(ids)
        while self._n_pending >= SHARD_TOKENS:
            self._flush(SHARD_TOKENS)

    def close(self) -> dict[str, Any]:
        """Writes what is left and returns the split's entry in the manifest."""
        if self._n_pending or not self._shards:
            self._flush(self._n_pending)
        file = self.folder / f"{self.name}-documents.parquet"
        schema = pa.schema([("start", pa.int64()), ("bytes", pa.int64()), ("bits", pa.float64())])
        pq.write_table(pa.table(self._documents, schema=schema), file)
        documents = {"file": file.name, "sha256": file_hash(file)}
        return {"tokens": self.n_tokens, "shards": self._shards, "documents": documents}

    def _flush(self, n: int) -> None:
        tokens = np.concatenate(self._pending) if self._pending else np.empty(0, self.dtype)
        self._pending, self._n_pending = [tokens[n:]], len(tokens) - n
        file = self.folder / f"{self.name}-{len(self._shards):05d}.arrow"
        kind = pa.uint16() if self.dtype == np.uint16 else pa.uint32()
        # From the buffer: `pa.array` of a numpy array imports pandas, which takes longer than all the rest.
        column = pa.Array.from_buffers(kind, n, [None, pa.py_buffer(np.ascontiguousarray(tokens[:n]))])
        batch = pa.record_batch([column], names=["token"])
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        self._shards.append({"file": file.name, "tokens": n, "sha256": file_hash(file)})


def file_hash(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Hex sha256 of a manifest's content, which it carries as its own `sha256`."""
    return hashlib.sha256(canonical_json(manifest).encode()).hexdigest()


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest with its own hash; without it a folder does not count as prepared."""
    text = json.dumps({**manifest, "sha256": manifest_hash(manifest)}, indent=2)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The folder's manifest, each file in it checked against its hash. Raises `Damaged`."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest.pop("sha256") != manifest_hash(manifest):
            raise Damaged("manifest.json")
        files = [(manifest["tokenizer"]["file"], manifest["tokenizer"]["sha256"])]
        for split in manifest["splits"].values():
            files += [(part["file"], part["sha256"]) for part in [*split["shards"], split["documents"]]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged("manifest.json") from error
    for name, expected in files:
        path = folder / name
        if not path.is_file() or _checked_hash(path) != expected:
            raise Damaged(name)
    return manifest


_hashes: dict[tuple[str, int, int, int], str] = {}


def _checked_hash(path: Path) -> str:
    """`file_hash`, computed once in a process for a file whose inode, size and time of change stay."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_ctime_ns)
    if key not in _hashes:
        _hashes[key] = file_hash(path)
    return _hashes[key]


def open_split(folder: Path, entry: dict[str, Any]) -> Split:
    """Maps a split whose manifest entry is `entry`; nothing is read before it is used."""
    shards = []
    for shard in entry["shards"]:
        source = pa.memory_map(str(folder / shard["file"]))
        column = pa.ipc.open_file(source).get_batch(0).column(0)
        shards.append(column.to_numpy(zero_copy_only=True))
    return Split(tuple(shards), pq.read_table(folder / entry["documents"]["file"]))
