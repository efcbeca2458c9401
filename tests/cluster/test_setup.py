"""cluster/setup.sh, on a project that is its Makefile alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "setup.sh"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "cluster").mkdir()
    shutil.copy(SCRIPT, tmp_path / "cluster")
    (tmp_path / "Makefile").write_text("setup:\n\t@echo set up with $(PYTHON)\n")
    return tmp_path


def programs(folder: Path, *names: str) -> Path:
    """A folder to be the whole PATH: these programs, and an apt-get and a sudo that write down what they are asked."""
    folder.mkdir()
    for name in ("bash", "dirname", "id", "env", "grep", "sh", "echo", "true"):
        (folder / name).symlink_to(shutil.which(name) or name)
    if "make" in names:
        (folder / "make").symlink_to(shutil.which("make") or "make")
    scripts = {
        # The lists' lock is held when it is asked first, and second.
        "apt-get": 'echo "apt-get $@" >> "$HOME/asked"; [[ "$(< "$HOME/asked")" == *update*update*update* ]]',
        "sleep": "exit 0",
        "sudo": 'shift; exec "$@"',
        "rsync": "exit 0",
        "python3": f'exec {sys.executable} "$@"',
    }
    for name, does in scripts.items():
        (folder / name).write_text(f"#!{shutil.which('bash')}\n{does}\n")
        (folder / name).chmod(0o755)
    return folder


def run(project: Path, path: Path, home: Path, *words: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PATH": str(path), "HOME": str(home)}
    env = {k: v for k, v in env.items() if not k.startswith("MAKE")}  # `make test` hands its own flags down
    return subprocess.run(
        ["bash", project / "cluster" / "setup.sh", *words], env=env, cwd="/", capture_output=True, text=True
    )


def test_it_sets_up_its_own_folder_and_tells_log_ins_once(project, home):
    """Nothing is asked of apt. Seen to fail with the folder ~/lahr; with the line appended each time."""
    path = programs(project / "bin", "make")
    for _ in range(2):
        done = run(project, path, home, str(path / "python3"))
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"set up with {path / 'python3'}\n"
    assert (home / ".bashrc").read_text() == (f'export PATH="{project}/.venv/bin:$PATH" RAY_AUTH_MODE=token\n')
    assert not (home / "asked").exists()


def test_what_is_missing_is_asked_of_apt_and_its_lock_waited_for(project, home):
    """Make is, and there is none afterwards either: it ends there. Seen to fail without the question for make; and with
    the lists' lock held, which apt's own option does not wait for."""
    done = run(project, programs(project / "bin"), home)
    assert done.returncode == 127
    assert "make" in done.stderr
    *updates, install = (home / "asked").read_text().splitlines()
    assert updates == ["apt-get update -qq"] * 3
    assert install.startswith("apt-get -o DPkg::Lock::Timeout=600 install")
    assert {"make", "python3-venv", "rsync"} <= set(install.split())
    assert not (home / ".bashrc").exists()
