"""A design as a value: factors, cells, seed blocks and trials, to print, hash, compare and extend.

A factorial of factors with two or more levels, crossed or nested. A cell is named by what is not at its first level:
`base`, `mod`, `mod+latent`, `act=silu+norm=post`. An extra cell is one of them with some fields at other values,
`mod~mod_router=random`, to be compared with that cell. Seeds are blocks: every cell runs every seed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from lahr.config import TrialConfig
from lahr.errors import check, nearest
from lahr.model.flops import fields_read, parameter_counts
from lahr.plain import canonical_json, changed, from_dict
from lahr.training.plan import planned_flops
from sweeps.analysis.contrasts import Contrasts, crossed, grid
from sweeps.engine.factors import Extra, Factor, Level, checked, levels_of

_LONGEST = 180
Equal = Literal["tokens", "flops", "time"]


@dataclass(frozen=True)
class Cell:
    """One combination of levels."""

    name: str
    levels: Mapping[str, Level]
    """Field → level, for every factor."""
    tested: bool
    """Whether it enters the effects."""
    extra: Extra | None = None
    """What sets an extra cell apart."""


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

    @property
    def fingerprint(self) -> str:
        """Of configuration, seed and data; the end of its id."""
        return self.id.rpartition("-")[2]

    def named(self) -> dict[str, Any]:
        """What its files call it."""
        return {"trial": self.id, "cell": self.cell, "seed": self.seed}

    def described(self) -> dict[str, Any]:
        """What stands in its `config.json`: everything needed to run it again."""
        return {**self.named(), "levels": dict(self.levels), "config": asdict(self.config)}


@dataclass(frozen=True)
class Design:
    """Factors, levels and the configuration they vary. Seeds extend it and are not part of its identity."""

    factors: tuple[Factor, ...]
    config: TrialConfig
    """Every factor at its first level, whatever stands in it; the seed in it is not used."""
    content_hash: str
    """Of the data's tokens."""
    seeds: int
    """Seed blocks, numbered from `first_seed`."""
    extras: tuple[Extra, ...] = ()
    order: int | None = None
    """The most factors of an interaction that is estimated; all of them if None."""
    without: tuple[str, ...] = ()
    """Cells that are left out."""
    equal: Equal = "tokens"
    """What all cells spend as much of."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Cell → optimiser steps, where they are not those of the configuration; worked out before the sweep."""
    first_seed: int = 0

    def __post_init__(self) -> None:
        check(self.seeds >= 1, f"--seeds is {self.seeds}; give at least 1 (5 see large effects, 8 support a claim)")
        names, fields = [f.name for f in self.factors], [f.field for f in self.factors]
        check(bool(names), "the design has no factor; give one at least")
        checked(self.factors)
        check(len(set(names)) == len(names), f"two factors have one name: {', '.join(names)}")
        for name in fields:
            both = [factor.name for factor in self.factors if factor.field == name]
            check(
                len(both) == 1,
                f"the factors {' and '.join(both)} both set {name}; give that field one factor, with all its levels",
            )
        for factor in self.factors:
            parent = next((other for other in self.factors if other.name == factor.within), None)
            check(
                parent is None or not parent.switch or len(parent.levels) == 2,
                f"factor {factor.name} is nested in {factor.within}, which has further levels; give it two",
            )
        for extra in self.extras:
            extra.check()
        extras = [extra.name for extra in self.extras]
        check(len(set(extras)) == len(extras), f"an extra cell is given twice: {', '.join(extras)}")
        by_config: dict[str, str] = {}
        for cell in self.cells():  # every combination must be a valid configuration, and one of its own
            config = self._configured(cell)
            check(
                len(cell.name) <= _LONGEST,
                f"the cell {cell.name[:60]}… has a name of {len(cell.name)} letters, and {_LONGEST} are what a "
                "folder's name has room for; give factors and levels shorter names",
            )
            same = by_config.setdefault(config.fingerprint(self.content_hash), cell.name)
            check(
                same == cell.name,
                f"the cells {same} and {cell.name} are the same configuration: what sets them apart decides nothing "
                "there; leave one of them out (--without), or nest the factor",
            )

    def check_read(self) -> None:
        """`ConfigError` for what a model of one's own never looks at: its cells would be one model under two names."""
        read = [(cell, fields_read(self._configured(cell).model)) for cell in self.cells()]
        varied = [(f"factor {f.name} varies", f.field, [mine for _, mine in read]) for f in self.factors]
        for cell, mine in read:
            fields = cell.extra.fields if cell.extra else ()
            varied += [(f"--extra {cell.name} sets", name, [mine]) for name, _ in fields]
        for who, where, reads in varied:
            part, _, name = where.partition(".")
            if part != "model" or name == "build" or None in reads:  # None is LAHR's
                continue
            known = frozenset[str]().union(*filter(None, reads))
            options = sorted(n for n in known if n.startswith("options."))
            check(
                name in known,
                f"{who} {where}, which the model of {self.config.model.build} never reads"
                f"{nearest(name, sorted(known))}; of its options it reads {', '.join(options) or 'none'}",
            )

    @cached_property
    def contrasts(self) -> Contrasts:
        """The effects that it estimates. `ConfigError` if it cannot, with the cells that would mend it."""
        tested = [factor.to_analysis(tested=True) for factor in self.factors]
        there = grid(tested)
        return crossed(tested, self.order, [cell for cell in self.without if cell in there])

    def cells(self) -> tuple[Cell, ...]:
        """All combinations, those of the effects first, then further levels, then extra cells."""
        every = grid([factor.to_analysis() for factor in self.factors])
        tested = self.contrasts.cells
        for name in self.without:
            check(
                name in every,
                f"--without names the cell {name!r}{_nearest(name, list(every))}, which there is none of",
            )
        further = [name for name in every if name not in tested and name not in self.without]
        cells = {n: Cell(n, levels_of(self.factors, every[n]), n in tested) for n in [*tested, *further]}
        for extra in self.extras:
            for name in (extra.corner, *extra.compared):
                check(
                    name in cells,
                    f"--extra names the cell {name!r}{_nearest(name, list(cells))}; it must be one of "
                    f"{', '.join(cells)}",
                )
        made = [Cell(e.name, cells[e.corner].levels, False, e) for e in self.extras]
        return (*cells.values(), *made)

    def trials(self) -> tuple[Trial, ...]:
        """Every cell at every seed, block by block."""
        of_cells = [self._of_cell(cell) for cell in self.cells()]
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return tuple(trial(seed) for seed in seeds for trial in of_cells)

    def one_block(self) -> tuple[Trial, ...]:
        """A trial of each cell."""
        return replace(self, seeds=1).trials()

    def _configured(self, cell: Cell) -> TrialConfig:
        config = changed(self.config, cell.levels)
        if cell.extra is not None:
            plain, config = config, changed(config, dict(cell.extra.fields))
            check(
                config.identity(self.content_hash) != plain.identity(self.content_hash),
                f"--extra {cell.name} changes nothing: in {cell.extra.corner} "
                f"{', '.join(name for name, _ in cell.extra.fields)} decides nothing, or has that value already",
            )
        if self.steps:
            check(cell.name in self.steps, f"the budget says nothing of the cell {cell.name}")
            tokens = self.steps[cell.name] * config.tokens_per_step
            config = replace(config, train=replace(config.train, tokens=tokens))
        return config

    def _of_cell(self, cell: Cell) -> Callable[[int], Trial]:
        """The cell's trial at a seed."""
        of_cell = self._configured(cell)
        flops = planned_flops(of_cell)

        def trial(seed: int) -> Trial:
            config = replace(of_cell, seed=seed)
            name = f"{cell.name}-s{seed}-{config.fingerprint(self.content_hash)}"
            return Trial(name, cell.name, seed, cell.levels, config, flops)

        return trial

    def identity(self) -> dict[str, Any]:
        """What makes it this design: factors, levels, configuration, budget and data; not seeds, paths or machine."""
        values = self.to_dict()
        for name in ("content_hash", "seeds", "first_seed"):
            del values[name]
        return values | {"config": replace(self.config, seed=0).identity(self.content_hash)}

    def digest(self) -> str:
        """Twelve hex digits of the identity."""
        return hashlib.sha256(canonical_json(self.identity()).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to stand in `design.json`."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Design":
        """The inverse of `to_dict`."""
        made = {
            "factors": tuple(
                Factor(**{**factor, "levels": tuple(factor["levels"]), "names": tuple(factor["names"])})
                for factor in values["factors"]
            ),
            "config": from_dict(TrialConfig, values["config"]),
            "extras": tuple(
                Extra(
                    e["corner"],
                    tuple((name, value) for name, value in e["fields"]),
                    e["label"],
                    tuple(e["against"]),
                )
                for e in values["extras"]
            ),
            "without": tuple(values["without"]),
        }
        return Design(**{**values, **made})


def _nearest(name: str, cells: list[str]) -> str:
    """The cell with the same parts in another order, or one that is spelt like it, as a question."""
    parts = set(re.split("[+,]", name))
    return next(
        (f" (did you mean {cell!r}?)" for cell in cells if set(cell.split("+")) == parts), nearest(name, cells)
    )


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
