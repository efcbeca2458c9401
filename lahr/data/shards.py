"""Token shards on disk: Arrow IPC files of one record batch each, memory-mapped, with a manifest of hashes.

A prepared folder holds

    tokenizer.json                  the tokenizer, whole
    train-00000.arrow …             a column of tokens, uint16 (uint32 above 65,536 entries), and where the text has
                                    answers their labels, uint8 (documents.py), and where some of those do not stand in
                                    the text what is to be predicted; `validation-…` likewise
    train-00000-documents.parquet   one row a document that begins in it: start (token in the split), bytes (of text),
                                    bits (its floor, where known)
    manifest.json                   written last: token counts, end-of-text id, corpus, sha256 of every file

One record batch a shard is what makes a random window cheap: a column is then one flat array in the map.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lahr.plain import canonical_json

SHARD_TOKENS = 1 << 24
"""Tokens in a shard: 32 MiB of uint16; what is lost at most where preparing is cut off."""
FORMAT = 2
"""Version of the folder's layout."""


class Damaged(Exception):
    """A prepared folder whose files are not what its manifest says; the message names the first such file."""


@dataclass(frozen=True, eq=False)
class Split:
    """The tokens of one split, in document order, and where its documents start."""

    columns: Mapping[str, tuple[np.ndarray, ...]]
    """`token`, and `label` and `target` where there are any: memory-mapped arrays, laid end to end the split's."""
    documents: pa.Table
    """One row a document: `start` (its first token), `bytes` of its text, and `bits`, its floor or null."""
    longest_question: int = 0
    """Tokens of the longest document of which only answers are to be predicted."""

    @cached_property
    def starts(self) -> np.ndarray:
        """First token of each shard, and last the end: int64 (shards + 1,)."""
        return np.cumsum([0, *(len(shard) for shard in self.columns["token"])])

    @property
    def n_tokens(self) -> int:
        """Tokens in the split, end-of-text tokens among them."""
        return int(self.starts[-1])

    @property
    def tokens(self) -> np.ndarray:
        """The split as one array: the map itself where it is one shard, else a copy in memory."""
        shards = self.columns["token"]
        return shards[0] if len(shards) == 1 else np.concatenate(shards)

    @cached_property
    def document_starts(self) -> np.ndarray:
        """First token of each document, and last the end: int64 (documents + 1,)."""
        return np.append(self.documents["start"].to_numpy(), self.n_tokens)

    @cached_property
    def has_floor(self) -> np.ndarray:
        """Of each document, whether its floor is known, as that of one cut at the end is not: (documents,)."""
        return ~np.isnan(self.documents["bits"].to_numpy())

    def read(self, column: str, start: int, stop: int) -> np.ndarray:
        """Entries start … stop - 1 of a column, int64."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while start < stop:
            part = self.columns[column][first][start - self.starts[first] : stop - self.starts[first]]
            parts.append(part.astype(np.int64))
            start += len(part)
            first += 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
            files += [(part["file"], part["sha256"]) for shard in split["shards"] for part in shard["files"]]
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
    batches, documents = [], []
    for shard in entry["shards"]:
        tokens, table = (folder / part["file"] for part in shard["files"])
        batches.append(pa.ipc.open_file(pa.memory_map(str(tokens))).get_batch(0))
        documents.append(pq.read_table(table))
    names = batches[0].schema.names
    columns = {n: tuple(b.column(n).to_numpy(zero_copy_only=True) for b in batches) for n in names}
    return Split(columns, pa.concat_tables(documents), entry["longest_question"])
