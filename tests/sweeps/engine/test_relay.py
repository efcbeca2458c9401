"""What observers hear of the rows that workers report: each step once, faults counted, and when a sweep ends."""

import pytest

from lahr.errors import StorageError
from lahr.training.progress import Progress
from sweeps.engine.relay import Relay


class Heard:
    """An observer that keeps what it is told."""

    essential = True

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def started(self, trial):
        self.said.append(("started", trial.id))

    def progressed(self, trial, rows):
        self.said += [("step", row.step) for row in rows]

    def finished(self, trial, result):
        self.said.append(("finished", result))

    def failed(self, trial, error):
        self.said.append(("failed", error))

    def close(self): ...


@pytest.fixture
def trial(make_design):
    return make_design().trials()[0]


@pytest.fixture
def rows(trial):
    """`rows(steps…)`: a record each, the last of a finished run where it is step 24."""

    def build(*steps: int):
        for step in steps:
            status = "finished" if step == 24 else "running"
            record = Progress(step, step * 128, 1e6 * step, 0.1 * step, {"val_loss": 3.0}, "p", status)
            yield {"trial": trial.id, "progress": record.to_json()}

    return build


def resumed(trial, step, *warnings):
    return {"trial": trial.id, "resumed": step, "warnings": list(warnings)}


def test_a_step_is_told_once_and_what_was_done_twice_is_counted(trial, rows):
    """Seen to fail when a restart's replayed records counted, and when the steps since the checkpoint did not."""
    heard = Heard()
    relay = Relay({trial.id: trial}, [heard])
    for row in [
        {"group": "a"},
        resumed(trial, 0),
        *rows(3, 6, 9, 12),
        resumed(trial, 6, "checkpoint step-12 is not used: x"),
        *rows(3, 6, 9, 12, 15),
        resumed(trial, 12, "checkpoint step-12 is not used: x"),
        *rows(3, 6, 9, 12, 15, 18, 21, 24, 24),
        resumed(trial, 24),
    ]:
        relay.take(row)
    assert heard.said[0] == ("started", trial.id)
    assert [what for name, what in heard.said if name == "step"] == [3, 6, 9, 12, 15, 18, 21, 24]
    (result,) = [what for name, what in heard.said if name == "finished"]
    assert (result["restarts"], result["repeated_steps"]) == (2, 6 + 3)
    assert result["warnings"] == "checkpoint step-12 is not used: x"
    assert relay.outcome.finished == [trial.id]


def test_a_trial_that_had_ended_is_not_disturbed_by_the_next_one(trial, rows):
    """Its last row waits for the next trial's first one, and went down with that. Caught: a restart that was none."""
    heard = Heard()
    relay = Relay({trial.id: trial}, [heard])
    for row in [resumed(trial, 0), *rows(3, 12, 21), resumed(trial, 24), *rows(3, 12, 21, 24)]:
        relay.take(row)
    (result,) = [what for name, what in heard.said if name == "finished"]
    assert (result["restarts"], result["repeated_steps"]) == (0, 0)


def test_what_a_worker_says_is_passed_on(trial, caplog):
    """Caught: a profile that is missing, and nobody told."""
    Relay({trial.id: trial}, []).take({"said": "a-s0: no profile: it ended"})
    assert "a-s0: no profile: it ended" in caplog.text


def test_a_refusal_ends_the_sweep_and_fails_no_trial(trial, rows):
    heard = Heard()
    relay = Relay({trial.id: trial}, [heard])
    for row in [resumed(trial, 0), *rows(3), {"refused": "no room in x"}, *rows(24), {"refused": "later"}]:
        relay.take(row)
    assert relay.outcome.stopped == "no room in x"
    assert relay.over and not relay.outcome.finished and not relay.outcome.failed
    assert heard.said == [("started", trial.id), ("step", 3)]


def test_results_that_cannot_be_written_end_the_sweep_and_leave_the_trial_pending(trial, rows):
    """Seen to fail when a trial counted as finished before its result was kept."""

    class Full(Heard):
        def finished(self, trial, result):
            raise StorageError("no room left for result.json")

    relay = Relay({trial.id: trial}, [Full()])
    for row in [resumed(trial, 0), *rows(24)]:
        relay.take(row)
    assert relay.outcome.stopped == "no room left for result.json"
    assert not relay.ended(trial.id)


def test_an_observer_that_fails_is_dropped_unless_it_is_essential(trial, caplog):
    class Broken(Heard):
        essential = False

        def failed(self, trial, error):
            raise OSError("its file is gone")

    broken, heard = Broken(), Heard()
    relay = Relay({trial.id: trial}, [broken, heard])
    relay.give_up_the_rest()
    assert [name for name, _ in heard.said] == ["failed"]
    assert "Broken failed; going on without it" in caplog.text
    broken.essential = True
    with pytest.raises(OSError, match="its file is gone"):
        Relay({trial.id: trial}, [broken, heard]).give_up_the_rest()
