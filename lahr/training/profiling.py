"""Where a step's time goes, by mechanism: a few steps of a run under torch's profiler, as a trace and as a table.

Modules say what they are for while they run forward; an operation of the backward pass counts where the operation
stands whose gradient it is, which autograd's sequence numbers tell. The profiler slows the steps that it looks at.
"""

import gzip
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lahr.files import Folder
from lahr.model.latent_reasoning import LatentReasoning
from lahr.model.layers import Attention, Block, FeedForward, RMSNorm
from lahr.model.memory import Memory
from lahr.model.mixture_of_depths import RoutedBlock, Router
from lahr.training.watch import Watch

WARM_UP, STEPS = 3, 5
"""Steps that are let pass, since the first ones allocate, and steps that are looked at."""
_MARK = "lahr:"
_MECHANISMS = ((RoutedBlock, "mod"), (LatentReasoning, "latent"), (Memory, "memory"), (nn.Embedding, "embedding"))
_PARTS = ((Router, "router"), (Attention, "attention"), (FeedForward, "feed-forward"), (RMSNorm, "norms"))
_BY_NAME = (
    ("_MeanCrossEntropy", "head"),
    ("Optimizer.", "optimizer"),
    ("torch::autograd::AccumulateGrad", "gradients"),
)
_EVALUATION = _MARK + "evaluation"
_BACKWARD = "autograd::engine::evaluate_function: "


class Row(NamedTuple):
    """Milliseconds a step in one part of one mechanism; `part` is empty for what is in none of its parts."""

    mechanism: str
    part: str
    forward: float
    backward: float


