"""The results folder: pending, finished, damaged, other designs and reuse; on a disk, a full one and in S3."""

import io
import math
import time
from dataclasses import replace

import pandas as pd
import pytest

from lahr import patience
from lahr.errors import ConfigError, StorageError
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime
from sweeps.engine.factors import Factor
from sweeps.engine.recorder import Recorder, result_of
from sweeps.engine.results import Results
from tests.conftest import fill

ABOUT = {"preset": "smoke", "data": {"corpus": "x", "floor": None}}


def last(step: int = 24, loss: float = 3.0, status: str = "finished") -> Progress:
    metrics = {"train_loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "val_loss": loss, "tokens_per_second": 9.0}
    return Progress(step, step * 128, 1e9, 2.0, metrics, "ab12", status)


def record(results: Results, design, trial, **kind) -> None:
    recorder = Recorder(results, design, "code")
    end = last(**kind)
    recorder.started(trial)
    recorder.progressed(trial, [last(12, status="running"), end])
    recorder.finished(trial, result_of(trial, end))


@pytest.fixture
def results(place, make_design) -> Results:
    made = Results.at(place.uri, "sweep")
    made.begin(make_design(), Runtime(), ABOUT, {})
    return made


def test_a_recorded_trial_is_no_longer_pending_and_stands_in_the_table(results, make_design):
    design = make_design()
    trial = design.trials()[3]
    record(results, design, trial)
    assert trial not in results.pending(design)
    assert len(results.pending(design)) == 15
    table = results.table(design)
    assert list(table.columns[:5]) == ["trial", "cell", "seed", "status", "val_loss"]
    row = table.iloc[0]
    assert (row["trial"], row["val_loss"], row["code"], row["extra_of"]) == (trial.id, 3.0, "code", None)
    assert (row["model.memory_slots"], row["model.mod_capacity"]) == (64, 1.0)
    assert row["tokens_per_second"] == row["tokens"] / row["seconds"]
    assert row["pairing"] == "ab12"
    assert list(results.curves([trial.id])[trial.id]["step"]) == [12, 24]
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(results.folder.read("trials.parquet"))), table)


def test_the_table_costs_no_more_the_more_trials_there_are(results, make_design, monkeypatch):
    """It is written now and then, and at the end. Seen to fail: with every trial, the square of their number in all."""
    written = []
    monkeypatch.setattr(Results, "write_table", lambda self, design: time.sleep(0.05) or written.append(1))
    design = make_design()
    recorder = Recorder(results, design, "code")
    for trial in design.trials()[:8]:
        recorder.started(trial)
        recorder.progressed(trial, [last()])
        recorder.finished(trial, result_of(trial, last()))
    assert len(written) < 8
    before = len(written)
    recorder.close()
    assert len(written) == before + 1


def test_a_diverged_trial_is_a_result_without_a_loss(results, make_design):
    design = make_design()
    trial = design.trials()[0]
    record(results, design, trial, loss=float("nan"), status="diverged")
    row = results.table(design).iloc[0]
    assert row["status"] == "diverged"
    assert pd.isna(row["val_loss"])
    assert trial not in results.pending(design)


def test_a_trial_without_its_last_file_is_pending(results, make_design):
    """`result.json` is written last: what was cut short before it runs again."""
    design = make_design()
    trial = design.trials()[0]
    record(results, design, trial)
    results.folder.remove(f"trials/{trial.id}/result.json")
    assert trial in results.pending(design)


def test_a_failed_trial_stays_pending_and_its_reason_goes_when_it_starts_again(results, make_design):
    design = make_design()
    trial = design.trials()[0]
    recorder = Recorder(results, design, "code")
    recorder.failed(trial, "out of memory")
    assert trial in results.pending(design)
    assert results.failures(design) == [{"trial": trial.id, "cell": "base", "seed": 0, "error": "out of memory"}]
    recorder.started(trial)
    assert results.failures(design) == []


def test_more_seeds_extend_the_sweep_and_fewer_keep_it(results, make_design):
    results.begin(make_design(seeds=5), Runtime(), ABOUT, {})
    assert results.design().seeds == 5
    results.begin(make_design(seeds=3), Runtime(), ABOUT, {})
    assert results.design().seeds == 5


def test_another_design_under_the_same_name_is_refused_and_changes_nothing(results, make_design):
    before = results.folder.read("design.json")
    design = make_design()
    other = replace(design, config=replace(design.config, train=replace(design.config.train, lr=0.5)))
    with pytest.raises(
        ConfigError, match=r"holds another design \(config.train.lr: 0.5 here, 0.003 there\).*--name"
    ):
        results.begin(other, Runtime(), ABOUT, {})
    assert results.folder.read("design.json") == before


