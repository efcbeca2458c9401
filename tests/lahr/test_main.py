"""`python -m lahr` as a user runs it: in a process of its own where Ray cannot be imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
TINY = [
    *("--preset", "smoke", "--model.d-model", "16", "--model.vocab-size", "300", "--model.max-seq-len", "32"),
    *("--train.batch-size", "4", "--train.tokens", "3072", "--train.checkpoints", "4"),
    *("--data.train-tokens", "1600", "--data.validation-blocks", "8"),
]
# Stands in for a machine without Ray: importing it fails as if it were not installed.
WITHOUT_RAY = (
    "import sys, runpy; sys.modules['ray'] = None; runpy.run_module('lahr', run_name='__main__', alter_sys=True)"
)


def lahr(folder: Path, cache: Path | None, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_RAY, *words, *(("--cache", str(cache)) if cache else ())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_one_trial_without_ray_and_again_from_its_checkpoint(tmp_path, cache):
    words = ["train", "--mod", "--latent", "--memory", *TINY]
    first = lahr(tmp_path, cache, *words)
    assert first.returncode == 0, first.stderr
    assert "validation loss" in first.stdout
    shown = r"^step (\d+) of 24, loss \d\.\d{3}, validation \d\.\d{3}, about \d:\d\d:\d\d left$"
    assert re.findall(shown, first.stdout, re.MULTILINE)[-1] == "24"
    assert "the training text has 1,600 tokens, and a trial reads them 1.96 times\n" in first.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "config.json").read_text())["model"]["mod_capacity"] == 0.125
    curve = pd.read_parquet(run / "metrics.parquet")
    assert curve["step"].iloc[-1] == 24
    assert curve["status"].iloc[-1] == "finished"
    for step in (run / "checkpoints").glob("step-24"):
        (step / "manifest.json").unlink()  # as if the power had gone while it was written
    second = lahr(tmp_path, cache, *words)
    assert second.returncode == 0, second.stderr
    assert "warning: checkpoint step-24 is not used" in second.stdout.replace("\n", " ")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [run.name]
    refused = lahr(tmp_path, cache, *words, "--threads", "2")
    assert refused.returncode == 2
    assert "was begun with threads 1, now 2" in refused.stderr
    again = pd.read_parquet(run / "metrics.parquet")
    assert again["val_loss"].dropna().tolist() == curve["val_loss"].dropna().tolist()

    made = lahr(tmp_path, None, "export", str(run), "out")
    assert made.returncode == 0, made.stderr
    assert "after 3,072 tokens, validation loss" in made.stdout
    greedy = ("--tokens", "12", "--temperature", "0", "--prompt", "The ")
    texts = [lahr(tmp_path, None, "generate", str(place), *greedy) for place in (run, "out")]
    assert [text.returncode for text in texts] == [0, 0], texts[0].stderr
    assert texts[0].stdout == texts[1].stdout
    assert texts[0].stdout.startswith("The ")
    batch = lahr(tmp_path, None, "generate", "out", *greedy, "--prompt", "A")
    assert texts[0].stdout.strip() in batch.stdout
    long = lahr(tmp_path, None, "generate", "out", "--prompt", "word " * 40)
    assert long.returncode == 2
    assert "this model takes 32 (max_seq_len): shorten the prompt" in long.stderr
    refused = lahr(tmp_path, None, "export", str(run), "out")
    assert (refused.returncode, "is not empty" in refused.stderr) == (2, True)


def test_a_level_that_is_given_is_the_one_trained_with_and_a_refused_run_leaves_nothing(tmp_path, cache):
    """Caught: the preset's level written over the given one; a configuration written before the device is known."""
    short = [*TINY, "--train.tokens", "256", "--train.evaluations", "1"]
    chosen = ["--mod", "--model.mod-capacity", "0.5", "--latent", "--model.latent-iterations=3", "--memory"]
    refused = lahr(tmp_path, cache, "train", *chosen, *short, "--device", "cuda")
    assert refused.returncode == 2
    assert "has no GPU" in refused.stderr
    assert not (tmp_path / "runs").exists()
    ended = lahr(tmp_path, cache, "train", *chosen, *short)
    assert ended.returncode == 0, ended.stderr
    (run,) = (tmp_path / "runs").iterdir()
    model = json.loads((run / "config.json").read_text())["model"]
    assert (model["mod_capacity"], model["latent_iterations"], model["memory_slots"]) == (0.5, 3, 256)
    (run / "config.json").write_text("{")
    again = lahr(tmp_path, cache, "train", *chosen, *short)
    assert (again.returncode, "config.json is damaged" in again.stderr) == (2, True)
    universal = lahr(tmp_path, cache, "train", "--latent", "--model.n-layers", "0", *short)
    assert universal.returncode == 0, universal.stderr


def test_what_is_printed_is_the_text_as_it_is(tmp_path, cache):
    """Caught: rich's emoji and markup; a terminal that cannot print a character."""
    assert lahr(tmp_path, cache, "train", *TINY, "--train.tokens", "256").returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    said = lahr(tmp_path, None, "generate", str(run), "--tokens", "3", "--prompt", ":smile: [red]\tx")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(":smile: [red]\tx")
    os.environ["PYTHONIOENCODING"] = "ascii"
    try:
        narrow = lahr(tmp_path, None, "generate", str(run), "--tokens", "3", "--prompt", "é")
    finally:
        del os.environ["PYTHONIOENCODING"]
    assert narrow.returncode == 0, narrow.stderr
    blocked = lahr(tmp_path, None, "export", str(run), str(run / "config.json"))
    assert blocked.returncode == 2
    assert blocked.stderr.startswith("error: ")


def test_a_run_that_diverges_says_so_and_has_status_1(tmp_path, cache):
    ended = lahr(
        tmp_path, cache, "train", *TINY, "--train.lr", "1e25", "--train.clip-norm", "1e30", "--train.warmup", "0"
    )
    assert ended.returncode == 1
    assert "diverged at step" in ended.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["exprot"],
            "unknown command 'exprot' (did you mean 'export'?); it must be one of train, prepare, generate, export",
        ),
        (["export"], "PLACE is missing: A trial's or a run's folder"),
        (["export", "nowhere", "there"], "there is nothing at"),
        (["generate", "nowhere"], "there is nothing at"),
        (
            ["train", "--mod", "--model.mod-capacity", "1"],
            "--mod is given, and model.mod_capacity is 1.0, which turns it off; leave one out",
        ),
        (
            ["train", "--model.latent-halting", "act"],
            "model.latent_halting is 'act', but latent is off; turn it on with --latent, or leave it out",
        ),
        (
            ["train", "--model.options", "width", "3"],
            "which only a model of your own reads; give --model.build too",
        ),
        (["train", "--model.build", "no.where:f"], "the module no.where cannot be imported (ModuleNotFoundError"),
        (["train", "--data", "nowhere.txt"], "no such file or folder"),
        (["train", "--threads", "0"], "threads is 0"),
        (["train", "--seed", str(2**64)], "it must be 0 to 2**64 - 1"),
        (["train", "--threads", "100000"], "threads is 100000; it must be 1 to 1024"),
        (["train", "--model.vocab-size", "100"], "at least 257"),
        (["train", "--sed", "1"], "did you mean --seed?"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, cache, words, said):
    ended = lahr(tmp_path, cache if words[0] == "train" else None, *words)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_given_prints_the_help_and_trains_nothing(tmp_path, cache):
    ended = subprocess.run(
        [sys.executable, "-m", "lahr"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0
    assert "usage: python -m lahr" in ended.stdout
    assert list(tmp_path.iterdir()) == []
