"""What is varied: factors and their levels, and the extra cells that stand beside a factorial."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lahr.config import TrialConfig
from lahr.errors import check
from lahr.model_config import ModelConfig
from lahr.plain import check_plain, read_field
from sweeps.analysis.contrasts import Levels

Level = float | int | str | bool | None
_RESERVED = ("base", "trial", "cell", "seed", "status", "val_loss", "synergy")
_SHARED = ("data.", "model.vocab_size", "model.max_seq_len", "seed")
"""Fields that decide which data a cell reads, and in which order: cells that differ there would not be paired."""


@dataclass(frozen=True)
class Factor:
    """Something varied: a field of the configuration, at two or more values."""

    name: str
    field: str
    """Where it lies: `model.mod_capacity`, `train.lr`, `model.options.activation`."""
    levels: tuple[Level, ...]
    """The first is what the others are compared with."""
    within: str = ""
    """The factor that it is nested in: it is varied only where that one is not at its first level."""
    switch: bool = False
    """Off at its first level and on at the others: cells say `mod` where it is at the second. Only these two enter the
    effects; further ones, `mod=0.25`, are compared with `base`."""
    names: tuple[str, ...] = ()
    """What cells call each level, where its value says too little."""

    def check(self) -> None:
        """`ConfigError` for a factor that makes no sense. Not as it is made: a study's file makes it where it is
        imported, and nobody could say it in one line there."""
        check(
            isinstance(self.levels, (tuple, list)),
            f"factor {self.name} has the levels {self.levels!r}; give a tuple, such as ({self.levels!r}, …)",
        )
        check(
            re.fullmatch(r"[a-z][a-z0-9_]*", self.name) is not None and self.name not in _RESERVED,
            f"a factor is named {self.name!r}; use small letters, digits and '_', a letter first, and none of "
            f"{', '.join(_RESERVED)}",
        )
        check_plain(
            f"the levels of factor {self.name}", {f"level_{i}": level for i, level in enumerate(self.levels)}
        )
        check(
            not self.field.startswith(_SHARED),
            f"factor {self.name} varies {self.field}, which decides the data that all cells read: nothing would be "
            "paired; vary it from sweep to sweep",
        )
        check(
            len(self.levels) >= 2,
            f"factor {self.name} has the levels {_listed(self.levels)}; it takes two at least: one that the others are "
            "compared with, and one of these",
        )
        check(
            len(self.names) in (0, len(self.levels)),
            f"factor {self.name} has {len(self.levels)} levels and {len(self.names)} names for them; give each one",
        )
        for name in self.names:
            check(
                re.fullmatch(r"[A-Za-z0-9._-]+", name) is not None,
                f"factor {self.name} calls a level {name!r}; use letters, digits and '._-'",
            )
        same = [(a, b) for i, a in enumerate(self.levels) for b in self.levels[:i] if a == b and not _differ(a, b)]
        check(
            not same,
            f"factor {self.name} has equal levels: {_listed(self.levels)}; give each once"
            + (f", and {self.levels[0]} is the one that turns it off" if self.switch else ""),
        )
        check(
            len(set(self.labels)) == len(self.labels),
            f"levels of factor {self.name} would have one name in cells: {', '.join(self.labels[1:])}",
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """What a cell's name says of each level."""
        return tuple(self.label(level) for level in self.levels)

    def label(self, level: Level) -> str:
        """What a cell's name says of this factor at that level; nothing at its first."""
        place = next(i for i, own in enumerate(self.levels) if own == level and not _differ(own, level))
        if place == 0:
            return ""
        return self.name if self.switch and place == 1 else f"{self.name}={self.called(place)}"

    def called(self, place: int) -> str:
        """The name of the level at that place."""
        return self.names[place] if self.names else said(self.levels[place])

    def to_analysis(self, tested: bool = False) -> Levels:
        """As the analysis sees it; with `tested` a switch has only the levels that enter the effects."""
        first = "OFF" if self.switch else f"{self.name}={self.called(0)}"
        return Levels(self.name, self.labels[:2] if tested and self.switch else self.labels, self.within, first)


