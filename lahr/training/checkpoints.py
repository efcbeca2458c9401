"""Checkpoints that are verified before they are believed.

`step-N/` holds `state.safetensors`, `state.json` and, written last, `manifest.json` with the sha256 of both; a
folder without a manifest that holds is no checkpoint. Nothing is unpickled.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from lahr.files import Folder

_KEPT = 2
_FILES = ("state.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """A state to go on from."""

    step: int
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    """Plain values beside the tensors: the fingerprint and every progress record so far."""


def save(folder: Folder, checkpoint: Checkpoint) -> None:
    """Writes `step-N/` below `folder`, its manifest last, and removes all but the two newest."""
    contents = {
        "state.safetensors": safetensors.torch.save({k: v.contiguous() for k, v in checkpoint.tensors.items()}),
        "state.json": json.dumps({**checkpoint.meta, "step": checkpoint.step}).encode(),
    }
    place = f"step-{checkpoint.step}"
    folder.remove(f"{place}/manifest.json")  # a folder being rewritten is no checkpoint until it is whole again
    for name, data in contents.items():
        folder.write(f"{place}/{name}", data)
    folder.write_json(
        f"{place}/manifest.json", {name: hashlib.sha256(d).hexdigest() for name, d in contents.items()}
    )
    for step in _steps(folder)[_KEPT:]:
        folder.remove(f"step-{step}")


def newest(folder: Folder, fingerprint: str | None, only: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose manifest holds and whose fingerprint is this one, and what was wrong with newer.

    A fingerprint of None takes any; `only` looks at that step alone.
    """
    problems: list[str] = []
    for step in _steps(folder) if only is None else [only]:
        try:
            return _load(folder, step, fingerprint), problems
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"checkpoint step-{step} is not used: {error}")
    return None, problems


def latest_step(folder: Folder) -> int:
    """The step of the newest checkpoint that was begun here, whole or not; -1 if there is none."""
    return max(_steps(folder), default=-1)


def _steps(folder: Folder) -> list[int]:
    found = (re.fullmatch(r"step-(\d+)", name) for name in folder.names())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _load(folder: Folder, step: int, fingerprint: str | None) -> Checkpoint:
    place = f"step-{step}"
    if not folder.exists(f"{place}/manifest.json"):
        raise ValueError("it has no manifest (it was never finished)")
    manifest = folder.read_json(f"{place}/manifest.json")
    contents = {}
    for name in _FILES:
        contents[name] = folder.read(f"{place}/{name}")
        if hashlib.sha256(contents[name]).hexdigest() != manifest[name]:
            raise ValueError(f"{name} is damaged (its sha256 is not the manifest's)")
    meta = json.loads(contents["state.json"])
    if fingerprint is not None and meta["fingerprint"] != fingerprint:
        raise ValueError(f"it belongs to configuration {meta['fingerprint']}, not {fingerprint}")
    return Checkpoint(step, safetensors.torch.load(contents["state.safetensors"]), meta)
