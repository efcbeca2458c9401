"""Who may import whom, read from the sources without running them (see "The house" in the documentation)."""

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("lahr/**/*.py"), *ROOT.glob("sweeps/**/*.py")])

RAY_FILES = {"lahr/distributed.py", "sweeps/engine/schedule.py"}
MODEL_MAY = {"torch", "lahr.model_config", "lahr.errors", "lahr.model"}
SWEEPS_MAY = {
    "lahr.config",
    "lahr.model_config",
    "lahr.errors",
    "lahr.plain",
    "lahr.presets",
    "lahr.model.flops",
    "lahr.trained",
    "lahr.version",
    "lahr.distributed",
    "lahr.training.compilation",
    "lahr.training.plan",
    "lahr.files",
    "lahr.machine",
    "lahr.patience",
    "lahr.options",
    "lahr.data",
    "lahr.training.progress",
    "lahr.training.runtime",
    "lahr.training.timing",
}


def imports(source: str, package: str) -> set[str]:
    """Dotted names that a module imports, wherever in the file; `from a import b` gives `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def imports_of(path: Path) -> set[str]:
    return imports(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def within(module: str, allowed: set[str]) -> bool:
    """Whether a dotted name is one of the allowed ones or inside one of them."""
    return any(module == a or module.startswith(a + ".") for a in allowed)


def test_imports_are_read_in_every_form():
    source = "import a.b as c\nfrom d import e\ndef f():\n    from . import g\n    from ..h import i\n"
    assert imports(source, "p.q") == {"a.b", "d.e", "p.q.g", "p.h.i"}


def test_there_is_something_to_check():
    assert {"lahr/config.py", "sweeps/engine/design.py"} <= {name(p) for p in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_ray_is_imported_in_one_file_a_package(path):
    if name(path) not in RAY_FILES:
        assert not {m for m in imports_of(path) if within(m, {"ray"})}


@pytest.mark.parametrize("path", [p for p in SOURCES if name(p).startswith("lahr/")], ids=name)
def test_lahr_knows_nothing_of_sweeps(path):
    assert not {m for m in imports_of(path) if within(m, {"sweeps"})}


@pytest.mark.parametrize("path", [p for p in SOURCES if name(p).startswith("lahr/model/")], ids=name)
def test_the_model_is_torch_only(path):
    foreign = {
        m for m in imports_of(path) if not within(m, MODEL_MAY) and m.split(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign
    assert not {m for m in imports_of(path) if within(m, {"logging", "pathlib", "os", "io", "shutil"})}


@pytest.mark.parametrize("path", [p for p in SOURCES if name(p).startswith("lahr/data/")], ids=name)
def test_data_knows_neither_model_nor_training(path):
    assert not {m for m in imports_of(path) if within(m, {"lahr.model", "lahr.training", "lahr.distributed"})}


@pytest.mark.parametrize("path", [p for p in SOURCES if name(p).startswith("sweeps/")], ids=name)
def test_sweeps_know_little_of_lahr(path):
    assert not {m for m in imports_of(path) if within(m, {"lahr"}) and not within(m, SWEEPS_MAY)}


def test_studies_shadow_no_other_package():
    # `python sweeps/factorial.py` puts sweeps/ first on the import path.
    ours = {
        p.stem if p.is_file() else p.name for p in (ROOT / "sweeps").iterdir() if p.suffix == ".py" or p.is_dir()
    }
    ours -= {"__init__", "__pycache__"}
    assert "engine" in ours
    assert not ours & (set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions()))


def test_no_file_is_a_drawer_for_everything():
    assert not [name(p) for p in SOURCES if p.stem in {"utils", "util", "helpers", "common", "misc"}]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_modules_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_that_is_loaded_can_run_code(path):
    """Weights are safetensors and the rest is JSON. Caught: `torch.load` in a checkpoint's reader."""
    assert not {m for m in imports_of(path) if within(m, {"pickle", "cloudpickle", "dill", "joblib", "shelve"})}
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert not calls & {"torch.load", "pd.read_pickle", "eval", "exec", "yaml.load"}
