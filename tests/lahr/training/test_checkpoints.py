"""Checkpoints: what is damaged is passed over and said, and nothing half-written is believed, on a disk and in S3."""

import hashlib
import json

import pytest
import torch

from lahr import patience
from lahr.errors import StorageError
from lahr.files import Folder
from lahr.training import checkpoints
from lahr.training.checkpoints import Checkpoint
from lahr.training.progress import Progress
from tests.conftest import fill


def at(step: int, status: str = "running") -> Checkpoint:
    tensors = {name: torch.full((3,), float(step)) for name in ("model.w", "optimizer.w.exp_avg", "random.cpu")}
    record = Progress(step, step, 1.0, 1.0, {"train_loss": 1.0}, "ab", status).to_json()
    return Checkpoint(step, tensors, {"fingerprint": "f", "records": [record]})


@pytest.fixture
def folder(place) -> Folder:
    for step in (5, 10):
        checkpoints.save(place, at(step))
    return place


def test_the_newest_comes_back_whole(folder):
    found, problems = checkpoints.newest(folder, "f")
    assert (found.step, problems) == (10, [])
    assert found.tensors.keys() == at(10).tensors.keys()
    assert torch.equal(found.tensors["model.w"], torch.full((3,), 10.0))
    assert not found.has_ended


def cut(name):
    return lambda folder: folder.write(name, folder.read(name)[:-7])


def written(name, content):
    return lambda folder: folder.write(name, content)


def with_state(content: bytes):
    """Another state.json, under a manifest that holds: what a writer with a fault would leave."""

    def change(folder):
        folder.write("state.json", content)
        manifest = {**folder.read_json("manifest.json"), "state.json": hashlib.sha256(content).hexdigest()}
        folder.write_json("manifest.json", manifest)

    return change


