"""The Hugging Face Hub, asked so that a machine without a network hears of it at once.

`load_dataset` and `Tokenizer.from_pretrained` retry for 23 seconds when nothing answers; one short question first
costs a fraction of a second. Nothing here needs an account.
"""

import os
from pathlib import Path
from typing import Literal

TIMEOUT = 10.0
"""Seconds to wait for the Hub's first answer."""


def unreachable(name: str, kind: Literal["dataset", "model"]) -> str | None:
    """Why `name` can be had neither from this machine's cache nor from the Hub; None if it can be."""
    from huggingface_hub import HfApi, constants

    prefix = f"{kind}s--"
    if (Path(constants.HF_HUB_CACHE) / (prefix + name.replace("/", "--"))).is_dir():
        return None
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set and no copy is in this machine's cache"
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT)
    except Exception as error:  # many kinds: no network, no such repository, a gated one; each says why
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    """The error's kind and the beginning of its message, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
