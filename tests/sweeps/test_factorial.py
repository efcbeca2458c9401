"""The command line of the study: bad input gets one line and status 2 before anything is written; plan and status."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console

from lahr.data.stories import story
from lahr.errors import ConfigError
from lahr.training.loop import train
from lahr.training.runtime import Runtime
from sweeps.commands import execute
from sweeps.commands.report import say_where
from sweeps.engine import lease
from sweeps.engine.results import Results
from sweeps.factorial import Options
from sweeps.reporting.event_files import VIEWS
from tests.chaos.here import kill_9

ROOT = Path(__file__).parents[2]
TINY = [
    *("--preset", "smoke", "--model.d-model", "16", "--model.vocab-size", "300", "--model.max-seq-len", "32"),
    *("--train.batch-size", "4", "--train.tokens", "3072"),
    *("--data.train-tokens", "1600", "--data.validation-blocks", "8", "--slots", "64"),
]


@pytest.fixture
def place(tmp_path, cache, monkeypatch) -> list[str]:
    """Options that keep a sweep inside the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return [*TINY, "--cache", str(cache), "--results", str(tmp_path / "results")]


def factorial(argv: list[str]) -> int:
    return execute(Options, argv, "python sweeps/factorial.py")


def bad_files(folder: Path) -> None:
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(b"\x00\x01\x02" * 1000)
    pd.DataFrame({"story": ["a"], "id": [1]}).to_parquet(folder / "columns.parquet")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--preset quik", "did you mean 'quick'"),
        ("plam", "'plan'"),
        ("--train.lrr 1", "--train.lr"),
        ("--sedes 4", "--seeds"),
        ("--train.lr fast", "--train.lr is 'fast'; it must be a number"),
        ("--seeds x", "--seeds"),
        ("--seeds 0", "--seeds is 0; give at least 1"),
        ("--capacity 0", "above 0 and at most 1"),
        ("--capacity 1.5", "above 0 and at most 1"),
        ("--capacity 1", "the one that turns it off"),
        ("--iterations -1", "latent_iterations is -1"),
        ("--slots 100 --model.memory-top-k 50", "must be 1 to 10"),
        ("--slots 200", "need a square number, such as 196 or 225"),
        ("--model.n-heads 3", "does not divide model.d_model 16"),
        ("--model.mod-capacity 0.5", "give its level with --capacity"),
        ("--train.tokens 100", "fewer than one batch of 4 x 32 = 128 tokens"),
        ("--workers 3", "cannot share evenly"),
        ("--threads 100000", "--threads is 100000; it must be 1 to 1024"),
        ("--concurrency 0", "--concurrency is 0; it must be at least 1"),
        ("--smallest-effect 0", "above 0"),
        ("--name ../x", "--name is '../x'"),
        ("--reuse nowhere", "there is no sweep there"),
        ("--data missing.parquet", "missing.parquet"),
        ("--data empty.txt", "empty"),
        ("--data binary.txt", "binary.txt"),
        ("--data columns.parquet", "story"),
        ("--data storys", "stories"),
        (
            "--data.validation-blocks 1000000 --data columns.parquet --data.text-column story",
            "the training split of",
        ),
        ("--results gopher://x", "cannot use 'gopher://x"),
        ("--results empty.txt", "empty.txt is a file; give a folder"),
        ("--results s3://key:hush@bucket/x", "carries credentials"),
        ("--results s3://b/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1", "cannot be written to"),
        ("--smallest-effect inf", "above 0 and finite"),
        ("--workers 4 --data.validation-blocks 3", "each of 4 workers evaluates one at least"),
        ("--sharding shard", "which has nobody to share the model with; give --workers 2 or more"),
        ("--sharding whole", "--sharding"),
        ("--until decided", "--until decided needs --smallest-effect"),
        ("--until decided --smallest-effect 0.1 --max-seeds 3", "needs a cap of 4 seeds or more"),
        ("--until decided --smallest-effect 0.1 --seeds 9", "--seeds is 9 with --until decided"),
        ("--until desided", "did you mean 'decided'"),
        ("--smallest-effect 0.1 --seeds 1", "a verdict takes intervals, and those two blocks at least"),
        ("--equal money", "--equal"),
        ("--tune-lr 0.001", "give two or more rates to choose from"),
        ("--tune-lr 0.001 0.001", "each above 0 and once"),
        ("--controls params params", "--controls names one twice: params params"),
        ("--controls parms", "--controls"),
        ("--order 0", "--order is 0; it is the most factors of an interaction, at least 1"),
        ("--without mod", "these effects cannot be estimated: mod, latent, memory"),
        ("--without mood", "names the cell 'mood' (did you mean 'mod'?)"),
        ("--slots 64 64", "factor memory has equal levels: 0, 64, 64; give each once"),
        ("--extra mod:mod_capacity=1", "the cells base and mod~mod_capacity=1.0 are the same configuration"),
        ("--address 127.0.0.1:1", "no Ray answers at '127.0.0.1:1'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(place, tmp_path, given, said):
    bad_files(tmp_path)
    with pytest.raises(ConfigError) as raised:
        factorial([*place, *given.split()] if not given.startswith("plam") else [given, *place])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "results").exists()


