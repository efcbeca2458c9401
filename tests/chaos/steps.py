"""Every step that workers take, written down from outside: what was done again, and how long a trial stood still.

The loop is wrapped where a process imports it. A line for each step goes to a file of the process: the sweep, the
trial, the step, the time, at once, so that a process that is killed has said all that it did.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# `{fault}` runs before each step, with `run` being the loop's `_Run`.
_MODULE = """
import importlib.util, os, socket, sys, time, uuid

class Wrapped:
    def find_spec(self, name, path=None, target=None):
        if name != "lahr.training.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            os.makedirs({folder!r}, exist_ok=True)
            file = f"{folder}/{{socket.gethostname()}}-{{uuid.uuid4()}}"
            train, step, place = module.train, module._Run._step, []

            def told(config, data, runtime, folder=None, *rest):
                place[:] = [] if folder is None else [folder.parent.parent.name, folder.name]
                yield from train(config, data, runtime, folder, *rest)

            def fault(run):
                {fault}

            def counted(run):
                fault(run)
                begun, now = run.step, time.time()
                done = step(run)
                if place and run.horizon == run.config.steps:  # a branch's steps are no trial's
                    with open(file, "a") as lines:
                        print(*place, begun, now, file=lines)
                return done

            module.train, module._Run._step = told, counted

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Wrapped())
"""


def module(folder: Path, fault: str = "pass") -> str:
    """The text of a module that wraps the loop in every process that imports it, and writes into `folder`."""
    return _MODULE.format(folder=str(folder), fault=fault)


@dataclass(frozen=True)
class Again:
    """A trial that another process went on with."""

    steps: int
    """Taken before, and now again."""
    standstill: float
    """Seconds from its last step before to its first new one."""
    went_on_from: int


def taken(folder: Path, sweep: str) -> Iterator[tuple[str, tuple[str, int], float]]:
    """Every step of the sweep that was taken: the process (its host's name, and more), the trial and the step, when it
    was begun."""
    for path in folder.iterdir() if folder.exists() else ():
        for line in path.read_text().split("\n")[:-1]:  # the last may be in the middle of being written
            name, trial, step, when = line.split()
            if name == sweep:
                yield path.name, (trial, int(step)), float(when)


def taken_again(folder: Path, sweep: str) -> list[Again]:
    """Each time that another process went on with a trial of the sweep, in no order."""
    by_trial: dict[str, dict[str, list[tuple[float, int]]]] = defaultdict(lambda: defaultdict(list))
    for process, (trial, step), when in taken(folder, sweep):
        by_trial[trial][process].append((when, step))
    return [again for processes in by_trial.values() for again in _of_trial(processes)]


def _of_trial(processes: Mapping[str, list[tuple[float, int]]]) -> list[Again]:
    in_order = sorted((sorted(steps) for steps in processes.values()), key=lambda steps: steps[0])
    found = []
    for i, steps in enumerate(in_order[1:], 1):
        began, first = steps[0]
        # Of one that was cut off only what it did until then: it goes on for a while, and writes nothing.
        before = [taken for other in in_order[:i] for taken in other if taken[0] < began]
        done = max(step for _, step in before)
        new = next((when for when, step in steps if step > done), steps[-1][0])
        last = max(when for when, step in before if step == done)
        found.append(Again(max(0, done + 1 - first), new - last, first))
    return found


def figures(again: list[Again], interval: int) -> dict[str, object]:
    """For a row of docs/reliability.md."""
    most = max((one.steps for one in again), default=0)
    longest = max((one.standstill for one in again), default=0.0)
    return {
        "trials_gone_on_with": len(again),
        "steps_done_again": f"{most} at most (an interval is {interval})",
        "standstill": f"{longest:.0f} s at most",
    }
