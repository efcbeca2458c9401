"""From a corpus to an open `TokenData`: found in the cache by its key, or prepared once.

A prepared folder is there whole or not at all. What was cut off goes on behind its last finished shard.
"""

import contextlib
import fcntl
import hashlib
import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from tokenizers import Tokenizer

from lahr.config import DataConfig
from lahr.data.corpora import END_OF_TEXT, SPLIT_RULES, Corpus, find_corpus
from lahr.data.documents import Document, Label
from lahr.data.mixing import RanOut
from lahr.data.rows import Rows
from lahr.data.shards import FORMAT, Damaged, file_hash, open_split, read_manifest, write_manifest
from lahr.data.spans import Encoded, Encoder
from lahr.data.tokenizer import TRAINING_BYTES, load_tokenizer, train_bpe, words_alone
from lahr.data.tokens import TokenData
from lahr.data.writing import SplitWriter, begin, begun, forget, is_begun
from lahr.errors import check
from lahr.plain import canonical_json

Report = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, 0 to 1."""
LEAST_VALIDATION_TOKENS = 1 << 16
ENCODE_AT_ONCE, ENCODE_BYTES = 512, 4 << 20
"""Documents given to the tokenizer together, and about how many bytes of them."""
TOKENIZER = "tokenizer.json"
log = logging.getLogger(__name__)


def prepare(
    config: DataConfig,
    vocab_size: int,
    block: int,
    cache: Path,
    progress: Report | None = None,
    elsewhere: Callable[[Path], bool] = lambda folder: False,
) -> TokenData:
    """Opens the corpus as tokens, preparing it in `cache` where it is not there yet.

    `elsewhere` is asked first whether it can put the folder of that name there, from where all machines can read, say.
    Two processes that want the same thing prepare it once. A damaged file is found by its hash, said in a
    warning, and all is prepared again. Raises `ConfigError`, before anything is trained, where the corpus cannot be
    had or is too small for one training row or for `config.validation_blocks` windows of `block` tokens; with
    `config.segments` also where too few documents are long enough, and where a question does not fit into a row.
    """
    report = progress or (lambda what, share: None)
    corpus = find_corpus(config)
    validation_tokens = _validation_tokens(_spare(config) * config.validation_blocks * block + 1)
    key = _key(config, corpus, vocab_size, validation_tokens)
    slug = re.sub(r"\W+", "-", Path(config.corpus.strip()).name).strip("-").lower()[:40]
    folder = Path(cache).expanduser().resolve() / f"{slug or 'corpus'}-{key[:16]}"
    if not is_whole(folder):
        with locked(folder):
            # Another process may have prepared it while this one waited.
            if not is_whole(folder) and not elsewhere(folder):
                _prepare_into(folder, corpus, config, vocab_size, validation_tokens, report)
    return opened(folder, config, block, corpus.description)


def _spare(config: DataConfig) -> int:
    """How many times the tokens that are read have to be there: rows that are documents leave out the ends of long
    ones, and rows of segments the rests of all, 73 % of the generated stories in rows of 512 and 94 % in rows of 768.
    """
    return 4 if config.packing == "documents" else 16 if config.segments > 1 else 1


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
        log.warning("prepared data is damaged (%s in %s); it is not used", damage, folder)
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
    """Prepares in a folder beside `folder`, which takes its name once it is whole. Call it under the lock.

    What is finished of it stays where this is cut off, for the next call.
    """
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(exist_ok=True)
    try:
        _write(part, corpus, config, vocab_size, validation_tokens, report)
    except BaseException:
        if not is_begun(part):  # nothing is finished
            shutil.rmtree(part, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)


def _write(
    folder: Path, corpus: Corpus, config: DataConfig, vocab_size: int, validation_tokens: int, report: Report
) -> None:
    taken = begun(folder)
    # A Hub dataset may have another commit by now.
    then = corpus.at(taken) if taken is not None else None
    if taken is not None and then is None:
        log.warning("of which commit the shards in %s are is not known; all begins anew", folder)
    if taken is None or then is None:
        for left_over in folder.iterdir():
            left_over.unlink()
        tokenizer = _tokenizer(folder, corpus, config, vocab_size, report)
        begin(folder, TOKENIZER, taken := corpus.taken())
    else:
        corpus = then
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    eot = cast(int, tokenizer.token_to_id(END_OF_TEXT))  # no tokenizer is taken without it
    encoder = Encoder(tokenizer, corpus.labels, eot)
    kind = np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32)
    columns = {"token": kind}
    columns |= {"label": np.dtype(np.uint8)} if corpus.labels else {}
    columns |= {"target": kind} if corpus.tagged else {}
    content = hashlib.sha256((folder / TOKENIZER).read_bytes())
    content.update(repr([label.name for label in corpus.labels]).encode())
    splits = {}
    for name, stream, limit in (
        ("train", corpus.train, config.train_tokens),
        ("validation", corpus.validation, validation_tokens),
    ):
        writer = SplitWriter(folder, name, columns)
        documents = itertools.islice(stream(), writer.documents, None)
        try:
            ended = _encode(documents, tokenizer, encoder, writer, limit, partial(report, f"tokenising {name}"))
        except RanOut as error:
            if name == "train":
                raise
            log.warning("%s; %d validation tokens are kept", error, writer.n_tokens)
            ended = True
        splits[name] = writer.close() | {"ended": ended}
        content.update(canonical_json([name, splits[name]["tokens"], splits[name]["content"]]).encode())
    manifest = {
        "format": FORMAT,
        "corpus": corpus.identity,
        "description": corpus.description,
        "content": content.hexdigest(),
        "stages": corpus.stages,
        "taken": taken,
        "labels": [asdict(label) for label in corpus.labels],
        "tokenizer": {
            "file": TOKENIZER,
            "name": config.tokenizer,
            "sha256": file_hash(folder / TOKENIZER),
            "entries": tokenizer.get_vocab_size(),
            "eot": eot,
        },
        "splits": splits,
    }
    write_manifest(folder, manifest)
    forget(folder)


def _tokenizer(folder: Path, corpus: Corpus, config: DataConfig, vocab_size: int, report: Report) -> Tokenizer:
    """The tokenizer that is asked for, saved in `folder`."""
    if config.tokenizer != "bpe":
        tokenizer = load_tokenizer(config.tokenizer, vocab_size, corpus.words)
    elif corpus.only_words:
        tokenizer = words_alone(corpus.words, vocab_size)
    else:
        # A tokenizer needs no more text than will be used; four bytes a token is near enough to know how much.
        n_bytes = min(TRAINING_BYTES, 4 * config.train_tokens)
        tokenizer = train_bpe(_head(corpus.train(), n_bytes, report), vocab_size, corpus.words)
    report("training the tokenizer", 1.0)
    (folder / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
    return tokenizer


def _head(documents: Iterator[Document], n_bytes: int, report: Report) -> Iterator[str]:
    """The first texts, until they hold `n_bytes` bytes, or all that there are."""
    have = 0
    with contextlib.suppress(RanOut):  # whether there are tokens enough is seen when they are counted
        for n, document in enumerate(documents, 1):
            yield document.text
            have += len(document.text.encode())
            if n % 1000 == 0:
                report("reading text for the tokenizer", min(1.0, have / n_bytes))
            if have >= n_bytes:
                break
    report("training the tokenizer", 0.0)


def _encode(
    documents: Iterator[Document],
    tokenizer: Tokenizer,
    encoder: Encoder,
    writer: SplitWriter,
    limit: int,
    report: Callable[[float], None],
) -> bool:
    """Writes documents, each closed by an end-of-text token, until `limit` tokens; the last one is cut there.

    Whether the documents ended before.
    """
    if writer.n_tokens >= limit:  # of a split that is finished not even the text is asked for
        return False
    for some in _together(documents):
        encodings = tokenizer.encode_batch_fast([document.text for document in some], add_special_tokens=False)
        for document, encoding in zip(some, encodings, strict=True):
            encoded = encoder.encode(document, encoding.ids)
            n, n_bytes = len(encoded.token), len(document.text.encode())
            left = limit - writer.n_tokens + writer.within
            if n <= left:
                writer.add(encoded, n_bytes, document.bits)
                continue
            if left:  # the floor of a part is not known, nor exactly its bytes
                token, target, label = (x[:left] for x in (encoded.token, encoded.target, encoded.label))
                writer.add(Encoded(token, target, label, encoded.is_question), round(n_bytes * left / n), None)
            break
        report(min(1.0, writer.n_tokens / limit))
        if writer.n_tokens >= limit:
            return False
    return True


def _together(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """The documents in lists that are not too large to be encoded at once."""
    some: list[Document] = []
    size = 0
    try:
        for document in documents:
            some.append(document)
            size += len(document.text)
            if len(some) == ENCODE_AT_ONCE or size >= ENCODE_BYTES:
                yield some
                some, size = [], 0
    except RanOut:  # what there was may be all that is wanted
        if some:
            yield some
        raise
    if some:
        yield some


def opened(folder: Path, config: DataConfig, block: int, description: str = "") -> TokenData:
    """The prepared data that lies whole in `folder`, under the name that its text has now (the one it had when it was
    prepared, where none is given). `ConfigError` where it is too small for what is asked of it."""
    manifest = read_manifest(folder)
    eot = manifest["tokenizer"]["eot"]
    splits = {
        name: Rows(open_split(folder, entry), block, config.segments, config.packing, eot)
        for name, entry in manifest["splits"].items()
    }
    data = TokenData(
        folder=folder,
        description=description or manifest["description"],
        content_hash=manifest["content"],
        vocab_size=manifest["tokenizer"]["entries"],
        eot=eot,
        labels=tuple(Label(**label) for label in manifest["labels"]),
        train=splits["train"],
        validation=splits["validation"],
        stages=manifest["stages"],
        n_validation=config.validation_blocks,
    )
    check(
        data.stages == 1 or manifest["splits"]["train"]["ended"],
        f"{data.description} has {data.stages} stages, and data.train_tokens {config.train_tokens:,} ends before the "
        "last does; raise it, or ask for fewer questions",
    )
    check(
        data.stages == 1 or config.packing == "documents",
        f"{data.description} has {data.stages} stages, whose rows must be documents; give --data.packing documents",
    )
    for name, split in splits.items():
        split.require_whole(f"the {name} split of {data.description}")
    data.train.require(f"the training split of {data.description}", 1)
    data.validation.require(
        f"the validation split of {data.description}", config.validation_blocks // config.segments
    )
    return data
