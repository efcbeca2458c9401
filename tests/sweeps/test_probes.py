"""Studies of probes and of thoughts: their cells by preset, what they refuse, and a whole one at a tiny size."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lahr.data import preparation
from lahr.errors import ConfigError
from lahr.model.flops import flops_per_token
from lahr.options import parse
from lahr.presets import preset
from sweeps import coconut, probes
from sweeps.commands import execute
from tests.sweeps.test_studies import study

ROOT = Path(__file__).parents[2]
CELLS = {
    "facts": ["base", "memory", "base@params"],
    "segments": ["base", "memory", "base@flops"],
    "swaps": ["base", "latent", "latent@r1"],
    "hops": ["base", "latent", "latent@r1"],
    "trees": ["base", "latent", "latent@r1"],
    "selective": ["base", "mod", "mod@frozen"],
}
ON = {"memory": "memory_slots", "latent": "latent_iterations", "mod": "mod_capacity"}
THOUGHTS = ("pause", "sequential", "blank", "recycled")
TINY = [
    *("--model.d-model", "16", "--model.n-layers", "1", "--model.n-heads", "2"),
    *("--data", "prosqa:questions=40,stages=2", "--data.train-tokens", "30000", "--data.validation-blocks", "16"),
    *(
        "--train.tokens",
        str(12 * 4 * 112),
        "--train.batch-size",
        "4",
        "--train.evaluations",
        "2",
        "--seeds",
        "2",
        "--precision",
        "fp32",
    ),
]


def options(kind, *words: str):
    return parse(kind, list(words), kind.of, "x", kind.PRESET)


@pytest.mark.parametrize("name", CELLS)
def test_the_cells_of_a_probe_are_its_mechanism_off_and_on_and_its_control(name):
    """At the preset's own level. Caught: another probe's control; a control made from the wrong models."""
    found = options(probes.Options, "--preset", name)
    trials = {trial.cell: trial.config.model for trial in found.design(found.config(), "").one_block()}
    assert list(trials) == CELLS[name]
    base, mechanism, control = trials.values()
    field, value = ON[CELLS[name][1]], preset(name).on[ON[CELLS[name][1]]]
    assert base == preset(name).model
    assert getattr(mechanism, field) == value != getattr(base, field)
    if name in ("facts", "segments"):
        assert control.hidden_dim > base.hidden_dim and control.memory_slots == 0
        if name == "segments":  # what a row of several windows costs, of which one alone remembers nothing
            costs = [sum(flops_per_token(model, segments=4).values()) for model in trials.values()]
            assert costs[2] == pytest.approx(costs[1], rel=0.01)
    elif name == "selective":
        assert (control.mod_router, control.mod_capacity) == ("random", value)
    else:
        assert control.latent_iterations == 1
    assert found.sweep_name == f"probe-{name}"


def test_what_else_is_asked_for_stands_behind_the_control():
    found = options(probes.Options, "--extra", "latent:latent_mode=sampled")
    cells = [trial.cell for trial in found.design(found.config(), "").one_block()]
    assert cells == ["base", "latent", "latent@r1", "latent~latent_mode=sampled"]


def test_the_cells_of_thoughts_are_arms_with_and_without_the_curriculum():
    found = options(coconut.Options)
    trials = {trial.cell: trial.config for trial in found.design(found.config(), "").one_block()}
    assert set(trials) == {
        "+".join(filter(None, ("" if arm == "pause" else f"thoughts={arm}", also))) or "base"
        for arm in THOUGHTS
        for also in ("", "curriculum")
    }
    for cell, config in trials.items():
        assert config.train.curriculum == (0.9 if "curriculum" in cell else 0.0)


def test_one_arm_is_the_one_that_is_trained():
    """Seen to fail: with one arm alone, the preset's was trained."""
    one = options(coconut.Options, "--thoughts", "recycled", "--share", "0.75")
    trials = {trial.cell: trial.config for trial in one.design(one.config(), "").one_block()}
    assert list(trials) == ["base", "curriculum"]
    assert [config.train.curriculum for config in trials.values()] == [0.0, 0.75]
    assert {config.model.thoughts for config in trials.values()} == {"recycled"}


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (probes.Options, "--preset quick", "--preset is quick; a probe's is one of facts, segments, swaps"),
        (probes.Options, "--preset prosqa", "--preset is prosqa; a probe's is one of"),
        (probes.Options, "--preset swops", "unknown preset 'swops' (did you mean 'swaps'?)"),
        (
            probes.Options,
            "--model.latent-iterations 2",
            "model.latent_iterations is 2, but it is a factor of this study",
        ),
        (coconut.Options, "--preset swaps", "--preset is swaps, whose text has no thoughts"),
        (coconut.Options, "--share 1", "--share is 1.0; it is a share of the steps, above 0 and below 1"),
        (coconut.Options, "--share 0", "--share is 0.0; it is a share of the steps"),
        (coconut.Options, "--thoughts pause pause", "factor thoughts has equal levels"),
        (coconut.Options, "--thoughts dream", "dream"),
        (
            coconut.Options,
            "--thoughts recycled --model.thoughts blank",
            "--model.thoughts blank; leave the second out",
        ),
        (coconut.Options, "--train.curriculum 0.3", "give its level with --share"),
    ],
)
def test_bad_input_is_one_line(kind, given, said, tmp_path):
    with pytest.raises(ConfigError) as raised:
        execute(kind, [*given.split(), "--cache", str(tmp_path), "--results", str(tmp_path / "results")], "x")
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_preset_that_is_no_probe_has_status_2(tmp_path):
    """As a command. Caught: a traceback."""
    ended = subprocess.run(
        [sys.executable, str(ROOT / "sweeps/probes.py"), "--preset", "quick"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )
    assert ended.returncode == 2
    assert (
        ended.stderr.startswith("error: --preset is quick; a probe's is one of") and ended.stderr.count("\n") == 1
    )


def test_a_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # of the tests' Ray, to which this process may be connected
    monkeypatch.setattr(preparation, "LEAST_VALIDATION_TOKENS", 1 << 12)
    where = ["--cache", str(tmp_path / "cache"), "--results", str(tmp_path / "results")]
    small = ["--data.train-tokens", "20000", "--data.validation-blocks", "16", "--train.tokens", "20480"]
    assert execute(probes.Options, ["plan", "--preset", "selective", *small, *where], "x") == 0
    said = "".join(capsys.readouterr().out.split())
    assert "probe-selective:15trials,15torun" in said and "mod@frozen" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.ray
def test_thoughts_and_the_curriculum_as_a_factorial_end_to_end(tmp_path, cluster):
    """All arms run and are reported with what each does to accuracy; `sequential` is `pause` at another cost."""
    where = ["--cache", str(tmp_path / "cache"), "--results", str(tmp_path / "results"), "--name", "tiny"]
    ran = study("sweeps/coconut.py", *TINY, *where)
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path / "results" / "tiny"
    trials = pd.read_parquet(folder / "trials.parquet")
    assert len(trials) == 16 and set(trials["status"]) == {"finished"}
    losses = trials.pivot_table(index="seed", columns="cell", values="val_loss")
    for ours, theirs in (
        ("thoughts=sequential", "base"),
        ("thoughts=sequential+curriculum", "curriculum"),
    ):
        assert (losses[ours] - losses[theirs]).abs().max() < 1e-4
        assert (losses[ours.replace("sequential", "recycled")] - losses[theirs]).abs().min() > 1e-4
    assert (losses["curriculum"] != losses["base"]).all()
    assert trials.groupby("seed")["pairing"].nunique().eq(1).all()
    assert trials["accuracy/held-in"].between(0, 1).all() and trials["accuracy/8-hop"].notna().all()
    report = (folder / "report/report.md").read_text()
    answers = report.split("## Answers")[1].split("\n## ")[0]
    (head,) = [line for line in answers.splitlines() if line.startswith("| effect on accuracy")]
    terms = [cell.strip() for cell in head.strip("|").split("|")][1:]
    assert terms[:4] == [f"thoughts={arm}" for arm in THOUGHTS[1:]] + ["curriculum"] and len(terms) == 7
    assert "nan" not in answers.lower() and (folder / "report/answers.png").stat().st_size > 10_000
    labels = json.loads((folder / "design.json").read_text())["data"]["labels"]
    assert {"held-in/3", "7-hop", "dag/3", "step"} <= {label["name"] for label in labels}
