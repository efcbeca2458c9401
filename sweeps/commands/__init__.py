"""What every study does when it is run: run, plan, status, report. A study adds its factors (`sweeps/ablation.py`).

Data flows one way: design → pending → schedule → table → effects → report. Exit status: 0 finished, 1 some trials
failed, 2 bad input or storage that is away for good, 130 interrupted (the same command carries on from either).
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from lahr.options import parse
from lahr.options import run as run_main
from sweeps.commands.plan import plan
from sweeps.commands.report import write_report
from sweeps.commands.run import run
from sweeps.commands.status import status
from sweeps.engine.options import StudyOptions

COMMANDS: dict[str, Callable[[StudyOptions, Console], int]] = {
    "run": run,
    "plan": plan,
    "status": status,
    "report": write_report,
}


def execute(kind: type[StudyOptions], argv: list[str], program: str = "") -> int:
    """Runs the command that `argv` asks of a study; the exit status."""
    options = parse(kind, argv, kind.of, program or f"python sweeps/{Path(sys.argv[0]).name}", kind.PRESET)
    return COMMANDS[options.command](options, Console())


def main(kind: type[StudyOptions]) -> NoReturn:
    """The whole of a study's program."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    run_main(lambda argv: execute(kind, argv), "stopped; the same command carries on")
