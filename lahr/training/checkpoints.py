"""Checkpoints that are verified before they are believed.

`step-N/` holds `state.safetensors`, or a `shard-….safetensors` of each process of a sharded run; `state.json`; and,
written last, `manifest.json` with the sha256 of all of them. A folder without a manifest that holds is no checkpoint.
Nothing is unpickled. Either kind can be read by one process or by many, in parts or whole.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.distributed as dist

from lahr.errors import check
from lahr.files import Folder
from lahr.training import shards
from lahr.training.parallel import first_says

_KEPT = 2
_WHOLE = "state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A state to go on from."""

    step: int
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    """Plain values beside the tensors: the fingerprint and every progress record so far."""


def save(folder: Folder, checkpoint: Checkpoint, may_write: Callable[[], None] = lambda: None) -> None:
    """Writes `step-N/` below `folder`, its manifest last, and removes all but the two newest."""
    place = f"step-{checkpoint.step}"
    folder.remove(place)  # a folder being rewritten is no checkpoint until it is whole again
    data = safetensors.torch.save({k: v.contiguous() for k, v in checkpoint.tensors.items()})
    folder.write(f"{place}/{_WHOLE}", data)
    _finish(folder, checkpoint, {_WHOLE: hashlib.sha256(data).hexdigest()})


def save_sharded(folder: Folder, checkpoint: Checkpoint, may_write: Callable[[], None] = lambda: None) -> None:
    """`save` by all processes together, each writing the parts that it holds. Collective.

    What is no DTensor, and `meta`, are the first process's. Raises `ConfigError` on every process where the others'
    files are not in the folder that the first one sees.
    """
    place, first = f"step-{checkpoint.step}", dist.get_rank() == 0
    if first:
        folder.remove(
            place
        )  # also shards of another number of processes, which a reader would take for these ones'
    dist.barrier()
    hashes: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(hashes, shards.write(folder.child(place), checkpoint.tensors))
    manifest = {name: digest for part in hashes for name, digest in part.items()}
    unseen = sorted(manifest.keys() - set(folder.names(place))) if first else []
    if first and not unseen:
        _finish(folder, checkpoint, manifest)
    unseen = first_says(unseen)
    check(
        not unseen,
        f"the first process does not see {', '.join(unseen)} in {folder.uri}, so the processes write to different "
        "disks; give --results a path or URI that all of them share, or --sharding replicate",
    )


def _finish(folder: Folder, checkpoint: Checkpoint, hashes: Mapping[str, str]) -> None:
    place = f"step-{checkpoint.step}"
    state = json.dumps({**checkpoint.meta, "step": checkpoint.step}).encode()
    folder.write(f"{place}/state.json", state)
    folder.write_json(f"{place}/manifest.json", {**hashes, "state.json": hashlib.sha256(state).hexdigest()})
    for step in _steps(folder)[_KEPT:]:
        folder.remove(f"step-{step}")


def newest(
    folder: Folder, fingerprint: str | None, with_tensors: bool = True, only: int | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose manifest holds and whose fingerprint is this one, and what was wrong with newer.

    A fingerprint of None takes any; `only` looks at that step alone. Its tensors are whole, or left where they are
    unless `with_tensors`.
    """
    problems: list[str] = []
    for step in _steps(folder) if only is None else [only]:
        try:
            return _load(folder, step, fingerprint, with_tensors), problems
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            problems.append(f"checkpoint step-{step} is not used: {error}")
    return None, problems


def newest_sharded(
    folder: Folder, fingerprint: str, into: dict[str, torch.Tensor]
) -> tuple[Checkpoint | None, list[str]]:
    """`newest` for all processes together: the first one chooses, each fills its parts of `into`. Collective."""
    chosen = newest(folder, fingerprint, with_tensors=False) if dist.get_rank() == 0 else (None, [])
    found, problems = first_says(chosen)
    if found is None:
        return None, problems
    return replace(found, tensors=shards.read(folder.child(f"step-{found.step}"), into)), problems


def latest_step(folder: Folder) -> int:
    """The step of the newest checkpoint that was begun here, whole or not; -1 if there is none."""
    return max(_steps(folder), default=-1)


def _steps(folder: Folder) -> list[int]:
    found = (re.fullmatch(r"step-(\d+)", name) for name in folder.names())
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _load(folder: Folder, step: int, fingerprint: str | None, with_tensors: bool) -> Checkpoint:
    place = f"step-{step}"
    if not folder.exists(f"{place}/manifest.json"):
        raise ValueError("it has no manifest (it was never finished)")
    manifest = folder.read_json(f"{place}/manifest.json")
    if not isinstance(manifest, dict) or "state.json" not in manifest or len(manifest) < 2:
        raise ValueError(f"its manifest names no {_WHOLE} or shards with a state.json")
    strays = {name for name in folder.names(place) if name.endswith(shards.SUFFIX)} - manifest.keys()
    if strays:  # a reader of shards takes all there are
        raise ValueError(f"it holds {', '.join(sorted(strays))}, which its manifest does not name")
    kept = {}
    for name in manifest:
        data = folder.read(f"{place}/{name}")
        if hashlib.sha256(data).hexdigest() != manifest[name]:
            raise ValueError(f"{name} is damaged (its sha256 is not the manifest's)")
        if name in (_WHOLE, "state.json"):  # shards are larger together than one process may hold
            kept[name] = data
    meta = json.loads(kept["state.json"])
    if fingerprint is not None and meta["fingerprint"] != fingerprint:
        raise ValueError(f"it belongs to configuration {meta['fingerprint']}, not {fingerprint}")
    if not with_tensors:
        return Checkpoint(step, {}, meta)
    whole = safetensors.torch.load(kept[_WHOLE]) if _WHOLE in kept else shards.read_whole(folder.child(place))
    return Checkpoint(step, whole, meta)
