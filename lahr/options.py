"""Command lines from dataclasses: every field of a configuration is an option, filled by the preset.

What cannot be used ends in one line on standard error and exit status 2.
"""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import tyro

from lahr.config import ConfigError, Preset, preset

Options = TypeVar("Options")
DEFAULT_PRESET = "quick"


def parse(kind: type[Options], argv: Sequence[str], fill: Callable[[str, Preset], Options], prog: str) -> Options:
    """`kind` from the command line, its defaults made by `fill(name, preset)` from the preset that `argv` names.

    Raises `ConfigError`, in one line, for what is unknown, ill-typed or out of range.
    """
    argv = [re.sub(r"^--data(?==|$)", "--data.corpus", argument) for argument in argv]
    name = _preset_name(argv)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind,
                args=argv,
                default=fill(name, preset(name)),
                prog=prog,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise  # --help has printed itself
        raise ConfigError(_one_line(errors.getvalue())) from None


def fail(error: Exception) -> NoReturn:
    """Prints the error as one line and leaves with status 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2)


def _preset_name(argv: Sequence[str]) -> str:
    """The preset on the command line, the last one if there are several, as for every other option."""
    name = DEFAULT_PRESET
    for given, following in zip(argv, [*argv[1:], ""], strict=True):
        if given == "--preset":
            name = following
        elif given.startswith("--preset="):
            name = given.removeprefix("--preset=")
    return name


def _one_line(boxed: str) -> str:
    """The parser's framed message as one sentence: what was given, and what it may have meant."""
    text = " ".join(re.sub(r"[│╭╮╰╯─┌┐└┘]+", " ", boxed).split())
    text = re.split(r" (?:Argument helptext:|For full helptext)", text)[0]
    text = re.sub(r"^(Unrecognized options|Value error|Invalid choice|Parsing error) (?=[A-Zi])", "", text)
    # The nearest option comes with all of its help; its name and type are enough.
    return re.sub(r"Perhaps you meant: (\S+ \S+).*", r"did you mean \1? (--help lists them all)", text)
