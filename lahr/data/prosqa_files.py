"""Files in the form of ProsQA, such as the published ones: a question, its steps and its answer a row.

Their words are others than those that `prosqa` has tokens for. So each question's classes and persons are replaced,
one for one, by known ones: the i-th that occurs by the i-th of an order drawn from the question's text. Which words
stand for what is arbitrary in ProsQA, so this changes nothing of the task.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lahr.data.prosqa import sentences
from lahr.data.prosqa_graphs import CLASSES, NAMES, Question, draw
from lahr.data.stream import Stream
from lahr.errors import ConfigError, check

COLUMNS = ("question", "steps", "answer")


def read_questions(path: Path, kind: str = "file") -> list[Question]:
    """The questions of a parquet or JSONL file with the columns question, steps (a list) and answer, in known words;
    `kind` tells their answers apart from others.

    A step's reason ("…, so Tom is a brimpus.") is left out. Where the question does not state the first step, the fact
    about the person, it is put first: the published sets of 7 hops and of DAGs leave it out of all of their questions,
    which then have no answer. `ConfigError` on a file that cannot be read, columns that are missing, empty or not
    text, and questions whose steps are not stated or do not lead to the answer.
    """
    found = []
    for number, row in enumerate(_rows(path), 1):
        try:
            found.append(_question(row, kind))
        except ConfigError as error:
            raise ConfigError(f"{path}, row {number}: {error}") from error
    check(bool(found), f"{path} has no rows; give a file with questions")
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".parquet":
            yield from pq.read_table(path).to_pylist()
            return
        with open(path, encoding="utf-8-sig") as lines:
            for line in lines:
                if line.strip():
                    row = json.loads(line)
                    check(isinstance(row, dict), f"{path} has a line that is no JSON object; JSONL has one a line")
                    yield row
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a parquet or JSONL file") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSONL ({error}); it has one JSON object a line") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8; give a parquet or JSONL file") from error


def _question(row: dict[str, Any], kind: str) -> Question:
    for name in COLUMNS:
        check(
            name in row,
            f"there is no column {name!r}; it has {', '.join(row) or 'none'}, and needs all of {COLUMNS}",
        )
    said, steps, answer = (row[name] for name in COLUMNS)
    check(isinstance(steps, list) and bool(steps), "the steps are empty or no list; give at least one")
    for name, text in (("question", said), ("answer", answer), *(("steps", step) for step in steps)):
        check(isinstance(text, str) and bool(text.strip()), f"{name} holds {text!r}, not text")

    *facts, asked = sentences(said)
    chain = [sentences(step.partition(", so ")[0].rstrip(".") + ".")[0] for step in steps]
    to = sentences(answer)[0]
    check(
        asked[-1] == "?" and all(fact[-1] == "." for fact in facts), "the question must end in what it asks, once"
    )
    check(all(step[-1] == "." for step in (*chain, to)), "a step or the answer asks something")
    if chain[0] not in facts:
        facts.insert(0, chain[0])
    missing = [" ".join(step[:2]) for step in chain if step not in facts]
    check(not missing, f"the question does not state {', '.join(missing)}, which its steps use")
    leads = chain[0][0] == asked[0] and all(a[1] == b[0] for a, b in pairwise(chain)) and chain[-1][1] == to[1]
    check(leads, "the steps do not lead from the person who is asked about to the answer, one from the other")
    check(
        to[0] == asked[0] and to[1] in asked[1:3], f"the answer {answer!r} is none of the two that are asked about"
    )
    return _in_known_words(Stream(_seed(said)), facts, asked, chain, to, kind)


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _in_known_words(
    stream: Stream,
    facts: list[tuple[str, ...]],
    asked: tuple[str, ...],
    chain: list[tuple[str, ...]],
    to: tuple[str, ...],
    kind: str,
) -> Question:
    words = list(dict.fromkeys(word for sentence in (*facts, asked) for word in sentence[:-1]))
    known: dict[str, str] = {}
    for what, theirs, ours in (
        ("persons", [word for word in words if word[0].isupper()], NAMES),
        ("classes", [word for word in words if word[0].islower()], CLASSES),
    ):
        check(len(theirs) <= len(ours), f"the question has {len(theirs)} {what}; there are words for {len(ours)}")
        known |= zip(theirs, (ours[i] for i in draw(stream, len(ours), len(theirs))), strict=True)

    def say(fact: tuple[str, ...]) -> str:
        return f"{'Every ' if fact[0][0].islower() else ''}{known[fact[0]]} is a {known[fact[1]]}."

    person, a, b = (known[word] for word in asked[:-1])
    return Question(
        " ".join((*map(say, facts), f"Is {person} a {a} or a {b}?")),
        tuple(map(say, chain)),
        say(to),
        len(chain),
        kind,
    )
