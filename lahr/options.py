"""Command lines from dataclasses: every field of a configuration is an option, filled by the preset.

What cannot be used ends in one line on standard error and exit status 2.
"""

import contextlib
import difflib
import io
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from lahr.errors import ConfigError, StorageError, nearest
from lahr.presets import Preset, preset

Options = TypeVar("Options")
DEFAULT_PRESET = "quick"
_TYPES = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "STR": "text",
    "{None}|INT": "a whole number or None",
    "{None}|FLOAT": "a number or None",
    "[STR {None}|INT|FLOAT|{True,False}|STR [...]]": "names, each followed by its value",
}


def parse(
    kind: type[Options],
    argv: Sequence[str],
    fill: Callable[[str, Preset], Options] | None,
    prog: str,
    usual: str = DEFAULT_PRESET,
) -> Options:
    """`kind` from the command line; where `fill` is given, its defaults are `fill(name, preset)` of the preset that
    `argv` names, or of the `usual` one.

    Raises `ConfigError`, in one line, for what is unknown, ill-typed, missing or out of range.
    """
    argv = [re.sub(r"^--data(?==|$)", "--data.corpus", argument) for argument in argv]
    filled: dict[str, Any] = {}
    if fill is not None:
        name = preset_name(argv, usual)
        filled["default"] = fill(name, preset(name))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=argv, prog=prog, config=(tyro.conf.AvoidSubcommands,), **filled)
    except SystemExit as exit_:
        if not exit_.code:
            raise  # --help has printed itself
        raise ConfigError(_one_line(errors.getvalue(), argv)) from None


def fail(error: Exception) -> NoReturn:
    """Prints the error as one line and leaves with status 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2)


def run(main: Callable[[list[str]], int], interrupted: str) -> NoReturn:
    """Leaves with the status of `main(arguments)`: 2, and one line, for what cannot be used, storage too; 130 on
    Ctrl-C."""
    try:
        sys.exit(main(sys.argv[1:]))
    except (ConfigError, StorageError) as error:
        fail(error)
    except OSError as error:  # a place that cannot be read or written, or a full disk
        if error.filename is None and error.strerror is None and not isinstance(error, NotADirectoryError):
            raise
        where = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        fail(ConfigError(f"{where}; mend that, or give another place, and run it again"))
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)


def preset_name(argv: Sequence[str], usual: str = DEFAULT_PRESET) -> str:
    """The preset on the command line, the last one if there are several, as for every other option."""
    name = usual
    for given, following in itertools.pairwise([*argv, ""]):
        if given == "--preset":
            name = following
        elif given.startswith("--preset="):
            name = given.removeprefix("--preset=")
    return name


def _one_line(boxed: str, argv: Sequence[str]) -> str:
    """The parser's framed message as one sentence: what was given, what is allowed, and what to do."""
    inside = re.sub(r"(?m)^[│╭╰ ][ ─]?|[│╮╯─-]+ *$", "", boxed)  # drawn in ASCII where the terminal has no more
    text = " ".join(" ".join(inside.splitlines()[1:]).split())  # without the frame's title
    text = re.split(r"(?: [─-]+)? (?:Argument helptext:|Perhaps you meant:|For full helptext)", text)[0]
    if unknown := re.match(r"Unrecognized options: ([^, ]+)", text):
        # The parser indents what it suggests by four, and the help of that by more.
        suggested = re.findall(r"(?m)^ {4}(--[a-z][\w.-]*)", inside)
        kind = "option" if unknown[1].startswith("-") else "argument"
        return f"unknown {kind} {unknown[1]}{_meant(unknown[1], suggested)}"
    if wrong := re.match(r"invalid choice '(.*)' for argument '(\S+)'. Expected one of \((.*?),?\)", text):
        allowed = re.findall(r"'(.*?)'", wrong[3])
        return f"{wrong[2]} is {wrong[1]!r}{nearest(wrong[1], allowed)}; it must be one of {', '.join(allowed)}"
    if ill_typed := re.match(r"Error parsing (--[\w.-]+): ", text):
        flag = ill_typed[1]
        wanted = re.search(rf"(?m)^ {{4}}{re.escape(flag)} (.+?) *$", inside)
        kind = re.sub(r"\[(\w+) \[\w+ \.\.\.\]\]", r"\1", wanted[1]) if wanted else ""
        return f"{flag} is {_given(flag, argv)}; it must be {_TYPES.get(kind, kind or 'of another type')}"
    if missing := re.match(r"The following arguments? (?:is|are) required: (.*)", text):
        return f"{missing[1].split(' ')[0].rstrip(',')} is missing; --help says what it is"
    if missing := re.match(r"Missing from [^:]*: (\S+) (.*?) ?\(required\)", text):
        return f"{missing[1]} is missing: {missing[2]}"
    # What a configuration itself says comes after the name of its part.
    return re.sub(r"^Error parsing \w+: ", "", text)


def _meant(given: str, suggested: Sequence[str]) -> str:
    """The suggested options, the nearest to `given` first, as a question."""
    if not suggested:
        return "; --help lists them all"

    def likeness(option: str) -> float:
        names = (option, option.rpartition(".")[2])
        return max(difflib.SequenceMatcher(a=given.lstrip("-"), b=name.lstrip("-")).ratio() for name in names)

    return f" (did you mean {' or '.join(sorted(suggested, key=likeness, reverse=True))}?); --help lists them all"


def _given(flag: str, argv: Sequence[str]) -> str:
    """The words that follow an option, where it stands last."""
    words = [word for argument in argv for word in (argument.split("=", 1) if argument[:2] == "--" else [argument])]
    names = [word.replace("_", "-") for word in words]
    after = words[len(names) - names[::-1].index(flag) :] if flag in names else []
    return repr(" ".join(itertools.takewhile(lambda word: word[:2] != "--", after)))
