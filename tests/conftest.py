"""What the tests of training and of sweeps share: a small corpus, prepared once, and configurations on it; and places
to write to, be they a disk, a full one or an object store."""

import contextlib
import logging
import os
import subprocess
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from lahr.config import DataConfig, TrainConfig, TrialConfig
from lahr.data import TokenData, prepare
from lahr.files import Folder
from lahr.model_config import ModelConfig
from lahr.plain import changed

hypothesis.settings.register_profile("lahr", deadline=None)  # of a machine that does other work, it says nothing
hypothesis.settings.load_profile("lahr")

LEVELS = {"mod": {"mod_capacity": 0.25}, "latent": {"latent_iterations": 2}, "memory": {"memory_slots": 64}}
CELLS = ("base", "mod", "latent", "memory", "mod+latent", "mod+memory", "latent+memory", "mod+latent+memory")
TINY = TrialConfig(
    ModelConfig(
        vocab_size=300, d_model=16, n_layers=2, n_heads=2, max_seq_len=32, memory_heads=1, memory_top_k=2,
        memory_key_dim=8,
    ),
    # Small enough that a trial of 24 steps reads its corpus more than once.
    DataConfig(train_tokens=1_600, validation_blocks=8),
    TrainConfig(tokens=24 * 4 * 32, batch_size=4, lr=3e-3, evaluations=3, checkpoints=4, log_points=8),
)  # fmt: skip

Tiny = Callable[..., TrialConfig]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_data(cache: Path) -> TokenData:
    return prepare(TINY.data, TINY.model.vocab_size, TINY.model.max_seq_len, cache)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """A trial's configuration at a size that trains in a fraction of a second."""

    def build(cell: str = "base", seed: int = 0, precision: str = "fp32", **train: object) -> TrialConfig:
        levels = {k: v for name in cell.split("+") if name != "base" for k, v in LEVELS[name].items()}
        return replace(
            TINY,
            model=changed(TINY.model, levels),
            train=replace(TINY.train, **train),
            seed=seed,
            precision=precision,
        )

    return build


class ObjectStore:
    """An S3 on this machine, which answers with an error of S3's for as long as `says` names one."""

    bucket = "lahr-test"

    def __init__(self, server: Any) -> None:
        host, port = server.get_host_and_port()
        self.options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        self.says: tuple[int, str] | None = None
        self.refused = 0
        self._app, server._server.app = server._server.app, self

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if self.says is None:
            return self._app(environ, start_response)
        self.refused += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code = self.says
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
        start_response(f"{status} {code}", [("Content-Length", str(len(body)))])
        return [body]

    def uri(self, name: str, bucket: str = bucket) -> str:
        return f"s3://{bucket}/{name}?{self.options}"


@pytest.fixture(scope="session")
def _object_store() -> Iterator[ObjectStore]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(name, "made-up")
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patched.delenv(name, raising=False)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        store = ObjectStore(server)
        from pyarrow import fs

        fs.FileSystem.from_uri(store.uri("") + "&allow_bucket_creation=true")[0].create_dir(store.bucket)
        yield store
        server.stop()


@pytest.fixture
def object_store(_object_store: ObjectStore) -> Iterator[ObjectStore]:
    yield _object_store
    _object_store.says = None


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder, on a disk and in an object store."""
    if request.param == "disk":
        return Folder.at(tmp_path / "place")
    return Folder.at(request.getfixturevalue("object_store").uri(f"{uuid.uuid4().hex[:12]}/place"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "lahr", disk]).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room that is left on a small disk; the file that has it."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler
