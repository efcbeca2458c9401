"""A design as a value: factors, cells, seed blocks and trials, to print, hash, compare and extend.

A full factorial of factors with an off level and one or more on levels. A cell is named by what is on: `base`,
`mod`, `mod+latent`. The first on level gives the corner of the 2^k factorial; a further one is named with its
value, `mod=0.25+latent`, and stands beside the corners. An extra cell is a corner with options of the model at other
values, `mod~mod_router=random`, to be compared with that corner. Seeds are blocks: every cell runs every seed.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lahr.config import TrialConfig
from lahr.errors import check, nearest
from lahr.model.flops import parameter_counts, training_flops_per_token
from lahr.model_config import ModelConfig
from lahr.plain import canonical_json, from_dict, read_field
from lahr.presets import with_levels

Level = float | int
_NOT_OPTIONS = {
    "mod_capacity": "--capacity",
    "latent_iterations": "--iterations",
    "vocab_size": "",
    "max_seq_len": "",
}
"""Fields of the model that no extra cell may set, with the option that sets a factor's levels."""


@dataclass(frozen=True)
class Factor:
    """Something varied: a field of the model, off at one value and on at one or more."""

    name: str
    field: str
    off: Level
    on: tuple[Level, ...]

    def __post_init__(self) -> None:
        check(bool(self.on), f"factor {self.name} has no on level; give at least one value of {self.field}")
        levels = (self.off, *self.on)
        check(
            len(set(levels)) == len(levels),
            f"factor {self.name} has the levels {', '.join(map(str, levels))}; each must be given once, "
            f"and {self.off} is the one that turns it off",
        )

    def label(self, level: Level) -> str:
        """What a cell's name says of this factor at that level; empty when it is off."""
        if level == self.off:
            return ""
        return self.name if level == self.on[0] else f"{self.name}={level:g}"


@dataclass(frozen=True)
class Extra:
    """A cell beside the factorial: a corner with some fields of the model at other values."""

    corner: str
    """The cell it is compared with: `base`, `mod`, …"""
    fields: tuple[tuple[str, Any], ...]
    """Names and values, in the order they were given."""

    @staticmethod
    def parse(text: str) -> "Extra":
        """From `corner:field=value,field=value`; `ConfigError` for what is unknown or ill-typed."""
        corner, colon, assignments = text.partition(":")
        pairs = [assignment.strip().partition("=") for assignment in assignments.split(",")]
        check(
            bool(colon and corner) and all(name and equals and value for name, equals, value in pairs),
            f"--extra {text!r} is not of the form cell:field=value,field=value, such as mod:mod_router=random",
        )
        for name, _, _ in pairs:
            check(
                name not in _NOT_OPTIONS,
                f"--extra {text!r} sets {name}, which "
                + (
                    f"is a factor of the study; give its levels with {_NOT_OPTIONS[name]}"
                    if _NOT_OPTIONS.get(name)
                    else "would change the data that the cell reads, and nothing would be paired; leave it out"
                ),
            )
        return Extra(corner, tuple((name, read_field(ModelConfig, name, value)) for name, _, value in pairs))

    @property
    def name(self) -> str:
        """The cell's name."""
        return "~".join([self.corner, *(f"{name}={value}" for name, value in self.fields)])


@dataclass(frozen=True)
class Cell:
    """One combination of levels."""

    name: str
    levels: Mapping[str, Level]
    """Field → level, for every factor."""
    on: Mapping[str, bool]
    """Factor's name → whether it is on."""
    corner: bool
    """Whether every factor that is on is at its first on level: the cell belongs to the 2^k factorial."""
    extra: Extra | None = None
    """What sets an extra cell apart from its corner."""


@dataclass(frozen=True)
class Trial:
    """One cell at one seed."""

    id: str
    cell: str
    seed: int
    levels: Mapping[str, Level]
    config: TrialConfig
    flops: float
    """Training FLOPs of the whole trial, by the closed form, every token running all passes."""


