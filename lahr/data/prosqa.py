"""`prosqa`: questions whose steps are replaced by thoughts, stage by stage (Hao et al. 2024, section 3, "Training").

A document of stage k, of stages 0 … S, has k·c thoughts in the place of the first k steps; in stage S no step is left,
however many there were, so the number of thoughts depends on the stage alone:

    question <start> <thought>×k·c <end> steps k+1, k+2, … answer

What stands behind `<end>` is to be predicted and nothing else. Every word is a token and a fact takes three:

    Tom is a terpus.                    <Tom><terpus><.>
    Every terpus is a lempus.           <terpus><lempus><.>
    Is Tom a lempus or a brimpus?       <?><Tom><lempus><brimpus>
    the answer, Tom is a lempus.        <Tom><lempus>

The training split is S + 1 parts of the same questions, of 3 to 6 hops, part k in stage k. The validation split has
stage S only, for ever, from five sets in turn: new questions like those of training (every second one), 7 hops, 8 hops,
`dag` and `dense` (`prosqa_graphs`). Files of real ProsQA are read into the same words (`prosqa_files`).
"""

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from lahr.data.corpora import Corpus
from lahr.data.documents import Answer, Document, Label
from lahr.data.prosqa_graphs import CLASSES, NAMES, Question, question
from lahr.errors import ConfigError, check, nearest

HOPS = (3, 4, 5, 6)
"""Of the questions in training; those of `dag` and `dense` have as many."""
SETS = (("tree", HOPS), ("tree", (7,)), ("tree", (8,)), ("dag", HOPS), ("dense", HOPS))
"""Kind and hops of each set of the validation split."""
TURNS = (0, 1, 0, 2, 0, 3, 0, 4)
"""The order in which they take turns: half of the questions are like those of training."""
SET_SEEDS = 1 << 48
"""The training split counts its seeds up from 0, and set j from (j + 1)·2⁴⁸."""
START, THOUGHT, END = "<start>", "<thought>", "<end>"
WORDS = (THOUGHT, START, END, "<?>", "<.>", *(f"<{word}>" for word in (*NAMES, *CLASSES)))
LABELS = (
    *(Label(f"held-in/{hops}", 0.5, 1.0) for hops in HOPS),
    Label("7-hop", 0.5, 1.0),
    Label("8-hop", 0.5, 1.0),
    *(Label(f"{kind}/{hops}", 0.5, 1.0) for kind in ("dag", "dense") for hops in HOPS),
    Label("step", None, 1.0),
)
"""Answers are told apart by their set, and by their hops within it."""

FACT = re.compile(r"(?:Every ([a-z]+)|(?!Every )([A-Z]\w*)) is an? ([a-z]+)\.")
QUERY = re.compile(r"Is ([A-Z]\w*) an? ([a-z]+) or (?:an? )?([a-z]+)\?")


@dataclass(frozen=True)
class Settings:
    """What a name such as `prosqa:questions=4000,stages=6,c=1` says."""

    questions: int = 4000
    """Different questions in the training split."""
    stages: int = 6
    """S: the last stage, and the steps that thoughts stand for."""
    c: int = 1
    """Thoughts for a step (c of the paper)."""

    def __post_init__(self) -> None:
        for name, most in (("questions", SET_SEEDS), ("stages", 99), ("c", 99)):
            given = getattr(self, name)
            check(1 <= given <= most, f"prosqa: {name} is {given}; it must be 1 to {most}")


def settings(name: str) -> Settings:
    """What a corpus name says. `ConfigError` on another name, an unknown setting and a value that cannot be."""
    word, _, said = name.partition(":")
    check(word == "prosqa", f"the corpus is {name!r}; it must be prosqa, or prosqa: and settings")
    allowed = [f.name for f in fields(Settings)]
    given: dict[str, int] = {}
    for part in filter(None, said.split(",")):
        key, _, value = (text.strip() for text in part.partition("="))
        check(key in allowed, f"prosqa has no setting {key!r}{nearest(key, allowed)}; it has {', '.join(allowed)}")
        check(key not in given, f"prosqa: {key} is given twice; leave one out")
        check(value.isascii() and value.isdigit(), f"prosqa: {key} is {value!r}; it must be a whole number")
        given[key] = int(value)
    return Settings(**given)


