"""How a batch is split, over workers and into passes, by divisors and in whole rows; what a process keeps."""

import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lahr.errors import ConfigError
from lahr.training import runtime
from lahr.training.runtime import Runtime, choose_micro_batch, require
from lahr.training.timing import seconds_per_trial


def in_rows(config, segments: int, batch_size: int = 24):
    return replace(
        config,
        data=replace(config.data, segments=segments, validation_blocks=8 * segments),
        train=replace(config.train, batch_size=batch_size),
    )


@pytest.mark.parametrize(("segments", "expected"), [(1, 6), (2, 6), (3, 6), (4, 4), (6, 6), (12, 12)])
def test_a_micro_batch_holds_whole_rows_that_divide_the_share(tiny, monkeypatch, segments, expected):
    """With room for seven windows. Caught: divisors that cut a row, and one window where no row fits."""
    config = in_rows(tiny(), segments)
    monkeypatch.setitem(runtime._LOGITS_BYTES, "cpu", 7 * 32 * 300 * 4 * 3)
    assert choose_micro_batch(config, "cpu", 2) == expected
    require(config, Runtime(micro_batch=expected))


def test_workers_share_whole_rows_or_are_refused(tiny):
    """In training and in evaluation. Caught: a share of windows that is no whole number of rows."""
    with pytest.raises(ConfigError, match=r"batch_size is 24, which 5 workers .* evenly; give a multiple of 5"):
        choose_micro_batch(in_rows(tiny(), 1), "cpu", 5)
    with pytest.raises(
        ConfigError, match=r"24, which 4 workers .* in rows of 4 windows \(data.segments\); .* of 16"
    ):
        choose_micro_batch(in_rows(tiny(), 4), "cpu", 4)
    few = replace(in_rows(tiny(), 4), data=replace(tiny().data, segments=4, validation_blocks=8))
    with pytest.raises(ConfigError, match=r"validation_blocks is 8, and each of 3 workers .* in rows of 4 windows"):
        choose_micro_batch(few, "cpu", 3)


def test_a_split_that_cuts_rows_is_refused(tiny):
    """Caught: one given by hand that is no multiple."""
    config = in_rows(tiny(), 4)
    require(config, Runtime(micro_batch=8))
    require(config, Runtime(micro_batch=0))
    with pytest.raises(ConfigError, match=r"micro_batch is 6, which is no whole number of rows of 4 .* or 0"):
        require(config, Runtime(micro_batch=6))


def test_the_estimate_counts_the_branches_steps(tiny, monkeypatch):
    """By a clock of one second a step. Caught: a plan that leaves them out."""
    ticks = iter(range(1000))
    monkeypatch.setattr("lahr.training.timing.time.perf_counter", lambda: next(ticks))
    plain = tiny(schedule="wsd", decay=0.5, evaluations=3)
    branched = tiny(schedule="wsd", decay=0.5, evaluations=3, decayed_points=1)
    per_token, step, evaluation = 1 / (4 * 32), 4 * 32, 8 * 32
    assert seconds_per_trial(plain, Runtime()) == pytest.approx(per_token * (24 * step + 3 * evaluation / 3))
    assert seconds_per_trial(branched, Runtime()) == pytest.approx(per_token * (30 * step + 4 * evaluation / 3))


_FAULTS = """
import resource, sys, torch
from lahr.training.runtime import peak_memory_mib, prepare_process, reset_peak_memory
if sys.argv[1] == "prepared":
    prepare_process("cpu", 1)
def step():
    held = [torch.ones(1 << 20) for _ in range(40)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = [torch.ones(1 << 16) for _ in range(800)]  # 200 MiB
before = peak_memory_mib("cpu")
del kept
reset_peak_memory("cpu")
print(faults, before - peak_memory_mib("cpu"))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_tensors_stay_with_the_process_and_out_of_the_next_trials_peak():
    """Caught: a step that faults its pages in anew, as every step does in a process that is not prepared, and a peak
    that holds what an earlier trial left."""
    said = {
        kind: subprocess.run(
            [sys.executable, "-c", _FAULTS, kind],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 10)},  # without luck in where tensors lie
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.split()
        for kind in ("prepared", "not")
    }
    assert int(said["prepared"][0]) < 1000 < int(said["not"][0])
    assert float(said["prepared"][1]) > 150 or not os.access("/proc/self/clear_refs", os.W_OK)


def test_an_allocator_that_refuses_large_tensors_is_asked_for_smaller_ones_and_otherwise_left_alone(monkeypatch):
    """Caught: the other settings without the first, which cost more than they gain."""
    for most, expected in ((256 << 20, [256 << 20]), (32 << 20, [256 << 20, 32 << 20]), (0, [256 << 20, 32 << 20])):
        asked = []

        def allocator(name, parameter, size, asked=asked, most=most):
            asked.append((parameter, size))
            return int(parameter != runtime._M_MMAP_THRESHOLD or size <= most)

        monkeypatch.setattr(runtime, "_allocator", allocator)
        runtime.prepare_process("cpu", torch.get_num_threads())
        assert [size for parameter, size in asked if parameter == runtime._M_MMAP_THRESHOLD] == expected
        assert (len(asked) > len(expected)) == (most > 0)
