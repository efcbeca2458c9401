"""Corpora become token shards, and shards become batches that are a pure function of (seed, step)."""

from lahr.data.batches import Batches
from lahr.data.corpora import anchored
from lahr.data.exchange import fetch, publish
from lahr.data.preparation import prepare
from lahr.data.shards import Split, TokenData

__all__ = ["Batches", "Split", "TokenData", "anchored", "fetch", "prepare", "publish"]