DAMAGE = {
    "truncated tensors": (cut("state.safetensors"), "state.safetensors is damaged"),
    "empty tensors": (written("state.safetensors", b""), "state.safetensors is damaged"),
    "another state": (written("state.json", b"{}"), "state.json is damaged"),
    "no tensors": (lambda folder: folder.remove("state.safetensors"), "state.safetensors"),
    "no state": (lambda folder: folder.remove("state.json"), "state.json"),
    "no manifest": (lambda folder: folder.remove("manifest.json"), "no manifest"),
    "truncated manifest": (cut("manifest.json"), "not used"),
    "empty manifest": (written("manifest.json", b""), "not used"),
    "manifest not text": (written("manifest.json", b"\xff\xfe"), "not used"),
    "manifest a list": (written("manifest.json", b"[1, 2]"), "its manifest names no"),
    "manifest a number": (written("manifest.json", b"7"), "its manifest names no"),
    "manifest names nothing": (written("manifest.json", b"{}"), "its manifest names no"),
    "manifest of numbers": (
        written("manifest.json", b'{"state.json": 1, "state.safetensors": 2}'),
        "state.json is damaged",
    ),
    "manifest of others": (
        written("manifest.json", b'{"state.json": "", "../x.json": ""}'),
        "no file of a checkpoint",
    ),
    "manifest of itself": (written("manifest.json", b'{"state.json": "", "": ""}'), "no file of a checkpoint"),
    "state a list": (with_state(b"[]"), "its state.json is not that of a checkpoint"),
    "state null": (with_state(b"null"), "its state.json is not that of a checkpoint"),
    "state empty": (with_state(b"{}"), "its state.json is not that of a checkpoint"),
    "state without records": (with_state(b'{"fingerprint": "f", "step": 10}'), "its state.json is not that of"),
    "records of another type": (
        with_state(b'{"fingerprint": "f", "step": 10, "records": [1]}'),
        "its state.json is not that of",
    ),
    "records that are none": (
        with_state(b'{"fingerprint": "f", "step": 10, "records": [{"metrics": {}}]}'),
        "its state.json is not that of",
    ),
    "state of another step": (
        with_state(b'{"fingerprint": "f", "step": 5, "records": []}'),
        "its state.json is not",
    ),
    "state not JSON": (with_state(b"{"), "not used"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_each_damage_falls_back_to_the_older_one(folder, damage, said):
    """Seen to fail: a TypeError of a state.json that was a list, an OSError of a manifest that named its own folder."""
    damage(folder.child("step-10"))
    found, problems = checkpoints.newest(folder, "f")
    assert found.step == 5
    assert len(problems) == 1
    assert problems[0].startswith("checkpoint step-10 is not used: ")
    assert said in problems[0]


def beside_newest(folder: Folder) -> list[str]:
    """What lies there, but for the file that names the newest checkpoint."""
    return [name for name in folder.names() if name != "newest.json"]


def test_a_newest_checkpoint_whose_folder_is_gone_is_missed(folder):
    """Seen to fail: nothing was said."""
    folder.remove("step-10")
    found, problems = checkpoints.newest(folder, "f")
    assert (found.step, problems) == (5, ["checkpoint step-10 is missing"])
    folder.write("newest.json", b"{")  # a trial can do without
    assert checkpoints.newest(folder, "f")[1] == []


def test_nothing_good_is_none_and_every_reason(folder):
    for step in (5, 10):
        folder.remove(f"step-{step}/manifest.json")
    found, problems = checkpoints.newest(folder, "f")
    assert found is None
    assert len(problems) == 2


def test_another_configurations_checkpoint_is_not_used(folder):
    found, problems = checkpoints.newest(folder, "other")
    assert found is None
    assert "belongs to configuration f" in problems[0]


def test_only_the_two_newest_are_kept(folder):
    checkpoints.save(folder, at(15))
    assert beside_newest(folder) == ["step-10", "step-15"]
    assert checkpoints.latest_step(folder) == 15


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_of_a_trial_that_has_ended_the_last_ones_weights_are_kept(folder, status):
    """Seen to fail: the moments kept; the one before kept; both removed before the last was whole."""
    checkpoints.save(folder, at(15, status))
    assert beside_newest(folder) == ["step-15"]
    found, problems = checkpoints.newest(folder, "f")
    assert (found.has_ended, problems) == (True, [])
    assert found.tensors.keys() == {"model.w"}


def test_the_older_ones_stay_until_the_last_is_whole(folder, monkeypatch):
    """Seen to fail: when they were removed first."""

    def dies(self, name, value):
        raise StorageError("no room")

    monkeypatch.setattr(Folder, "write_json", dies)
    with pytest.raises(StorageError):
        checkpoints.save(folder, at(15, "finished"))
    assert beside_newest(folder) == ["step-10", "step-15", "step-5"]
    assert checkpoints.newest(folder, "f")[0].step == 10


def test_the_manifest_is_written_last(folder, monkeypatch):
    """A writer that dies before the end leaves a folder that is no checkpoint."""

    def dies(self, name, value):
        raise OSError("no space left")

    monkeypatch.setattr(Folder, "write_json", dies)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(folder, at(20))
    monkeypatch.undo()
    assert folder.exists("step-20/state.json")
    found, problems = checkpoints.newest(folder, "f")
    assert found.step == 10
    assert "never finished" in problems[0]
    assert json.loads(folder.read("step-10/manifest.json")).keys() == {"state.safetensors", "state.json"}


def test_what_a_killed_writer_left_goes_at_the_next_save_and_never_counts(tmp_path):
    """Seen to fail: they stayed for ever, as large as a checkpoint each."""
    folder = Folder.at(tmp_path)
    for step in (5, 10):
        checkpoints.save(folder, at(step))
    left = ["attempts.json.0a.tmp", "step-10/state.safetensors.0b.tmp", "step-5/writing-x/shard.safetensors"]
    for name in left:
        folder.write(name, b"half")
    folder.write("attempts.json", b"{}")
    assert checkpoints.newest(folder, "f")[0].step == 10
    assert checkpoints.latest_step(folder) == 10
    checkpoints.save(folder, at(15))
    assert beside_newest(folder) == ["attempts.json", "step-10", "step-15"]
    assert folder.names("step-10") == ["manifest.json", "state.json", "state.safetensors"]


def test_storage_that_is_away_is_no_damage(object_store, tmp_path, monkeypatch):
    """Walking back to an older one would throw work away. Seen to fail: with a StorageError among the problems."""
    folder = Folder.at(object_store.uri(tmp_path.name))
    for step in (5, 10):
        checkpoints.save(folder, at(step))
    real = Folder.read

    def away_from(name):
        def read(self, asked):
            if asked == name:
                object_store.says = (503, "SlowDown")
            return real(self, asked)

        return read

    for name in ("step-10/manifest.json", "step-10/state.safetensors", "step-10/state.json"):
        monkeypatch.setattr(Folder, "read", away_from(name))
        with patience.limited(0), pytest.raises(StorageError, match=r"503|SLOW_DOWN"):
            checkpoints.newest(folder, "f")
        object_store.says = None


def test_who_may_no_longer_write_leaves_no_checkpoint(folder):
    """Another attempt has taken the trial over. Seen to fail: asked once only, or after the manifest, or not before the
    weights, which were then the new owner's."""
    before = [[], [], ["state.safetensors"], ["state.json", "state.safetensors"]]
    for allowed in range(len(before)):
        asked = []

        def may_write(allowed=allowed, asked=asked):
            asked.append(folder.names("step-15"))
            if len(asked) > allowed:
                raise RuntimeError("taken over")

        with pytest.raises(RuntimeError, match="taken over"):
            checkpoints.save(folder, at(15), may_write)
        assert checkpoints.newest(folder, "f")[0].step == 10
        assert asked == before[: allowed + 1]
        folder.remove("step-15")


def test_a_full_disk_loses_no_checkpoint_and_the_next_save_goes_through(small_disk):
    """Seen to fail: when the older one was removed before the last was whole."""
    folder = Folder.at(small_disk / "trial")
    checkpoints.save(folder, at(5))
    filler = fill(small_disk)
    with patience.limited(0.1), pytest.raises(StorageError, match="make room there"):
        checkpoints.save(folder, at(10, "finished"))
    assert checkpoints.newest(folder, "f")[0].step == 5
    filler.unlink()
    checkpoints.save(folder, at(10, "finished"))
    assert beside_newest(folder) == ["step-10"]
