"""`python -m lahr prepare`: a corpus's shards beforehand, here and for every machine."""

import re
from pathlib import Path

import pytest

from lahr import __main__ as command
from lahr.data import SHARED, preparation
from lahr.files import Folder
from tests.lahr.test_main import lahr

TINY = [
    *("--preset", "smoke", "--model.d-model", "16", "--model.vocab-size", "300", "--model.max-seq-len", "32"),
    *("--data.train-tokens", "1600", "--data.validation-blocks", "8"),
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "fables.txt"
    path.write_text(
        "\n".join(f"Fable {i}: the fox said {i * i % 97} and the crow {i * 7 % 31}." for i in range(9000))
    )
    return path


@pytest.fixture
def not_again(monkeypatch):
    """From here on whatever prepares something fails."""

    def forbid() -> None:
        monkeypatch.setattr(preparation, "_prepare_into", lambda *_: pytest.fail("it was prepared again"))

    return forbid


def run(capsys, *words: str) -> str:
    assert command.main(list(words)) == 0
    return capsys.readouterr().out


def test_the_corpus_may_stand_first(text, tmp_path, capsys, monkeypatch, not_again):
    """And what is there afterwards is said. Caught: another folder for a corpus that is named with --data."""
    cache = tmp_path / "cache"
    said = run(capsys, "prepare", str(text), *TINY, "--cache", str(cache))
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    assert re.search(
        rf"^{re.escape(str(text))}: 1,600 training tokens in [\d,]+ documents, [\d,]+ validation tokens in [\d,]+ "
        r"documents; \d\.\d\d bytes a token, vocabulary 300$",
        said,
        re.M,
    )
    assert re.search(rf"^{re.escape(str(folder))} \(\d+ s, \d+ s of a processor\)$", said, re.M)
    short = [*TINY[:-3], "999999", *TINY[-2:]]
    ended = run(capsys, "prepare", str(text), *short, "--cache", str(cache))
    assert ", vocabulary 300; it ends before the 999,999 training tokens asked for\n" in ended
    stages = ("prepare", "prosqa:questions=200", "--preset", "prosqa", "--data.validation-blocks", "8")
    assert "ends before" not in run(capsys, *stages, "--cache", str(cache))  # it has to end, or stages were missing
    not_again()
    assert f"{folder} (" in run(capsys, "prepare", "--data", str(text), *TINY, "--cache", str(cache))
    monkeypatch.chdir(tmp_path)  # a path from here, and by itself, is the same text
    assert f"{folder} (" in run(capsys, "prepare", "fables.txt", *TINY, "--cache", str(cache))


def test_training_with_the_same_options_finds_it(tmp_path, capsys, monkeypatch, not_again):
    """Caught: a vocabulary or a window that is another one when preparing."""
    monkeypatch.chdir(tmp_path)
    run(capsys, "prepare", *TINY, "--cache", "cache")
    not_again()
    run(capsys, "train", *TINY, "--cache", "cache", "--train.tokens", "1024", "--train.evaluations", "1")
    with pytest.raises(pytest.fail.Exception):
        command.main(["prepare", *TINY, "--cache", "cache", "--model.vocab-size", "290"])


def test_another_machine_takes_what_was_published(place, tmp_path, capsys, not_again):
    """Into a cache of its own, from a disk and from an object store; publishing again writes nothing."""
    words = [*TINY, "--results", place.uri]
    said = run(capsys, "prepare", *words, "--cache", str(tmp_path / "one"))
    (name,) = Folder.at(place.uri).child(SHARED).names()
    assert re.search(rf"^for every machine in \S+/{SHARED}/{name}", said, re.M)
    not_again()
    again = run(capsys, "prepare", *words, "--cache", str(tmp_path / "two"))
    (ours,), (theirs,) = (
        [p for p in (tmp_path / cache).iterdir() if p.is_dir() and ".part" not in p.name]
        for cache in ("one", "two")
    )
    assert ours.name == theirs.name == name
    assert f"{theirs} (" in again
    mine = {path.name: path.read_bytes() for path in ours.iterdir()}
    assert mine == {path.name: path.read_bytes() for path in theirs.iterdir()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["storys"], "data 'storys' is neither a corpus nor a file here; use 'stories'"),
        (["nowhere.txt"], "no such file or folder"),
        (["probe:swops"], "did you mean 'swaps'?"),
        (["stories", "--results", "/proc/nowhere"], "/proc/nowhere"),
        (["stories", "tinystories"], "unknown argument tinystories"),
        (["stories", "--train.lr", "1"], "unknown option --train.lr"),
        (["stories", "--model.vocab-size", "100"], "at least 257"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, words, said):
    ended = lahr(tmp_path, tmp_path / "cache", "prepare", *words)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert said in ended.stderr
    assert "prepar" not in ended.stdout
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".lock"}
