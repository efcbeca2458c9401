"""ProsQA's questions have the answer they say, by their text alone, and no other way to it; documents are laid out as
in the paper's stages; other files come out in known words, unchanged but for these."""

import hashlib
import itertools
import json
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lahr.data.prosqa import HOPS, LABELS, SETS, WORDS, corpus, document, render, settings
from lahr.data.prosqa_files import read_questions
from lahr.data.prosqa_graphs import CLASSES, FACTS, NAMES, Question, question
from lahr.errors import ConfigError

KINDS = [(kind, hops) for kind, some in SETS for hops in some] + [("tree", 2), ("tree", 9)]


def parsed(text):
    """The facts of a question as pairs, who is asked about, and the two classes: read apart from the code under
    test."""
    facts = [
        (words[1], words[4]) if words[0] == "Every" else (words[0], words[3])
        for words in (fact.split() for fact in re.findall(r"[A-Z][^.?]*(?=\.)", text))
    ]
    ((person, a, b),) = re.findall(r"Is (\w+) a (\w+) or a (\w+)\?$", text)
    return facts, person, (a, b)


def chains(facts, start, end):
    """All ways from one to the other. None has a loop, or this would not end."""
    if start == end:
        return [(end,)]
    return [(start, *rest) for a, b in facts if a == start for rest in chains(facts, b, end)]


@pytest.mark.parametrize(("kind", "hops"), KINDS)
def test_a_solver_that_reads_the_text_finds_the_answer_and_the_steps(kind, hops):
    """Caught: a detour as long as the chain; a fact that leads one person to the other's class; a loop."""
    for seed in range(60):
        asked = question(seed, hops, kind)
        facts, person, two = parsed(asked.question)
        assert len(set(facts)) == len(facts) == asked.question.count(".")
        assert FACTS[kind][0] <= len(facts) <= FACTS[kind][1]
        (answer,) = (c for c in two if c == asked.answer.removeprefix(f"{person} is a ").removesuffix("."))
        (other,) = (c for c in two if c != answer)
        ways = sorted(chains(facts, person, answer), key=len)
        assert len(ways[0]) - 1 == hops == asked.hops == len(asked.steps)
        assert len(ways) == 1 or len(ways[1]) > len(ways[0])
        assert not chains(facts, person, other)
        steps = [step.removeprefix("Every ").removesuffix(".").split(" is a ") for step in asked.steps]
        assert [tuple(step) for step in steps] == list(itertools.pairwise(ways[0]))
        assert all(step in asked.question for step in asked.steps)
        known = {word for fact in facts for word in fact}
        (second,) = (word for word in known if word[0].isupper() and word != person)
        assert len(min(chains(facts, second, other), key=len)) - 1 == hops  # the wrong one is led to just as well
        for start in known:
            assert len(chains(facts, start, start)) == 1
        into = Counter(child for _, child in facts)
        if kind == "tree":
            assert set(into.values()) == {1}
        elif kind == "dag":
            assert len(ways) > 1 and len(chains(facts, second, other)) > 1
        else:
            assert len(facts) == 28 and len(into) == 16


@pytest.mark.parametrize(("kind", "hops"), KINDS)
def test_no_shortcut_tells_the_answer(kind, hops):
    """Each guess is right about half the time; a tie is half a hit. Caught: one person always asked about, with side
    branches on that person's chain alone; the right class always named first."""
    hits = Counter()
    n = 600
    for seed in range(n):
        asked = question(seed, hops, kind)
        facts, _, two = parsed(asked.question)
        text, right = asked.question.rpartition(" Is ")[0], asked.answer.split()[-1].rstrip(".")
        clues = {
            "mentioned more often": lambda c, text=text: text.count(c),
            "mentioned last": lambda c, text=text: text.rfind(c),
            "mentioned first": lambda c, text=text: -text.find(c),
            "more facts into it": lambda c, facts=facts: sum(child == c for _, child in facts),
            "more facts out of it": lambda c, facts=facts: sum(parent == c for parent, _ in facts),
            "is a leaf": lambda c, facts=facts: all(parent != c for parent, _ in facts),
            "follows from a person": lambda c, facts=facts: any(
                child == c and p[0].isupper() for p, child in facts
            ),
            "asked of first": lambda c, two=two: c == two[0],
        }
        wrong = two[0] if right == two[1] else two[1]
        for name, clue in clues.items():
            hits[name] += 1 if clue(right) > clue(wrong) else 0.5 if clue(right) == clue(wrong) else 0
    assert len(hits) == 8
    assert all(0.4 < hit / n < 0.6 for hit in hits.values()), hits


