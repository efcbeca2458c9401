"""A reader of stories who knows the wordings and what they mean, and nothing of how stories are made."""

import re
from typing import NamedTuple

from lahr.data.story_words import WORDS

THINGS = [thing for setting in WORDS.settings for thing in setting.things]
PLACES = [place for setting in WORDS.settings for place in setting.places]
FOLLOWS = {
    "x": ("holder", "t"),
    "y": ("holder", "u"),
    "p": ("place", "t"),
    "c": ("colour", "t"),
    "f": ("likes", "x"),
}


class Found(NamedTuple):
    """An answer as it should be."""

    start: int
    text: str
    kind: str
    source: int
    pair: tuple[str, str] = ("", "")
    """A thing and what it is told with."""


def any_of(options: object) -> str:
    return "(?:" + "|".join(sorted(map(re.escape, options), key=len, reverse=True)) + ")"  # type: ignore[call-overload]


def either(*patterns: str) -> str:
    return f"(?:{'|'.join(patterns)})"


NAME = either("[BDFHJKLMNRSTVZ][aeio][bdklmnrstv][aeio][bdklmnrstvz][aeio]")
THING, PLACE, COLOUR, FOOD = any_of(THINGS), any_of(PLACES), any_of(WORDS.colours), any_of(WORDS.foods)
ROLES = {"x": NAME, "y": NAME, "t": THING, "u": THING, "p": PLACE, "q": PLACE, "c": COLOUR, "k": COLOUR}
ROLES |= {"f": FOOD, "n": FOOD, "s": either(f"{NAME} and {NAME}", NAME, THING, PLACE)}
OTHER, LEAD = any_of(WORDS.lists["other"]), any_of(WORDS.times)


def pattern(wording: str, lead: str = "") -> re.Pattern[str]:
    """A sentence of that wording; roles are groups."""
    head, *slots = wording.split("{")
    parts = [lead, f"(?i:{re.escape(head)})"]
    for slot in slots:
        name, _, literal = slot.partition("}")
        role = f"(?P<{name}>{ROLES[name]})" if len(name) == 1 else any_of(WORDS.lists[name])
        parts += [role, re.escape(literal)]
    return re.compile("".join(parts))


EVENTS = [
    (event, pattern(wording, lead))
    for event, wordings, lead in (
        *((event, wordings, LEAD) for event, wordings in WORDS.events.items()),
        *(("", wordings, LEAD) for wordings in (WORDS.asides, WORDS.breaks, WORDS.ends)),
        *(("kept", wordings, "") for wordings in (WORDS.kept, WORDS.left)),
    )
    for wording in wordings
]
TELL = any_of(WORDS.lists["tell"])
TALK = (
    re.compile(f'"{TELL}'),
    re.compile(f'{LEAD}{OTHER} {any_of(WORDS.lists["asked"])}, "{TELL}'),
    re.compile(f"{LEAD}{OTHER} {any_of(WORDS.lists['wondered'])} "),
)
"""How a question begins: said first, said behind who asks, or wondered about."""
MORE = re.compile(' "(?:And|But) ')
QUESTIONS = {**WORDS.recall, **WORDS.hops, **WORDS.counts}
ASKED = [
    [(name, pattern(wording)) for name, question in QUESTIONS.items() for wording in getattr(question, form)]
    for form in ("direct", "direct", "indirect")
]
TAIL = re.compile(rf"[,.]\"(?: {any_of(WORDS.lists['said'])} {NAME}[a-z ]*\.)?|\.")