def test_what_another_version_of_the_code_has_made_is_not_mixed_in_unasked(results, make_design):
    """Seen to fail: the trials stood in one table, and nobody was told."""
    design = make_design()
    record(results, design, design.trials()[1])
    results.check_code(design, "code", allow_mixed=False)
    with pytest.raises(
        ConfigError, match=r"holds trials of another version of the code \(1 of code; this is new\)"
    ):
        results.check_code(design, "new", allow_mixed=False)
    results.check_code(design, "new", allow_mixed=True)
    assert results.codes(design) == {"code": 1}


def test_finished_trials_of_the_same_configuration_are_taken_over_under_another_name(results, make_design, place):
    """A response surface's corner is a cell of the factorial. Caught: the other's name in the files."""
    design = make_design()
    trial = design.trials()[1]
    record(results, design, trial)
    renamed = make_design(factors=tuple(replace(f, switch=False) for f in design.factors))
    other = Results.at(place.uri, "surface")
    other.begin(renamed, Runtime(), ABOUT, {})
    assert other.take_over(results, renamed) == 1
    row = other.table(renamed).iloc[0]
    assert (
        row["cell"] == "mod=0.25" and row["trial"] == f"mod=0.25-s0-{trial.fingerprint}" and row["code"] == "code"
    )
    assert other.folder.read_json(f"trials/{row['trial']}/config.json")["cell"] == "mod=0.25"
    assert len(other.pending(renamed)) == 15


def test_finished_trials_of_the_same_id_are_taken_over(results, make_design, place):
    design = make_design()
    record(results, design, design.trials()[1])
    larger = make_design(
        factors=(Factor("mod", "model.mod_capacity", (1.0, 0.25, 0.5), switch=True), *design.factors[1:])
    )
    other = Results.at(place.uri, "larger")
    other.begin(larger, Runtime(), ABOUT, {})
    assert other.take_over(results, larger) == 1
    assert other.table(larger)["trial"].tolist() == [design.trials()[1].id]
    assert other.take_over(results, larger) == 0


def test_trials_that_were_executed_in_another_way_are_not_taken_over(results, make_design, tmp_path):
    """Two workers give other bits than one. Seen to fail: they were mixed within a block."""
    record(results, make_design(), make_design().trials()[1])
    other = Results.at(str(tmp_path), "wide")
    other.begin(make_design(), Runtime(workers=2), ABOUT, {})
    with pytest.raises(ConfigError, match=r"executed in another way \(workers 1 there, 2 here\)"):
        other.take_over(results, make_design())
    assert other.table(make_design()).empty


def test_every_start_leaves_its_environment(results, make_design):
    results.begin(make_design(), Runtime(), ABOUT, {"commit": "b"})
    assert results.header()["starts"] == [{}, {"commit": "b"}]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "/x", "x" * 129])
def test_names_that_are_no_folder_name_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="--name"):
        Results.at(str(tmp_path), name)


def test_a_folder_without_a_sweep_and_a_damaged_one_are_said(tmp_path, results):
    with pytest.raises(ConfigError, match="there is no sweep at"):
        Results.at(str(tmp_path), "none").design()
    results.folder.write("design.json", b"{")
    with pytest.raises(ConfigError, match="is damaged"):
        results.design()
    results.folder.write("design.json", b"{}")
    with pytest.raises(ConfigError, match="is not a sweep's"):
        results.design()


DAMAGED = {
    "result cut": ("result.json", b'{"trial": "b'),
    "result empty": ("result.json", b""),
    "result a list": ("result.json", b"[]"),
    "result of nothing": ("result.json", b"{}"),
    "result without a number": ("result.json", b'{"trial": "%s", "status": "finished", "val_loss": "3.0"}'),
    "result of another trial": ("result.json", b'{"trial": "x", "status": "finished", "val_loss": 3.0}'),
    "curve cut": ("metrics.parquet", b"PAR1 and then nothing"),
    "curve empty": ("metrics.parquet", b""),
    "no curve": ("metrics.parquet", None),
}


