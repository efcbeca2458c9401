"""The Hugging Face Hub, asked so that a machine without a network hears of it at once.

`load_dataset` and `Tokenizer.from_pretrained` retry for 23 seconds when nothing answers; one short question first
costs a fraction of a second. Nothing here needs an account.
"""

import os
from pathlib import Path
from typing import Literal

TIMEOUT = 10.0
"""Seconds to wait for the Hub's first answer."""
Kind = Literal["dataset", "model"]


def unreachable(name: str, kind: Kind) -> str | None:
    """Why `name` can be had neither from this machine's cache nor from the Hub; None if it can be."""
    return None if has_copy(name, kind) else commit(name, kind)[1]


def commit(name: str, kind: Kind) -> tuple[str | None, str | None]:
    """The commit that the Hub has of `name` now, and None; or None, and why it cannot be had."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return None, "HF_HUB_OFFLINE is set and no copy is in this machine's cache"
    from huggingface_hub import HfApi

    try:
        return HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT).sha, None
    except Exception as error:  # many kinds: no network, no such repository, a gated one; each says why
        return None, one_line(error)


def has_copy(name: str, kind: Kind) -> bool:
    """Whether this machine's cache has something of `name`."""
    return _copy(name, kind).is_dir()


def commit_of_copy(name: str, kind: Kind) -> str | None:
    """The commit of the copy in this machine's cache, if it says."""
    reference = _copy(name, kind) / "refs" / "main"
    return reference.read_text().strip() if reference.is_file() else None


def one_line(error: BaseException) -> str:
    """The error's kind and the beginning of its message, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _copy(name: str, kind: Kind) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
