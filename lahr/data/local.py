"""Local text: a parquet, JSONL or text file, or a folder of one kind, as a stream of documents."""

import codecs
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lahr.data.cleaning import CUT, LONGEST, PIECE, Found, cleaned, pieces
from lahr.data.corpora import END_OF_TEXT, Corpus, hold_out
from lahr.data.hub import one_line
from lahr.errors import ConfigError, check

KINDS = {
    ".parquet": "parquet",
    ".jsonl": "JSONL",
    ".json": "JSONL",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
"""What a file is, by its name's end; a single file with another one is read as text."""
CHUNK = 1 << 20
BATCH_BYTES = 1 << 26
"""About as much of a parquet file is held as text at a time, or a row where that is more."""


def local_corpus(path: Path, column: str) -> Corpus:
    """The documents of a file, or of a folder's files in the order of their names.

    A text file is cut at `<|endoftext|>` where that occurs, else at blank lines. `ConfigError` on a folder without
    usable files or with several kinds, an empty or binary file, one that is not UTF-8, or one without the column.
    """
    files = _files(path)
    kind = KINDS.get(files[0].suffix.lower(), "text")
    known, marked = [], False
    for file in files:
        check(file.stat().st_size > 0, f"{file} is empty; give a file with text")
        if kind == "parquet":
            _check_columns(file, column)
        sha256, has_marker = _scan(file, is_text=kind != "parquet")
        marked |= has_marker
        known.append({"name": file.name, "bytes": file.stat().st_size, "sha256": sha256})

    def texts(found: Found) -> Iterator[str | None]:
        for file in files:
            if kind == "parquet":
                yield from _parquet_texts(file, column)
            elif kind == "JSONL":
                yield from _jsonl_texts(file, column)
            else:
                yield from _text_parts(file, marked, found)

    some = any(text and not text.isspace() for text in texts(Found()))
    check(some, f"{path} holds no text; give a file with some")
    taken = {"files": known} if kind == "text" else {"files": known, "column": column}
    content = f"{kind} {column if kind != 'text' else ''} {' '.join(str(file['sha256']) for file in known)}"
    identity = f"local {hashlib.sha256(content.encode()).hexdigest()}"
    return hold_out(identity, str(path), cleaned(str(path), texts), lambda: taken)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in KINDS)
    check(bool(files), f"the folder {path} has no file that can be read; allowed are {', '.join(KINDS)}")
    kinds = sorted({KINDS[file.suffix.lower()] for file in files})
    check(
        len(kinds) == 1,
        f"the folder {path} has files of several kinds ({', '.join(kinds)}); give one kind, or one file",
    )
    return files


def _scan(file: Path, is_text: bool) -> tuple[str, bool]:
    """The file's hash, and whether `<|endoftext|>` occurs in it. `ConfigError` if text has NUL bytes or is not UTF-8,
    with the place."""
    marker, tail, found = END_OF_TEXT.encode(), b"", False
    decoder = codecs.getincrementaldecoder("utf-8")()
    digest, offset = hashlib.sha256(), 0
    with open(file, "rb") as stream:
        for chunk in iter(partial(stream.read, CHUNK), b""):
            digest.update(chunk)
            if is_text:
                nul = chunk.find(b"\0")
                check(
                    nul < 0,
                    f"{file} is binary, or text in UTF-16 (byte {offset + nul} is NUL); give a parquet, JSONL or text "
                    f"file, or convert it: {_convert(file, 'UTF-16')}",
                )
                _decode(decoder, chunk, offset, file)
                found = found or marker in tail + chunk
                tail = chunk[-len(marker) :]
            offset += len(chunk)
    if is_text:
        _decode(decoder, b"", offset, file, final=True)
    return digest.hexdigest(), found


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, offset: int, file: Path, final: bool = False) -> None:
    begun = len(decoder.getstate()[0])  # bytes of a character that the chunk before ended in
    try:
        decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not text in UTF-8 (byte {offset - begun + error.start}: {error.reason}); convert it, for "
            f"example with {_convert(file, 'WINDOWS-1252')}, or give a parquet, JSONL or text file"
        ) from error


def _convert(file: Path, encoding: str) -> str:
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(file))} > converted{file.suffix}"


def _check_columns(file: Path, column: str) -> None:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{file} is not a parquet file that can be read; give another, or JSONL or text"
        ) from error
    check(
        column in schema.names,
        f"{file} has no column {column!r}; it has {', '.join(schema.names)}: give one as --data.text-column",
    )
    kind = schema.field(column).type
    check(
        pa.types.is_string(kind) or pa.types.is_large_string(kind),
        f"the column {column!r} of {file} holds {kind}, not text; it has "
        f"{', '.join(schema.names)}: give one with text as --data.text-column",
    )


def _parquet_texts(file: Path, column: str) -> Iterator[str | None]:
    with pq.ParquetFile(file) as table:
        a_row = sum(table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups))
        a_row //= max(1, table.metadata.num_rows)
        n_before, n_rows = 0, max(1, min(1024, BATCH_BYTES // max(1, a_row)))
        batches = table.iter_batches(batch_size=n_rows, columns=[column])
        while True:
            try:
                batch = next(batches, None)
            except MemoryError:  # one of Arrow's own is an ArrowException, too
                raise
            except (pa.ArrowException, OSError) as error:
                raise ConfigError(
                    f"{file} is damaged behind row {n_before} ({one_line(error)}); get it anew, or give another "
                    "file"
                ) from error
            if batch is None:
                return
            try:
                texts = batch.column(0).to_pylist()[::-1]
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"{file}, rows {n_before + 1} to {n_before + len(batch)}, has text that is not UTF-8 in the column "
                    f"{column!r} ({error.reason}); write it anew as UTF-8, or without those rows"
                ) from error
            n_before += len(batch)
            del batch  # a row may be a gigabyte, which is not to be held twice
            while texts:
                yield texts.pop()


def _jsonl_texts(file: Path, column: str) -> Iterator[str | None]:
    with open(file, encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{file}, line {number}, is not JSON; JSONL has one object a line") from error
            check(isinstance(row, dict), f"{file}, line {number}, is not a JSON object; JSONL has one a line")
            check(
                column in row,
                f"{file}, line {number}, has no field {column!r}; it has {', '.join(row) or 'none'}: "
                "give one as --data.text-column",
            )
            check(
                row[column] is None or isinstance(row[column], str),
                f"{file}, line {number}: the field {column!r} is not text; give another as --data.text-column",
            )
            yield row[column]


def _text_parts(file: Path, marked: bool, found: Found) -> Iterator[str]:
    """Pieces between markers or, without any, between blank lines. What lies further apart is cut while it is read, so
    that a file without either is never held whole."""
    end = re.compile(re.escape(END_OF_TEXT) if marked else r"\n\s*\n")
    held, is_long = "", False
    with open(file, encoding="utf-8-sig") as stream:
        for chunk in iter(partial(stream.read, CHUNK), ""):
            *ended, held = end.split(held + chunk)
            is_long = is_long and not ended
            yield from (part for part in ended if part and not part.isspace())
            if len(held) > (2 * PIECE if is_long else LONGEST):
                found.update([] if is_long else [CUT])
                is_long = True
                # The last two stay, since the last may be short and the end may begin in it.
                *ready, last_but_one, last = pieces(held)
                yield from ready
                held = last_but_one + last
    if held and not held.isspace():
        yield held
