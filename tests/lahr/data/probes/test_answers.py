"""Every answer is what a brute-force solver finds that knows the task's rules and sees the words alone."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from lahr.data.documents import Document
from lahr.data.probes import find_probe, read_probe
from lahr.data.probes.probe import VALIDATION_SEEDS

Found = list[tuple[int, str, str]]
"""The word (its place) that an answer is or is predicted from, its group, and the answer."""


def words_of(document: Document) -> list[str]:
    return re.findall("<[^<>]+>", document.text)


def number(word: str) -> int:
    return int(re.findall(r"\d+", word)[0])


def said(document: Document) -> Found:
    """The document's own answers."""
    return [
        (document.text[: a.start].count("<"), a.group, a.target or document.text[a.start : a.end])
        for a in document.answers
    ]


def segments(words: list[str], window: int) -> Found:
    """The row as a model reads it, window by window."""
    found, given = [], {}
    inputs = ["<|endoftext|>", *words]
    assert len(inputs) % window == 0
    for segment in range(len(inputs) // window):
        for i, word in enumerate(inputs[segment * window : (segment + 1) * window], segment * window - 1):
            if pair := re.fullmatch(r"<(k\d+)(v\d+)>", word):
                assert pair[1] not in given
                given[pair[1]] = segment, pair[2]
            elif asked := re.fullmatch(r"<(k\d+)>", word):
                before, value = given.pop(asked[1])
                found.append((i, f"{segment - before}-back", f"<{value}>"))
    assert not given  # each was asked
    return found


def swaps(words: list[str], n: int) -> Found:
    """From each swap backwards: whence what stands at the place came."""
    found = []
    for t in range(1, len(words)):
        place = number(words[0])
        for word in words[t:0:-1]:
            a, b = map(int, re.findall(r"\d+", word))
            assert 1 <= a < b <= n
            place = {a: b, b: a}.get(place, place)
        first = next(f for f in (1, 5, 9, 13, 17, 33, 65, 129)[::-1] if f <= t)
        last = min({1: 4, 5: 8, 9: 12, 13: 16}.get(first, 2 * (first - 1)), len(words) - 1)
        found.append((t, f"{first}-{last}", f"<o{place}>"))
    return found


def hops(words: list[str]) -> Found:
    """find(i) = max{j <= i: X_{j-1} = X_i}, p times, as in the paper, with 0 where there is none."""
    p, x = number(words[0]), words
    find = {i: max([0, *(j for j in range(2, i + 1) if x[j - 1] == x[i])]) for i in range(1, len(x))} | {0: 0}
    found = []
    for i in range(1, len(x)):
        assert i == 1 or x[i] != x[i - 1]
        j = i
        for _ in range(p):
            j = find[j]
        if j:
            found.append((i, f"p={p}", x[j]))
    return found


def trees(words: list[str], m: int) -> Found:
    """By recursion from each operator to the left: its value, height and first word."""

    def read(end: int) -> tuple[int, int, int]:
        if words[end].startswith("<v"):
            return number(words[end]), 0, end
        b, right, middle = read(end - 1)
        a, left, start = read(middle - 1)
        plain = {"<+>": a + b, "<->": a - b, "<~>": a + b}[words[end]] % m
        value = {0: 1, 1: 0}.get(plain, plain) if words[end] == "<~>" else plain
        return value, 1 + max(left, right), start

    ends = [i for i, word in enumerate(words) if not word.startswith("<v")]
    return [(i, f"height-{height}", f"<v{value}>") for i in ends for value, height, _ in [read(i)]]


def selective(words: list[str], state: str, signals: int, back: int = 3) -> Found:
    found = []
    for i in range(back - 1, len(words)):
        so_far = [word for word in words[: i + 1] if word.startswith("<s")]
        answer = so_far[-back] if state == "last" else f"<s{sum(map(number, so_far)) % signals}>"
        found.append((i, "signal" if words[i].startswith("<s") else "noise", answer))
    return found


SOLVERS: list[tuple[str, Callable[[list[str]], Found]]] = [
    ("segments", lambda words: segments(words, 64)),
    ("segments,segments=3,window=19,each=4,own=4,keys=24,values=5", lambda words: segments(words, 19)),
    ("segments,segments=2,window=65,each=64,own=0,keys=64,values=4", lambda words: segments(words, 65)),
    ("swaps", lambda words: swaps(words, 5)),
    ("swaps,objects=7,length=30", lambda words: swaps(words, 7)),
    ("hops", hops),
    ("hops,hops=9,letters=3,length=63", hops),
    ("trees", lambda words: trees(words, 5)),
    ("trees,values=7,height=3,length=62", lambda words: trees(words, 7)),
    ("selective", lambda words: selective(words, "last", 8)),
    ("selective,back=1,length=40", lambda words: selective(words, "last", 8, 1)),
    ("selective,state=sum,every=4,signals=5,noise=100,length=63", lambda words: selective(words, "sum", 5)),
]


@pytest.mark.parametrize(("name", "solver"), SOLVERS, ids=[name for name, _ in SOLVERS])
def test_answers_are_what_a_solver_finds_in_the_text(name: str, solver: Callable[[list[str]], Found]) -> None:
    probe = read_probe(name)
    for seed in [*range(100), *range(VALIDATION_SEEDS, VALIDATION_SEEDS + 20)]:
        document = probe.document(seed)
        assert said(document) == solver(words_of(document)), seed


@pytest.mark.parametrize(("facts", "queries", "table"), [(4096, 85, 0), (1000, 42, 3)])
def test_facts_are_one_table_on_both_sides(facts: int, queries: int, table: int) -> None:
    """Read off the documents: each key has one value, all keys are asked, none twice in a document."""
    name = f"facts,facts={facts},queries={queries},table={table}"
    probe, known, asked = read_probe(name), dict[tuple[str, str], str](), Counter[tuple[str, str]]()
    for seed in [*range(1000), *range(VALIDATION_SEEDS, VALIDATION_SEEDS + 50)]:
        document = probe.document(seed)
        words = words_of(document)
        keys = list(zip(words[::3], words[1::3], strict=True))
        assert len(set(keys)) == len(keys) == queries
        assert all(known.setdefault(key, value) == value for key, value in zip(keys, words[2::3], strict=True))
        assert said(document) == [(at, "", words[at]) for at in range(2, len(words), 3)]
        asked.update(keys)
    assert len(known) == facts
    mean = 1050 * queries / facts
    assert all(abs(n - mean) < 6 * mean**0.5 for n in asked.values())  # all equally often
    (label,) = find_probe(name).labels
    assert label.chance == Counter(known.values()).most_common(1)[0][1] / facts
    assert label.chance < 2 / 64
    other = read_probe(f"facts,facts={facts},table={table + 1}").document(0)
    theirs = words_of(other)
    same = [known[a, b] == v for a, b, v in zip(theirs[::3], theirs[1::3], theirs[2::3], strict=True)]
    assert sum(same) < 8  # of 85, by chance 1.3


@pytest.mark.parametrize("name", [name for name, _ in SOLVERS if not name.startswith("segments,segments=2")])
def test_chance_is_what_the_best_fixed_guess_gets(name: str) -> None:
    """Every answer is equally common in each group: the last one of each document, as those of one hang together."""
    corpus, probe = find_probe(name), read_probe(name)
    counts = defaultdict(Counter[str])
    for seed in range(2000):
        last = {group: answer for _, group, answer in said(probe.document(seed))}
        for group, answer in last.items():
            counts[f"{probe.name}/{group}"][answer] += 1
    for label in corpus.labels:
        n, chance = counts[label.name].total(), label.chance
        assert n > 150
        assert chance is not None and round(1 / chance) == len(counts[label.name])
        spread = (n * chance * (1 - chance)) ** 0.5
        assert all(abs(count - n * chance) < 4 * spread for count in counts[label.name].values()), label


def test_segments_are_asked_as_often_as_promised() -> None:
    for seed in range(50):
        groups = Counter(group for _, group, _ in said(read_probe("segments,each=5,own=2").document(seed)))
        assert groups == {"0-back": 8, "1-back": 15, "2-back": 10, "3-back": 5}


@pytest.mark.parametrize("name", ["segments", "segments,segments=3,window=19,each=4,own=4,keys=24,values=5"])
def test_pairs_stand_at_all_places(name: str) -> None:
    probe = read_probe(name)
    places = {i for seed in range(500) for i, word in enumerate(words_of(probe.document(seed))) if "v" in word}
    window = probe.parameters["window"]
    assert {(i + 1) % window for i in places} == set(range(window))


def test_an_undisturbed_place_is_guessed_as_said() -> None:
    """1/n + (1 - 1/n) (1 - 2/(n - 1))^t of the places hold what they began with."""
    documents = [read_probe("swaps").document(seed) for seed in range(4000)]
    for t in (1, 2, 4, 8):
        stayed = sum(d.answers[t - 1].target[2:] == d.text[2 : d.text.index(">") + 1] for d in documents)
        share = 0.2 + 0.8 * 0.5**t
        assert abs(stayed - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5


def test_a_document_asks_each_number_of_hops_equally_often() -> None:
    asked = Counter(words_of(read_probe("hops").document(seed))[0] for seed in range(2000))
    assert len(asked) == 4
    assert all(abs(n - 500) < 80 for n in asked.values())


def test_one_hop_leads_to_another_letter() -> None:
    probe = read_probe("hops,hops=1,letters=3")
    for seed in range(100):
        document = probe.document(seed)
        assert all(document.text[a.start : a.end] != a.target for a in document.answers)


def test_trees_reach_every_height_and_no_more() -> None:
    groups = Counter(g for seed in range(200) for _, g, _ in said(read_probe("trees").document(seed)))
    total = groups.total()
    assert sorted(groups) == [f"height-{h}" for h in range(1, 6)]
    assert 50 < total / 200 < 54
    assert 0.3 < groups["height-1"] / total < 0.45 and groups["height-5"] / total > 0.08


def test_signals_are_one_word_in_so_many() -> None:
    probe = read_probe("selective")
    words = [word for seed in range(400) for word in words_of(probe.document(seed))[3:]]
    signals = sum(word.startswith("<s") for word in words)
    assert abs(signals - len(words) / 8) < 4 * (len(words) * 7 / 64) ** 0.5
    noise = Counter(word for word in words if word.startswith("<n"))
    assert len(noise) == 32
    assert max(noise.values()) < 1.25 * min(noise.values())
    assert all(word.startswith("<s") for seed in range(50) for word in words_of(probe.document(seed))[:3])
