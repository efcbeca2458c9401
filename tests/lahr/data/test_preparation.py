"""Preparing is found again, whole or not at all, repairs damage, and refuses what is too small before training."""

import itertools
import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from lahr.config import DataConfig
from lahr.data import TokenData, preparation, prepare, shards, stories
from lahr.errors import ConfigError

STORIES = DataConfig(train_tokens=20_000, validation_blocks=8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def data(cache: Path) -> TokenData:
    return prepare(STORIES, 512, 64, cache)


def copy_of(data: TokenData, tmp_path: Path) -> Path:
    """A cache of its own with the same folder in it."""
    shutil.copytree(data.folder, tmp_path / data.folder.name)
    return tmp_path


def words(seed: int, n: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("abcdefgh"), 4)) for _ in range(n))


def test_documents_are_whole_and_closed(data: TokenData) -> None:
    tokenizer = Tokenizer.from_file(str(data.tokenizer_path))
    for rows, first in ((data.train, stories.TRAIN_SEEDS), (data.validation, stories.VALIDATION_SEEDS)):
        split = rows.split
        starts = split.documents["start"].to_numpy()
        assert split.tokens.dtype == np.uint16
        assert split.tokens[starts[1:] - 1].tolist() == [data.eot] * (len(starts) - 1)
        assert int((split.tokens == data.eot).sum()) >= len(starts) - 1
        for i in range(5):
            text, bits, *_ = stories.story(first + i)
            assert tokenizer.decode(split.tokens[starts[i] : starts[i + 1] - 1].tolist()) == text
            assert split.documents["bytes"][i].as_py() == len(text)
            assert split.documents["bits"][i].as_py() == bits


def test_makes_as_many_tokens_as_asked(data: TokenData) -> None:
    assert data.train.split.n_tokens == 20_000
    assert data.validation.split.n_tokens == preparation.LEAST_VALIDATION_TOKENS
    assert data.vocab_size <= 512


def test_bytes_per_token_is_that_of_the_windows(data: TokenData) -> None:
    targets = data.windows.targets_NT.flatten().tolist()
    text = Tokenizer.from_file(str(data.tokenizer_path)).decode(targets)
    assert data.bytes_per_token == pytest.approx(len(text.encode()) / len(targets), rel=0.02)


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_floor_is_the_mean_over_documents_that_lie_whole_in_a_row(cache: Path, packing: str) -> None:
    """Document by document. Caught: those that a row's end cuts taken in; a document whose first token is a row's first
    input, and so not predicted, taken in."""
    data = prepare(replace(STORIES, packing=packing), 512, 400, cache)  # type: ignore[arg-type]
    split = data.validation.split
    starts = [*split.documents["start"].to_pylist(), split.n_tokens]
    bits, tokens = 0.0, 0
    for i, (start, end) in enumerate(itertools.pairwise(starts)):
        row = (start - 1) // 400 if packing == "stream" else i  # the row that predicts the document's first token
        within = end <= row * 400 + 401 if packing == "stream" else end - start <= 400
        if (start > 0 or packing == "documents") and row < 8 and within:
            bits, tokens = bits + split.documents["bits"][i].as_py(), tokens + end - start
    assert tokens > 100
    assert data.floor_nats_per_token() == pytest.approx(bits * math.log(2) / tokens)
    assert data.floor_nats_per_token(8) == data.floor_nats_per_token()
    assert data.floor_nats_per_token(0) is None
    assert int(data.windows.whole_NT.sum()) == tokens


def test_text_of_unknown_probability_has_no_floor(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(0, 40_000))
    local = prepare(DataConfig(corpus=str(tmp_path / "a.txt"), validation_blocks=4), 300, 32, tmp_path / "cache")
    assert local.floor_nats_per_token() is None


ROWS = replace(STORIES, segments=4)