class Reader:
    """Reads a story to its end, and notes every answer in it. AssertionError where it does not hold together."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.found: list[Found] = []
        self.facts: dict[tuple[str, str], tuple[str, int]] = {}
        """What holds, and the end of the last text that says so, by relation and subject."""
        opening = re.match(rf".*?({NAME}), ({NAME}) and ({NAME}) [a-z ]+ the \w+\. ", text)
        assert opening
        self.names, self.at = opening.groups(), opening.end()
        self.count_told = dict.fromkeys(self.names, 0)
        self.pairs: set[tuple[str, str]] = set()
        """Things with every place and colour that they have in the story."""
        while self.at < len(text):
            self.sentence()
            self.pairs |= {
                (of, v) for (relation, of), (v, _) in self.facts.items() if relation in ("place", "colour")
            }
            self.at += self.text.startswith(" ", self.at)
        self.found.sort()

    def sentence(self) -> None:
        told = [(event, m) for event, regex in EVENTS if (m := regex.match(self.text, self.at))]
        if told:
            event, match = max(told, key=lambda one: one[1].end())
            self.happen(event, match)
            self.at = match.end()
            return
        begun = [(form, m.end()) for form, regex in enumerate(TALK) if (m := regex.match(self.text, self.at))]
        assert begun, self.text[self.at :]
        form, end = max(begun)
        self.ask(form, end)
        while form < 2 and (more := MORE.match(self.text, self.at)):
            self.ask(form, more.end())

    def ask(self, form: int, begin: int) -> None:
        asked = [(name, match) for name, regex in ASKED[form] if (match := regex.match(self.text, begin))]
        assert asked, self.text[begin:]
        self.answer(*max(asked, key=lambda one: one[1].end()), form)

    def answer(self, name: str, match: re.Match[str], form: int) -> None:
        """What a question's answer must be, and that it is there."""
        kind = "recall" if name in WORDS.recall else "multi-hop" if name in WORDS.hops else "count"
        value, source, restated, pair = getattr(self, kind.replace("-", "_"))(name, match.groupdict().get("s", ""))
        replies = any_of(WORDS.replies[QUESTIONS[name].asks][form == 2])
        between = r"\. " if form == 2 else rf'(?:" {any_of(WORDS.lists["asked"])} [A-Z]\w+[a-z ]*\.)?(?:"|) "'
        said = f'{between}{any_of(WORDS.lists["oh"])}(?i:{replies}) (?P<a>[^,."]+)'
        reply = re.compile(said).match(self.text, match.end())
        assert reply and reply["a"] == value, (name, match[0], value, self.text[match.end() :][:90])
        self.found.append(Found(reply.start("a"), value, kind, source, pair))
        if isinstance(restated, str):
            self.count_told[restated] = reply.end("a")
        else:
            self.facts[restated] = self.facts[restated][0], reply.end("a")
        tail = TAIL.match(self.text, reply.end("a"))
        assert tail
        self.at = tail.end()

    def held_by(self, who: str) -> list[str]:
        return [
            thing for (relation, thing), (value, _) in self.facts.items() if (relation, value) == ("holder", who)
        ]

    def recall(self, name: str, subject: str) -> tuple[object, ...]:
        if name in ("lies", "own"):
            relation = {"lies": "place", "own": "brought"}[name]
            (key,) = [key for key, fact in self.facts.items() if key[0] == relation and fact[0] == subject]
            return key[1], self.facts[key][1], key, (key[1], subject)
        value, told = self.facts[name, subject]
        return value, told, (name, subject), (subject, value)

    def multi_hop(self, name: str, subject: str) -> tuple[object, ...]:
        """Two look-ups after one another."""

        def back(relation: str, value: str) -> tuple[str, str]:
            (key,) = [key for key, fact in self.facts.items() if key[0] == relation and fact[0] == value]
            return key

        more = 0
        if name in ("now with", "now at"):
            first = back("brought", subject)
            second = ({"now with": "holder", "now at": "place"}[name], first[1])
        elif name in ("colour at", "at brought"):
            first = back("place", subject)
            second = ("colour" if name == "colour at" else "brought", first[1])
        elif name == "colour with":
            (thing,) = self.held_by(subject)
            first, second, more = ("holder", thing), ("colour", thing), self.count_told[subject]
        else:
            first = ("holder", subject)
            who = self.facts[first][0]
            second = ("likes", who) if name == "holder likes" else back("brought", who)
        value = second[1] if name == "holder brought" else self.facts[second][0]
        return value, max(self.facts[first][1], self.facts[second][1], more), second, ("", "")

    def count(self, name: str, subject: str) -> tuple[object, ...]:
        if name == "hidden":
            number, subject = sum(relation == "place" for relation, _ in self.facts), "hidden"
        else:
            number = sum(len(self.held_by(who)) for who in subject.split(" and "))
        told = max(self.count_told.get(who, 0) for who in {subject, *subject.split(" and ")})
        return WORDS.numbers[number], told, subject, ("", "")

    def happen(self, event: str, match: re.Match[str]) -> None:
        r, facts = match.groupdict(), self.facts
        mark = max((match.end(role) for role in r), default=0)
        if not event:
            return
        for role, (relation, of) in FOLLOWS.items():
            if event != "own" and role in r and of in r and (role != "y" or event == "swap"):
                value, told = facts[relation, r[of]]
                assert value == r[role], match[0]
                if match.start(of) < match.start(role):
                    pair = (r[of], value)
                    self.found.append(Found(match.start(role), value, "story", told, pair))
                    facts[relation, r[of]] = value, match.end(role)
        t, x, y = (r.get(role, "") for role in "txy")
        if event in ("own", "bring"):
            facts["holder", t], facts["colour", t] = (x or y, mark), (r["k"], mark)
            self.count_told[x or y] = mark
            if event == "own":
                facts["brought", t] = x, mark
        elif event in ("give", "hide", "swap", "find"):
            del facts["place" if event == "find" else "holder", t]
            if event == "hide":
                facts["place", t], facts["hider", t] = (r["q"], mark), (x, mark)
            else:
                facts["holder", t] = y, mark
            if event == "give":
                facts["giver", t] = x, mark
            if event == "swap":
                facts["holder", r["u"]] = x, mark
            else:
                changed = {"give": (x, y), "hide": (x, "hidden"), "find": (y, "hidden")}[event]
                self.count_told.update(dict.fromkeys(changed, mark))
        elif event == "move":
            facts["place", t] = r["q"], mark
        elif event in ("like", "turn"):
            facts["likes", x] = r["n"], mark
        elif event == "treat":
            facts["likes", x] = r["f"], mark
        elif event == "play":
            facts["holder", t] = x, mark
        elif event == "look":
            facts["colour", t] = r["c"], mark
