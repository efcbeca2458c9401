"""Documents into shards: what is finished stays, and preparing that was cut off goes on behind it.

After every shard a journal beside it says which document the next one begins in. Shards are cut at fixed numbers of
tokens, and what is in them follows from the corpus and the tokenizer alone, so shards do not tell whether preparing was
cut off. All of it is flat in memory: what is held is one shard and the documents that are encoded together.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lahr.data import shards
from lahr.data.shards import file_hash, manifest_hash
from lahr.data.spans import Encoded

_JOURNALS = "*-journal.json"
_BEGUN = "begun.json"
log = logging.getLogger(__name__)
_DOCUMENTS = pa.schema([("start", pa.int64()), ("bytes", pa.int64()), ("bits", pa.float64())])


class SplitWriter:
    """Writes one split's shards into a folder, a document at a time; goes on behind those that `journal` lists."""

    def __init__(self, folder: Path, name: str, columns: Mapping[str, np.dtype[Any]]) -> None:
        """`columns` are those of `Encoded` that are written, and their types."""
        self.folder, self.name, self.columns = folder, name, columns
        self._journal = folder / f"{name}-journal.json"
        found = _read_journal(self._journal)
        self.shards: list[dict[str, Any]] = found.get("shards", [])
        self.documents: int = found.get("documents", 0)
        """Documents to pass over: all tokens of those before the last are written."""
        self.within: int = found.get("within", 0)
        """Tokens of the document behind those that are written already."""
        self.longest_question: int = found.get("longest_question", 0)
        self.n_tokens = sum(shard["tokens"] for shard in self.shards)
        self._digests = {column: hashlib.sha256() for column in columns}
        """Over each column as little-endian uint32, whatever the shards' type and size."""
        for shard in self.shards:
            with pa.memory_map(str(folder / shard["files"][0]["file"])) as source:
                for column, digest in self._digests.items():
                    digest.update(pa.ipc.open_file(source).get_batch(0)[column].to_numpy().astype("<u4").tobytes())
        self._clear()

    def add(self, encoded: Encoded, n_bytes: int, bits: float | None) -> None:
        """Adds a document: its tokens with the closing end-of-text, bytes of its text, its floor in bits."""
        done, self.within = self.within, 0  # of a document that a finished shard has the beginning of
        if not done:
            for name, value in (("start", self.n_tokens), ("bytes", n_bytes), ("bits", bits)):
                self._table[name].append(value)
        self.documents += 1
        n = len(encoded.token)
        if encoded.is_question:
            self.longest_question = max(self.longest_question, n)
        while done < n:
            taken = min(n - done, shards.SHARD_TOKENS - self._n_pending)
            for column, kind in self.columns.items():
                self._pending[column].append(getattr(encoded, column)[done : done + taken].astype(kind))
            done += taken
            self.n_tokens += taken
            self._n_pending += taken
            if self._n_pending == shards.SHARD_TOKENS:
                self._flush(self.documents - (done < n), done % n)

    def close(self) -> dict[str, Any]:
        """Writes what is left and returns the split's entry in the manifest.

        The journal stays until `forget`, since the split behind this one may yet be cut off.
        """
        if self._n_pending or not self.shards:
            self._flush(self.documents, 0)
        return {
            "tokens": self.n_tokens,
            "content": {column: digest.hexdigest() for column, digest in self._digests.items()},
            "documents": self.documents,
            "longest_question": self.longest_question,
            "shards": self.shards,
        }

    def _flush(self, documents: int, within: int) -> None:
        """Writes a shard, and then says in the journal that it is there."""
        stem = f"{self.name}-{len(self.shards):05d}"
        arrays = {}
        for column, kind in self.columns.items():
            whole = np.concatenate(self._pending[column]) if self._n_pending else np.empty(0, kind)
            self._digests[column].update(whole.astype("<u4").tobytes())
            # From the buffer: `pa.array` of a numpy array imports pandas, which takes longer than all the rest.
            arrays[column] = pa.Array.from_buffers(
                pa.from_numpy_dtype(kind), len(whole), [None, pa.py_buffer(whole)]
            )
        batch = pa.record_batch(list(arrays.values()), names=list(arrays))
        tokens, table = self.folder / f"{stem}.arrow", self.folder / f"{stem}-documents.parquet"
        with pa.OSFile(str(tokens), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        pq.write_table(pa.table(self._table, schema=_DOCUMENTS), table)
        files = []
        for path in (tokens, table):
            _sync(path)
            files.append({"file": path.name, "sha256": file_hash(path)})
        self.shards.append({"tokens": batch.num_rows, "files": files})
        self._clear()
        _say(
            self._journal,
            {
                "shards": self.shards,
                "documents": documents,
                "within": within,
                "longest_question": self.longest_question,
            },
        )

    def _clear(self) -> None:
        self._pending: dict[str, list[np.ndarray]] = {column: [] for column in self.columns}
        self._n_pending = 0
        self._table: dict[str, list[Any]] = {column: [] for column in _DOCUMENTS.names}


def _read_journal(path: Path) -> dict[str, Any]:
    """What was finished before, as far as its files are what it says; nothing, and a warning, where they are not."""
    if not path.exists():
        return {}
    said = _said(path, lambda said: [file for shard in said["shards"] for file in shard["files"]])
    if said is None:
        log.warning("what was prepared before it was cut off is damaged (%s); that split begins anew", path)
    return said or {}


def begin(folder: Path, file: str, taken: Mapping[str, Any]) -> None:
    """Says what all shards depend on, before the first of them: the tokenizer in `file` and where the text is from."""
    _sync(folder / file)
    _say(folder / _BEGUN, {"taken": taken, "files": [{"file": file, "sha256": file_hash(folder / file)}]})


def begun(folder: Path) -> dict[str, Any] | None:
    """Where the text of the finished shards is from, which the next ones are to be from too.

    None where there are no shards to go on behind; with a warning also where the tokenizer is not the one of those.
    """
    if not is_begun(folder):
        return None
    said = _said(folder / _BEGUN, lambda said: said["files"])
    if said is None:
        what = "is damaged" if (folder / _BEGUN).exists() else "does not say where its text is from"
        log.warning("what was prepared before it was cut off %s (%s); all begins anew", what, folder / _BEGUN)
    return said and said["taken"]


def is_begun(folder: Path) -> bool:
    """Whether there are finished shards to go on behind."""
    return any(folder.glob(_JOURNALS))


def forget(folder: Path) -> None:
    """Removes the journals: all is written."""
    for journal in (*folder.glob(_JOURNALS), folder / _BEGUN):
        journal.unlink(missing_ok=True)


def _say(path: Path, said: dict[str, Any]) -> None:
    """Writes a journal, whole or not at all, with its own hash."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**said, "sha256": manifest_hash(said)}), encoding="utf-8")
    _sync(part)
    os.replace(part, path)


def _said(path: Path, files_of: Callable[[Any], list[dict[str, str]]]) -> dict[str, Any] | None:
    """What a journal says, if it and the files beside it that it lists are what was written."""
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        whole = said.pop("sha256") == manifest_hash(said)
        if whole and all(file_hash(path.with_name(file["file"])) == file["sha256"] for file in files_of(said)):
            return said
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.debug("%s: %r", path, error)
    return None


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