def test_validation_rows_are_consecutive_windows_of_whole_documents_beginnings(
    data: TokenData, cache: Path
) -> None:
    """The first rows, read from the very tokens that one segment reads.

    Caught: the first windows of the stream, and segments in the key of the prepared folder.
    """
    rows = prepare(ROWS, 512, 64, cache)
    assert (rows.folder, rows.content_hash) == (data.folder, data.content_hash)
    inputs, targets = rows.windows[:2]
    tokens, starts = rows.validation.split.tokens, rows.validation.split.documents["start"].to_numpy()
    lengths = np.diff(np.append(starts, len(tokens)))
    in_order = (start + 256 * k for start, n in zip(starts, lengths, strict=True) for k in range((n - 1) // 256))
    for i, start in enumerate(itertools.islice(in_order, 2)):
        assert inputs[4 * i : 4 * i + 4].flatten().tolist() == tokens[start : start + 256].tolist()
        assert targets[4 * i : 4 * i + 4].flatten().tolist() == tokens[start + 1 : start + 257].tolist()
    assert data.eot not in inputs


@pytest.mark.parametrize("segments", [2, 4])
def test_bytes_per_token_of_rows_is_that_of_the_rows(cache: Path, segments: int) -> None:
    """Caught: that of the first tokens of the split, and the bytes of a document taken as even over it."""
    rows = prepare(replace(STORIES, validation_blocks=64, segments=segments), 512, 64, cache)
    targets = rows.windows.targets_NT.flatten().tolist()
    text = Tokenizer.from_file(str(rows.tokenizer_path)).decode(targets)
    assert rows.bytes_per_token == pytest.approx(len(text.encode()) / len(targets), rel=1e-4)


def test_rows_have_no_floor(cache: Path) -> None:
    """Of a part of a story its probability is not known. Caught: the floor of the stream's documents."""
    assert prepare(replace(STORIES, validation_blocks=64), 512, 256, cache).floor_nats_per_token() is not None
    assert prepare(replace(ROWS, validation_blocks=64), 512, 64, cache).floor_nats_per_token() is None


def test_documents_too_short_for_rows_are_refused_before_training(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the longest document, what a row takes and what to do. Caught: each of the two checks left out."""
    with pytest.raises(ConfigError) as caught:
        prepare(replace(STORIES, segments=8), 512, 256, cache)
    assert re.fullmatch(
        r"data.segments is 8: a row takes 8 x 256 \+ 1 = 2049 tokens of one document, and the training split of .* has "
        r"0 such rows where 1 is needed \(its longest document is \d+ tokens\); lower data.segments or "
        r"model.max_seq_len, or give longer documents",
        str(caught.value),
    )
    monkeypatch.setattr(preparation, "_spare", lambda config: 1)
    many = replace(STORIES, segments=2, validation_blocks=100)
    with pytest.raises(
        ConfigError, match=r"validation split of .* such rows where 50 are .* data.validation_blocks"
    ):
        prepare(many, 512, 450, cache)
    kept = prepare(replace(many, validation_blocks=8), 512, 450, cache)
    assert kept.windows.inputs_NT.shape == (8, 450)
    with pytest.raises(ConfigError, match=r"validation split of .* such rows where 25 are needed"):
        kept.first_windows(50)


def test_second_call_prepares_nothing(data: TokenData, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_write", lambda *a: pytest.fail("prepared twice"))
    again = prepare(STORIES, 512, 64, cache)
    assert again.folder == data.folder and again.content_hash == data.content_hash


def test_text_goes_by_the_name_that_is_asked_for_now(tmp_path: Path) -> None:
    """Seen to fail: it went by the name under which the same text was first prepared."""
    made = []
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "text.txt").write_text(words(0, 40_000))
        config = DataConfig(corpus=str(tmp_path / place / "text.txt"), validation_blocks=4)
        made.append(prepare(config, 300, 32, tmp_path / "cache"))
    assert made[0].folder == made[1].folder
    assert [Path(data.description).parent.name for data in made] == ["one", "other"]


def test_content_hash_is_of_tokens_and_tokenizer_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [words(i, 60) for i in range(300)]
    text = "\n\n".join(documents)
    for name in ("one", "two", "three", "four"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(text)
    (tmp_path / "three" / "three.txt").write_text(text + "\n\nand more")
    (tmp_path / "four" / "four.txt").write_text("\n\n".join(documents[::-1]))  # as many tokens, another order

    def content(name: str, vocab: int = 300) -> str:
        config = DataConfig(corpus=str(tmp_path / name / f"{name}.txt"), validation_blocks=4)
        return prepare(config, vocab, 32, tmp_path / f"cache-{name}").content_hash

    assert content("one") == content("two")
    assert len({content("one"), content("three"), content("four"), content("one", vocab=290)}) == 4
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    shutil.rmtree(tmp_path / "cache-two")
    assert content("one") == content("two")  # nor does the size of a shard enter


def test_text_that_is_read_again_is_said(data: TokenData, cache: Path) -> None:
    """How often, in rows of whatever kind. Caught: segments and stages left out."""
    windows = len(data.train)
    assert data.said_to_repeat(windows) == "" and windows == (20_000 - 1) // 64
    said = "the training text has 20,000 tokens, and a trial reads them"
    assert data.said_to_repeat(windows * 3 // 2) == f"{said} 1.5 times"
    rows = prepare(ROWS, 512, 64, cache)
    assert rows.said_to_repeat(4 * len(rows.train)) == ""
    assert rows.said_to_repeat(8 * len(rows.train)) == f"{said} 2 times"
    staged, questions = replace(data, stages=2), windows // 2
    assert staged.said_to_repeat(questions) == staged.said_to_repeat(questions * 1003 // 1000) == ""
    said = f"the training text has {questions} questions, and a trial reads them 12 times"
    assert staged.said_to_repeat(questions * 12) == said


def test_many_shards_hold_the_same_tokens(data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1024)
    many = prepare(STORIES, 512, 64, tmp_path)
    pieces = many.train.split.columns["token"]
    assert len(pieces) == 20 and [len(piece) for piece in pieces[:3]] == [1024] * 3
    assert np.array_equal(many.train.split.tokens, data.train.split.tokens)
    assert many.windows.inputs_NT.equal(data.windows.inputs_NT)


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("train-00000.arrow", "flip"),
        ("validation-00000.arrow", "cut"),
        ("validation-00000-documents.parquet", "remove"),
        ("tokenizer.json", "flip"),
        ("manifest.json", "digit"),
        ("manifest.json", "remove"),
    ],
)
def test_damage_is_found_said_and_repaired(
    data: TokenData, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, how: str
) -> None:
    cache = copy_of(data, tmp_path)
    folder = prepare(STORIES, 512, 64, cache).folder  # opened once, so that a remembered hash could hide the damage
    content = bytearray((folder / file).read_bytes())
    content[content.index(data.content_hash.encode()) if how == "digit" else len(content) // 2] ^= 1
    if how == "remove":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content[: len(content) // 2] if how == "cut" else content)
    with caplog.at_level(logging.WARNING):
        repaired = prepare(STORIES, 512, 64, cache)
    assert file in caplog.text and "it is not used" in caplog.text
    assert repaired.content_hash == data.content_hash
    assert np.array_equal(repaired.train.split.tokens, data.train.split.tokens)


def test_a_killed_preparation_leaves_nothing_that_counts(data: TokenData, tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from lahr.config import DataConfig; from lahr.data import prepare\n"
        "die = lambda what, share: os._exit(9) if what == 'tokenising validation' else None\n"
        "prepare(DataConfig(train_tokens=20_000, validation_blocks=8), 512, 64, Path(sys.argv[1]), die)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 9
    left = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len(left) == 1 and left[0].endswith(".part")
    after = prepare(STORIES, 512, 64, tmp_path)
    assert after.content_hash == data.content_hash
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [after.folder.name]


def test_an_error_in_the_middle_leaves_no_folder(tmp_path: Path) -> None:
    def stop(what: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(STORIES, 512, 64, tmp_path, stop)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def _prepare_and_count(
    cache: str, start: "threading.Barrier", calls: "multiprocessing.Queue[tuple[str, bool]]"
) -> None:
    prepared = []
    original = preparation._write
    preparation._write = lambda *a: (prepared.append(1), original(*a))  # type: ignore[assignment]
    start.wait()
    calls.put((prepare(STORIES, 512, 64, Path(cache)).content_hash, bool(prepared)))


def test_two_processes_prepare_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, calls = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_prepare_and_count, args=(str(tmp_path), start, calls)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [calls.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert results[0][0] == results[1][0]
    assert sorted(prepared for _, prepared in results) == [False, True]


def test_progress_rises_to_one(tmp_path: Path) -> None:
    seen: dict[str, list[float]] = {}
    prepare(STORIES, 512, 64, tmp_path, lambda what, share: seen.setdefault(what, []).append(share))
    assert {"tokenising train", "tokenising validation", "training the tokenizer"} <= set(seen)
    for shares in seen.values():
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert seen["tokenising train"][-1] == 1


def test_a_megabyte_of_text_is_enough(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(words(0, 200_000))  # one paragraph
    config = DataConfig(corpus=str(tmp_path / "book.txt"), validation_blocks=32)
    book = prepare(config, 1024, 256, tmp_path / "cache")
    assert len(book.train) > 500 and len(book.validation) >= 32


def test_too_little_text_is_refused_with_the_number_that_would_do(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("\n\n".join(words(i, 60) for i in range(300)))
    config = DataConfig(corpus=str(tmp_path / "small.txt"), validation_blocks=5000)
    with pytest.raises(ConfigError, match=r"and 5000 are needed; .* --data.validation-blocks \d+$") as caught:
        prepare(config, 300, 32, tmp_path / "cache")
    enough = int(str(caught.value).split()[-1])
    data = prepare(replace(config, validation_blocks=enough), 300, 32, tmp_path / "cache")
    with pytest.raises(ConfigError, match=f"{enough} windows of 32, and {enough + 1} are needed"):
        data.first_windows(enough + 1)
    (tmp_path / "tiny.txt").write_text("a few words")
    with pytest.raises(ConfigError, match=r"training split .* has 4 tokens, 0 windows of 32, and 1 is needed"):
        prepare(DataConfig(corpus=str(tmp_path / "tiny.txt"), validation_blocks=1), 300, 32, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"training split .* has 30 tokens, 0 windows of 64, and 1 is needed"):
        prepare(replace(STORIES, train_tokens=30), 512, 64, tmp_path / "cache")


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size is 256; .* at least 257"):
        prepare(STORIES, 256, 64, tmp_path)


def test_a_tokenizer_of_a_file(data: TokenData, tmp_path: Path) -> None:
    config = replace(STORIES, tokenizer=str(shutil.copy(data.tokenizer_path, tmp_path / "mine.json")))
    assert prepare(config, 512, 64, tmp_path / "cache").content_hash == data.content_hash
    with pytest.raises(ConfigError, match=rf"has {data.vocab_size} entries and model.vocab_size is 300"):
        prepare(config, 300, 64, tmp_path / "other")
    Path(config.tokenizer).write_text(json.dumps({"not": "a tokenizer"}))
    with pytest.raises(ConfigError, match=r"cannot be loaded .* --data.tokenizer bpe"):
        prepare(config, 512, 64, tmp_path / "other")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(STORIES, corpus="tinystories"),
            "'roneneldan/TinyStories' cannot be had .*HF_HUB_OFFLINE.*'stories'",
        ),
        (replace(STORIES, corpus="someone/dataset"), "'someone/dataset' cannot be had .*HF_HUB_OFFLINE.*local"),
        (replace(STORIES, tokenizer="gpt2"), "'gpt2' cannot be loaded .*--data.tokenizer bpe"),
    ],
)
def test_offline_is_said_at_once(config: DataConfig, message: str, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from lahr.config import DataConfig\n"
        "from lahr.errors import ConfigError\n"
        "from lahr.data import prepare; import huggingface_hub.constants\n"
        "started = time.process_time()\n"
        f"try: prepare({config!r}, 60_000, 64, Path(sys.argv[1]))\n"
        "except ConfigError as error: print(error)\n"
        "assert time.process_time() - started < 1 and 'datasets' not in sys.modules and 'pandas' not in sys.modules"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(message, done.stdout) and done.stdout.count("\n") == 1


def test_stories_and_files_need_no_datasets_pandas_or_hub(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(0, 20_000))
    program = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in {'datasets', 'pandas', 'huggingface_hub'}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pathlib import Path; from lahr.config import DataConfig; from lahr.data import prepare\n"
        "folder = Path(sys.argv[1])\n"
        "for corpus in ('stories', str(folder / 'a.txt')):\n"
        "    prepare(DataConfig(corpus, train_tokens=5000, validation_blocks=4), 300, 32, folder)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
