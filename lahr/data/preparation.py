"""From a corpus to an open `TokenData`: found in the cache by its key, or prepared once, whole or not at all."""

import fcntl
import hashlib
import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lahr.config import DataConfig
from lahr.data.corpora import END_OF_TEXT, SPLIT_RULES, Corpus, find_corpus
from lahr.data.documents import Document
from lahr.data.shards import (
    FORMAT,
    Damaged,
    SplitWriter,
    TokenData,
    file_hash,
    open_split,
    read_manifest,
    write_manifest,
)
from lahr.data.tokenizer import TRAINING_BYTES, load_tokenizer, train_bpe
from lahr.errors import check
from lahr.plain import canonical_json

Report = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, 0 to 1."""
LEAST_VALIDATION_TOKENS = 1 << 16
ENCODE_AT_ONCE = 512
"""Documents given to the tokenizer together."""
log = logging.getLogger(__name__)


def prepare(
    config: DataConfig,
    vocab_size: int,
    block: int,
    cache: Path,
    progress: Report | None = None,
) -> TokenData:
    """Opens the corpus as tokens, preparing it in `cache` where it is not there yet.

    Two processes that want the same thing prepare it once. A damaged file is found by its hash, said in a
    warning, and all is prepared again. Raises `ConfigError`, before anything is trained, where the corpus cannot be
    had or is too small for one training block or for `config.validation_blocks` windows of `block` tokens; with
    `config.segments` also where too few documents are long enough.
    """
    report = progress or (lambda what, share: None)
    corpus = find_corpus(config)
    # Rows of segments leave out the rests of documents, six tenths of the generated stories at worst, so four times
    # the tokens are kept for them.
    spare = 1 if config.segments == 1 else 4
    validation_tokens = _validation_tokens(spare * config.validation_blocks * block + 1)
    key = _key(config, corpus, vocab_size, validation_tokens)
    slug = re.sub(r"\W+", "-", Path(config.corpus.strip()).name).strip("-").lower()[:40]
    folder = Path(cache).expanduser().resolve() / f"{slug or 'corpus'}-{key[:16]}"
    if not is_whole(folder):
        with locked(folder):
            if not is_whole(folder):  # another process may have prepared it while this one waited
                _prepare_into(folder, corpus, config, vocab_size, validation_tokens, report)
    return opened(folder, config, block, corpus.description)


def _validation_tokens(needed: int) -> int:
    """Validation tokens to keep: a power of two, so that nearby settings share shards and content hash."""
    return max(LEAST_VALIDATION_TOKENS, 1 << (needed - 1).bit_length())


def _key(config: DataConfig, corpus: Corpus, vocab_size: int, validation_tokens: int) -> str:
    tokenizer: list[object] = [config.tokenizer]
    if config.tokenizer == "bpe":
        tokenizer += [vocab_size, TRAINING_BYTES]
    elif Path(config.tokenizer).is_file():
        tokenizer = ["file", file_hash(Path(config.tokenizer))]
    what = {
        "format": FORMAT,
        "corpus": corpus.identity,
        "split": SPLIT_RULES,
        "tokenizer": tokenizer,
        "train_tokens": config.train_tokens,
        "validation_tokens": validation_tokens,
    }
    return hashlib.sha256(canonical_json(what).encode()).hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether prepared data lies there and is what its manifest says; a warning where it is damaged."""
    if not folder.exists():
        return False
    try:
        read_manifest(folder)
    except Damaged as damage:
        log.warning("prepared data is damaged (%s in %s); preparing it again", damage, folder)
        return False
    return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; the system drops the lock of a process that dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare_into(
    folder: Path, corpus: Corpus, config: DataConfig, vocab_size: int, validation_tokens: int, report: Report
) -> None:
    """Prepares in a folder beside `folder`, which takes its name once it is whole. Call it under the lock."""
    for left_over in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(left_over)  # of a process that died here: the lock is ours
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        _write(part, corpus, config, vocab_size, validation_tokens, report)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _write(
    folder: Path, corpus: Corpus, config: DataConfig, vocab_size: int, validation_tokens: int, report: Report
) -> None:
    documents = corpus.train()
    if config.tokenizer == "bpe":
        # A tokenizer needs no more text than will be used; four bytes a token is near enough to know how much.
        head = _first(documents, min(TRAINING_BYTES, 4 * config.train_tokens), report)
        report("training the tokenizer", 0.0)
        tokenizer = train_bpe((document.text for document in head), vocab_size)
        documents = itertools.chain(head, documents)
    else:
        tokenizer = load_tokenizer(config.tokenizer, vocab_size)
    report("training the tokenizer", 1.0)
    saved = tokenizer.to_str()
    (folder / "tokenizer.json").write_text(saved, encoding="utf-8")
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    content = hashlib.sha256(saved.encode())
    splits = {}
    for name, stream, limit in (
        ("train", documents, config.train_tokens),
        ("validation", corpus.validation(), validation_tokens),
    ):
        writer = SplitWriter(folder, name, dtype)
        _encode(stream, tokenizer, writer, limit, partial(report, f"tokenising {name}"))
        splits[name] = writer.close()
        content.update(f"{name} {writer.n_tokens} {writer.digest.hexdigest()}".encode())
    manifest = {
        "format": FORMAT,
        "corpus": corpus.identity,
        "description": corpus.description,
        "content": content.hexdigest(),
        "tokenizer": {
            "file": "tokenizer.json",
            "name": config.tokenizer,
            "sha256": file_hash(folder / "tokenizer.json"),
            "entries": tokenizer.get_vocab_size(),
            "eot": tokenizer.token_to_id(END_OF_TEXT),
        },
        "splits": splits,
    }
    write_manifest(folder, manifest)