def test_questions_are_pinned_and_distinct():
    """The same text on every machine and Python. A change of grammar or words changes this on purpose."""
    some = [question(seed, hops, kind) for kind, hops in KINDS for seed in range(40)]
    assert hashlib.sha256(repr(some).encode()).hexdigest()[:16] == "2ef3bb9a1c7a3ede"
    assert len({asked.question for asked in some}) == len(some)


def test_words_are_many_and_none_is_another():
    assert len(set(CLASSES)) == 100 and len(set(NAMES)) == len(NAMES) == 24
    assert len(set(WORDS)) == len(WORDS) == 129
    assert all(re.fullmatch(r"<[^<>]+>", word) for word in WORDS)


@pytest.mark.parametrize(
    ("kind", "hops", "said"),
    [
        ("deg", 3, r"the kind is 'deg' \(did you mean 'dag'\?\); it is one of tree, dag, dense"),
        ("tree", 1, "hops is 1; of kind 'tree' it must be 2 to 9"),
        ("dag", 7, "hops is 7; of kind 'dag' it must be 2 to 6"),
    ],
)
def test_questions_that_cannot_be_made_are_refused(kind, hops, said):
    with pytest.raises(ConfigError, match=said):
        question(0, hops, kind)


SMALL = Question(
    "Every babbex is a dedran. Tim is a babbex. Is Tim a dedran or a gonkel?",
    ("Tim is a babbex.", "Every babbex is a dedran."),
    "Tim is a dedran.",
    2,
)
ASKED = "<babbex><dedran><.><Tim><babbex><.><?><Tim><dedran><gonkel><start>"


@pytest.mark.parametrize(
    ("stage", "c", "rest", "kinds"),
    [
        (0, 2, "<end><Tim><babbex><.><babbex><dedran><.><Tim><dedran>", ["step", "step", "2-hop"]),
        (1, 2, "<thought><thought><end><babbex><dedran><.><Tim><dedran>", ["step", "2-hop"]),
        (2, 1, "<thought><thought><end><Tim><dedran>", ["2-hop"]),
        (3, 1, "<thought><thought><thought><end><Tim><dedran>", ["2-hop"]),
    ],
)
def test_a_document_is_laid_out_by_its_stage(stage, c, rest, kinds):
    """Caught: c left out; a question of fewer steps than the stage given fewer thoughts; thoughts predicted."""
    made = document(SMALL, stage, 4, c)
    assert made.text == ASKED + rest
    assert made.answers_only
    assert [answer.kind for answer in made.answers] == kinds
    spans = [made.text[answer.start : answer.end] for answer in made.answers]
    assert "".join(spans) == rest.rpartition("<end>")[2]
    assert spans[-1] == "<Tim><dedran>"


def test_in_the_last_stage_no_step_is_left():
    """So that an answer after more steps than stages is not given away."""
    long = question(5, 8)
    assert len(document(long, 5, 6).answers) == 4
    (answer,) = document(long, 6, 6).answers
    assert answer.kind == "8-hop" and not answer.group


def test_the_training_split_is_the_same_questions_in_each_stage():
    made = corpus("prosqa:questions=10,stages=4,c=2")
    documents = list(made.train())
    assert len(documents) == 50
    parts = [documents[i : i + 10] for i in range(0, 50, 10)]
    asked = [[d.text.partition("<start>")[0] for d in part] for part in parts]
    assert all(part == asked[0] for part in asked) and len(set(asked[0])) == 10
    assert [{d.text.count("<thought>") for d in part} for part in parts] == [{0}, {2}, {4}, {6}, {8}]
    assert [d.answers[-1].group for d in parts[0]] == [str(HOPS[i % 4]) for i in range(10)]
    assert {d.text for d in made.train()} == {d.text for d in documents}  # calling it starts it again
    assert made.stages == 5