def test_a_hub_dataset_without_a_network_fails_at_once_and_says_what_to_use(place):
    done = subprocess.run(
        [sys.executable, str(ROOT / "sweeps/factorial.py"), *place, "--data", "tinystories"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "stories" in done.stderr


def test_a_disk_without_room_is_said_before_anything_starts(place, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConfigError, match="GiB free; make room or give --results another place"):
        factorial(place)
    assert not (tmp_path / "results").exists()


def test_trials_of_other_code_are_refused_before_anything_starts_also_without_a_design(place, monkeypatch):
    """Seen to fail: where design.json had been removed, trials were trained first, and then there was no report."""
    monkeypatch.setattr(Results, "codes", lambda self, design: {"elsewhere": 3})
    monkeypatch.setattr(lease, "refuse_if_held", lambda *_: pytest.fail("went on"))
    with pytest.raises(ConfigError, match="holds trials of another version of the code"):
        factorial(place)


def test_a_plan_knows_what_is_taken_over_and_what_other_code_has_made(place, monkeypatch, capsys):
    """Seen to fail: `plan --reuse` passed over a folder that is not there, and counted what would be taken over."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="--reuse nowhere: there is no sweep there"):
        factorial(["plan", *place, "--reuse", "nowhere"])
    monkeypatch.setattr(Results, "codes", lambda self, design: {"elsewhere": 3})
    assert factorial(["plan", *place, "--seeds", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 trials here were made by another version of the code" in said
    assert "one seed block has no intervals and gives no verdict" in said


def test_an_average_of_the_weights_takes_room_too(place, tmp_path, monkeypatch):
    def needed(*words: str) -> float:
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0})())
        with pytest.raises(ConfigError, match="may take") as raised:
            factorial([*place, *words, "--model.d-model", "512", "--seeds", "2"])
        return float(str(raised.value).split("may take ")[1].split(" GiB")[0])

    assert needed("--train.ema", "0.99") > needed()


def test_a_place_that_cannot_be_written_to_is_said_within_seconds_and_nothing_starts(
    place, small_disk, monkeypatch, caplog
):
    """Seen to fail: without the probe, data was prepared first; with a warning that it is waited for, a second line."""
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    monkeypatch.setattr("sweeps.engine.study.resolve", lambda *_, **__: pytest.fail("something was started"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    nobody = "s3://b/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    for results, why in ((str(small_disk / "results"), "Read-only file system"), (nobody, "connect")):
        began = time.monotonic()
        with pytest.raises(ConfigError, match=f"cannot be written to: .*{why}.*; mend that, or give another place"):
            factorial([*place, "--results", results])
        assert time.monotonic() - began < 8
    assert not caplog.records


def test_plan_prints_costs_and_what_it_could_see_and_writes_nothing(place, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # of the tests' Ray, to which this process is connected
    assert factorial(["plan", *place, "--seeds", "8", "--smallest-effect", "0.05"]) == 0
    said = capsys.readouterr().out
    for word in ("mod+latent+memory", "FLOPs", "64 trials", "(this plan)", "an effect of 0.05 nats takes"):
        assert word in said
    assert not (tmp_path / "results").exists()


def test_a_plan_for_a_gpu_counts_its_gpu_and_not_its_cores(place, monkeypatch, capsys):
    """Seen to fail with one GPU and 16 cores: 16 at a time, and a share of a GPU refused as one of a CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for words, lanes in ((["--device", "cuda"], 1), (["--trials-per-gpu", "4"], 4), (["--device", "cpu"], 16)):
        assert factorial(["plan", *place, *words]) == 0
        assert f"with {lanes} at a time" in " ".join(capsys.readouterr().out.split())


def test_links_say_what_they_are_for_where_tensorboard_chooses_no_run(tmp_path):
    """Seen to fail: a line that wrapped, with half a link on it."""
    said = {}
    for runs in (40, 41):
        out = io.StringIO()
        say_where(Console(file=out, width=60), Results.at(str(tmp_path), "mine"), runs)
        said[runs] = out.getvalue()
    assert "report/report.html\n" in said[40] and "report/report.md\n" in said[40]
    assert "none of the 41 runs chosen" in " ".join(said[41].split()) and "chosen" not in said[40]
    for view in VIEWS.values():
        assert all(f"http://localhost:6006/{view}\n" in text for text in said.values())


def study(*words: str, own_ray: bool = False) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, on the tests' Ray or on one that it starts."""
    address = {"RAY_ADDRESS": ""} if own_ray else {}
    command = [sys.executable, str(ROOT / "sweeps/factorial.py"), *words]
    return subprocess.run(command, env={**os.environ, **address}, capture_output=True, text=True, timeout=240)


@pytest.mark.ray
def test_a_whole_sweep_then_status_more_seeds_another_design_and_the_report(place, tmp_path, cluster):
    """Through the command line, on a text file given by a relative path: run, status, extend by a block, refuse
    another design, fewer seeds, report."""
    (tmp_path / "words.txt").write_text("\n\n".join(story(seed)[0] for seed in range(400)))
    place = [*place, "--data", "words.txt"]
    ran = study(*place, "--seeds", "1")
    assert ran.returncode == 0, ran.stderr
    assert "Exploratory after 3,072 training tokens a trial" in " ".join(ran.stdout.split())
    assert "and a trial reads them" in " ".join(ran.stdout.split())
    assert "tensorboard --logdir" in ran.stdout
    assert "report/report.html" in ran.stdout
    folder = tmp_path / "results" / "smoke-words"
    first = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("trials/*/result.json")}
    assert len(first) == 8
    verdict = json.loads((folder / "report/verdict.json").read_text())
    assert verdict["trials"] == {"planned": 8, "in_the_table": 8}
    effects = pd.read_csv(folder / "report/effects.csv")
    assert list(effects.columns[:2]) == ["term", "estimate"]
    assert len(effects) == 7
    trials = pd.read_parquet(folder / "trials.parquet")
    by_hand = trials.loc[trials["mod"], "val_loss"].mean() - trials.loc[~trials["mod"], "val_loss"].mean()
    assert abs(effects.set_index("term").loc["mod", "estimate"] - by_hand) < 1e-9
    assert trials["pairing"].nunique() == 1
    assert (folder / "report/report.png").stat().st_size > 10_000
    assert (folder / "report/report.html").stat().st_size > 50_000
    assert len(list((folder / "tensorboard/trials").glob("*/seed0/events*"))) == 8

    assert "8 of 8 trials finished" in " ".join(study("status", *place).stdout.split())

    design = (folder / "design.json").read_bytes()
    for words, said in (
        (("--train.lr", "0.5"), "holds another design (config.train.lr: 0.5 here, 0.005 there)"),
        (("--sharding", "shard"), "was begun with replicate, and that is kept for all of its trials"),
        (("--threads", "2"), "was begun with 1, and that is kept for all of its trials"),
    ):
        refused = study(*place, *words)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert (folder / "design.json").read_bytes() == design

    more = study(*place, "--seeds", "2")
    assert more.returncode == 0, more.stderr
    second = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("trials/*/result.json")}
    assert len(second) == 16
    assert all(second[trial] == when for trial, when in first.items()), "a finished trial was run again"

    assert study(*place, "--seeds", "1").returncode == 0
    assert len(pd.read_parquet(folder / "trials.parquet")) == 16, "fewer seeds than there are hid finished trials"

    compared = subprocess.run(
        [sys.executable, str(ROOT / "sweeps/compare.py"), str(folder), "--prompt", "Tom", "--tokens", "4"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert compared.returncode == 0, compared.stderr
    for row in trials.itertuples():
        assert f"{row.val_loss:.4f}" in compared.stdout
    assert compared.stdout.count("Tom") >= 8

    (folder / "report/report.md").unlink()
    events = sorted(path.name for path in folder.glob("tensorboard/trials/*/*/events*"))
    living = {
        "host": "here",
        "machine": lease.this_machine(),
        "pid": os.getpid(),
        "owner": "x",
        "time": time.time(),
    }
    (folder / "lease.json").write_text(json.dumps(living))
    again = study("report", *place, "--smallest-effect", "0.5")
    assert again.returncode == 0, again.stderr
    assert "0.5 nats, was named after the sweep had begun" in " ".join(again.stdout.split())
    assert sorted(path.name for path in folder.glob("tensorboard/trials/*/*/events*")) == events
    assert (folder / "report/report.md").exists()


def newest_of_a_running_trial(folder: Path) -> Path | None:
    """The folder of the newest whole checkpoint of a trial that has no result yet."""
    whole = [manifest.parent for manifest in folder.glob("checkpoints/*/step-*/manifest.json")]
    running = [step for step in whole if not (folder / "trials" / step.parent.name / "result.json").exists()]
    return max(running, key=lambda step: int(step.name.removeprefix("step-")), default=None)


@pytest.mark.ray
def test_a_sweep_ended_by_kill_9_goes_on_where_it_was(place, tmp_path, tiny_data, cache):
    """The script is killed in the middle, with its Ray, and a trial's newest checkpoint is damaged; the same command
    finishes, and says so. Nothing finished runs twice, and every trial's loss is bit-identical to that of the same
    trial trained alone, undisturbed, in this process. Seen to fail without waiting for the killed sweep's workers,
    which wrote a newer checkpoint."""
    place = [*place, "--seeds", "1", "--train.tokens", "32000", "--train.checkpoints", "20"]
    command = [sys.executable, str(ROOT / "sweeps/factorial.py"), *place]
    environment = {**os.environ, "RAY_ADDRESS": ""}
    folder = tmp_path / "results" / "smoke-stories"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as script:
        until = time.monotonic() + 120
        while len(list(folder.glob("trials/*/result.json"))) < 2 or not newest_of_a_running_trial(folder):
            assert script.poll() is None, "the sweep ended before it could be killed"
            assert time.monotonic() < until, "no trial finished in time"
            time.sleep(0.05)
        kill_9(script)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/result.json")}
    assert 2 <= len(finished) < 8, "the sweep was not killed in the middle"
    damaged = newest_of_a_running_trial(folder)
    assert damaged is not None
    state = damaged / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])

    done = study(*place, own_ray=True)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    said = f"checkpoint {damaged.name} is not used"
    assert said in done.stderr and said in (folder / "report/report.md").read_text()
    losses = pd.read_parquet(folder / "trials.parquet").set_index("trial")["val_loss"]
    assert len(losses) == 8
    for trial in Results.at(str(tmp_path / "results"), "smoke-stories").design().trials():
        undisturbed = list(train(trial.config, tiny_data, Runtime()))[-1]
        assert losses[trial.id] == undisturbed.metrics["val_loss"], trial.id


def test_a_place_that_cannot_be_used_is_one_line_and_status_2(place, tmp_path):
    (tmp_path / "file").write_text("")
    done = study(*place, "--cache", str(tmp_path / "file"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "mend that, or give another place" in done.stderr
