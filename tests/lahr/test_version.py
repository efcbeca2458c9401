"""The version of the code: what changes it and what does not."""

import shutil
import sys
from pathlib import Path

import pytest

import lahr
from lahr import version
from lahr.errors import ConfigError
from lahr.version import code_version

OWN = '''"""A model."""
import torch

WIDTH = 3
"""How wide."""


class Model(torch.nn.Module):
    """A class."""

    def forward(self, x):
        """A function."""
        return x * 2.5  # twice and a half


def build(config):
    return Model()
'''
SAME = {
    "a comment": ("# twice and a half", "# more"),
    "a comment less": ("  # twice and a half", ""),
    "a docstring": ('"""A function."""', '"""Another."""'),
    "a docstring more": ("def build(config):\n", 'def build(config):\n    """Builds."""\n'),
    "a field's text": ('"""How wide."""', '"""How very wide."""'),
    "layout": ("x * 2.5", "(\n            x\n            * 2.5\n        )"),
    "a blank line": ("import torch\n", "import torch\n\n\n"),
}
OTHER = {
    "a constant": ("2.5", "2.25"),
    "a whole number for a fraction": ("WIDTH = 3", "WIDTH = 3.0"),
    "a truth value for a number": ("WIDTH = 3", "WIDTH = True"),
    "text for a number": ("WIDTH = 3", "WIDTH = '3'"),
    "an operator": ("x * 2.5", "x + 2.5"),
    "a name": ("self, x", "self, y"),
    "text that is a value": ("return Model()", "return 'Model()'"),
    "nothing for a value": ("return Model()", "return None"),
    "no value": ("return Model()", "return"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of modules of one's own, and a copy of the package's sources."""
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(Path(lahr.__file__).parent, tmp_path / "lahr", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(version, "_HERE", tmp_path / "lahr")
    yield tmp_path
    sys.modules.pop("own_pack", None)


def versions(place: Path, old: str, new: str) -> tuple[str, str]:
    assert old in OWN
    for folder, text in (("one", OWN), ("two", OWN.replace(old, new))):
        (place / folder).mkdir()
        (place / folder / "own_mod.py").write_text(text)
    found = []
    for folder in ("one", "two"):
        sys.path.insert(0, str(place / folder))
        try:
            found.append(code_version(["own_mod:build", "own_mod:Model", ""]))
        finally:
            sys.path.pop(0)
    return found[0], found[1]


@pytest.mark.parametrize("change", SAME)
def test_what_says_nothing_else_is_the_same_version(change, place):
    """Seen to fail: by the text, and by a tree with its positions or its docstrings."""
    one, two = versions(place, *SAME[change])
    assert one == two
    assert len(one) == 12 and set(one) <= set("0123456789abcdef")


@pytest.mark.parametrize("change", OTHER)
def test_what_says_something_else_is_another_version(change, place):
    """Caught: constants compared as equal, whatever their type."""
    one, two = versions(place, *OTHER[change])
    assert one != two


@pytest.mark.parametrize(
    "name",
    ["model/layers.py", "model/own.py", "training/loop.py", "data/batches.py", "config.py", "model_config.py"],
)
def test_every_source_that_decides_a_result_is_in_it(name, place):
    """Caught: folders that were not looked into."""
    before, path = code_version(), place / "lahr" / name
    source = path.read_text()
    path.write_text(source + "\n# nothing\n")
    assert code_version() == before
    path.write_text(source + "\nANOTHER = 1\n")
    assert code_version() != before


@pytest.mark.parametrize("name", ["trained.py", "distributed.py", "__main__.py"])
def test_what_decides_no_result_is_not(name, place):
    before = code_version()
    (place / "lahr" / name).write_text("ANOTHER = 1\n")
    assert code_version() == before


def test_it_is_that_of_the_installed_package(place):
    there = code_version()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(version, "_HERE", Path(lahr.__file__).parent)
        assert code_version() == there == code_version([""])


def test_a_module_without_a_source_is_refused(place):
    (place / "own_pack").mkdir()
    for build, said in (
        ("no_such_module:f", "no_such_module .* has no source in Python"),
        ("no.such:f", "no.such .* cannot be imported"),
        ("own_pack:f", "own_pack .* has no source"),
        ("math:sin", "math .* has no source"),
    ):
        with pytest.raises(ConfigError, match=said):
            code_version([build])
