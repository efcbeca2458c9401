"""Sweeps on a GPU: trials that share one end in the bits of those that have it alone."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.chaos.sweeps import trials

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none here"),
    pytest.mark.skipif(not find_spec("ray"), reason="needs Ray, which is not installed here"),
]


def test_trials_that_share_a_gpu_come_to_what_each_comes_to_alone(tmp_path: Path):
    """`auto` finds the GPU, and the report names it."""
    found = []
    for share in (4, 1):
        command = f"sweeps/factorial.py --preset smoke --seeds 1 --trials-per-gpu {share} --name shared-{share}"
        done = subprocess.run(
            [sys.executable, *command.split(), "--results", str(tmp_path), "--cache", str(tmp_path / "cache")],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        report = (tmp_path / f"shared-{share}" / "report" / "report.md").read_text()
        assert torch.cuda.get_device_name().split()[1] in report, report
        found.append(trials(tmp_path / f"shared-{share}"))
    assert len(found[0]) == 8
    assert found[0] == found[1]
