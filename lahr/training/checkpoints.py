"""Checkpoints that are verified before they are believed.

`step-N/` holds `state.safetensors`, or a `shard-….safetensors` of each process of a sharded run; `state.json`; and,
written last, `manifest.json` with the sha256 of all of them. A folder without a manifest that holds is no checkpoint.
Nothing is unpickled. Either kind can be read by one process or by many, in parts or whole. While a trial runs its two
newest are kept; of one that has ended only the last is, and of that the weights alone. `newest.json` beside them names
the last one that was finished, so that it is missed if it is gone.

Storage that is away is no damage: it is a `StorageError` here, never a reason to go back to an older checkpoint.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.distributed as dist

from lahr.errors import StorageError, check
from lahr.files import TEMPORARY, Folder
from lahr.patience import before_each_try
from lahr.training import shards
from lahr.training.parallel import from_first, together
from lahr.training.progress import Progress

WEIGHTS = "model."
"""How the names of tensors begin that are the model's own, which is all that a trained model needs."""
AVERAGE = "average."
"""How those begin that are the average of these over the steps, where one is kept (`train.ema`)."""
_KEPT = 2
_NEWEST = "newest.json"
_WHOLE = "state.safetensors"
_FILE = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]*(\.json|{re.escape(shards.SUFFIX)})")


@dataclass(frozen=True)
class Checkpoint:
    """A state to go on from."""

    step: int
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    """Plain values beside the tensors: the fingerprint and every progress record so far."""

    @property
    def has_ended(self) -> bool:
        """Whether its trial has: there is nothing to go on with."""
        records = self.meta["records"]
        return bool(records) and records[-1]["status"] != "running"

    def evaluated(self) -> dict[str, torch.Tensor]:
        """The weights that evaluations are of, by the model's own names: the averaged ones where there are some."""
        return below(AVERAGE, self.tensors) or below(WEIGHTS, self.tensors)

    def kept_tensors(self) -> dict[str, torch.Tensor]:
        """Those to write: all that a later start needs. Of a trial that has ended that is the weights it is judged by,
        under the names of the model's own; of two kinds of weights only they are kept."""
        if not self.has_ended:
            return self.tensors
        return {WEIGHTS + name: value for name, value in self.evaluated().items()}


def below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of `tensors` whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def nobody_else() -> None:
    """Lets a checkpoint be written: no other attempt is at this trial."""


def save(folder: Folder, checkpoint: Checkpoint, may_write: Callable[[], None] = nobody_else) -> None:
    """Writes `step-N/` below `folder`, its manifest last, and removes those that are no longer needed.

    `may_write` is called before each file, each time that storage is asked, and raises where another attempt has taken
    this trial over.
    """
    place = f"step-{checkpoint.step}"
    tensors = {k: v.contiguous() for k, v in checkpoint.kept_tensors().items()}
    _begin(folder, place, may_write)
    data = safetensors.torch.save(tensors)
    with before_each_try(may_write):
        folder.write(f"{place}/{_WHOLE}", data)
    _finish(folder, checkpoint, {_WHOLE: hashlib.sha256(data).hexdigest()}, may_write)


def save_sharded(folder: Folder, checkpoint: Checkpoint, may_write: Callable[[], None] = nobody_else) -> None:
    """`save` by all processes together, each writing the parts that it holds. Collective.

    What is no DTensor, `meta` and `may_write` are the first process's. Raises `ConfigError` on every process where the
    others' files are not in the folder that the first one sees.
    """
    place = f"step-{checkpoint.step}"
    # What fails on one process is raised on all: a process that went on alone would wait for the others for ever.
    from_first(lambda: _begin(folder, place, may_write))
    written = together(lambda: shards.write(folder.child(place), checkpoint.kept_tensors()))
    hashes: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(hashes, written)
    manifest = {name: digest for part in hashes for name, digest in part.items()}

    def finish() -> list[str]:
        unseen = sorted(manifest.keys() - set(folder.names(place)))
        if not unseen:
            _finish(folder, checkpoint, manifest, may_write)
        return unseen

    unseen = from_first(finish)
    check(
        not unseen,
        f"the first process does not see {', '.join(unseen)} in {folder.uri}, so the processes write to different "
        "disks; give --results a path or URI that all of them share, or --sharding replicate",
    )


def _begin(folder: Folder, place: str, may_write: Callable[[], None]) -> None:
    # A folder being rewritten is no checkpoint until it is whole again; and shards of another number of processes
    # would be taken for these ones'.
    with before_each_try(may_write):
        folder.remove(place)
    if folder.is_local:  # an object store has no unfinished files
        for name in folder.names():
            inside = [f"{name}/{each}" for each in folder.names(name)] if _step_of(name) is not None else []
            for left in (name, *inside):  # by a writer that was killed
                if left.endswith(TEMPORARY) or left.rpartition("/")[2].startswith(shards.WRITING):
                    folder.remove(left)


