"""The same prompt continued by every cell: what is shown, and what is said where nothing can be."""

import io

import pandas as pd
import pytest
from rich.console import Console

from lahr.errors import ConfigError
from lahr.files import Folder
from lahr.training.loop import train
from lahr.training.runtime import Runtime
from sweeps import compare
from sweeps.engine.recorder import Recorder, result_of
from sweeps.engine.results import Results


@pytest.fixture
def sweep(make_design, tiny_data, tmp_path):
    """A sweep with two of its trials finished, one on each seed."""
    design, results = make_design(seeds=2), Results(Folder.at(tmp_path / "sweep"))
    results.begin(design, Runtime(), {"preset": "smoke", "data": {}, "estimated_seconds": {}}, {})
    results.folder.write("tokenizer.json", tiny_data.tokenizer_path.read_bytes())
    recorder = Recorder(results, design, "code")
    for trial in (design.trials()[1], design.trials()[8]):
        recorder.started(trial)
        records = list(train(trial.config, tiny_data, Runtime(), results.checkpoints.child(trial.id)))
        recorder.progressed(trial, records)
        recorder.finished(trial, result_of(trial, records[-1]))
    return results


def shown(words, monkeypatch) -> str:
    made = io.StringIO()
    monkeypatch.setattr(compare, "Console", lambda: Console(file=made, width=140))
    assert compare.main(words) == 0
    return made.getvalue()


def test_finished_cells_are_continued_and_the_others_named(sweep, monkeypatch):
    """Caught: trials of another seed shown; a cell that is missing left out."""
    text = shown([sweep.folder.uri, "--prompt", "Ann ", "--tokens", "5"], monkeypatch)
    table = sweep.table(sweep.design())
    loss = table.set_index(["cell", "seed"]).loc[("mod", 0), "val_loss"]
    (row,) = [line for line in text.splitlines() if f"{loss:.4f}" in line]
    assert row.split("│")[1].strip() == "mod"
    assert "Ann " in row
    assert text.count("not finished yet") == 7
    again = shown([sweep.folder.uri, "--prompt", "Ann ", "--tokens", "5"], monkeypatch)
    assert again == text
    other = shown([sweep.folder.uri, "--seed", "1", "--tokens", "3"], monkeypatch)
    assert f"{pd.Series(table['val_loss']).iloc[1]:.4f}" in other


def test_a_cell_that_cannot_be_loaded_is_said_in_its_row(sweep, monkeypatch):
    """It diverged, or was taken over from another sweep. Caught: the comparison ended by it."""
    sweep.checkpoints.remove(sweep.design().trials()[1].id)
    text = shown([sweep.folder.uri, "--tokens", "3"], monkeypatch)
    assert "taken over from another sweep" in " ".join(text.replace("│", " ").split())
    assert text.count("not finished yet") == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "5"], r"--seed is 5, and no trial of that seed is finished in .*; give one of 0, 1"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--top-p", "0"], "--top-p is 0.0"),
        (["--prompt", "word " * 40], r"this model takes 32 \(max_seq_len\): shorten the prompt"),
    ],
)
def test_what_cannot_be_compared_is_said(sweep, words, said):
    with pytest.raises(ConfigError, match=said):
        compare.main([sweep.folder.uri, *words])


def test_a_folder_without_a_sweep_is_said(tmp_path):
    with pytest.raises(ConfigError, match="there is no sweep at"):
        compare.main([str(tmp_path)])
