"""cluster/ holds scripts, not a package: they import each other from where they lie, and so do their tests."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "cluster"))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with what the clusters' YAMLs take from it: the token, and a key."""
    home = tmp_path_factory.mktemp("home")
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        (home / name).parent.mkdir()
        (home / name).write_text("of a test\n")
    monkeypatch.setenv("HOME", str(home))
    return home
