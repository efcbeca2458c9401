"""Which text: a corpus is a training and a validation stream of documents, and an identity for the cache.

`stories` is made here; `tinystories` and `owner/name` come from the Hub through `datasets`; anything else is a
local parquet, JSONL or text file, or a folder of one kind. Splits, in this order of preference:

- a Hub dataset's own validation split;
- 5 % of the documents, those whose text hashes lowest, so that equal documents fall on one side;
- with fewer than 20 documents, 5 % of whole blocks of 4,096 bytes (about 1,024 tokens), again by hash. Blocks are
  counted in bytes so that the tokenizer can be trained on the training side alone.
"""

import difflib
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lahr.config import DataConfig
from lahr.data import stories
from lahr.data.documents import Document, Label
from lahr.data.hub import one_line, unreachable
from lahr.errors import ConfigError, check

END_OF_TEXT = "<|endoftext|>"
HUB_NAMES = {"tinystories": "roneneldan/TinyStories"}
HELD_OUT = 0.05
"""Share of the documents (or blocks) that is held out where a corpus has no validation split."""
FEW_DOCUMENTS = 20
"""With fewer documents than this, blocks of them are held out."""
BLOCK_BYTES = 4096
FILE_SUFFIXES = {".txt", ".text", ".md", ".json", ".jsonl", ".parquet", ".csv", ".gz", ".zst"}
"""A name that ends so and is not there is a missing file, not a dataset on the Hub."""
SPLIT_RULES = 1
"""Version of the rules above; part of the cache's key."""


@dataclass(frozen=True)
class Corpus:
    """Two streams of documents. Calling one starts it again."""

    identity: str
    """What the text depends on: a generator's own text, the files' content, a name on the Hub; never a path."""
    description: str
    train: Callable[[], Iterator[Document]]
    validation: Callable[[], Iterator[Document]]
    labels: tuple[Label, ...] = ()
    """What the answers in its documents are told apart by, at most `MOST_LABELS`; all that there can be."""
    words: tuple[str, ...] = ()
    """Words that must each be one token, such as `<k17>`: none is a part of another, or can occur in other text."""
    only_words: bool = False
    """Whether its documents are made of `words` alone, so that no tokenizer has to be trained for it."""
    tagged: bool = False
    """Whether some of its answers have a `target`."""


def find_corpus(config: DataConfig) -> Corpus:
    """The corpus that `config.corpus` names. `ConfigError` where there is none, or none that can be read.

    Local files are read once for their hash. The Hub is not asked before a stream is started, so that shards which
    are already prepared need no network.
    """
    name = config.corpus.strip()
    if name == "stories":
        return _stories()
    if name in HUB_NAMES:
        return _hub(HUB_NAMES[name], config.text_column)
    path = Path(name).expanduser()
    if path.exists():
        from lahr.data.local import local_documents  # pyarrow's readers are not needed for a corpus made here

        identity, documents = local_documents(path, config.text_column)
        return hold_out(f"local {identity}", str(name), documents)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not _has_file_suffix(name):
        return _hub(name, config.text_column)
    words = [*HUB_NAMES, "stories"]
    close = difflib.get_close_matches(name.lower(), words, n=2, cutoff=0.5) or words[::-1]
    looks_like_path = "/" in name or _has_file_suffix(name)
    raise ConfigError(
        f"data {name!r}: no such file or folder; check the path, or use 'stories', which needs none"
        if looks_like_path
        else f"data {name!r} is neither a corpus nor a file here; use {' or '.join(map(repr, close))}, "
        "a Hub dataset as owner/name, or the path of a parquet, JSONL or text file"
    )


def anchored(config: DataConfig) -> DataConfig:
    """The same data with local files by their absolute paths, for a process that works in another folder."""
    corpus, tokenizer = Path(config.corpus.strip()).expanduser(), Path(config.tokenizer)
    if config.corpus.strip() not in {"stories", *HUB_NAMES} and corpus.exists():
        config = replace(config, corpus=str(corpus.resolve()))
    if config.tokenizer != "bpe" and tokenizer.is_file():
        config = replace(config, tokenizer=str(tokenizer.resolve()))
    return config