def _first(documents: Iterator[Document], n_bytes: int, report: Report) -> list[Document]:
    """The first documents, until they hold `n_bytes` bytes of text."""
    head, have = [], 0
    for document in documents:
        head.append(document)
        have += len(document.text.encode())
        if len(head) % 1000 == 0:
            report("reading text for the tokenizer", min(1.0, have / n_bytes))
        if have >= n_bytes:
            break
    return head


def _encode(
    documents: Iterator[Document],
    tokenizer: Tokenizer,
    writer: SplitWriter,
    limit: int,
    report: Callable[[float], None],
) -> None:
    """Writes documents, each closed by an end-of-text token, until `limit` tokens; the last one is cut there."""
    eot = tokenizer.token_to_id(END_OF_TEXT)
    while writer.n_tokens < limit and (some := list(itertools.islice(documents, ENCODE_AT_ONCE))):
        encodings = tokenizer.encode_batch_fast([document.text for document in some], add_special_tokens=False)
        for document, encoding in zip(some, encodings, strict=True):
            ids = np.array([*encoding.ids, eot], np.int64)
            n_bytes, left = len(document.text.encode()), limit - writer.n_tokens
            if len(ids) <= left:
                writer.add(ids, n_bytes, document.bits)
                continue
            if left:  # the floor of a part is not known, nor exactly its bytes
                writer.add(ids[:left], round(n_bytes * left / len(ids)), None)
            break
        report(min(1.0, writer.n_tokens / limit))


def opened(folder: Path, config: DataConfig, block: int, description: str = "") -> TokenData:
    """The prepared data that lies whole in `folder`, under the name that its text has now (the one it had when it was
    prepared, where none is given). `ConfigError` where it is too small for what is asked of it."""
    manifest = read_manifest(folder)
    data = TokenData(
        folder=folder,
        description=description or manifest["description"],
        content_hash=manifest["content"],
        vocab_size=manifest["tokenizer"]["entries"],
        eot=manifest["tokenizer"]["eot"],
        train=open_split(folder, manifest["splits"]["train"]),
        validation=open_split(folder, manifest["splits"]["validation"]),
        n_validation=config.validation_blocks,
        block=block,
        segments=config.segments,
    )
    if config.segments > 1:
        rows = config.validation_blocks // config.segments
        data.train.require_rows(f"the training split of {data.description}", 1, block, config.segments)
        data.validation.require_rows(f"the validation split of {data.description}", rows, block, config.segments)
        return data
    have = data.validation.n_blocks(block)
    check(
        have >= config.validation_blocks,
        f"the validation split of {data.description} has {data.validation.n_tokens} tokens, {have} windows of "
        f"{block}, and data.validation_blocks asks for {config.validation_blocks}; give more text"
        + (f" or --data.validation-blocks {have}" if have else ""),
    )
    check(
        data.train.n_blocks(block) >= 1,
        f"the training split of {data.description} has {data.train.n_tokens} tokens, fewer than one window of "
        f"{block} and its next token; give more text, or raise --data.train-tokens",
    )
    return data