def test_the_validation_split_takes_its_sets_in_turn_and_is_new():
    made = corpus("prosqa:questions=500,stages=6")
    documents = list(itertools.islice(made.validation(), 200))
    names = [f"{d.answers[0].kind}/{d.answers[0].group}".rstrip("/") for d in documents]
    assert names[:8] == ["held-in/3", "7-hop", "held-in/4", "8-hop", "held-in/5", "dag/3", "held-in/6", "dense/3"]
    assert names[8:16:2] == ["held-in/3", "held-in/4", "held-in/5", "held-in/6"]
    counts = Counter(names[:160])
    assert counts == {
        **{f"held-in/{hops}": 20 for hops in HOPS},
        "7-hop": 20,
        "8-hop": 20,
        **{f"{kind}/{hops}": 5 for kind in ("dag", "dense") for hops in HOPS},
    }
    assert all(d.text.count("<thought>") == 6 and len(d.answers) == 1 for d in documents)
    trained = {d.text.partition("<start>")[0] for d in made.train()}
    assert len(trained) == 500
    tested = {d.text.partition("<start>")[0] for d in documents}
    assert len(tested) == 200 and not tested & trained


def test_a_corpus_names_all_its_words_and_labels():
    made = corpus("prosqa:questions=40")
    documents = [*made.train(), *itertools.islice(made.validation(), 100)]
    used = {word for d in documents for word in re.findall("<.*?>", d.text)}
    assert used == set(made.words) and made.only_words
    assert all("".join(re.findall("<.*?>", d.text)) == d.text for d in documents)
    labels = {f"{a.kind}/{a.group}".rstrip("/") for d in documents for a in d.answers}
    assert labels == {label.name for label in made.labels} and made.labels == LABELS
    longest = max(len(re.findall("<.*?>", d.text)) for d in documents)
    assert longest <= 28 * 3 + 4 + 2 + 6 * 3 + 2


def test_identities_tell_settings_apart():
    names = ("prosqa", "prosqa:questions=4001", "prosqa:stages=5", "prosqa:c=2")
    assert len({corpus(name).identity for name in names}) == len(names)
    assert corpus("prosqa:c=1, stages=6").identity == corpus("prosqa").identity


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("prosq", "the corpus is 'prosq'; it must be prosqa"),
        (
            "prosqa:stage=3",
            r"no setting 'stage' \(did you mean 'stages'\?\); it has questions, stages, c",
        ),
        ("prosqa:c=1,c=2", "c is given twice"),
        ("prosqa:c=one", "c is 'one'; it must be a whole number"),
        ("prosqa:c", "c is ''; it must be a whole number"),
        ("prosqa:c=-1", "c is '-1'; it must be a whole number"),
        ("prosqa:stages=0", "stages is 0; it must be 1 to 99"),
        ("prosqa:questions=0", "questions is 0; it must be 1 to"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, said):
    with pytest.raises(ConfigError, match=said):
        settings(name)


def test_text_that_is_not_prosqas_is_refused():
    for text, said in (
        ("Some babbex is a dedran.", "'Some babbex is a dedran.' is no sentence of ProsQA; they are"),
        ("Every wumpus is a dedran.", "<wumpus> in .* is not among ProsQA's words here; read other files with"),
    ):
        with pytest.raises(ConfigError, match=said):
            render(text)


