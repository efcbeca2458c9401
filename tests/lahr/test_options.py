"""Command lines: what the preset fills, what is given, and one line for what cannot be used."""

import io

import pytest

from lahr.__main__ import GenerateOptions
from lahr.__main__ import Options as RunOptions
from lahr.errors import ConfigError
from lahr.options import fail, parse
from lahr.presets import PRESETS
from sweeps.factorial import Options

ALLOWED = "smoke, quick, small, paper, base, facts, segments, swaps, hops, trees, selective, prosqa"


def sweep(line: str) -> Options:
    return parse(Options, line.split(), Options.of, "factorial")


def test_nothing_given_is_the_quick_preset():
    """The README's first command. Seen to fail: an empty command line ended in a traceback."""
    options = sweep("")
    assert (options.command, options.preset, options.seeds) == ("run", "quick", 5)
    assert (options.model, options.data, options.train) == (
        PRESETS["quick"].model,
        PRESETS["quick"].data,
        PRESETS["quick"].train,
    )
    assert parse(RunOptions, [], RunOptions.of, "lahr").train == PRESETS["quick"].train


@pytest.mark.parametrize("line", ["--preset smoke", "--preset=smoke", "plan --preset quick --preset smoke"])
def test_a_preset_fills_every_option(line):
    options = sweep(line)
    assert options.model == PRESETS["smoke"].model
    assert options.seeds == 2
    assert options.slots == (256,)


def test_every_field_is_an_option_and_data_is_short_for_the_corpus():
    options = sweep("--train.lr 1e-3 --model.d_model 64 --data=x.txt --data.text-column story --capacity .125 .25")
    assert options.train.lr == 1e-3
    assert options.model.d_model == 64
    assert (options.data.corpus, options.data.text_column) == ("x.txt", "story")
    assert options.capacity == (0.125, 0.25)
    assert sweep("--data y --preset small").data.corpus == "y"
    own = sweep("--model.build a.b:c --model.options width 3 deep True rate 0.5 none None act relu").model
    assert own.build == "a.b:c"
    assert repr(own.options) == "{'width': 3, 'deep': True, 'rate': 0.5, 'none': None, 'act': 'relu'}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--train.lrr 1", "unknown option --train.lrr (did you mean --train.lr?); --help lists them all"),
        (
            "--lr 1",
            "unknown option --lr (did you mean --train.lr or --tune-lr or --train.final-lr?); --help lists them all",
        ),
        ("--zzzz", "unknown option --zzzz; --help lists them all"),
        ("run plan", "unknown argument plan; --help lists them all"),
        ("pln", "command is 'pln' (did you mean 'plan'?); it must be one of run, plan, status, report"),
        ("--device tpu", "--device is 'tpu' (did you mean 'cpu'?); it must be one of auto, cpu, cuda"),
        ("--train.lr fast", "--train.lr is 'fast'; it must be a number"),
        ("--train.lr=fast", "--train.lr is 'fast'; it must be a number"),
        ("--seeds 3 --seeds 1.5", "--seeds is '1.5'; it must be a whole number"),
        ("--capacity .5 x --seeds 3", "--capacity is '.5 x'; it must be a number"),
        ("--model.d-ff x", "--model.d-ff is 'x'; it must be a whole number or None"),
        ("--model.options width", "--model.options is 'width'; it must be names, each followed by its value"),
        ("--model.build a.b", "model.build is 'a.b'; it must be of the form package.module:function"),
        ("--preset", f"unknown preset ''; allowed: {ALLOWED}"),
        ("--preset quik", f"unknown preset 'quik' (did you mean 'quick'?); allowed: {ALLOWED}"),
        ("--train.lr", "Missing value for argument '--train.lr'. Expected 1 values."),
        (
            "--capacity",
            "factor mod has the levels 1.0; it takes two at least: one that the others are compared with, and one of "
            "these",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_cannot_be_used_is_said_in_one_line(line, said, encoding, monkeypatch):
    """Seen to fail in ASCII, where the parser draws another frame."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(ConfigError) as raised:
        sweep(line)
    assert str(raised.value) == said


def test_an_error_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as left:
        fail(ConfigError("a message\n  of two lines"))
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: a message of two lines\n"


def test_help_is_printed_and_is_no_error(capsys):
    with pytest.raises(SystemExit) as left:
        sweep("--help")
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "--model.mod-capacity" in said
    assert "--train.lr" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "PLACE is missing: "),
        ("x --tokens 0", "--tokens is 0; it must be at least 1"),
        ("x --temperature -1", "--temperature is -1.0; it must be 0"),
        ("x --top-k 0", "--top-k is 0; it must be at least 1"),
        ("x --top-p 2", "--top-p is 2.0; it is a share"),
        ("x --seed -1", "--seed is -1"),
        ("x --promt a", "unknown option --promt (did you mean --prompt?)"),
    ],
)
def test_what_cannot_be_generated_is_said_in_one_line(line, said):
    with pytest.raises(ConfigError) as error:
        parse(GenerateOptions, line.split(), None, "lahr generate")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_prompts_may_be_given_several_times():
    options = parse(GenerateOptions, ["x", "--prompt", "a b", "--prompt", "c"], None, "lahr generate")
    assert options.prompt == ("a b", "c")
