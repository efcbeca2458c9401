"""Tensors that many processes hold in parts, in safetensors files, a file for each process.

Written and read by torch.distributed.checkpoint (DCP) with its storage in the format of Hugging Face: each
`shard-….safetensors` says where in the whole its parts lie, so any number of processes can read them. A single
`state.safetensors` is to it a part that is the whole. Nothing is unpickled from a file.
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from lahr.errors import StorageError
from lahr.files import Folder

SUFFIX = ".safetensors"
WRITING = "writing-"
"""How a folder's name begins in which a process prepares its file."""


def write(folder: Folder, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Writes this process's parts into `folder`: file name → sha256 of what this process wrote. Collective.

    A tensor that is no DTensor is taken from the first process alone. Raises `OSError` on every process if one of
    them could not write.
    """
    # Imported here: it takes a second, which runs without it need not pay.
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.tensor import DTensor

    mine = {name: t for name, t in tensors.items() if isinstance(t, DTensor) or dist.get_rank() == 0}
    # DCP writes to a disk only, under names that may be there already. So to a place of this process's own, and from
    # there like every other file, whole or not at all, to wherever the folder is: an object store, too.
    beside = None
    if folder.is_local:
        Path(folder.uri).mkdir(parents=True, exist_ok=True)
        beside = folder.uri
    hashes = {}
    with TemporaryDirectory(prefix=WRITING, dir=beside) as own:
        with _failures("written"):
            dcp.save(mine, storage_writer=HuggingFaceStorageWriter(own, save_distributed=True))
        for file in sorted(Path(own).glob(f"*{SUFFIX}")):
            data = file.read_bytes()
            folder.write(file.name, data)
            hashes[file.name] = hashlib.sha256(data).hexdigest()
    return hashes


def read(folder: Folder, into: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fills the tensors of `into` that the files hold, each process its own parts; what was filled. Collective.

    Raises `OSError` on every process if one of them cannot read.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    with _on_disk(folder) as path, _failures("read"):
        known = HuggingFaceStorageReader(path).read_metadata().state_dict_metadata
        found = {name: tensor for name, tensor in into.items() if name in known}
        dcp.load(found, storage_reader=HuggingFaceStorageReader(path))
    return found


def read_whole(folder: Folder) -> dict[str, torch.Tensor]:
    """Every tensor of the files, put together on the CPU; by this process alone."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    with _on_disk(folder) as path, _failures("read"):
        known = HuggingFaceStorageReader(path).read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(each.size, dtype=each.properties.dtype)
            for name, each in known.items()
            if isinstance(each, TensorStorageMetadata)  # these files hold nothing else
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as is asked for here
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(path), no_dist=True)
    return tensors


@contextmanager
def _on_disk(folder: Folder) -> Iterator[str]:
    """The path of a folder with its safetensors files: its own, or a copy for as long as it is needed."""
    if folder.is_local:
        yield folder.uri
        return
    with TemporaryDirectory(prefix="lahr-") as copy:
        for name in folder.names():
            if name.endswith(SUFFIX):
                (Path(copy) / name).write_bytes(folder.read(name))
        yield copy


@contextmanager
def _failures(done: str) -> Iterator[None]:
    """DCP's own exception, which no `except Exception` catches, as an `OSError` with each process's reason: a
    `StorageError` where one of them is that a disk failed."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        reasons = "; ".join(f"process {rank}: {reason[0]}" for rank, reason in error.failures.items())
        kind = StorageError if any(isinstance(r[0], OSError) for r in error.failures.values()) else OSError
        raise kind(f"shards could not be {done}: {reasons}") from error
