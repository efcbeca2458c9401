"""A profile says where a step's time goes, by mechanism, and leaves the run as it is."""

import gzip
import json
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile

from lahr.files import Folder
from lahr.training.loop import train
from lahr.training.profiling import Profile, Row, as_table, rows
from lahr.training.runtime import Runtime
from lahr.training.watch import Watch

FULL = "mod+latent+memory"


def profiled(config, data, folder, runtime=None):
    said: list[str] = []
    watch = Profile(Watch(), folder, said.append)
    records = list(train(config, data, runtime or Runtime(), watch=watch))
    return records, said, watch


def test_a_profiled_run_is_the_same_run_and_leaves_a_trace_and_a_table(tiny, tiny_data, tmp_path, monkeypatch):
    """Caught: hooks that stay; a mechanism that is missing; a backward pass that nobody owns.

    Every operation counts as a millisecond, for what else the machine does is in their times.
    """
    monkeypatch.setattr(FunctionEvent, "self_cpu_time_total", 1000)
    config, folder = tiny(FULL), Folder.at(tmp_path)
    plain = list(train(config, tiny_data, Runtime()))
    records, (table,), watch = profiled(config, tiny_data, folder)
    assert [r.metrics["train_loss"] for r in records] == [r.metrics["train_loss"] for r in plain]
    assert folder.read("table.md").decode() == table
    trace = json.loads(gzip.decompress(folder.read("trace.json.gz")))
    assert any("aten::mm" in event.get("name", "") for event in trace["traceEvents"])
    assert "table.md" in watch.left
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    found = {cell[0]: (float(cell[1]), float(cell[2])) for cell in cells if not cell[0].startswith("–")}
    assert {"blocks", "mod", "latent", "memory", "head", "embedding", "optimizer"} <= found.keys()
    for mechanism in ("blocks", "mod", "latent", "memory"):
        forward, backward = found[mechanism]
        assert 1 < backward / forward < 4, mechanism  # each has a backward pass of its own
    every = found.pop("all")
    assert sum(f + b for f, b in found.values()) == pytest.approx(sum(every), rel=0.05)
    assert found.get("the rest", (0, 0))[1] < 0.1 * sum(every)


def test_a_run_too_short_to_look_at_says_so(tiny, tiny_data, tmp_path):
    """Caught: a profiler that is never stopped, and a path to a table that is not there."""
    _, said, watch = profiled(tiny(tokens=5 * 4 * 32), tiny_data, Folder.at(tmp_path))
    assert not said
    assert watch.left == "no profile: 8 steps are needed, and this start took 5"
    with profile():  # which raises where another one still runs
        pass


def test_a_profile_that_cannot_be_written_is_no_fault_of_the_run(tiny, tiny_data, tmp_path, monkeypatch):
    """Caught: a trial given up, or a sweep ended, for a trace."""

    def full(folder, name, data):
        raise OSError("no room\nleft")

    monkeypatch.setattr(Folder, "write", full)
    records, said, watch = profiled(tiny(), tiny_data, Folder.at(tmp_path))
    assert records[-1].status == "finished"
    assert not said
    assert watch.left == "no profile: it could not be written: no room left"


def event(name, start, own=0.0, seq=-1, parent=None):
    return SimpleNamespace(
        name=name, time_range=SimpleNamespace(start=start), self_cpu_time_total=own, self_device_time_total=2 * own,
        sequence_nr=seq, cpu_parent=parent, device_type=DeviceType.CPU,
    )  # fmt: skip


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("cuda", 2)])
def test_a_backward_operation_counts_where_its_forward_one_stands(device, times):
    """On events made by hand. Caught: a part of the innermost mechanism; a number that an earlier operation only
    peeked at; the host's time in place of the GPU's; evaluation; a kernel beside what launched it."""
    latent = event("lahr:latent", 0)
    attention = event("lahr:attention", 1, parent=latent)
    peeked = event("aten::empty", 2, own=1000, seq=7, parent=latent)
    product = event("aten::mm", 3, own=2000, seq=7, parent=attention)
    node = event("autograd::engine::evaluate_function: MmBackward0", 10, seq=7)
    backward = event("aten::mm", 11, own=4000, parent=node)
    head = event("_MeanCrossEntropy", 5, own=500, seq=9)
    unknown = event("aten::add_", 6, own=100)
    evaluated = event(
        "aten::mm", 21, own=9000, parent=event("lahr:latent", 20.5, parent=event("lahr:evaluation", 20))
    )
    events = [backward, node, peeked, product, attention, latent, head, unknown, evaluated, evaluated.cpu_parent]
    kernel = event("ampere_gemm", 3.5, own=7000)
    kernel.device_type = DeviceType.CUDA
    events.append(kernel)
    assert rows(events, device, steps=1) == [
        Row("latent", "attention", 2.0 * times, 4.0 * times),
        Row("latent", "", 1.0 * times, 0.0),
        Row("head", "", 0.5 * times, 0.0),
        Row("the rest", "", 0.1 * times, 0.0),
    ]


def test_the_table_sums_what_it_lists():
    """Caught: shares that do not make a whole."""
    table = as_table([Row("latent", "attention", 2.0, 4.0), Row("latent", "", 1.0, 0.0), Row("head", "", 1.0, 2.0)])
    assert table.splitlines()[2:] == [
        "| latent | 3.00 | 4.00 | 70.0% |",
        "| – attention | 2.00 | 4.00 | 60.0% |",
        "| – beside these | 1.00 | 0.00 | 10.0% |",
        "| head | 1.00 | 2.00 | 30.0% |",
        "| all | 4.00 | 6.00 | 100.0% |",
    ]