def corpus(name: str) -> Corpus:
    """The corpus of that name, such as `prosqa:stages=6,c=2`; see `settings` for what is raised."""
    said = settings(name)

    def train() -> Iterator[Document]:
        for stage in range(said.stages + 1):
            for seed in range(said.questions):
                yield document(question(seed, HOPS[seed % len(HOPS)]), stage, said.stages, said.c)

    def validation() -> Iterator[Document]:
        taken = [0] * len(SETS)
        for j in itertools.cycle(TURNS):
            kind, hops = SETS[j]
            asked = question((j + 1) * SET_SEEDS + taken[j], hops[taken[j] % len(hops)], kind)
            taken[j] += 1
            yield document(asked, said.stages, said.stages, said.c)

    some = [*itertools.islice(train(), 200), *itertools.islice(validation(), 100)]
    digest = hashlib.sha256("".join(d.text for d in some).encode()).hexdigest()
    return Corpus(
        f"prosqa {said} {digest}",
        "ProsQA (made here)",
        train,
        validation,
        labels=LABELS,
        words=WORDS,
        only_words=True,
        stages=said.stages + 1,
    )


def document(asked: Question, stage: int, stages: int, c: int = 1) -> Document:
    """A question in a stage of 0 … `stages`, with c thoughts for a step."""
    parts = [render(asked.question), START, THOUGHT * (stage * c), END]
    steps = [render(step) for step in asked.steps[stage:]] if stage < stages else []
    end, answers = sum(map(len, parts)), []
    for text, kind, group in (
        *((step, "step", "") for step in steps),
        (render(asked.answer).removesuffix("<.>"), *_set_of(asked)),
    ):
        answers.append(Answer(end, end + len(text), kind, group=group))
        parts.append(text)
        end += len(text)
    return Document("".join(parts), answers=tuple(answers), answers_only=True)


def _set_of(asked: Question) -> tuple[str, str]:
    """The kind and group of its answer."""
    if asked.kind == "tree" and asked.hops not in HOPS:
        return f"{asked.hops}-hop", ""
    return "held-in" if asked.kind == "tree" else asked.kind, str(asked.hops)


def render(text: str) -> str:
    """Facts, and what is asked, as words in brackets, each a token. `ConfigError` on other text and unknown words."""
    rendered = ""
    for sentence in sentences(text):
        if sentence[-1] == "?":
            rendered += "<?>" + "".join(f"<{word}>" for word in sentence[:-1])
        else:
            rendered += "".join(f"<{word}>" for word in sentence)
    unknown = sorted(set(re.findall("<.*?>", rendered)) - _KNOWN)
    check(
        not unknown,
        f"{', '.join(unknown)} in {text!r} is not among ProsQA's words here; read other files with read_questions, "
        "which puts known words in the place of theirs",
    )
    return rendered


_KNOWN = frozenset(WORDS)


def sentences(text: str) -> list[tuple[str, ...]]:
    """Each fact as (what, class, "."), and what is asked as (person, class, class, "?"). `ConfigError` on others."""
    found: list[tuple[str, ...]] = []
    for sentence in re.split(r"(?<=[.?])\s+", text.strip()):
        if fact := FACT.fullmatch(sentence):
            found.append((fact[1] or fact[2], fact[3], "."))
        elif query := QUERY.fullmatch(sentence):
            found.append((*query.groups(), "?"))
        else:
            raise ConfigError(
                f"{sentence!r} is no sentence of ProsQA; they are 'Tom is a lempus.', 'Every lempus is a brimpus.' "
                "and 'Is Tom a lempus or a brimpus?'"
            )
    return found
