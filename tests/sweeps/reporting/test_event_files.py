import json
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard import default, program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sweeps.reporting.event_files import VIEWS, EventFiles, layout, runs, write_events


class Board:
    """The real TensorBoard backend on a free loopback port, in this process."""

    def __init__(self, directory):
        board = program.TensorBoard(default.get_plugins())
        board.configure(
            argv=[None, "--logdir", str(directory), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
        )
        self.url = board.launch().rstrip("/")

    def get(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(request, timeout=30).read())

    def groups(self):
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        query = {
            "experimentName": "",
            "allowedStatuses": statuses,
            "colParams": [],
            "startIndex": 0,
            "sliceSize": 100,
        }
        return self.get("/data/plugin/hparams/session_groups", query)["sessionGroups"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, made):
    """A written sweep of 8 × 3 trials, one of them diverged, and TensorBoard showing it."""
    directory = tmp_path_factory.mktemp("tensorboard")
    trials = made.trials(3)
    curves = made.curves(trials)
    trials.loc[(trials["cell"] == "mod") & (trials["seed"] == 2), ["status", "val_loss"]] = "diverged", np.nan
    files = {"report.md": REPORT, "effects.png": PNG, "report.png": PNG}
    write_events(directory, trials, curves, files, made.design, LEVELS)
    board, limit = Board(directory), time.monotonic() + 60
    while time.monotonic() < limit:
        tags = board.get("/data/plugin/scalars/tags")
        if len(tags) == 32 and sum(len(g["sessions"]) for g in board.groups()) == 24:
            break
        time.sleep(0.2)
    return SimpleNamespace(board=board, trials=trials, curves=curves, directory=directory)


LEVELS = ("model.mod_capacity", "model.latent_iterations", "model.memory_slots")
REPORT = b"""# Name

**Verdict: mod is undecided**

## Effects

| effect | nats |
| --- | ---: |
| mod | 0.1 |

## Figures

![figure](report.png)

## Surface

![figure](surface.png)

| term | nats |
| --- | ---: |
| mod:mod | 0.1 |

## Sanity & more

- Failed: mod seed 0: `![no picture](x)`
"""
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    + (640).to_bytes(4, "big")
    + (480).to_bytes(4, "big")
    + b"\x08\x06\x00\x00\x00"
)


def test_a_cell_is_one_session_group_with_its_seeds(swept):
    groups = swept.board.groups()
    assert {g["name"]: len(g["sessions"]) for g in groups} == dict.fromkeys(swept.trials["cell"].unique(), 3)
    full = next(g for g in groups if g["name"] == "mod+latent+memory")
    assert full["hparams"] == {
        "cell": "mod+latent+memory", "mod_capacity": 0.125, "latent_iterations": 4, "memory_slots": 4096,
    }  # fmt: skip
    statuses = {s["name"]: s["status"] for g in groups for s in g["sessions"]}
    assert [name for name, status in statuses.items() if status == "STATUS_FAILURE"] == ["trials/mod/seed2"]
    metric = {m["name"]["tag"]: m["value"] for m in full["sessions"][0]["metricValues"]}
    row = swept.trials[swept.trials["cell"] == "mod+latent+memory"].iloc[0]
    assert metric["loss/validation"] == pytest.approx(row["val_loss"], abs=1e-6)


def test_any_factor_may_be_varied(made, tmp_path):
    """Two factors with text, a boolean and None as levels, live and rebuilt: the same columns of text.

    Seen to fail: float() of a text."""
    trials = made.trials(2)
    trials = trials[trials["cell"].isin(["base", "latent", "memory"])]
    trials["norm"] = trials["cell"].map({"base": "rms", "latent": "layer", "memory": "rms"})
    trials["tied"] = trials["cell"] != "memory"
    trials["window"] = trials["cell"].map({"base": None, "latent": 16, "memory": None})
    names = ["norm", "tied", "window"]
    cells = {row["cell"]: {name: row[name] for name in names} for row in trials.to_dict(orient="records")}
    live = EventFiles(tmp_path / "live", cells)
    for row in trials.to_dict(orient="records"):
        trial = SimpleNamespace(id=row["trial"], cell=row["cell"], seed=row["seed"], levels=cells[row["cell"]])
        live.started(trial)
        live.finished(trial, {"status": "finished"})
    write_events(tmp_path / "rebuilt", trials, made.curves(trials), {}, made.design, names)
    for place in ("live", "rebuilt"):
        board, until = Board(tmp_path / place), time.monotonic() + 60
        while sum(len(g["sessions"]) for g in board.groups()) < 6 and time.monotonic() < until:
            time.sleep(0.1)
        assert {g["name"]: g["hparams"] for g in board.groups()} == {
            "base": {"cell": "base", "norm": "rms", "tied": "true", "window": "none"},
            "latent": {"cell": "latent", "norm": "layer", "tied": "true", "window": "16"},
            "memory": {"cell": "memory", "norm": "rms", "tied": "false", "window": "none"},
        }
    experiment = board.get("/data/plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"]: info["type"] for info in experiment["hparamInfos"]} == dict.fromkeys(
        ("cell", *names), "DATA_TYPE_STRING"
    )