@dataclass(frozen=True)
class Design:
    """Factors, levels and the configuration they vary. Seeds extend it and are not part of its identity."""

    factors: tuple[Factor, ...]
    config: TrialConfig
    """Every factor off; the seed in it is not used."""
    content_hash: str
    """Of the data's tokens."""
    seeds: int
    """Seed blocks, numbered from 0."""
    extras: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        check(self.seeds >= 1, f"--seeds is {self.seeds}; give at least 1 (5 see large effects, 8 support a claim)")
        for cell in self.cells():  # every combination must be a valid model
            replace(self.config, model=self._model(cell))
        names = [extra.name for extra in self.extras]
        check(len(set(names)) == len(names), f"an extra cell is given twice: {', '.join(names)}")

    def cells(self) -> tuple[Cell, ...]:
        """All combinations, `base` first, the corners of one factor before those of two."""
        combinations = itertools.product(*[(factor.off, *factor.on) for factor in self.factors])
        cells = [self._cell(levels) for levels in combinations]
        order = [factor.name for factor in self.factors]
        cells.sort(key=lambda c: (not c.corner, sum(c.on.values()), [not c.on[name] for name in order]))
        corners = {cell.name: cell for cell in cells if cell.corner}
        for extra in self.extras:
            check(
                extra.corner in corners,
                f"--extra names the cell {extra.corner!r}{nearest(extra.corner, list(corners))}; it must be one of "
                f"{', '.join(corners)}",
            )
            cells.append(replace(corners[extra.corner], name=extra.name, corner=False, extra=extra))
        return tuple(cells)

    def _cell(self, levels: tuple[Level, ...]) -> Cell:
        chosen = list(zip(self.factors, levels, strict=True))
        by_field = {factor.field: level for factor, level in chosen}
        return Cell(
            name="+".join(label for factor, level in chosen if (label := factor.label(level))) or "base",
            levels=by_field,
            on={factor.name: level != factor.off for factor, level in chosen},
            corner=all(level in (factor.off, factor.on[0]) for factor, level in chosen),
        )

    def trials(self) -> tuple[Trial, ...]:
        """Every cell at every seed, block by block."""
        of_cells = [self._of_cell(cell) for cell in self.cells()]
        return tuple(trial(seed) for seed in range(self.seeds) for trial in of_cells)

    def _model(self, cell: Cell) -> ModelConfig:
        model = with_levels(self.config.model, cell.levels)
        if cell.extra is None:
            return model
        changed = with_levels(model, dict(cell.extra.fields))
        check(
            changed.settled() != model.settled(),
            f"--extra {cell.name} changes nothing: in {cell.extra.corner} "
            f"{', '.join(name for name, _ in cell.extra.fields)} decides nothing, or has that value already",
        )
        return changed

    def _of_cell(self, cell: Cell) -> Callable[[int], Trial]:
        """The cell's trial at a seed."""
        of_cell = replace(self.config, model=self._model(cell))
        tokens = of_cell.steps * of_cell.tokens_per_step
        flops = training_flops_per_token(of_cell.model, segments=of_cell.data.segments) * tokens

        def trial(seed: int) -> Trial:
            config = replace(of_cell, seed=seed)
            name = f"{cell.name}-s{seed}-{config.fingerprint(self.content_hash)}"
            return Trial(name, cell.name, seed, cell.levels, config, flops)

        return trial

    def identity(self) -> dict[str, Any]:
        """What makes it this design: factors, levels, configuration and data; not seeds, paths or machine."""
        config = replace(self.config, seed=0).identity(self.content_hash)
        extras = [extra.name for extra in self.extras]
        return {"factors": [asdict(factor) for factor in self.factors], "config": config, "extras": extras}

    def digest(self) -> str:
        """Twelve hex digits of the identity."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to stand in `design.json`."""
        return {
            "factors": [asdict(factor) for factor in self.factors],
            "config": asdict(self.config),
            "content_hash": self.content_hash,
            "seeds": self.seeds,
            "extras": [asdict(extra) for extra in self.extras],
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Design":
        """The inverse of `to_dict`."""
        factors = tuple(Factor(**{**factor, "on": tuple(factor["on"])}) for factor in values["factors"])
        config = from_dict(TrialConfig, values["config"])
        extras = tuple(
            Extra(extra["corner"], tuple((name, value) for name, value in extra["fields"]))
            for extra in values.get("extras", [])
        )
        return Design(factors, config, values["content_hash"], values["seeds"], extras)


def differences(ours: Design, theirs: Design) -> list[str]:
    """What two designs' identities disagree on, a line each: `field: ours, theirs`."""
    ours_flat, theirs_flat = _flat(ours.identity()), _flat(theirs.identity())
    return [
        f"{name}: {json.dumps(ours_flat.get(name))} here, {json.dumps(theirs_flat.get(name))} there"
        for name in sorted({*ours_flat, *theirs_flat})
        if ours_flat.get(name) != theirs_flat.get(name)
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}" if name else key).items()}


def parameters(trial: Trial) -> dict[str, int]:
    """Parameters of the trial's model: in all, and without the embedding."""
    counts = parameter_counts(trial.config.model)
    return {
        "parameters": counts["total"],
        "parameters_without_embeddings": counts["total"] - counts["embedding"],
    }
