"""Checkpoints: what is damaged is passed over and said, and nothing half-written is believed."""

import json

import pytest
import torch

from lahr.files import Folder
from lahr.training import checkpoints
from lahr.training.checkpoints import Checkpoint


def at(step: int) -> Checkpoint:
    return Checkpoint(step, {"w": torch.full((3,), float(step))}, {"fingerprint": "f", "records": []})


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder.at(tmp_path)
    for step in (5, 10):
        checkpoints.save(made, at(step))
    return made


def test_the_newest_comes_back_whole(folder):
    found, problems = checkpoints.newest(folder, "f")
    assert (found.step, problems) == (10, [])
    assert torch.equal(found.tensors["w"], torch.full((3,), 10.0))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda step: (step / "state.safetensors").write_bytes(b"x"), "damaged"),
        (lambda step: (step / "state.json").write_text("{}"), "damaged"),
        (lambda step: (step / "state.safetensors").unlink(), "state.safetensors"),
        (lambda step: (step / "manifest.json").unlink(), "no manifest"),
        (lambda step: (step / "manifest.json").write_text("{"), "not used"),
        (lambda step: (step / "manifest.json").write_text("{}"), "state.safetensors"),
    ],
)
def test_each_damage_falls_back_to_the_older_one(folder, tmp_path, damage, said):
    damage(tmp_path / "step-10")
    found, problems = checkpoints.newest(folder, "f")
    assert found.step == 5
    assert len(problems) == 1
    assert said in problems[0]


def test_nothing_good_is_none_and_every_reason(folder, tmp_path):
    for step in (5, 10):
        (tmp_path / f"step-{step}" / "manifest.json").unlink()
    found, problems = checkpoints.newest(folder, "f")
    assert found is None
    assert len(problems) == 2


def test_another_configurations_checkpoint_is_not_used(folder):
    found, problems = checkpoints.newest(folder, "other")
    assert found is None
    assert "belongs to configuration f" in problems[0]


def test_only_the_two_newest_are_kept(folder, tmp_path):
    checkpoints.save(folder, at(15))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-15"]
    assert checkpoints.latest_step(folder) == 15


def test_the_manifest_is_written_last(folder, tmp_path, monkeypatch):
    """A writer that dies before the end leaves a folder that is no checkpoint."""

    def dies(self, name, value):
        raise OSError("no space left")

    monkeypatch.setattr(Folder, "write_json", dies)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(folder, at(20))
    monkeypatch.undo()
    assert (tmp_path / "step-20" / "state.json").exists()
    found, problems = checkpoints.newest(folder, "f")
    assert found.step == 10
    assert "never finished" in problems[0]
    assert json.loads((tmp_path / "step-10" / "manifest.json").read_text()).keys() == {
        "state.safetensors",
        "state.json",
    }