def _finish(
    folder: Folder, checkpoint: Checkpoint, hashes: Mapping[str, str], may_write: Callable[[], None]
) -> None:
    place = f"step-{checkpoint.step}"
    state = json.dumps({**checkpoint.meta, "step": checkpoint.step}).encode()
    with before_each_try(may_write):
        folder.write(f"{place}/state.json", state)
        folder.write_json(f"{place}/manifest.json", {**hashes, "state.json": hashlib.sha256(state).hexdigest()})
        folder.write_json(_NEWEST, checkpoint.step)
        for step in _steps(folder)[1 if checkpoint.has_ended else _KEPT :]:
            folder.remove(f"step-{step}")


def newest(
    folder: Folder, fingerprint: str | None, with_tensors: bool = True, only: int | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose manifest holds and whose fingerprint is this one, and what was wrong with newer.

    A fingerprint of None takes any; `only` looks at that step alone. Its tensors are whole, or left where they are
    unless `with_tensors`. `StorageError` where it cannot be told, since the storage is away.
    """
    steps = _steps(folder) if only is None else [only]
    problems = [f"checkpoint step-{step} is missing" for step in _missing(folder, steps) if only is None]
    for step in steps:
        try:
            return _load(folder, step, fingerprint, with_tensors), problems
        except StorageError:
            raise
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            problems.append(f"checkpoint step-{step} is not used: {error}")
    return None, problems


def newest_sharded(
    folder: Folder, fingerprint: str, into: dict[str, torch.Tensor]
) -> tuple[Checkpoint | None, list[str]]:
    """`newest` for all processes together: the first one chooses, each fills its parts of `into`. Collective."""
    found, problems = from_first(lambda: newest(folder, fingerprint, with_tensors=False))
    if found is None:
        return None, problems
    return replace(found, tensors=shards.read(folder.child(f"step-{found.step}"), into)), problems


def _missing(folder: Folder, steps: Sequence[int]) -> list[int]:
    """The newest checkpoint's step, if it is not among `steps`."""
    try:
        newest = folder.read_json(_NEWEST)
    except (FileNotFoundError, ValueError):  # an older sweep's, or damaged: it only says what is missing
        return []
    return [newest] if isinstance(newest, int) and newest not in steps else []


def latest_step(folder: Folder) -> int:
    """The step of the newest checkpoint that was begun here, whole or not; -1 if there is none."""
    return max(_steps(folder), default=-1)


def _steps(folder: Folder) -> list[int]:
    found = (_step_of(name) for name in folder.names())
    return sorted((step for step in found if step is not None), reverse=True)


def _step_of(name: str) -> int | None:
    match = re.fullmatch(r"step-(\d+)", name)
    return int(match[1]) if match else None


def _load(folder: Folder, step: int, fingerprint: str | None, with_tensors: bool) -> Checkpoint:
    place = f"step-{step}"
    if not folder.exists(f"{place}/manifest.json"):
        raise ValueError("it has no manifest (it was never finished)")
    manifest = folder.read_json(f"{place}/manifest.json")
    if not isinstance(manifest, dict) or "state.json" not in manifest or len(manifest) < 2:
        raise ValueError(f"its manifest names no {_WHOLE} or shards with a state.json")
    if not all(_FILE.fullmatch(name) for name in manifest):
        raise ValueError("its manifest names what is no file of a checkpoint")
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
    meta = _meta(kept["state.json"], step)
    if fingerprint is not None and meta["fingerprint"] != fingerprint:
        raise ValueError(f"it belongs to configuration {meta['fingerprint']}, not {fingerprint}")
    if not with_tensors:
        return Checkpoint(step, {}, meta)
    whole = safetensors.torch.load(kept[_WHOLE]) if _WHOLE in kept else shards.read_whole(folder.child(place))
    return Checkpoint(step, whole, meta)


def _meta(state: bytes, step: int) -> dict[str, Any]:
    """The content of a `state.json`; `ValueError` if it is no checkpoint's."""
    meta = json.loads(state)
    try:
        for record in meta["records"]:
            Progress.from_json(record)
        known = isinstance(meta["fingerprint"], str) and meta["step"] == step
    except (ValueError, TypeError, LookupError, AttributeError):
        known = False
    if not known:
        raise ValueError("its state.json is not that of a checkpoint of this step")
    return meta