def checked(factors: Any) -> tuple[Factor, ...]:
    """The factors of a study, where each makes sense by itself; else `ConfigError`."""
    check(
        isinstance(factors, (tuple, list)) and all(isinstance(factor, Factor) for factor in factors),
        f"FACTORS is a {type(factors).__name__}; it must be a tuple of factors: (Factor(…), Factor(…))",
    )
    for factor in factors:
        factor.check()
    return tuple(factors)


@dataclass(frozen=True)
class Extra:
    """A cell beside the factorial: one of its cells with some fields at other values."""

    corner: str
    """The cell it is made from: `base`, `mod`, …"""
    fields: tuple[tuple[str, Any], ...]
    """Where they lie, and their values, in the order they were given."""
    label: str = ""
    """Its name, if not the cell's with the fields."""
    against: tuple[str, ...] = ()
    """The cells it is compared with, if not the one that it is made from."""

    @staticmethod
    def parse(text: str) -> "Extra":
        """From `cell:field=value,field=value`, fields of the model or, with their place, others (`train.lr=1e-3`);
        `ConfigError` for what is unknown or ill-typed."""
        corner, colon, assignments = text.partition(":")
        pairs = [assignment.strip().partition("=") for assignment in assignments.split(",")]
        check(
            bool(colon and corner) and all(name and equals and value for name, equals, value in pairs),
            f"--extra {text!r} is not of the form cell:field=value,field=value, such as mod:mod_router=random",
        )
        fields = []
        for name, _, value in pairs:
            name = name if "." in name and not name.startswith("options.") else f"model.{name}"
            fields.append((name, value))
        Extra(corner, tuple(fields)).check()
        return Extra(corner, tuple((name, _read(name, value)) for name, value in fields))

    def check(self) -> None:
        """`ConfigError` for a cell that would read other data."""
        for name, _ in self.fields:
            check(
                not name.startswith(_SHARED),
                f"--extra {self.name} sets {name}, which would change the data that the cell reads, and nothing would "
                "be paired; leave it out",
            )

    @property
    def name(self) -> str:
        """The cell's name."""
        short = (f"{name.removeprefix('model.')}={value}" for name, value in self.fields)
        return self.label or "~".join([self.corner, *short])

    @property
    def compared(self) -> tuple[str, ...]:
        """The cells that it is compared with."""
        return self.against or (self.corner,)


def said(level: Level) -> str:
    """A level in a cell's name: numbers short, of a function's place its own name, no letter that a path lacks."""
    if isinstance(level, bool) or level is None:
        return str(level).lower()
    text = str(level) if not isinstance(level, float) else f"{level:g}".replace("e+0", "e").replace("e+", "e")
    text = text.rpartition(":")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text) or "empty"


def levels_of(factors: tuple[Factor, ...], labels: Mapping[str, str]) -> dict[str, Level]:
    """Field → level of the cell with those labels."""
    return {factor.field: factor.levels[factor.labels.index(labels[factor.name])] for factor in factors}


def _read(name: str, value: str) -> Any:
    part, _, field = name.partition(".")
    kinds = {"model": ModelConfig, "train": TrialConfig.__dataclass_fields__["train"].type}
    check(part in kinds, f"--extra sets {name}; fields of an extra cell begin with {' or '.join(kinds)}")
    return read_field(kinds[part], field, value)  # type: ignore[arg-type]


def _differ(a: Level, b: Level) -> bool:
    """Whether two equal values are of kinds that differ: True is 1, and yet no number."""
    return isinstance(a, bool) != isinstance(b, bool)


def _listed(levels: tuple[Level, ...]) -> str:
    return ", ".join(map(str, levels)) or "(none)"
