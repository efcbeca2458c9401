"""Corpora become token shards, and shards become batches that are a pure function of (seed, step)."""

from lahr.data.batches import Batches
from lahr.data.corpora import anchored
from lahr.data.exchange import SHARED, fetch, publish, published_at
from lahr.data.preparation import prepare
from lahr.data.rows import IGNORED, Rows, Windows
from lahr.data.shards import Split
from lahr.data.tokens import TokenData

__all__ = [
    "IGNORED",
    "SHARED",
    "Batches",
    "Rows",
    "Split",
    "TokenData",
    "Windows",
    "anchored",
    "fetch",
    "prepare",
    "publish",
    "published_at",
]