def test_the_experiment_shows_at_most_five_columns_and_no_seed(swept):
    experiment = swept.board.get("/data/plugin/hparams/experiment", {"experimentName": ""})
    columns = {info["name"]: info["differs"] for info in experiment["hparamInfos"]}
    assert columns == dict.fromkeys(("cell", "mod_capacity", "latent_iterations", "memory_slots"), True)
    assert experiment["metricInfos"][0]["name"]["tag"] == "loss/validation"


@pytest.mark.parametrize(
    ("tag", "column", "scale"),
    [("loss", "step", 1), ("loss_by_tokens", "tokens", 1), ("loss_by_megaflops", "flops", 1e-6),
     ("loss_by_milliseconds", "seconds", 1e3)],
)  # fmt: skip
def test_losses_are_drawn_over_every_axis(swept, tag, column, scale):
    points = swept.board.get(f"/data/plugin/scalars/scalars?run=trials/latent/seed1&tag={tag}/validation")
    curve = swept.curves[swept.trials.set_index(["cell", "seed"]).loc[("latent", 1), "trial"]].dropna(
        subset=["val_loss"]
    )
    assert [p[1] for p in points] == [round(x * scale) for x in curve[column]]
    assert [p[2] for p in points] == pytest.approx(list(curve["val_loss"]), abs=1e-6)


def test_a_cell_has_its_mean_its_interval_and_its_difference_from_base(swept):
    def last(tag):
        run = "latent%2Bmemory"
        return swept.board.get(f"/data/plugin/scalars/scalars?run=cells/{run}&tag={tag}")[-1]

    wide = swept.trials.pivot(index="seed", columns="cell", values="val_loss")
    difference = wide["latent+memory"] - wide["base"]
    assert last("cell/loss_mean")[2] == pytest.approx(wide["latent+memory"].mean(), abs=1e-6)
    assert last("cell/difference_mean")[2] == pytest.approx(difference.mean(), abs=1e-6)
    half = 4.302652729749462 * difference.std() / np.sqrt(3)
    assert last("cell_by_tokens/difference_high")[1:] == [
        409_600,
        pytest.approx(difference.mean() + half, abs=1e-6),
    ]
    assert "cell/difference_mean" not in swept.board.get("/data/plugin/scalars/tags")["cells/base"]


def test_the_layout_names_tags_that_exist(swept):
    shown = swept.board.get("/data/plugin/custom_scalars/layout")
    tags = swept.board.get("/data/plugin/scalars/tags")["cells/mod"]
    series = [s for category in shown["category"] for chart in category["chart"] for s in chart["margin"]["series"]]
    assert len(series) == 4
    assert {name for s in series for name in (s["value"], s["lower"], s["upper"])} <= set(tags)
    assert layout().value[0].tag == "custom_scalars__config__"


def test_the_root_run_shows_the_figures_and_the_report_by_its_sections(swept):
    """Seen to fail: text and figures under the same tags, of which TensorBoard shows one kind."""
    assert set(swept.board.get("/data/plugin/images/tags")["."]) == {"figures/1_report", "figures/2_effects"}
    shown = swept.board.get("/data/plugin/images/images?run=.&tag=figures/1_report&sample=0")[0]
    with urllib.request.urlopen(f"{swept.board.url}/data/plugin/images/individualImage?{shown['query']}") as png:
        assert png.read() == PNG
    tags = swept.board.get("/data/plugin/text/tags")["."]
    assert sorted(tags) == ["report/1_verdict", "report/2_effects", "report/3_surface", "report/4_sanity_more"]
    verdict, effects, surface, sanity = (
        swept.board.get(f"/data/plugin/text/text?run=.&tag={tag}")[0]["text"] for tag in sorted(tags)
    )
    assert "mod is undecided" in verdict and "<table>" not in verdict
    assert effects.count("<td>") == surface.count("<td>") == 2 and "<img" not in surface
    assert "<code>![no picture](x)</code>" in sanity
    assert all(view.startswith("?") for view in VIEWS.values())


