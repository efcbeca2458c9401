"""The words and wordings of the `stories` corpus. A change here changes every story."""

from lahr.data.story_grammar import Question, Setting, Words


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(","))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _manners(text: str) -> tuple[str, ...]:
    """Phrases behind other words, or nothing."""
    return ("", *(f" {phrase}" for phrase in _phrases(text)))


def _leads(text: str, mark: str = " ") -> tuple[str, ...]:
    """Phrases before other words, or nothing."""
    return ("", *(f"{phrase}{mark}" for phrase in _phrases(text)))


def _setting(name: str, things: str, places: str) -> Setting:
    return Setting(name, _words(things), _phrases(places))


def _syllables(consonants: str, vowels: str) -> tuple[str, ...]:
    return tuple(consonant + vowel for consonant in consonants for vowel in vowels)


MANNERS = (
    "slowly, quickly, quietly, gladly, proudly, gently, kindly, sadly, boldly, calmly, shyly, happily, softly, "
    "bravely, neatly, nicely, loudly, lazily, eagerly, wisely, firmly, warmly, coolly, meekly"
)
REASONS = (
    "at once, for fun, as a joke, with joy, with care, by chance, in time, once more, for luck, in play, with love, "
    "with ease, in haste, for now, with pride, in turn, by hand, in peace, with glee, in style"
)

