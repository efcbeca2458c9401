import io
import math
import pickle
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps.reporting.progress import ProgressTable


def a_trial(cell, seed, flops):
    return SimpleNamespace(id=f"{cell}-s{seed}", cell=cell, seed=seed, flops=flops)


def record(flops, seconds, speed=1000.0):
    return SimpleNamespace(flops=flops, seconds=seconds, metrics={"tokens_per_second": speed}, status="running")


TRIALS = [a_trial("base", 0, 100.0), a_trial("mod", 0, 300.0), a_trial("base", 1, 100.0), a_trial("mod", 1, 300.0)]


class Shown:
    """A progress table with a clock to turn and a console to read."""

    def __init__(self, terminal=False, done=None):
        self.now, self.text = 0.0, io.StringIO()
        self.console = Console(file=self.text, width=120, force_terminal=terminal, color_system=None)
        self.table = ProgressTable(TRIALS, done, self.console, clock=lambda: self.now)

    def rendered(self):
        page = Console(file=io.StringIO(), width=120)
        page.print(self.table.render())
        return page.file.getvalue()


def test_time_left_is_weighted_by_flops():
    shown = Shown()
    assert math.isnan(shown.table.remaining())
    shown.table.started(TRIALS[0])
    shown.now = 10.0
    shown.table.progressed(TRIALS[0], [record(100.0, 10.0)])
    shown.table.finished(TRIALS[0], {"status": "finished", "val_loss": 3.0})
    assert shown.table.remaining() == pytest.approx(70.0)  # 700 FLOPs at 10 a second: not three more of the same
    shown.table.started(TRIALS[1])
    shown.now = 20.0
    shown.table.progressed(TRIALS[1], [record(150.0, 10.0)])
    assert shown.table.remaining() == pytest.approx(20.0 * 550 / 250)


def test_work_of_an_earlier_start_says_nothing_of_pace():
    shown = Shown()
    shown.table.started(TRIALS[1])
    shown.now = 5.0
    shown.table.progressed(TRIALS[1], [record(270.0, 45.0)])  # 40 of the 45 seconds were before
    assert shown.table.remaining() == pytest.approx(5.0 * (800 - 270) / 30)


def test_a_failed_trial_is_not_waited_for():
    shown = Shown()
    shown.table.started(TRIALS[0])
    shown.now = 10.0
    shown.table.finished(TRIALS[0], {"status": "finished", "val_loss": 3.0})
    shown.table.started(TRIALS[1])
    shown.table.failed(TRIALS[1], "out of memory")
    assert shown.table.remaining() == pytest.approx(40.0)
    shown.table.started(TRIALS[1])  # a second try counts again
    assert shown.table.remaining() == pytest.approx(70.0)


def test_off_a_terminal_each_finished_trial_is_one_plain_line(made):
    shown = Shown()
    for trial, result in (
        (TRIALS[0], {"status": "finished", "val_loss": 3.0}),
        (TRIALS[1], {"status": "diverged", "val_loss": None}),
    ):
        shown.table.started(trial)
        shown.now += 10
        shown.table.progressed(trial, [record(trial.flops, 10.0)])
        shown.table.finished(trial, result)
    shown.table.started(TRIALS[2])
    shown.table.failed(TRIALS[2], "killed [twice]")
    shown.table.close()
    first, second, third = shown.text.getvalue().splitlines()
    assert first == "base seed 0: val_loss 3.0000 [1/4 trials, 10 s elapsed, about 1 min 10 s left]"
    assert second.startswith("mod seed 0: diverged [2/4 trials")
    assert third.startswith("base seed 1: FAILED: killed [twice] [2/4 trials, 20 s elapsed, 1 failed")


def test_the_table_has_one_row_a_cell_and_counts_earlier_trials(made):
    done = made.trials(2)
    done = done[done["cell"].isin(["latent", "mod"])].assign(seed=lambda t: t["seed"] + 5)
    done.loc[done.index[-1], ["status", "val_loss"]] = "diverged", float("nan")
    shown = Shown(done=done)
    shown.table.started(TRIALS[0])
    shown.now = 1.0
    shown.table.progressed(TRIALS[0], [record(50.0, 1.0, speed=1234.0)])
    rows = {line.split()[0]: line for line in shown.rendered().splitlines() if line.strip()}
    assert "2/2" in rows["latent"] and "±" in rows["latent"]
    assert "2/4" in rows["mod"] and "1 diverged" in rows["mod"]
    assert "50 %" in rows["base"] and "1,234" in rows["base"] and "0/2" in rows["base"]
    assert sum(line.startswith("base") for line in shown.rendered().splitlines()) == 1


def test_on_a_terminal_the_table_is_live_and_failures_stay_above_it():
    shown = Shown(terminal=True)
    shown.table.started(TRIALS[0])
    shown.table.finished(TRIALS[0], {"status": "finished", "val_loss": 3.0})
    shown.table.started(TRIALS[1])
    shown.table.failed(TRIALS[1], "out of memory")
    shown.table.close()
    shown.table.close()
    text = shown.text.getvalue()
    assert "mod seed 0: FAILED: out of memory" in text and "base seed 0: val_loss" not in text
    assert "1/4 trials" in text[text.rindex("FAILED") :]


def test_it_can_be_pickled_before_its_first_use():
    copy = pickle.loads(pickle.dumps(ProgressTable(TRIALS)))
    assert "0/2" in next(line for line in _lines(copy) if line.startswith("mod"))


def _lines(table):
    page = Console(file=io.StringIO(), width=100)
    page.print(table.render())
    return page.file.getvalue().splitlines()
