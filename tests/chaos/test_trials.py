"""Trials that cannot be finished, in a sweep on one machine: the others come to what they come to without them.

The faults are put in from outside (`steps.py`), before a step of one cell.
"""

import json
import re

import pytest

from tests.chaos.here import Here, others_are_the_same
from tests.chaos.sweeps import INTERVAL, STEPS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]
AT = STEPS // 2 + 5
"""The step that cannot be done."""
FROM = AT - AT % INTERVAL
"""The checkpoint before it."""
HANG_AFTER = 20

# Before every step, in every process of the sweep.
WHERE = (
    "model = run.config.model\n"
    "                if model.memory_slots and not model.latent_iterations and model.mod_capacity == 1 "
    f"and run.step == {AT}:\n                    "
)
FAULTS = {
    "allocation": ("import torch; torch.empty(1 << 60)", 3, "you tried to allocate"),
    "killed": ("import os; os.kill(os.getpid(), 9)", 6, "the worker died"),
    "hangs": ("import time; time.sleep(1e6)", 3, r"hung: no step for \d+ s; it stood in .*sitecustomize"),
    "holds": ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", 6, "the worker died"),
}
WHAT = {
    "allocation": "an allocation that raises, each time",
    "killed": "its worker killed each time, as the system does when memory is out",
    "hangs": f"it sleeps for ever, each time, with --hang-after {HANG_AFTER}",
    "holds": f"it holds the interpreter, each time, with --hang-after {HANG_AFTER}",
}


def is_memory(trial: str) -> bool:
    return trial.startswith("memory-s")


@pytest.mark.parametrize("how", FAULTS)
def test_a_trial_that_cannot_be_finished(how, here: Here, alone, row):
    """Held, the interpreter answers nobody: such an attempt is only counted, and not heard of before the last.

    Seen to fail: the last line was one of the source, or the reason without the attempts, broken at 80 columns; a page
    of Ray's for each worker that died.
    """
    fault, attempts, why = FAULTS[how]
    expected, usual = alone
    options = f"--hang-after {HANG_AFTER}" if how in ("hangs", "holds") else ""
    running = here.start(f"cannot-{how}", options, fault=WHERE + fault)
    seconds = running.wait(900, status=1)
    assert not others_are_the_same(running.results, expected, but=is_memory)
    assert "(raylet)" not in running.said()
    why = rf"given up after {attempts} attempts at step {FROM}; the last one: .*{why}"
    last = [line for line in running.said().splitlines() if line.startswith("failed: memory-s0")]
    assert len(last) == 1 and re.search(why, last[0]), running.said()
    report = (running.results / "report" / "report.md").read_text()
    assert re.search(rf"(?m)^- Failed: memory seed 0: `{why}", report), report
    verdict = json.loads((running.results / "report" / "verdict.json").read_text())
    assert [failure["cell"] for failure in verdict["failed"]] == ["memory"]
    assert re.search(why, verdict["failed"][0]["error"], re.DOTALL)
    row(
        f"one trial that cannot be finished: {WHAT[how]}",
        "given up after so many attempts, with the reason on the terminal, in the report and in verdict.json; status "
        "1; every other trial finished, bit for bit as undisturbed",
        attempts=attempts,
        seconds=f"{seconds:.0f}, {usual:.0f} undisturbed",
    )


def test_a_trial_that_diverges(here: Here, alone, row):
    """Weights that are no numbers, in the middle. Seen to fail with a loss so heavy that it had to diverge, but that
    clipping and Adam made as light as any other."""
    expected, usual = alone
    running = here.start("diverges", fault=f"{WHERE}next(run.model.parameters()).data.fill_(float('nan'))")
    seconds = running.wait()
    found = others_are_the_same(running.results, expected, but=is_memory)
    assert [result["status"] for result in found.values()] == ["diverged"]
    report = (running.results / "report" / "report.md").read_text()
    assert re.search(r"(?m)^- Diverged: memory seed 0$", report), report
    verdict = json.loads((running.results / "report" / "verdict.json").read_text())
    assert len(verdict["diverged"]) == 1
    row(
        "one trial that diverges",
        "marked so, with its curve, in the report and in verdict.json; every other trial finished, bit for bit as "
        "undisturbed",
        seconds=f"{seconds:.0f}, {usual:.0f} undisturbed",
    )
