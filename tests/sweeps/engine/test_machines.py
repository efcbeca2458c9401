"""How much of a sweep a cluster holds at once, and how its trials are shared out."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from lahr.errors import ConfigError
from lahr.training.runtime import Runtime
from sweeps.engine.machines import Cluster, launches, wall_seconds


def cluster(*machines: tuple[float, float], grows: bool = False) -> Cluster:
    return Cluster(tuple({"CPU": cpus, "GPU": gpus} for cpus, gpus in machines), grows)


def seconds(design) -> Mapping[str, float]:
    return {cell.name: 1.0 + (cell.name != "base") + cell.name.count("+") for cell in design.cells()}


def test_launches_carry_every_trial_once_and_share_the_time(make_design):
    trials = make_design(seeds=5).trials()
    for lanes in (1, 2, 3, 100):
        plan = launches(trials, lanes, seconds(make_design()))
        assert sorted(t.id for part in plan for t in part) == sorted(t.id for t in trials)
        assert len(plan) == min(lanes, 40)
    loads = [
        sum(seconds(make_design())[t.cell] for t in part) for part in launches(trials, 2, seconds(make_design()))
    ]
    assert max(loads) - min(loads) <= 4


def test_long_trials_make_more_launches_and_blocks_come_in_order(make_design):
    design = make_design(seeds=5)
    slow = {name: 100 * s for name, s in seconds(design).items()}
    plan = launches(design.trials(), 2, slow)
    assert 4 < len(plan) <= 40
    firsts = [min(trial.seed for trial in part) for part in plan]
    assert firsts == sorted(firsts)


def test_a_plan_counts_starts_and_the_lanes_that_wait(make_design):
    """Seen to fail as the seconds of all trials, shared out: 10,000 short ones took hours more."""
    design = make_design(seeds=5)
    short = dict.fromkeys(seconds(design), 0.001)
    assert wall_seconds(design.trials(), 2, short) > 20 + 20 * 0.5
    long = dict.fromkeys(short, 3600.0)
    alone = wall_seconds(design.trials()[:1], 8, long)
    assert 3600 < alone < 3700, "seven lanes have nothing to do"
    assert wall_seconds(design.trials(), 8, long) < 5 * alone + 1


def test_a_cluster_too_small_for_one_trial_is_said():
    runtime = Runtime(workers=4, threads=2)
    assert runtime.worker_resources() == {"CPU": 2}
    assert cluster((16, 0)).lanes(runtime) == 2
    with pytest.raises(ConfigError, match="--workers"):
        cluster((7, 0)).lanes(runtime)
    with pytest.raises(ConfigError, match="GPU"):
        cluster((16, 0)).lanes(Runtime(device="cuda"))


def test_concurrency_bounds_a_fixed_cluster_and_fills_a_growing_one():
    """Seen to fail: it was taken as it is where nothing can grow, and the sweep waited for ever."""
    fixed, growing = cluster((4, 0)), cluster((4, 0), grows=True)
    assert fixed.lanes(Runtime(), 2) == 2
    assert fixed.lanes(Runtime(), 99) == 4
    assert growing.lanes(Runtime(), 99) == 99
    assert growing.lanes(Runtime()) == 4
    assert growing.lanes(Runtime(device="cuda"), 8) == 8
    with pytest.raises(ConfigError, match="--workers"):
        fixed.lanes(Runtime(workers=5), 1)
    with pytest.raises(ConfigError, match="--concurrency"):
        growing.lanes(Runtime(device="cuda"))


def test_the_heads_memory_bounds_how_many_are_led_from_it(caplog):
    """Seen to fail: a hundred at a time on a head of 32 GB, whose memory ran out."""
    head = Cluster(tuple({"CPU": 8.0, "GPU": 8.0} for _ in range(16)), True, 22e9)
    assert head.lanes(Runtime(device="cuda")) == 29
    assert "29 trials at a time, not 128" in caplog.text
    assert head.lanes(Runtime(device="cuda"), 99) == 29
    assert head.lanes(Runtime(device="cuda"), 8) == 8
    assert replace(head, head_memory=1e6).lanes(Runtime(device="cuda")) == 1


def test_a_worker_stays_within_a_machine_and_a_trial_need_not():
    """Seen to fail when the CPUs of all machines were added up: four machines of one held two trials of two threads."""
    assert cluster((1, 0), (1, 0), (1, 0), (1, 0)).lanes(Runtime(workers=2)) == 2
    with pytest.raises(ConfigError, match=r"needs 1 x \(2 CPU\), .* has 1 CPU and 0 GPU, 1 CPU and 0 GPU"):
        cluster((1, 0), (1, 0)).lanes(Runtime(threads=2))
    assert cluster((0, 0), (8, 1), (8, 2)).lanes(Runtime(device="cuda")) == 3


@pytest.mark.parametrize("share", [2, 3, 7])
def test_trials_share_a_gpu(share):
    """Seen to fail for three, whose thirds add up to less than one."""
    runtime = Runtime(device="cuda", trials_per_gpu=share)
    assert runtime.worker_resources()["GPU"] * share == pytest.approx(1)
    assert cluster((16, 2)).lanes(runtime) == 2 * share
    assert cluster((3, 2)).lanes(runtime) == 3


def test_what_cannot_share_a_gpu_is_refused():
    for wrong in ({"device": "cpu"}, {"device": "cuda", "workers": 2}):
        with pytest.raises(ConfigError, match="trials_per_gpu is 2"):
            Runtime(trials_per_gpu=2, **wrong)
