"""From the texts that files and rows hold to those of documents: cut at markers, valid UTF-8, none enormous.

Nothing is mended silently: what was skipped, dropped or cut is counted and said in a warning when reading ends.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing

from lahr.data.corpora import END_OF_TEXT, last_space

LONGEST = 1 << 24
"""Characters of the longest document that stays whole. The tokenizer takes some thirty times a document's memory, and
nothing can refer back as far as that."""
PIECE = 1 << 20
"""Characters of the pieces that longer ones are cut into: so many that 5 % of them can be held out by hash."""

EMPTY = "without text skipped"
CUT = f"longer than {LONGEST:,} characters cut into pieces of at most {PIECE:,} at white space"
NUL = "freed of NUL characters"
SURROGATE = "with half a surrogate pair, which no text can have: U+FFFD put in its place"
_SURROGATES = re.compile("[\ud800-\udfff]")
log = logging.getLogger(__name__)

Found = Counter[str]
"""How many documents something was done to, by what was done."""


def cleaned(name: str, texts: Callable[[Found], Iterator[str | None]]) -> Callable[[], Iterator[str]]:
    """Documents' texts out of those that `texts` reads, each time anew; it may count what it did itself.

    When a reading ends, or is ended, a warning says what was found, unless an earlier one found as much.
    """
    said = Found()

    def documents() -> Iterator[str]:
        found = Found()
        try:
            with closing(texts(found)) as stream:  # type: ignore[type-var]  # every reader is a generator
                for text in stream:
                    yield from _documents(text, found)
        finally:
            if any(count > said[what] for what, count in found.items()):
                said.update(found - said)
                log.warning("documents of %s: %s", name, "; ".join(f"{n:,} {what}" for what, n in found.items()))

    return documents


def pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most `PIECE` characters, cut at white space where there is some."""
    start = 0
    while start < len(text):
        stop = last_space(text, start, start + PIECE)
        yield text[start:stop]
        start = stop


def _documents(text: str | None, found: Found) -> Iterator[str]:
    """The text, cut at every `<|endoftext|>` inside it, without empty documents and outer white space."""
    if text and "\0" in text:
        found[NUL] += 1
        text = text.replace("\0", "")
    if not text or text.isspace():  # `strip` would copy a text that may be a gigabyte
        found[EMPTY] += 1
        return
    for part in text.split(END_OF_TEXT):
        found.update([CUT] if len(part) > LONGEST else [])
        for piece in pieces(part) if len(part) > LONGEST else [part]:
            if stripped := piece.strip():
                yield _encodable(stripped, found)


def _encodable(text: str, found: Found) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        found[SURROGATE] += 1
        return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
    return text
