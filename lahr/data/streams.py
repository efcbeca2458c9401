"""A dataset of the Hub as a corpus: streamed, so that it may be larger than the disk, and read only as far as asked.

It is named `owner/name`, `owner/name:configuration`, `owner/name:configuration:split` or, with the only configuration
it has, `owner/name::split`; without a split its `train`. All of one stream is of one commit, also after it broke off.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

from lahr.data.cleaning import cleaned
from lahr.data.corpora import Corpus, hold_out
from lahr.data.documents import Document
from lahr.data.hub import commit, commit_of_copy, has_copy, one_line
from lahr.errors import ConfigError, check

PAUSES_S = (1.0, 5.0, 25.0)
"""Before each new try of a stream that broke off; `datasets` itself has by then tried again for minutes."""
VALIDATION = ("validation", "valid", "val", "dev")
"""What datasets call their validation split."""
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?::([\w.+-]*))?(?::([\w.]+))?")
_INSTEAD = "use 'stories', which needs no download, or a local parquet, JSONL or text file"
log = logging.getLogger(__name__)


class HubName(NamedTuple):
    """What is asked of the Hub."""

    dataset: str
    config: str | None
    split: str

    def __str__(self) -> str:
        parts = [self.dataset, self.config or "", self.split if self.split != "train" else ""]
        return ":".join(parts).rstrip(":")


def hub_name(name: str) -> HubName | None:
    """What the name asks of the Hub; None if it is no such name."""
    found = _NAME.fullmatch(name)
    return HubName(found[1], found[2] or None, found[3] or "train") if found else None


def hub_corpus(name: HubName, column: str, pinned: str | None = None) -> Corpus:
    """The dataset's text, of the commit that the Hub has now or of the one that is given. The Hub is asked when a
    stream of it is started; `ConfigError` then if it cannot be had."""
    source = _Source(name, column, pinned)

    def side(held: bool) -> Iterator[Document]:
        own = source.validation
        if own is None:
            rest = hold_out("", "", source.train)
            yield from rest.validation() if held else rest.train()
        else:
            yield from map(Document, source.texts(own) if held else source.train())

    return Corpus(
        f"hub {name} {column}",
        f"{name} (Hub)",
        lambda: side(False),
        lambda: side(True),
        taken=source.taken,
        as_taken=lambda taken: hub_corpus(name, column, taken["revision"]) if taken["revision"] else None,
    )


class _Source:
    """One dataset, asked for once."""

    def __init__(self, name: HubName, column: str, pinned: str | None) -> None:
        self.name, self.column, self.pinned = name, column, pinned
        self.train = cleaned(str(name), lambda found: self._rows(name.split))
        self._splits: Any = None
        self._commit: str | None = None
        self._columns: list[str] | None = None

    def texts(self, split: str) -> Iterator[str]:
        return cleaned(f"{self.name}, {split}", lambda found: self._rows(split))()

    @property
    def validation(self) -> str | None:
        """The dataset's own validation split, other than the one that is trained on."""
        return next((s for s in VALIDATION if s in self._opened() and s != self.name.split), None)

    def taken(self) -> dict[str, Any]:
        """What is read, for the manifest."""
        own = self.validation  # opens it, so that the commit is known
        return {
            "dataset": self.name.dataset,
            "config": self.name.config,
            "split": {"train": self.name.split, "validation": own or "held out"},
            "column": self.column,
            "revision": self._commit,
        }

    def _rows(self, split: str) -> Iterator[str | None]:
        """The column's values, one by one, read on from where the stream broke off."""
        rows, n_read, n_characters, failures = self._stream(split), 0, 0, 0
        while True:
            try:
                # Rows after the first are skipped by their number, which is exact; `state_dict` may be a batch ahead.
                with closing(iter(rows.skip(n_read) if n_read else rows)) as stream:
                    for row in stream:
                        text = self._text(row)
                        n_read, n_characters, failures = n_read + 1, n_characters + len(text or ""), 0
                        yield text
                return
            except ConfigError:
                raise
            except Exception as error:  # of the network, of a file system, of a decoder: they share no class
                came = f"the dataset {self._said} broke off after {n_read:,} rows of {split!r}"
                if failures == len(PAUSES_S):
                    raise ConfigError(
                        f"{came}, {n_characters / 1e6:.3g} million characters ({one_line(error)}), and {failures} "
                        f"more tries came no further; try again later, lower --data.train-tokens, or {_INSTEAD}"
                    ) from error
                log.warning("%s (%s); reading on in %.0f s", came, one_line(error), PAUSES_S[failures])
                time.sleep(PAUSES_S[failures])
                failures += 1

    def _text(self, row: dict[str, Any]) -> str | None:
        if self.column not in row:
            self._check_column(row)
        text = row[self.column]
        if text is None or isinstance(text, str):
            return text
        raise ConfigError(
            f"the column {self.column!r} of the dataset {self._said} holds {type(text).__name__}, not text; it has "
            f"{', '.join(self._columns or row)}: give one with text as --data.text-column"
        )

    def _stream(self, split: str) -> Any:
        rows = self._opened()[split]
        self._columns = rows.column_names
        if rows.column_names is None:  # known of no row before it is read
            return rows
        self._check_column(rows.column_names)
        return rows.select_columns([self.column])

    def _check_column(self, columns: Any) -> None:
        check(
            self.column in columns,
            f"the dataset {self._said} has no column {self.column!r}; it has {', '.join(columns)}: "
            "give one as --data.text-column",
        )

    @property
    def _said(self) -> str:
        return repr(str(self.name))

    def _opened(self) -> Any:
        if self._splits is None:
            self._splits = self._load()
        return self._splits

    def _load(self) -> Any:
        dataset = self.name.dataset
        newest, reason = commit(dataset, "dataset")
        check(
            newest is not None or has_copy(dataset, "dataset"),
            f"the dataset {self._said} cannot be had from the Hub ({reason}); {_INSTEAD}",
        )
        self._commit = self.pinned or newest or commit_of_copy(dataset, "dataset")
        try:
            import datasets  # a second to import, and absent where only local files are read
        except ImportError as error:
            raise ConfigError(
                f"the dataset {self._said} needs the package 'datasets', which is missing; {_INSTEAD}"
            ) from error
        try:
            loaded = datasets.load_dataset(
                dataset, self.name.config, revision=self.pinned or newest, streaming=True
            )
        except Exception as error:  # every dataset fails in its own way; the user needs the reason, not the kind
            which = "give its configuration as owner/name:configuration, or " if "onfig" in str(error) else ""
            if newest is not None and self.pinned not in (None, newest):
                which += (
                    f"try again later; what was prepared of it before is of commit {self.pinned}, and if that is gone, "
                    "remove the folder in the cache whose name ends in .part to begin with the newest one, or "
                )
            raise ConfigError(
                f"the dataset {self._said} cannot be loaded ({one_line(error)}); {which}{_INSTEAD}"
            ) from error
        there = self.name._replace(split="SPLIT")
        check(
            self.name.split in loaded,
            f"the dataset {self._said} has no split {self.name.split!r}, only {', '.join(map(str, loaded))}; "
            f"name one as '{there}', or {_INSTEAD}",
        )
        return loaded
