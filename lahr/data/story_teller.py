"""The telling of a story: what happens, what is asked, and the answers.

`Teller.step` tells one event, aside or question after another. Each choice is made where the text shows it, from left
to right: the wording comes first, then every slot is chosen among what the facts and the slots before it allow. A
slot that a slot before it leaves one value for, as a thing does for who holds it, is an answer of kind `story`.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from lahr.data.documents import Answer
from lahr.data.story_facts import HIDDEN, Asked, Facts, groups
from lahr.data.story_grammar import Grammar, Wording

Pick = Callable[[int], int]
"""`pick(n)` is a choice among n ≥ 1 equally likely ones: a number from 0 to n - 1."""
Row = tuple[str, ...]
"""A value for each role of an event."""
T = TypeVar("T")

CHAPTERS = (1, 2, 3, 4, 6, 9, 12, 17)
"""After so many events, asides and questions a story can end; each length is as likely as the others."""
MOST_THINGS = 6
SPOKEN, SAID, WONDERED = range(3)
"""How a question is put: "...?" asked Tom. Tom asked, "...?" Tom wondered ...."""


class Teller:
    """A story while it is told, and its world: the facts, which are all that can happen next depends on."""

    def __init__(self, pick: Pick, grammar: Grammar, everything: bool) -> None:
        self.pick, self.grammar, self.words = pick, grammar, grammar.words
        self.worlds = grammar.all_worlds if everything else grammar.training_worlds
        self.parts: list[str] = []
        """The text so far."""
        self.size = self.mark = 0
        """Its length, and the end of the last slot that the world filled."""
        self.answers: list[Answer] = []
        self.beats = self.chapter = 0
        self.facts = Facts(grammar.words)

    def step(self) -> bool:
        """Tells the next part; False when it was the last."""
        if not self.parts:
            self._open()
        elif self.beats < CHAPTERS[self.chapter]:
            self.beats += 1
            self._write(" ")
            (self._change, self._event, self._talk)[self.pick(3)]()
        elif going_on := self.pick(len(CHAPTERS) - self.chapter):
            self._write(" ")
            self._fill(self.grammar.wordings["break"][going_on - 1], self.anything, True)
            self.chapter += 1
        else:
            self._close()
            return False
        return True

    def _write(self, text: str) -> None:
        self.parts.append(text)
        self.size += len(text)

    def _of(self, options: Sequence[T]) -> T:
        return options[self.pick(len(options))]

    def _tell(self, event: str, rows: Sequence[Row], upper: bool = True) -> Row:
        """Writes the event in one of its wordings, and which of the rows it was."""
        wordings = self.grammar.wordings[event]
        return self._fill(wordings[self.pick(len(wordings))], rows, upper)

    def _fill(self, wording: Wording, rows: Sequence[Row], upper: bool) -> Row:
        pick, parts, size = self.pick, self.parts, self.size
        text = wording.upper if upper else wording.lower
        parts.append(text)
        size += len(text)
        for column, options, relation, subject, literal in wording.slots:
            if column < 0:
                text = options[pick(len(options))]
            else:
                values = list(dict.fromkeys([row[column] for row in rows]))
                if len(values) > 1:
                    text = values[pick(len(values))]
                    rows = [row for row in rows if row[column] == text]
                else:
                    text = values[0]
                if relation:
                    facts, key = getattr(self.facts, relation), rows[0][subject]
                    self.answers.append(Answer(size, size + len(text), "story", facts[key][1]))
                    facts[key] = text, size + len(text)
                self.mark = size + len(text)
            parts.append(text)
            parts.append(literal)
            size += len(text) + len(literal)
        self.size = size
        return rows[0]

    def _lead(self, options: tuple[str, ...]) -> bool:
        """Writes what a sentence begins with; whether that is nothing."""
        lead = self._of(options)
        self._write(lead)
        return not lead

    # The opening and the end.

    def _open(self) -> None:
        lists, free = self.words.lists, list(self.words.names[0])
        self._write(self._of(lists["start"]))
        for end in (", ", " and ", " "):
            begin = self.size
            first = self._of(free)
            free.remove(first)  # so that an answer's first token can tell one name from another
            self._write(first)
            self._write(self._of(self.words.names[1]))
            self._write(self._of(self.words.names[2]))
            self.facts.names.append("".join(self.parts)[begin:])
            self._write(end)
        self._write(f"{self._of(lists['met'])} the ")
        self.world = self.worlds[self.pick(len(self.worlds))]
        self._write(f"{self.world.setting.name}.")
        for name in self.facts.names:
            self._write(" ")
            rows = [(name, *pair) for pair in self.world.colours if pair[1] not in self.facts.colour]
            _, colour, thing = self._tell("own", rows)
            self.facts.holder[thing] = self.facts.brought[thing] = name, self.mark
            self.facts.colour[thing] = colour, self.mark
            self.facts.counts[name] = self.words.numbers[1], self.mark
        self.anything = [(name, place) for name in self.facts.names for place in self.world.setting.places]

    def _close(self) -> None:
        self._write(f" {self._of(self.words.ends)}")
        for thing in self.facts.colour if self.chapter else ():
            self._write(" ")
            if thing in self.facts.holder:
                self._tell("kept", [(thing, self.facts.holder[thing][0])])
            else:
                self._tell("left", [(thing, self.facts.place[thing][0])])

    # Events.

    def _change(self) -> None:
        """What changes who has what and where the rest lies."""
        events = [self._give, self._hide] if self.facts.holder else []
        if len({name for name, _ in self.facts.holder.values()}) > 1:
            events.append(self._swap)
        if self.facts.place:
            events += [self._find, self._move]
        if len(self.facts.colour) < MOST_THINGS and self.chapter:
            events.append(self._bring)
        upper = self._lead(self.words.times)
        events[self.pick(len(events))](upper)

    def _event(self) -> None:
        """What tells of the things as they are, and of tastes."""
        events = [self._aside, self._look]
        if len(self.facts.likes) < len(self.facts.names):
            events.append(self._like)
        if self.facts.holder:
            events.append(self._play)
        if self.facts.likes:
            events += [self._treat, self._turn]
        upper = self._lead(self.words.times)
        events[self.pick(len(events))](upper)

    def _aside(self, upper: bool) -> None:
        self._tell("aside", self.anything, upper)

    def _free(self, thing: str) -> list[str]:
        """Where it can be put."""
        taken = {place for place, _ in self.facts.place.values()}
        return [place for place in self.world.places[thing] if place not in taken]

    def _give(self, upper: bool) -> None:
        rows = [
            (x, t, y, self.facts.colour[t][0])
            for t, (x, _) in self.facts.holder.items()
            for y in self.facts.names
            if y != x
        ]
        x, t, y, _ = self._tell("give", rows, upper)
        self.facts.holder[t], self.facts.giver[t] = (y, self.mark), (x, self.mark)
        self.facts.count(x, -1, self.mark)
        self.facts.count(y, 1, self.mark)

    def _hide(self, upper: bool) -> None:
        rows = [
            (x, t, q, self.facts.colour[t][0]) for t, (x, _) in self.facts.holder.items() for q in self._free(t)
        ]
        x, t, q, _ = self._tell("hide", rows, upper)
        del self.facts.holder[t]
        self.facts.place[t], self.facts.hider[t] = (q, self.mark), (x, self.mark)
        self.facts.count(x, -1, self.mark)
        self.facts.count(HIDDEN, 1, self.mark)

    def _find(self, upper: bool) -> None:
        rows = [
            (y, t, p, self.facts.colour[t][0]) for t, (p, _) in self.facts.place.items() for y in self.facts.names
        ]
        y, t, *_ = self._tell("find", rows, upper)
        del self.facts.place[t]
        self.facts.holder[t] = y, self.mark
        self.facts.count(y, 1, self.mark)
        self.facts.count(HIDDEN, -1, self.mark)

    def _move(self, upper: bool) -> None:
        rows = [
            (y, t, p, q) for t, (p, _) in self.facts.place.items() for q in self._free(t) for y in self.facts.names
        ]
        _, t, _, q = self._tell("move", rows, upper)
        self.facts.place[t] = q, self.mark

    def _swap(self, upper: bool) -> None:
        held = self.facts.holder.items()
        rows = [(x, t, y, u) for t, (x, _) in held for u, (y, _) in held if x != y]
        x, t, y, u = self._tell("swap", rows, upper)
        self.facts.holder[t], self.facts.holder[u] = (y, self.mark), (x, self.mark)

    def _play(self, upper: bool) -> None:
        rows = [
            (x, t, self.facts.colour[t][0], y) for t, (x, _) in self.facts.holder.items() for y in self.facts.names
        ]
        x, t, *_ = self._tell("play", rows, upper)
        self.facts.holder[t] = x, self.mark

    def _look(self, upper: bool) -> None:
        rows = [(y, t, c) for t, (c, _) in self.facts.colour.items() for y in self.facts.names]
        _, t, c = self._tell("look", rows, upper)
        self.facts.colour[t] = c, self.mark

    def _bring(self, upper: bool) -> None:
        rows = [
            (*pair, y) for pair in self.world.colours if pair[1] not in self.facts.colour for y in self.facts.names
        ]
        k, t, y = self._tell("bring", rows, upper)
        self.facts.colour[t], self.facts.holder[t] = (k, self.mark), (y, self.mark)
        self.facts.count(y, 1, self.mark)

    def _like(self, upper: bool) -> None:
        rows = [(x, n) for x in self.facts.names if x not in self.facts.likes for n in self.words.foods]
        x, n = self._tell("like", rows, upper)
        self.facts.likes[x] = n, self.mark

    def _turn(self, upper: bool) -> None:
        rows = [(x, f, n) for x, (f, _) in self.facts.likes.items() for n in self.words.foods if n != f]
        x, _, n = self._tell("turn", rows, upper)
        self.facts.likes[x] = n, self.mark

    def _treat(self, upper: bool) -> None:
        x, f = self._tell("treat", [(x, f) for x, (f, _) in self.facts.likes.items()], upper)
        self.facts.likes[x] = f, self.mark

    # Questions.

    def _talk(self) -> None:
        """A question in speech, or wondered about, its answer, and perhaps more of them."""
        lists, form = self.words.lists, self.pick(3)
        if form == SPOKEN:
            self._write('"')
        else:
            self._lead(self.words.times)
            self._write(f"{self._of(lists['other'])} ")
            self._write(f'{self._of(lists["asked"])}, "' if form == SAID else f"{self._of(lists['wondered'])} ")
        asked = self._ask(form == WONDERED, form != WONDERED and self._lead(lists["tell"]))
        if form == WONDERED:
            self._write(". ")
            self._answer(asked, True, True)
            self._write(".")
            return
        if form == SPOKEN:
            self._write(f'" {self._of(lists["asked"])} ')
            self._write(self._of(lists["other"]))
            self._write(f'{self._of(lists["how"])}. "')
        else:
            self._write('" "')
        self._answer(asked, False, self._lead(lists["oh"]))
        self._write(f'," {self._of(lists["said"])} ')
        self._write(self._of([name for name in self.facts.names if name != asked.answer]))
        self._write(f"{self._of(lists['how'])}.")
        while more := self.pick(len(lists["and"])):
            self._write(f' "{lists["and"][more]} ')
            asked = self._ask(False, False)
            self._write('" "')
            self._answer(asked, False, self._lead(lists["oh"]))
            self._write('."')

    def _ask(self, indirect: bool, upper: bool) -> Asked:
        known = self.facts
        kind = known.recall if self.pick(2) else known.hops if self.pick(2) else known.how_many
        asked = self._of(self._of(self._of(groups(kind(), self.size))))
        question = self.grammar.questions[asked.relation]
        wording = self._of(question.indirect if indirect else question.direct)
        text = wording.replace("{s}", asked.subject)
        self._write(_capital(text) if upper else text)
        return asked

    def _answer(self, asked: Asked, indirect: bool, upper: bool) -> None:
        wording = self._of(self.words.replies[self.grammar.questions[asked.relation].asks][indirect])
        self._write(f"{_capital(wording) if upper else wording} ")
        start, self.size = self.size, self.size + len(asked.answer)
        self.parts.append(asked.answer)
        asked.facts[asked.key] = asked.facts[asked.key][0], self.size
        pair = (asked.subject, asked.answer)
        if asked.kind == "recall" and (pair in self.grammar.held_out or pair[::-1] in self.grammar.held_out):
            self.answers.append(Answer(start, self.size, "held-out"))
        else:
            self.answers.append(Answer(start, self.size, asked.kind, asked.source))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