WORDS = Words(
    names=(
        _syllables("BDFHJKLMNRSTVZ", "aeio"),
        _syllables("bdklmnrstv", "aeio"),
        _syllables("bdklmnrstvz", "aeio"),
    ),
    settings=(
        _setting(
            "park",
            "ball kite whistle balloon drum robot hoop puppet",
            "under the bench, behind the oak, in the sandbox, by the pond, "
            "near the swings, under the slide, behind the hedge, in the bushes",
        ),
        _setting(
            "beach",
            "shell bucket towel boat net flag spade float",
            "under the pier, behind the dune, in the sand, by the tent, "
            "near the rocks, under the deckchair, behind the wall, in the cave",
        ),
        _setting(
            "farm",
            "rope basket bell carrot boot sack ladder brush",
            "under the cart, behind the barn, in the hay, by the gate, "
            "near the well, under the trough, behind the tractor, in the shed",
        ),
        _setting(
            "house",
            "cup spoon book jar pan cake candle pillow",
            "under the bed, behind the door, in the box, by the stove, "
            "near the chair, under the rug, behind the curtain, in the drawer",
        ),
    ),
    colours=_words("red blue green yellow purple pink white black"),
    foods=_words("plums pears cherries nuts soup bread cheese honey"),
    numbers=_words("none one two three four five six"),
    times=_leads(
        "Then, Soon, Later, Next, Again, Still, Today, Now, Once, Here, So, At noon, At last, By noon, By then, "
        "Just then, Right then, In time, At two, At four, At ten, By chance, That day"
    ),
    lists={
        "start": _leads(
            "One day, Once upon a time, One warm day, On a cold day, Long ago, Last week, Not long ago, One morning, "
            "In spring, In summer, One dry day, Years ago, One fine day"
        ),
        "met": _phrases("went to, met at, came to, played at, spent a day at, ran to, walked to, rode to, were at"),
        "other": _words(
            "Mum Dad Grandma Grandpa Nana Aunty Uncle Granny Anna Tom Mary Paul Ruth Peter Jane Max Emma Jack Ella "
            "Sam Ben Kate Luke Rose Mark Lucy Joe Amy Will Nora Fred Ivy"
        ),
        "manner": _manners(MANNERS),
        "why": _manners(REASONS),
        "how": _manners(f"{MANNERS}, {REASONS}"),
        "did": _phrases(
            "played with, held up, shook, cleaned, hugged, painted, spun, dropped, turned over, danced with, "
            "ran around with, sat beside, sang to, tapped, drew, showed off, washed, kissed, kicked, lifted, "
            "pushed, rubbed, rolled, waved"
        ),
        "mood": _words(
            "happy tired excited hungry surprised sleepy proud sad cold warm strong lucky silly brave calm bored "
            "clever grumpy shy free safe glad weak lost"
        ),
        "look": _words(
            "little fat funny noisy friendly lazy thin pretty wet dirty clean young big small tall dark "
            "tiny quiet soft fast slow strange brown grey"
        ),
        "shade": _words("lovely nice fine bright soft deep pale warm cool strong rich light"),
        "animal": _words(
            "dog cat bird mouse frog bee duck fox goat hen pig cow horse fly bear owl wolf snail crow deer bug "
            "swan rat lamb"
        ),
        "motion": _words(
            "slept played waited sang danced rested jumped stood ran walked cried hopped fell smiled yawned sat "
            "ate drank coughed rose swam hummed looked hid"
        ),
        "weather": _phrases(
            "the sun came out, a wind blew, it rained, a cloud went by, it grew warm, the sky was clear, "
            "leaves fell down, it was quiet, a bell rang, it got cold, fog came up, the light was soft"
        ),
        "snack": _words("water milk tea juice bread soup cake fruit toast rice"),
        "taste": _words("hot cold fresh sweet good warm more some fine rich plain nice great"),
        "tell": _leads(
            "Tell me, Please, Say, Children, Listen, Well, Friends, Hey, Oh, Hello, Quick, Dear me, Kids, Look",
            ", ",
        ),
        "and": ("", "And", "But"),
        "oh": _leads(
            "Oh, Well, Hm, Look, Yes, Easy, Wait, Right, Ah, Sure, Hey, Fine, Aha, Good, Hush, Yeah, True, Why, Now",
            ", ",
        ),
        "asked": _words("asked called cried sang said begged yelled sighed hummed joked smiled sobbed"),
        "wondered": _phrases("asked, wondered, guessed, forgot, had to ask, thought about, learned, found out"),
        "said": _words(
            "said answered shouted called laughed replied cried sang yelled sighed hummed joked smiled yawned"
        ),
    },
    events={
        "own": _lines("""
            {x} brought a {look} {k} {t}.
            {x} came with a {k} {t}.
            {x} carried a {look} {k} {t}.
            {x} had a {look} {k} {t}.
            {x} held a {look} {k} {t}.
            {x} took a {k} {t}.
            {x} owned a {k} {t}.
            {x} chose a {look} {k} {t}.
        """),
        "give": _lines("""
            {x}{manner} gave the {t} to {y}{why}.
            {x}{manner} handed the {t} to {y}{why}.
            {x} let {y} have the {t}{why}.
            {y}{manner} got the {t} from {x}{why}.
            {y}{manner} took the {t}, a gift from {x}{why}.
            {y} liked the {t}, which was {c}, and got it from {x}{why}.
            the {t} went from {x} to {y}{why}.
            the {t}, which was {c}, went from {x} to {y}{why}.
        """),
        "hide": _lines("""
            {x}{manner} hid the {t} {q}{why}.
            {x}{manner} put the {t} {q}{why}.
            the {t} was taken by {x} and hidden {q}{why}.
            the {t} was with {x}, who{manner} hid it {q}{why}.
            the {t} of {x} was{manner} hidden {q}{why}.
            the {t}, still {c}, was hidden by {x} {q}{why}.
        """),
        "move": _lines("""
            {y}{manner} took the {t}, which was {p}, and put it {q}{why}.
            {y} saw the {t} {p} and{manner} laid it {q}{why}.
            the {t} was {p}, but {y}{manner} put it {q}{why}.
            the {t} lay {p} until {y}{manner} laid it {q}{why}.
        """),
        "find": _lines("""
            {y}{manner} found the {t} {p}{why}.
            {y}{manner} took the {t} from its place {p}{why}.
            {y} wanted the {t} and{manner} got it {p}{why}.
            {y} saw the {t}, so {c}, and took it from its place {p}{why}.
            the {t} was found {p} by {y}{why}.
            the {t} lay {p} until {y}{manner} took it{why}.
        """),
        "swap": _lines("""
            {x}{manner} swapped the {t} for the {u} that {y} had{why}.
            {x}{manner} traded the {t} for the {u} of {y}{why}.
            the {t} went from {x} to {y} for the {u}{why}.
            the {t} of {x} and the {u} of {y} were swapped{why}.
            for the {t}, {x}{manner} got the {u} from {y}{why}.
            with the {t}, {x}{manner} paid for the {u} of {y}{why}.
        """),
        "play": _lines("""
            {x}{manner} {did} the {t}{why}.
            {x}, {mood} as ever, {did} the {t}{why}.
            the {t} was with {x}, who{manner} {did} it{why}.
            the {t} of {x} was {c}, and {y} {did} it{why}.
            the {t} of {x} was {look} and {c}{why}.
        """),
        "look": _lines("""
            {y}{manner} saw that the {t} was {c}{why}.
            {y} said that the {t} was a {shade} {c}{why}.
            the {t} looked {look}, but still {c}{why}.
            the {t} was {look}, and {y} liked that it was {c}{why}.
        """),
        "bring": _lines("""
            {other}{manner} brought a {k} {t} for {y}{why}.
            {other}{manner} gave a new {k} {t} to {y}{why}.
            a {k} {t} came by post, and {y} got it{why}.
            {y}{manner} got a {k} {t} from {other}{why}.
        """),
        "like": _lines("""
            {x}{manner} said that the best food was {n}{why}.
            {x} had a favourite food, {n}.
            {x} {said}, "I like {n} best."
            {x}{manner} ate {n} and liked it best{why}.
        """),
        "turn": _lines("""
            {x} was tired of {f} and now liked {n} best{why}.
            {x} had had too much {f} and took {n} as the new best food{why}.
            {x}{manner} left the {f} and chose {n} as the best food{why}.
            {x} {said}, "I like {f} no more. I like {n} best."
        """),
        "treat": _lines("""
            {other} knew what {x} liked best and{manner} brought {f}{why}.
            {x} was {mood} and{manner} ate the best food, {f}{why}.
            for {x}, {other}{manner} made the favourite food, {f}{why}.
            {x} had a bit of the best food, {f}{why}.
        """),
    },
    asides=_lines("""
        a {look} {animal} {motion} {q}.
        a {look} {animal} came by and {motion}.
        {y} felt {mood} and {motion}{why}.
        {y} saw a {look} {animal} {q}.
        {other} was {mood} and {motion} {q}.
        {y} said, "I feel {mood}."
        {weather}, and {y} {motion}.
        {y} and {other} {motion} {q}.
    """),
    breaks=_lines("""
        The children had {taste} {snack}.
        {other} brought {taste} {snack}.
        They shared {taste} {snack}.
        Everybody had {taste} {snack}.
        {other} and {other} {motion}.
        Nobody was {mood} yet.
        There was {taste} {snack} for all.
    """),
    ends=_lines("""
        It was time to go home.
        The day was over.
        They all went home.
        Everybody was tired and went to bed.
        That was the end of the day.
        They said goodbye.
    """),
    kept=_lines("""
        The {t} was with {x}.
        The {t} stayed with {x}.
        The {t} went home with {x}.
        The {t} ended up with {x}.
        The {t} was kept by {x}.
        The {t} was held by {x}.
    """),
    left=_lines("""
        The {t} was {p}.
        The {t} stayed {p}.
        The {t} was left {p}.
        The {t} lay {p}.
        The {t} slept {p}.
        The {t} was lost {p}.
    """),
    recall={
        "holder": Question(
            "who",
            _phrases("who has the {s}?, who holds the {s}?, who keeps the {s}?, the {s} is with whom?"),
            _phrases("who had the {s}, who held the {s}, who kept the {s}, who carried the {s}"),
        ),
        "place": Question(
            "where",
            _phrases("where is the {s}?, where lies the {s}?, where was the {s} put?, where is the {s} hidden?"),
            _phrases("where the {s} was, where the {s} lay, where the {s} was hidden, where to find the {s}"),
        ),
        "colour": Question(
            "colour",
            _phrases("what colour is the {s}?, which colour has the {s}?, how is the {s} painted?"),
            _phrases("what colour the {s} was, which colour the {s} had, how the {s} was painted"),
        ),
        "brought": Question(
            "who",
            _phrases("who brought the {s}?, who had the {s} first?, who came with the {s}?"),
            _phrases("who brought the {s}, who had the {s} first, who came with the {s}"),
        ),
        "hider": Question(
            "who",
            _phrases("who hid the {s}?, who hid the {s} last?, who was last to hide the {s}?"),
            _phrases("who hid the {s} last, who was last to hide the {s}"),
        ),
        "giver": Question(
            "who",
            _phrases("who gave away the {s}?, who gave the {s} away last?, who was last to give the {s}?"),
            _phrases("who gave the {s} away last, who was last to give the {s}"),
        ),
        "likes": Question(
            "food",
            _phrases("what does {s} like best?, what shall {s} eat?, what may I cook for {s}?"),
            _phrases("what {s} liked best, what to cook for {s}, what {s} should eat"),
        ),
        "lies": Question(
            "thing",
            _phrases("what is {s}?, what lies {s}?, what is hidden {s}?, what was put {s}?"),
            _phrases("what was hidden {s}, what was {s}, what lay {s}"),
        ),
        "own": Question(
            "thing",
            _phrases("what did {s} bring?, what had {s} first?, what did {s} come with?"),
            _phrases("what {s} brought, what {s} had first, what {s} came with"),
        ),
    },
    hops={
        "now with": Question(
            "who",
            _phrases("who has what {s} brought?, who holds what {s} brought?, who has what {s} had first?"),
            _phrases("who had what {s} brought, who held what {s} had first"),
        ),
        "now at": Question(
            "where",
            _phrases("where is what {s} brought?, where lies what {s} had first?, where is what {s} had first?"),
            _phrases("where to find what {s} brought, where to find what {s} had first"),
        ),
        "colour at": Question(
            "colour",
            _phrases("what colour is the thing {s}?, which colour lies {s}?, what colour is hidden {s}?"),
            _phrases("what colour the thing {s} was, which colour lay {s}"),
        ),
        "colour with": Question(
            "colour",
            _phrases("what colour has {s} in hand?, which colour does {s} hold?, what colour is with {s}?"),
            _phrases("what colour {s} had in hand, which colour {s} held"),
        ),
        "holder likes": Question(
            "food",
            _phrases("what does the one with the {s} like best?, what shall the one with the {s} eat?"),
            _phrases("what the one with the {s} liked best, what to cook for the one with the {s}"),
        ),
        "holder brought": Question(
            "thing",
            _phrases("what did the one with the {s} bring?, what had the one with the {s} first?"),
            _phrases("what the one with the {s} brought, what the one with the {s} had first"),
        ),
        "at brought": Question(
            "who",
            _phrases("who brought what is {s}?, who had first what lies {s}?, who came with what is {s}?"),
            _phrases("who brought what was {s}, who came with what lay {s}"),
        ),
    },
    counts={
        "has": Question(
            "number",
            _phrases("how many things has {s}?, how many things are with {s}?, how many does {s} have?"),
            _phrases("how many things {s} had, how many things were with {s}"),
        ),
        "have": Question(
            "number",
            _phrases("how many things have {s}?, how many are with both {s}?, how many do {s} have?"),
            _phrases("how many things {s} had in all, how many things were with both {s}"),
        ),
        "hidden": Question(
            "number",
            _phrases("how many things are hidden?, how many things lie hidden?, how many are with nobody?"),
            _phrases("how many things were hidden, how many things lay hidden, how many were with nobody"),
        ),
    },
    replies={
        "who": (
            _phrases("it is, it must be, I think it is, I saw it was, ask, that would be, I say, it has to be"),
            _phrases("It was, That was, It had to be, The answer was, It was no one but"),
        ),
        "where": (
            _phrases("it is, look, I saw it, you will find it, I think it is, go and look, it must be, try"),
            _phrases("It was, It lay, It had to be, The answer was, You could find it"),
        ),
        "colour": (
            _phrases("it is, I think it is, it looks, I am sure it is, it must be, I say, that is, it has to be"),
            _phrases("It was, It looked, It had to be, The answer was, Of course it was"),
        ),
        "thing": (
            _phrases("it is the, I think it is the, that is the, it must be the, I say the, I saw it was the"),
            _phrases("It was the, That was the, It had to be the, The answer was the, Of course it was the"),
        ),
        "food": (
            _phrases("it is, I think it is, that would be, nothing but, it must be, I say, always, take"),
            _phrases("It was, That was, It had to be, The answer was, Of course it was"),
        ),
        "number": (
            _phrases("I count, the answer is, it must be, I see, that makes, I say, I can count, I think it is"),
            _phrases("It was, That made, It had to be, The answer was, You could count"),
        ),
    },
)