@pytest.mark.parametrize(("name", "content"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_trial_counts_as_not_finished_and_is_said(results, make_design, caplog, name, content):
    """Its checkpoint replays it. Seen to fail: a traceback of table() or curves(), for each of them."""
    design = make_design()
    good, bad = design.trials()[:2]
    for trial in (good, bad):
        record(results, design, trial)
    if content is None:
        results.folder.remove(f"trials/{bad.id}/{name}")
    else:
        results.folder.write(f"trials/{bad.id}/{name}", content.replace(b"%s", bad.id.encode()))
    again = Results(results.folder)  # of another start
    assert bad in again.pending(design)
    assert again.finished() == {good.id}
    assert again.table(design)["trial"].tolist() == [good.id]
    (warning,) = caplog.records
    assert f"trials/{bad.id}" in warning.getMessage() and "counts as not finished" in warning.getMessage()
    record(again, design, bad)
    assert again.table(design)["trial"].tolist() == [good.id, bad.id]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda header: [], "is not a sweep's"),
        (lambda header: header | {"starts": {}}, "is not a sweep's"),
        (lambda header: header | {"design": []}, "is not a sweep's"),
        (lambda header: header | {"design": {}}, "is damaged"),
        (lambda header: header | {"design": header["design"] | {"factors": 3}}, "is damaged"),
        (lambda header: header | {"design": header["design"] | {"config": []}}, "is damaged"),
        (lambda header: header | {"design": header["design"] | {"seeds": "x"}}, "is damaged"),
        (lambda header: header | {"runtime": {"device": 3}}, "is damaged"),
    ],
)
def test_a_design_of_another_type_is_named(results, change, said):
    """Seen to fail: a TypeError or KeyError of each."""
    results.folder.write_json("design.json", change(results.header()))
    with pytest.raises(ConfigError, match=rf"sweep/design.json {said}.*; restore it, or remove it and run again"):
        _ = results.design().cells(), results.runtime()


def test_a_damaged_reason_is_no_traceback(results, make_design):
    trial = make_design().trials()[0]
    results.folder.write(f"trials/{trial.id}/failure.json", b"{")
    (failure,) = results.failures(make_design())
    assert "failure.json is damaged" in failure["error"]


def test_a_full_disk_ends_in_a_clear_error_and_the_same_calls_go_through_once_there_is_room(
    small_disk, make_design
):
    """Earlier results stay. Seen to fail: an OSError without advice, and a curve's temporary file left behind."""
    design, results = make_design(), Results.at(str(small_disk), "sweep")
    results.begin(design, Runtime(), ABOUT, {})
    first, second = design.trials()[:2]
    record(results, design, first)
    before = results.table(design)
    filler = fill(small_disk)
    with patience.limited(0.1), pytest.raises(StorageError, match=r"No space left on device.*make room there"):
        record(results, design, second)
    pd.testing.assert_frame_equal(Results(results.folder).table(design), before)
    assert Results(results.folder).pending(design)[0] == second
    filler.unlink()
    record(results, design, second)
    assert len(Results(results.folder).table(design)) == 2
    assert not list(small_disk.rglob("*.tmp"))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"cell": "mod"},
        {"tokens_per_second": "fast"},
        {"status": "done"},
        {"val_loss": None},
        {"val_loss": math.nan},
    ],
)
def test_a_result_that_is_of_another_trial_or_of_no_numbers_counts_as_not_finished(
    results, make_design, change, caplog
):
    """Seen to fail: the file's own cell and seed stood in the table, and the report ended in a traceback."""
    design = make_design()
    trial = design.trials()[0]
    record(results, design, trial)
    name = f"trials/{trial.id}/result.json"
    results.folder.write_json(name, {**results.folder.read_json(name), **change})
    again = Results(results.folder)
    assert trial in again.pending(design) and again.damaged() == [trial.id]
    assert "counts as not finished, since it is damaged" in caplog.text


def test_a_result_of_no_trial_of_the_design_is_named_and_enters_nothing(results, make_design):
    """Seen to fail: a second result of a cell and seed, under another fingerprint, was passed over without a word."""
    design = make_design()
    trial = design.trials()[0]
    record(results, design, trial)
    other = f"{trial.cell}-s{trial.seed}-{'0' * 12}"
    for name in ("config.json", "metrics.parquet"):
        results.folder.write(f"trials/{other}/{name}", results.folder.read(f"trials/{trial.id}/{name}"))
    result = results.folder.read_json(f"trials/{trial.id}/result.json")
    results.folder.write_json(f"trials/{other}/result.json", {**result, "trial": other, "val_loss": 9.9})
    again = Results(results.folder)
    assert again.foreign(design) == [other] and list(again.table(design)["trial"]) == [trial.id]


def test_reports_are_counted_so_that_a_later_one_can_say_what_was_looked_at(results):
    assert results.note_report(5) == [] and results.note_report(5) == []
    assert results.note_report(8) == [5]
