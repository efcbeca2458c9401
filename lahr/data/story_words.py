"""The words of the `stories` corpus. A change here changes every story."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """Where a story plays, and what only this place has."""

    name: str
    things: tuple[str, ...]
    """What the children hold, hide and swap."""
    places: tuple[str, ...]
    """Where a thing can be hidden."""


@dataclass(frozen=True)
class Words:
    """Everything the grammar picks from. No list holds a word twice."""

    names: tuple[tuple[str, ...], tuple[str, ...]]
    """A name's two syllables. Together they are more names than a small vocabulary has room for."""
    settings: tuple[Setting, ...]
    colours: tuple[str, ...]
    times: tuple[str, ...]
    """What a sentence may begin with; the empty one leaves it out."""
    manners: tuple[str, ...]
    """How something is done; the empty one leaves it out."""
    moods: tuple[str, ...]
    looks: tuple[str, ...]
    animals: tuple[str, ...]
    motions: tuple[str, ...]
    said: tuple[str, ...]
    thanks: tuple[str, ...]
    play: tuple[tuple[str, str], ...]
    """What is done with a thing: a verb before it, and the words after it which that verb alone takes."""
    use: tuple[tuple[str, str], ...]
    """More of the same."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(","))


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((verb, rest) for verb, _, rest in (phrase.partition(" ") for phrase in _phrases(text)))


def _syllables(consonants: str, vowels: str) -> tuple[str, ...]:
    return tuple(consonant + vowel for consonant in consonants for vowel in vowels)


WORDS = Words(
    names=(_syllables("BDGKLMNPRSTZ", "aeio"), _syllables("bdklmnrstv", "aio")),
    settings=(
        Setting(
            "park",
            _words("ball kite whistle balloon drum robot"),
            _phrases("under the bench, behind the oak, in the sandbox, by the pond, near the swings"),
        ),
        Setting(
            "beach",
            _words("shell bucket towel boat net flag"),
            _phrases("under the pier, behind the dune, in the sand, by the tent, near the rocks"),
        ),
        Setting(
            "farm",
            _words("rope basket bell carrot boot sack"),
            _phrases("under the cart, behind the barn, in the hay, by the gate, near the well"),
        ),
        Setting(
            "house",
            _words("cup spoon book jar pan cake"),
            _phrases("under the bed, behind the door, in the box, by the stove, near the chair"),
        ),
    ),
    colours=_words("red blue green yellow purple pink white black"),
    times=(
        "",
        *_words("Then Soon Later Next Suddenly Finally Again Still Outside Today Now Once"),
        *_phrases("At noon, After that, By chance"),
    ),
    manners=(
        "",
        *_words("slowly quickly quietly gladly proudly gently bravely kindly sadly boldly calmly shyly"),
        *_words("gravely neatly nicely"),
    ),
    moods=_words(
        "happy tired excited hungry surprised sleepy proud sad cold warm strong lucky silly brave calm lost "
        "free safe bored glad weak clever grumpy shy"
    ),
    looks=_words(
        "little fat funny noisy friendly lazy thin pretty angry wet dirty clean young old big small "
        "tall dark tiny quiet soft fast slow strange"
    ),
    animals=_words(
        "dog cat bird mouse frog bee duck fox goat hen pig cow horse fly bear owl "
        "ant wolf snail crow deer bug swan rat"
    ),
    motions=_words(
        "slept played waited sang danced rested jumped stood ran walked cried ate hopped fell smiled hid "
        "yawned drank coughed sat rose swam spun hummed"
    ),
    said=_words("said answered whispered shouted called laughed"),
    thanks=_phrases("Thank you, Thanks, How nice, What fun"),
    play=_pairs(
        "threw up, spun around, rolled over, pushed along, held tight, shook hard, turned round, kicked away, "
        "pulled close, built again, broke apart, lifted high"
    ),
    use=_pairs(
        "washed clean, kept safe, dropped by mistake, carried home, painted twice, wrapped in paper, "
        "drew on paper, tied together, covered with leaves, bent a bit, cut in half, heard fall"
    ),
)