THEIRS = {
    "question": "Every zug is an orb. Ron is a zug. Every orb is a mip. Lea is an orb. Every mip is a qua. "
    "Is Ron a mip or vex?",
    "steps": ["Ron is a zug.", "Every zug is an orb, so Ron is an orb.", "Every orb is a mip, so Ron is a mip."],
    "answer": "Ron is a mip.",
}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_come_out_in_known_words_one_for_one(tmp_path):
    """Caught: two words made one; the order of a list of known words, so that some are always used."""
    rows = [THEIRS, {**THEIRS, "question": THEIRS["question"].replace("Lea is an orb. ", "")}]
    read = read_questions(written(tmp_path / "q.jsonl", *rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    assert read == read_questions(tmp_path / "q.parquet")
    first = read[0]
    facts, person, two = parsed(first.question)
    known = dict(
        zip(
            ["zug", "orb", "Ron", "mip", "Lea", "qua"],
            dict.fromkeys(word for f in facts for word in f),
            strict=True,
        )
    )
    assert len(set(known.values())) == 6
    assert facts == [
        (known[a], known[b])
        for a, b in [("zug", "orb"), ("Ron", "zug"), ("orb", "mip"), ("Lea", "orb"), ("mip", "qua")]
    ]
    assert person == known["Ron"] and two[0] == known["mip"] and two[1] not in known.values()
    assert first.steps == (
        f"{known['Ron']} is a {known['zug']}.",
        f"Every {known['zug']} is a {known['orb']}.",
        f"Every {known['orb']} is a {known['mip']}.",
    )
    assert first.answer == f"{known['Ron']} is a {known['mip']}."
    assert first.kind == "file" and first.hops == 3
    assert {*known.values(), two[1]} <= {*NAMES, *CLASSES}
    assert read[1].question.split()[1] != first.question.split()[1]  # another question, other words
    assert document(first, 3, 3).text.endswith(f"<end><{person}><{two[0]}>")


def test_a_generated_question_stays_one_when_it_is_read(tmp_path):
    """Its graph is the same. Caught: the facts put into another order."""
    asked = question(3, 5, "dag")
    row = {"question": asked.question, "steps": list(asked.steps), "answer": asked.answer}
    (read,) = read_questions(written(tmp_path / "q.jsonl", row))

    def shape(text):
        return [re.findall(r"\w+", text).index(word) for word in re.findall(r"\w+", text)]

    assert shape(read.question) == shape(asked.question)
    assert len(read.steps) == 5


def test_a_question_that_leaves_its_first_step_out_is_given_it(tmp_path):
    row = {**THEIRS, "question": THEIRS["question"].replace("Ron is a zug. ", "")}
    (read,) = read_questions(written(tmp_path / "q.jsonl", row))
    assert read.question.startswith(f"{read.steps[0]} ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": None}, "row 2: the steps are empty or no list"),
        ({"steps": []}, "row 2: the steps are empty or no list"),
        ({"steps": "Ron is a zug."}, "row 2: the steps are empty or no list"),
        ({"steps": [3]}, "row 2: steps holds 3, not text"),
        ({"steps": ["  "]}, "row 2: steps holds '  ', not text"),
        ({"question": 3}, "row 2: question holds 3, not text"),
        ({"question": ""}, "row 2: question holds '', not text"),
        ({"answer": None}, "row 2: answer holds None, not text"),
        ({"answer": "Ron is a qua."}, "row 2: the steps do not lead from the person"),
        ({"answer": "mip"}, "row 2: 'mip' is no sentence of ProsQA"),
        ({"question": "Ron is a zug."}, "row 2: the question must end in what it asks"),
        ({"steps": THEIRS["steps"][:1] + THEIRS["steps"][2:]}, "row 2: the steps do not lead from the person"),
        ({"steps": [*THEIRS["steps"][:2], "Every orb is a vex."]}, "row 2: the question does not state orb vex"),
        (
            {"question": THEIRS["question"].replace("a mip or", "a qua or")},
            "is none of the two that are asked about",
        ),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, change, said):
    path = written(tmp_path / "q.jsonl", THEIRS, {**THEIRS, **change})
    with pytest.raises(ConfigError, match=said):
        read_questions(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.jsonl").write_text("no json\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    (tmp_path / "none.jsonl").write_text("\n")
    lacking = {name: value for name, value in THEIRS.items() if name != "steps"}
    written(tmp_path / "lacking.jsonl", lacking)
    pq.write_table(pa.Table.from_pylist([lacking]), tmp_path / "lacking.parquet")
    for name, said in (
        ("text.jsonl", "is not JSONL"),
        ("list.jsonl", "a line that is no JSON object"),
        ("latin.jsonl", "is not text in UTF-8"),
        ("bad.parquet", "cannot be read .*; give a parquet or JSONL file"),
        ("absent.jsonl", "cannot be read"),
        ("absent.parquet", "cannot be read"),
        ("none.jsonl", "has no rows"),
        ("lacking.jsonl", "row 1: there is no column 'steps'; it has question, answer, and needs all of"),
        ("lacking.parquet", "row 1: there is no column 'steps'; it has question, answer"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_questions(tmp_path / name)


def test_more_persons_than_there_are_words_for_are_refused(tmp_path):
    names = [f"N{'a' * i}" for i in range(1, 30)]
    extra = " ".join(f"{name} is a zug." for name in names)
    row = {**THEIRS, "question": f"{extra} {THEIRS['question']}"}
    with pytest.raises(ConfigError, match="has 31 persons; there are words for 24"):
        read_questions(written(tmp_path / "q.jsonl", row))
