"""Local text: a parquet, JSONL or text file, or a folder of one kind, as a stream of documents."""

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lahr.data.corpora import END_OF_TEXT, split_marked
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


def local_documents(path: Path, column: str) -> tuple[str, Callable[[], Iterator[str]]]:
    """A hash of the content, and the documents of a file, or of a folder's files in the order of their names.

    A text file is cut at `<|endoftext|>` where that occurs, else at blank lines. `ConfigError` on a folder without
    usable files or with several kinds, an empty or binary file, or one without the column.
    """
    files = _files(path)
    kind = KINDS.get(files[0].suffix.lower(), "text")
    digest = hashlib.sha256(f"{kind} {column if kind != 'text' else ''}".encode())
    marked = False
    for file in files:
        check(file.stat().st_size > 0, f"{file} is empty; give a file with text")
        if kind == "parquet":
            _check_columns(file, column)
        marked |= _scan(file, digest, is_text=kind != "parquet")

    def documents() -> Iterator[str]:
        for file in files:
            if kind == "parquet":
                yield from split_marked(_parquet_texts(file, column))
            elif kind == "JSONL":
                yield from split_marked(_jsonl_texts(file, column))
            else:
                yield from split_marked(_text_parts(file, marked))

    check(next(documents(), None) is not None, f"{path} holds no text; give a file with some")
    return digest.hexdigest(), documents


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


def _scan(file: Path, digest: "hashlib._Hash", is_text: bool) -> bool:
    """Feeds the file to `digest`; True where `<|endoftext|>` occurs in it. `ConfigError` if text is not UTF-8."""
    marker, tail, found = END_OF_TEXT.encode(), b"", False
    decoder = codecs.getincrementaldecoder("utf-8")()
    digest.update(str(file.stat().st_size).encode() + b" ")  # so that bytes cannot move from one file to the next
    with open(file, "rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            if not is_text:
                continue
            try:
                decoder.decode(chunk)
                check(
                    b"\0" not in chunk, f"{file} is binary (it has NUL bytes); give a parquet, JSONL or text file"
                )
            except UnicodeDecodeError as error:
                raise ConfigError(_not_utf8(file)) from error
            found = found or marker in tail + chunk
            tail = chunk[-len(marker) :]
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ConfigError(_not_utf8(file)) from error
    return found


def _not_utf8(file: Path) -> str:
    return f"{file} is not text in UTF-8; convert it, or give a parquet, JSONL or text file"


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


def _parquet_texts(file: Path, column: str) -> Iterator[str]:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text)


def _jsonl_texts(file: Path, column: str) -> Iterator[str]:
    with open(file, encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{file}, line {number}, is not JSON; JSONL has one object a line") from error
            check(isinstance(row, dict), f"{file}, line {number}, is not a JSON object; JSONL has one a line")
            check(
                column in row,
                f"{file}, line {number}, has no field {column!r}; it has {', '.join(row) or 'none'}: "
                "give one as --data.text-column",
            )
            check(
                isinstance(row[column], str),
                f"{file}, line {number}: the field {column!r} is not text; give another as --data.text-column",
            )
            yield row[column]


def _text_parts(file: Path, marked: bool) -> Iterator[str]:
    """Pieces between markers or, without any, between blank lines."""
    held: list[str] = []
    with open(file, encoding="utf-8-sig") as stream:
        for line in stream:
            *ended, line = line.split(END_OF_TEXT) if marked else [line]
            for end in ended:
                yield "".join([*held, end])
                held = []
            held.append(line)
            if not marked and not line.strip():
                yield "".join(held)
                held = []
    yield "".join(held)