def test_a_rebuild_leaves_nothing_of_the_old_one(made, tmp_path):
    trials = made.trials(2)
    write_events(tmp_path, trials, made.curves(trials), {}, made.design, LEVELS)
    assert sum(1 for path in tmp_path.rglob("events*")) == runs(trials)
    write_events(tmp_path, trials[trials["seed"] == 0], made.curves(trials), {}, made.design, LEVELS)
    root = EventAccumulator(str(tmp_path))
    root.Reload()
    assert not [tag for tag in root.Tags()["tensors"] if tag.startswith("report/")], "there was no report"
    assert not list(tmp_path.glob("trials/*/seed1")) and len(list(tmp_path.glob("trials/*/seed0"))) == 8
    assert all(len(list(folder.glob("events*"))) == 1 for folder in (tmp_path, *tmp_path.glob("trials/*/*")))


def record(step, **metrics):
    return SimpleNamespace(step=step, tokens=step * 100, flops=step * 1e9, seconds=step * 0.5, metrics=metrics)


def steps_of(directory):
    events = EventAccumulator(str(directory / "trials/mod/seed0"))
    events.Reload()
    return [event.step for event in events.Scalars("loss/train")]


MOD = SimpleNamespace(id="mod-s0-abc", cell="mod", seed=0, levels={"mod_capacity": 0.125})


def test_live_records_are_written_once_however_often_they_come(tmp_path):
    observer = EventFiles(tmp_path, {MOD.cell: MOD.levels})
    observer.started(MOD)
    observer.progressed(MOD, [record(1, train_loss=3.0), record(2, train_loss=2.9)])
    assert steps_of(tmp_path) == [1, 2]  # while the trial runs
    observer.failed(MOD, "worker lost")
    observer.started(MOD)  # again within the sweep: only what is new is written
    observer.progressed(MOD, [record(2, train_loss=2.9), record(3, train_loss=2.8)])
    observer.finished(MOD, {"status": "finished", "val_loss": 2.8})
    observer.close()
    assert steps_of(tmp_path) == [1, 2, 3]


def test_a_shorter_runs_loss_is_drawn_where_that_run_ends(tmp_path):
    """With its tokens and FLOPs as curves of their own; one that diverged is no point.

    Caught: the loss drawn at the tokens of the record, which are those of the branch's start.
    """
    figures = {"decayed_val_loss": 2.5, "decayed_tokens": 400.0, "decayed_flops": 4e9}
    observer = EventFiles(tmp_path, {MOD.cell: MOD.levels})
    observer.started(MOD)
    observer.progressed(MOD, [record(2, train_loss=3.0, **figures)])
    observer.progressed(MOD, [record(3, train_loss=3.0, **{**figures, "decayed_val_loss": float("nan")})])
    observer.close()
    events = EventAccumulator(str(tmp_path / "trials/mod/seed0"))
    events.Reload()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert points["loss/decayed"] == [(2, 2.5)]
    assert points["loss_by_tokens/decayed"] == [(400, 2.5)]
    assert points["loss_by_megaflops/decayed"] == [(4000, 2.5)]
    assert points["training/decayed_tokens"] == [(2, 400.0), (3, 400.0)]
    assert points["training/decayed_flops"] == [(2, 4e9), (3, 4e9)]


def test_a_resumed_sweep_starts_the_run_afresh(tmp_path):
    for _ in range(2):  # all records are reported again after a resume
        observer = EventFiles(tmp_path, {MOD.cell: MOD.levels})
        observer.started(MOD)
        observer.progressed(MOD, [record(1, train_loss=3.0), record(2, train_loss=2.9, val_loss=float("nan"))])
        observer.close()
    assert steps_of(tmp_path) == [1, 2]