class Profile(Watch):
    """Looks at steps 4 to 8 of a run, writes `trace.json.gz` and `table.md` into `folder`, and hands the table on."""

    def __init__(self, inner: Watch, folder: Folder, say: Callable[[str], None] = lambda table: None) -> None:
        self._inner, self._folder, self._say = inner, folder, say
        self._steps, self._device = 0, "cpu"
        self._hooks: list[Any] = []
        self._profiler: profile | None = None
        self.missing: str | None = f"{WARM_UP + STEPS} steps are needed, and this start took none"
        """Why there is none; None once it is written."""

    def begins(self, model: nn.Module) -> None:
        """See `Watch.begins`."""
        self._inner.begins(model)
        self._device = next(model.parameters()).device.type
        self._hooks = _marked(model)

    def resumed(self, step: int) -> None:
        """See `Watch.resumed`."""
        self._inner.resumed(step)

    def alive(self) -> None:
        """See `Watch.alive`."""
        self._inner.alive()

    def saving(self) -> None:
        """See `Watch.saving`."""
        self._inner.saving()

    def stepped(self) -> bool:
        """See `Watch.stepped`; starts and ends the profiler."""
        self._steps += 1
        if self._steps == WARM_UP:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device == "cuda" else [])]
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes lines of its own to the terminal
            self._profiler = profile(activities=kinds)
            self._profiler.start()
        elif self._profiler is not None and self._steps == WARM_UP + STEPS:
            profiler = self._profiler
            self.ends()
            try:
                self._write(profiler)
                self.missing = None
            except Exception as error:  # of storage, or of the profiler: nothing that the run has to fail for
                self.missing = f"it could not be written: {' '.join(str(error).split())}"
        if self._profiler is not None or self._steps < WARM_UP:
            self.missing = f"{WARM_UP + STEPS} steps are needed, and this start took {self._steps}"
        return self._inner.stepped()

    def ends(self) -> None:
        """See `Watch.ends`; a profiler that still runs is stopped, or it would slow whatever comes next."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    @property
    def left(self) -> str:
        """Where trace and table lie, or why there are none."""
        if self.missing is not None:
            return f"no profile: {self.missing}"
        return f"profile: {self._folder.path('table.md')}, and trace.json.gz beside it (for ui.perfetto.dev)"

    def _write(self, profiler: Any) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "trace.json"
            profiler.export_chrome_trace(str(path))
            self._folder.write("trace.json.gz", gzip.compress(path.read_bytes()))
        table = as_table(rows(profiler.events(), self._device))
        self._folder.write("table.md", table.encode())
        self._say(table)


def _marked(model: nn.Module) -> list[Any]:
    """Hooks by which each part says what it is while it runs; parts inside of a compiled one say nothing."""
    hooks: list[Any] = []

    def mark(module: nn.Module) -> None:
        kinds = [name for kind, name in (*_MECHANISMS, *_PARTS) if isinstance(module, kind)]
        if not kinds and isinstance(module, Block):
            kinds = ["blocks"]
        if kinds:
            running: list[Any] = []

            def enter(*_: Any) -> None:
                running.append(torch.profiler.record_function(_MARK + kinds[0]))
                running[-1].__enter__()

            def leave(*_: Any) -> None:
                running.pop().__exit__(None, None, None)

            hooks.extend((module.register_forward_pre_hook(enter), module.register_forward_hook(leave)))
        if "forward" not in module.__dict__:  # not compiled
            for child in module.children():
                mark(child)

    mark(model)
    evaluating: list[Any] = []

    def enter_whole(*_: Any) -> None:
        if not model.training:
            evaluating.append(torch.profiler.record_function(_EVALUATION))
            evaluating[-1].__enter__()

    def leave_whole(*_: Any) -> None:
        if evaluating:
            evaluating.pop().__exit__(None, None, None)

    return [*hooks, model.register_forward_pre_hook(enter_whole), model.register_forward_hook(leave_whole)]


def rows(events: Any, device: str, steps: int = STEPS) -> list[Row]:
    """Self times of all operations of training by what they belong to, the largest mechanism first."""
    # A GPU's kernels and spans are events of their own, too, and counted already where they were launched.
    host = (e for e in events if e.device_type == DeviceType.CPU)
    training = (e for e in host if all(above.name != _EVALUATION for above in _ancestors(e)))
    ordered = sorted(training, key=lambda e: e.time_range.start)
    forward_of: dict[int, tuple[str, str]] = {}
    for event in ordered:
        if event.sequence_nr >= 0 and _backward(event) is None:
            forward_of[event.sequence_nr] = _place(event)  # the last one made the node; others only peeked
    spent: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in ordered:
        back = _backward(event)
        place = _place(event) if back is None else forward_of.get(back.sequence_nr, ("the rest", ""))
        if place[0] == "the rest":
            place = _by_name(event) or place
        time = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        spent[place][back is not None] += time / 1000 / steps
    made = [Row(*place, *times) for place, times in spent.items() if sum(times) > 0]
    whole: dict[str, float] = defaultdict(float)
    for row in made:
        whole[row.mechanism] += row.forward + row.backward
    return sorted(made, key=lambda r: (-whole[r.mechanism], -(r.forward + r.backward)))


def _ancestors(event: Any) -> Any:
    while event is not None:
        yield event
        event = event.cpu_parent


def _backward(event: Any) -> Any:
    """The node of the backward pass that the event is a part of."""
    return next((e for e in _ancestors(event) if e.name.startswith(_BACKWARD)), None)


def _place(event: Any) -> tuple[str, str]:
    """Mechanism and part; the innermost part, of the outermost mechanism."""
    marks = [e.name.removeprefix(_MARK) for e in _ancestors(event) if e.name.startswith(_MARK)]
    parts = {name for _, name in _PARTS}
    mechanism = next((mark for mark in reversed(marks) if mark not in parts), None)
    part = next((mark for mark in marks if mark in parts), "")
    if mechanism is None and not part:
        return _by_name(event) or ("the rest", "")
    return (mechanism or "last norm", part if mechanism else "")


def _by_name(event: Any) -> tuple[str, str] | None:
    names = [e.name.removeprefix(_BACKWARD) for e in _ancestors(event)]
    return next(((what, "") for start, what in _BY_NAME for name in names if name.startswith(start)), None)


def as_table(found: list[Row]) -> str:
    """Markdown: a line for each mechanism with its sum, then its parts."""
    total = sum(row.forward + row.backward for row in found)
    lines = ["| of a step | forward, ms | backward, ms | share |", "| --- | ---: | ---: | ---: |"]

    def line(name: str, of: list[Row]) -> str:
        forward, backward = sum(row.forward for row in of), sum(row.backward for row in of)
        return f"| {name} | {forward:.2f} | {backward:.2f} | {(forward + backward) / total:.1%} |"

    for mechanism in dict.fromkeys(row.mechanism for row in found):
        own = [row for row in found if row.mechanism == mechanism]
        lines.append(line(mechanism, own))
        if len(own) > 1:
            lines += [line(f"– {row.part or 'beside these'}", [row]) for row in own]
    return "\n".join([*lines, line("all", found), ""])
