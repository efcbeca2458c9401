"""Checkpoints that are damaged between two starts of a sweep on one machine: the older one is used, or the trial starts
over, and both are said where one looks."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.here import SAME, Here, ctrl_c, kill_9
from tests.chaos.sweeps import INTERVAL, STEPS, Running, newest_checkpoints, trials
from tests.cluster.namespaces import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def halfway(running: Running) -> bool:
    """Whether a trial is in its middle, or the sweep is over."""
    newest = newest_checkpoints(running.results).values()
    return any(2 * INTERVAL <= step <= STEPS // 2 for step in newest) or running.process.poll() is not None


def cut(here: Here, name: str, end: Callable) -> tuple[Path, int]:
    """A sweep that `end` ends in the middle of a trial: the folder of its checkpoints, and the newest one's step."""
    while True:
        running = here.start(name)
        until(partial(halfway, running), 600, running.said)
        assert running.process.poll() is None, running.said()
        end(running.process)
        whole = {t: step for t, step in newest_checkpoints(running.results).items() if step >= 2 * INTERVAL}
        if whole:
            trial, step = next(iter(whole.items()))
            return running.results / "checkpoints" / trial, step


def truncate(step: Path) -> None:
    state = step / "state.safetensors"
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])


def truncate_all(step: Path) -> None:
    for each in step.parent.glob("step-*"):
        truncate(each)


def spoil_the_manifest(step: Path) -> None:
    (step / "manifest.json").write_bytes(b'{"state.json": ')


CASES = {
    "truncated": (truncate, kill_9, "the newest checkpoint truncated", "is damaged"),
    "manifest": (spoil_the_manifest, ctrl_c, "the newest checkpoint's manifest damaged", "is not used"),
    "missing": (shutil.rmtree, kill_9, "the newest checkpoint's folder removed", "is missing"),
    "all": (truncate_all, ctrl_c, "every checkpoint of a trial truncated", "it starts over"),
}


@pytest.mark.parametrize("case", CASES)
def test_damage(case, here, alone, row):
    """Seen to fail: nothing was said of a folder that is gone."""
    break_it, end, fault, said = CASES[case]
    expected, usual = alone
    folder, step = cut(here, f"damage-{case}", end)
    break_it(folder / f"step-{step}")
    again = here.start(f"damage-{case}")
    seconds = again.wait()
    assert trials(again.results) == expected

    result = json.loads((again.results / "trials" / folder.name / "result.json").read_text())
    assert result["resumed_at"] == (0 if case == "all" else step - INTERVAL)
    report = (again.results / "report" / "report.md").read_text()
    sanity = report.partition("## Sanity")[2].partition("\n## ")[0]
    verdict = json.loads((again.results / "report" / "verdict.json").read_text())
    told = [said_of["said"] for said_of in verdict["warnings"] if said_of["trial"] == folder.name]
    for text in (again.said(), sanity, " ".join(told[0])):
        assert f"checkpoint step-{step}" in text and said in text
    row(
        f"{fault}, after {'kill -9' if end is kill_9 else 'Ctrl-C'}; the same command again",
        f"{'the trial starts over' if case == 'all' else 'the older one is used'}, said on the terminal, in the report "
        f"and in verdict.json; {SAME}",
        steps_done_again=f"{step - result['resumed_at']} (an interval is {INTERVAL})",
        seconds=f"{seconds:.0f} from the last start, {usual:.0f} undisturbed",
    )