def hold_out(identity: str, description: str, documents: Callable[[], Iterator[str]]) -> Corpus:
    """Splits a stream of texts by hash: documents, or blocks of them where there are few."""
    few = sum(1 for _ in itertools.islice(documents(), FEW_DOCUMENTS)) < FEW_DOCUMENTS

    def side(held: bool) -> Iterator[Document]:
        if few:
            return (Document(text) for text in _block_runs(documents(), held))
        return (Document(text) for text in documents() if _falls_out(text) == held)

    return Corpus(identity, description, lambda: side(False), lambda: side(True))


def split_marked(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut at every `<|endoftext|>` inside them, without empty ones and outer white space."""
    for text in texts:
        for part in text.split(END_OF_TEXT):
            if stripped := part.strip():
                yield stripped


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _falls_out(text: str) -> bool:
    return int.from_bytes(_hash(text), "big") < HELD_OUT * 2**64


def _block_runs(texts: Iterator[str], held: bool) -> Iterator[str]:
    """Runs of neighbouring blocks on one side. Held out are the ⌈5 %⌉ of lowest hash: of two or more, one at least."""
    blocks = [list(_blocks(text)) for text in texts]
    ranked = sorted(_hash(block) for text in blocks for block in text)
    out = set(ranked[: -(-len(ranked) // round(1 / HELD_OUT))]) if len(ranked) > 1 else set()
    for text in blocks:
        for is_out, run in itertools.groupby(text, key=lambda block: _hash(block) in out):
            if is_out == held:
                yield "".join(run)


def _blocks(text: str) -> Iterator[str]:
    """Pieces of at most `BLOCK_BYTES` bytes, cut at white space where there is some; joined they are `text`."""
    start = 0
    while start < len(text):
        # The longest piece of at most BLOCK_BYTES bytes of UTF-8, and at least one character.
        size = len(text[start : start + BLOCK_BYTES].encode()[:BLOCK_BYTES].decode(errors="ignore"))
        stop = start + max(size, 1)
        if stop < len(text):
            space = max(text.rfind(" ", start + 1, stop), text.rfind("\n", start + 1, stop))
            stop = space if space > start else stop
        yield text[start:stop]
        start = stop


def _stories() -> Corpus:
    def side(first: int) -> Iterator[Document]:
        return map(stories.story, itertools.count(first))

    return Corpus(
        f"stories {stories.identity()}",
        "stories (made here)",
        lambda: side(stories.TRAIN_SEEDS),
        lambda: side(stories.VALIDATION_SEEDS),
        stories.LABELS,
    )


def _has_file_suffix(name: str) -> bool:
    return Path(name).suffix.lower() in FILE_SUFFIXES


def _hub(name: str, column: str) -> Corpus:
    """A dataset on the Hub: its own validation split if it has one."""
    loaded: list[Any] = []

    def dataset() -> Any:
        if not loaded:
            loaded.append(_load_from_hub(name, column))
        return loaded[0]

    def documents(split: str) -> Iterator[str]:
        rows = dataset()[split].select_columns([column]).iter(batch_size=1000)
        return split_marked(text for batch in rows for text in batch[column] if text)

    def side(held: bool) -> Iterator[Document]:
        own = next((s for s in ("validation", "valid", "val", "dev") if s in dataset()), None)
        if own is None:
            rest = hold_out("", "", lambda: documents("train"))
            yield from rest.validation() if held else rest.train()
        else:
            yield from (Document(text) for text in documents(own if held else "train"))

    return Corpus(f"hub {name} {column}", f"{name} (Hub)", lambda: side(False), lambda: side(True))


def _load_from_hub(name: str, column: str) -> Any:
    instead = "use 'stories', which needs no download, or a local parquet, JSONL or text file"
    reason = unreachable(name, "dataset")
    check(reason is None, f"the dataset {name!r} cannot be had from the Hub ({reason}); {instead}")
    try:
        import datasets  # a second to import, and absent where only local files are read
    except ImportError as error:
        raise ConfigError(
            f"the dataset {name!r} needs the package 'datasets', which is missing; {instead}"
        ) from error
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # every dataset fails in its own way; the user needs the reason, not the kind
        raise ConfigError(f"the dataset {name!r} cannot be loaded ({one_line(error)}); {instead}") from error
    check("train" in loaded, f"the dataset {name!r} has no split 'train', only {', '.join(loaded)}; {instead}")
    columns = loaded["train"].column_names
    check(
        column in columns,
        f"the dataset {name!r} has no column {column!r}; it has {', '.join(columns)}: "
        "give one as --data.text-column",
    )
    return loaded
