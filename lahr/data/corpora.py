"""Which text: a corpus is a training and a validation stream of documents, and an identity for the cache.

`stories` is made here; `tinystories` and `owner/name` are streamed from the Hub (`streams.py`); `0.7 stories + 0.3
tinystories` is both (`mixing.py`); anything else is a local parquet, JSONL or text file, or a folder of one kind.
Splits, in this order of preference:

- a Hub dataset's own validation split;
- 5 % of the documents, those whose text hashes lowest, so that equal documents fall on one side;
- with fewer than 20 documents, 5 % of whole blocks of 4,096 bytes (about 1,024 tokens), again by hash. Blocks are
  counted in bytes so that the tokenizer can be trained on the training side alone.
"""

import difflib
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lahr.config import DataConfig
from lahr.data import stories
from lahr.data.documents import Document, Label
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
SPLIT_RULES = 2
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
    stages: int = 1
    """Of a curriculum: its training stream is so many parts with equally many documents, each the same questions."""
    tagged: bool = False
    """Whether some of its answers have a `target`."""
    taken: Callable[[], dict[str, Any]] = dict
    """Where the text comes from, in values of JSON: files and their hashes, a dataset and its commit. For that the Hub
    is asked."""
    as_taken: Callable[[dict[str, Any]], "Corpus | None"] | None = None
    """The same corpus with the text that such a `taken` says; None where the identity says it all."""

    def at(self, taken: dict[str, Any]) -> "Corpus | None":
        """The same corpus with the text that its `taken` said, maybe on another day; None where it does not say."""
        return self.as_taken(taken) if self.as_taken else self


def find_corpus(config: DataConfig) -> Corpus:
    """The corpus that `config.corpus` names. `ConfigError` where there is none, or none that can be read.

    Local files are read once for their hash. The Hub is not asked before a stream is started, so that shards which
    are already prepared need no network.
    """
    # What reads files, the Hub or several corpora is imported when asked for: a corpus made here needs none of it.
    name = config.corpus.strip()
    if name == "stories":
        return _stories()
    if name.startswith("probe:"):
        from lahr.data.probes import find_probe

        return find_probe(name.removeprefix("probe:"))
    if name.partition(":")[0] == "prosqa":
        from lahr.data import prosqa

        return prosqa.corpus(name)
    path = Path(name).expanduser()
    if name not in HUB_NAMES and exists(name):
        from lahr.data.local import local_corpus

        return local_corpus(path, config.text_column)
    from lahr.data.mixing import is_mixture, mixture
    from lahr.data.streams import hub_corpus, hub_name

    if is_mixture(name):
        return mixture(config)
    alias, colon, rest = name.partition(":")
    if (asked := hub_name(HUB_NAMES.get(alias, alias) + colon + rest)) and not _has_file_suffix(asked.dataset):
        here = bool(colon) and alias not in HUB_NAMES and exists(alias)
        check(not here, f"data {name!r}: {alias!r} is here, and files have no configurations; write {alias!r}")
        return hub_corpus(asked, config.text_column)
    words = [*HUB_NAMES, "stories"]
    close = difflib.get_close_matches(name.lower(), words, n=2, cutoff=0.5) or words[::-1]
    looks_like_path = "/" in name or _has_file_suffix(name)
    raise ConfigError(
        f"data {name!r}: no such file or folder; check the path, or use 'stories', which needs none"
        if looks_like_path
        else f"data {name!r} is neither a corpus nor a file here; use {' or '.join(map(repr, close))}, "
        "a Hub dataset as owner/name or owner/name:configuration, or the path of a parquet, JSONL or text file"
    )


def exists(name: str) -> bool:
    """Whether there is a file or folder of that name."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # a mixture's name can be longer than a file's; `~nobody` has no home
        return False


def anchored(config: DataConfig) -> DataConfig:
    """The same data with local files by their absolute paths, for a process that works in another folder."""
    name, tokenizer = config.corpus.strip(), Path(config.tokenizer)
    from lahr.data.mixing import is_mixture, joined, parts_of

    if is_mixture(name) and not exists(name):
        parts = [part._replace(name=_anchored(part.name)) for part in parts_of(name)]
        config = replace(config, corpus=joined(parts))
    elif (anchored_name := _anchored(name)) != name:
        config = replace(config, corpus=anchored_name)
    if config.tokenizer != "bpe" and tokenizer.is_file():
        config = replace(config, tokenizer=str(tokenizer.resolve()))
    return config


def _anchored(name: str) -> str:
    made_here_or_on_the_hub = name in HUB_NAMES or _is_made_here(name)
    return name if made_here_or_on_the_hub or not exists(name) else str(Path(name).expanduser().resolve())


def _is_made_here(name: str) -> bool:
    return name == "stories" or name.partition(":")[0] == "prosqa" or name.startswith("probe:")


def hold_out(
    identity: str,
    description: str,
    documents: Callable[[], Iterator[str]],
    taken: Callable[[], dict[str, Any]] = dict,
) -> Corpus:
    """Splits a stream of texts by hash: documents, or blocks of them where there are few."""

    def side(held: bool) -> Iterator[Document]:
        texts = documents()
        head = list(itertools.islice(texts, FEW_DOCUMENTS))
        if len(head) < FEW_DOCUMENTS:
            yield from map(Document, _block_runs(head, held))
            return
        texts = itertools.chain(head, texts)
        del head  # the chain lets go of it once it is read
        yield from (Document(text) for text in texts if _falls_out(text) == held)

    return Corpus(identity, description, lambda: side(False), lambda: side(True), taken=taken)


def last_space(text: str, start: int, stop: int) -> int:
    """Where a piece that begins at `start` ends: before its last white space, or at `stop` where it has none."""
    if stop >= len(text):
        return len(text)
    space = max(text.rfind(" ", start + 1, stop), text.rfind("\n", start + 1, stop))
    return space if space > start else stop


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _falls_out(text: str) -> bool:
    return int.from_bytes(_hash(text), "big") < HELD_OUT * 2**64


def _block_runs(texts: list[str], held: bool) -> Iterator[str]:
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
        stop = last_space(text, start, start + max(size, 1))
        yield text[start:stop]
        start = stop


def _stories() -> Corpus:
    def side(first: int) -> Iterator[Document]:
        return map(stories.story, itertools.count(first))

    first = {"train": stories.TRAIN_SEEDS, "validation": stories.VALIDATION_SEEDS}
    return Corpus(
        f"stories {stories.identity()}",
        "stories (made here)",
        lambda: side(first["train"]),
        lambda: side(first["validation"]),
        labels=stories.LABELS,
        taken=lambda: {"generator": f"stories {stories.identity()}", "first seed": first},
    )


def _has_file_suffix(name: str) -> bool:
    return Path(name).suffix.lower() in FILE_SUFFIXES
