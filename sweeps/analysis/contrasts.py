"""What is estimated, as weights over cells: from factors with two or more levels, crossed or nested, to effects.

A level's mean is over all cells that have it, the levels of every other factor weighing the same; levels of a nested
factor share the weight of the level they stand under. A main effect is a level's mean minus that of its factor's first
level; an interaction is half the difference of differences, and so on: with two levels twice the coefficient of a ±1
regression, ON minus OFF. A nested factor's effect is taken where its parent is not at its first level.

Cells may be left out if effects are wanted up to some order only (a fractional factorial; Box & Hunter 1961): then the
weights are the least-squares ones of the model of that order, and an effect that they cannot give is named.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from lahr.errors import check

Labels = Mapping[str, str]
"""Factor → label of its level, of one cell."""


@dataclass(frozen=True)
class Levels:
    """A factor as the analysis sees it: its levels by what cells' names say of them, the first one silent."""

    name: str
    labels: tuple[str, ...]
    """One a level; that of the first is empty."""
    within: str = ""
    """The factor that this one is nested in: it is varied only where that one is not at its first level."""
    first: str = "OFF"
    """What a reader is told of the first level."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Each level as a reader is told: `mod OFF` and `mod ON`, or `act=gelu` and `act=silu`."""
        if self.first == "OFF":
            return (f"{self.name} OFF", *(f"{self.name} ON" if x == self.name else x for x in self.labels[1:]))
        return (self.first, *self.labels[1:])

    @property
    def values(self) -> tuple[str, ...]:
        """Each level by its value alone: `gelu`, `silu`; a switch's in full."""
        return tuple(name.removeprefix(f"{self.name}=") for name in self.shown)


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Effects as weights over cells."""

    factors: tuple[Levels, ...]
    cells: tuple[str, ...]
    """The cells that enter the effects, `base` first."""
    terms: tuple[str, ...]
    weights_CT: np.ndarray
    """(cells, terms): an effect is the weighted sum of its cells' means."""

    @property
    def norms_T(self) -> np.ndarray:
        """The norm of each term's weights: a seed's own contrast has this times σ as its standard deviation."""
        return np.sqrt((self.weights_CT**2).sum(0))

    @property
    def labels(self) -> dict[str, Labels]:
        """Cell → the label of each factor's level."""
        every = grid(self.factors)
        return {cell: every[cell] for cell in self.cells}

    @property
    def pairs(self) -> list[tuple[Levels, Levels]]:
        """Factors two by two, but for one that is nested in the other."""
        both = combinations(self.factors, 2)
        return [
            (a, b)
            for a, b in both
            if a.name not in _above(b, self.factors) and b.name not in _above(a, self.factors)
        ]

    @property
    def is_two_level(self) -> bool:
        """Whether it is a plain 2^k: of each factor one level beside the first, none nested."""
        return all(len(factor.labels) == 2 and not factor.within for factor in self.factors)

    def own(self, losses_SC: np.ndarray) -> np.ndarray:
        """Each seed's own effects (…, S, T) from losses (…, S, C)."""
        return losses_SC @ self.weights_CT


def switches(*names: str) -> Contrasts:
    """The 2^k factorial of factors that are on or off: `base`, `mod`, `mod+latent`, …"""
    return crossed([Levels(name, ("", name)) for name in names])


def crossed(factors: Sequence[Levels], order: int | None = None, without: Sequence[str] = ()) -> Contrasts:
    """All effects of those factors up to interactions of `order` (of all of them, if None), in cells but `without`.

    `ConfigError` for a cell that there is none of, and for effects that cannot be estimated: it says which cells would
    mend it.
    """
    factors = tuple(factors)
    every = grid(factors)
    for cell in without:
        check(cell in every, f"there is no cell {cell!r} to leave out; cells are {', '.join(every)}")
    kept = [cell for cell in every if cell not in without]
    check(kept != [], "every cell is left out; leave some in")
    wanted = terms_of(factors, order)
    wanted_CT = np.column_stack([_marginal(factors, every, term) for term in wanted.values()])
    if kept == list(every):
        return Contrasts(factors, tuple(every), tuple(wanted), wanted_CT)
    model_CP = _model(factors, every, order)
    rows = [place for place, cell in enumerate(every) if cell not in without]
    lost = _inestimable(model_CP[rows], model_CP.T @ wanted_CT)
    if lost.any():
        mend = _mending(model_CP, rows, wanted_CT)
        names = [term for term, is_lost in zip(wanted, lost, strict=True) if is_lost]
        check(
            False,
            f"without the cells {', '.join(without)} these effects cannot be estimated: {', '.join(names)}; put back "
            f"the trials of {', '.join(list(every)[i] for i in mend)}"
            + (
                ""
                if order == 1
                else ", or ask for interactions of a lower order (--order 1 for main effects alone)"
            ),
        )
    weights = np.linalg.pinv(model_CP[rows].T) @ model_CP.T @ wanted_CT
    return Contrasts(factors, tuple(kept), tuple(wanted), np.where(np.abs(weights) < 1e-12, 0.0, weights))


def grid(factors: Sequence[Levels]) -> dict[str, Labels]:
    """Every cell of the factorial by name → the label of each factor's level, `base` first, then by how many are on."""
    found: dict[str, Labels] = {}
    for labels in product(*[factor.labels for factor in factors]):
        of = {factor.name: label for factor, label in zip(factors, labels, strict=True)}
        if all(_active(factor, factors, of) or not of[factor.name] for factor in factors):
            found[cell_name(of)] = of
    place = {factor.name: {label: i for i, label in enumerate(factor.labels)} for factor in factors}

    def key(cell: str) -> tuple[int, list[int], list[int]]:
        levels = [place[name][label] for name, label in found[cell].items()]
        return sum(level > 0 for level in levels), [not level for level in levels], levels

    return {cell: found[cell] for cell in sorted(found, key=key)}


def cell_name(labels: Labels) -> str:
    """`base`, or what is not at its first level, joined: `mod+latent`."""
    return "+".join(label for label in labels.values() if label) or "base"


def terms_of(factors: Sequence[Levels], order: int | None = None) -> dict[str, Labels]:
    """Term → the label of the level of each of its factors: main effects, then interactions by order.

    A nested factor makes no interaction with one that it is nested in.
    """
    check(order is None or order >= 1, f"--order is {order}; it is the most factors of an interaction, at least 1")
    found: dict[str, Labels] = {}
    for size in range(1, min(order or len(factors), len(factors)) + 1):
        for some in combinations(factors, size):
            names = {factor.name for factor in some}
            if any(above in names for factor in some for above in _above(factor, factors)):
                continue
            for labels in product(*[factor.labels[1:] for factor in some]):
                found[":".join(labels)] = {f.name: label for f, label in zip(some, labels, strict=True)}
    return found


def _above(factor: Levels, factors: Sequence[Levels]) -> list[str]:
    """The factors that this one is nested in, the nearest first. `ConfigError` where it makes no sense."""
    by_name, found = {f.name: f for f in factors}, list[str]()
    while factor.within:
        check(
            factor.within in by_name and factor.within not in found and factor.within != factor.name,
            f"factor {factor.name} is nested in {factor.within!r}, which is "
            + (
                "itself nested in it"
                if factor.within in by_name
                else "no factor of this design: it is off everywhere"
            )
            + f"; factors are {', '.join(by_name)}",
        )
        found.append(factor.within)
        factor = by_name[factor.within]
    return found


def _active(factor: Levels, factors: Sequence[Levels], cell: Labels) -> bool:
    """Whether the factor is varied in that cell."""
    return all(cell[name] for name in _above(factor, factors))


def _marginal(factors: Sequence[Levels], cells: Mapping[str, Labels], term: Labels) -> np.ndarray:
    """Weights of a term over all cells: signs of its corners times the mean over everything else."""
    inside = {factor.name: factor for factor in factors if factor.name in term}
    weights = np.zeros(len(cells))
    for corner in product((False, True), repeat=len(term)):
        chosen = {name: label if on else "" for (name, label), on in zip(term.items(), corner, strict=True)}
        mean = np.zeros(len(cells))
        for place, cell in enumerate(cells.values()):
            if any(cell[name] != label for name, label in chosen.items()):
                continue
            if all(_active(factor, factors, cell) for factor in inside.values()):
                mean[place] = _share(factors, cell, inside)
        weights += math.prod(1 if on else -1 for on in corner) * mean / mean.sum()
    return weights * 2.0 ** (1 - len(term))


def _share(factors: Sequence[Levels], cell: Labels, inside: Mapping[str, Levels]) -> float:
    """What a cell weighs beside others with the same levels of the factors `inside`."""
    others = [f for f in factors if f.name not in inside and _active(f, factors, cell)]
    return math.prod(1 / len(factor.labels) for factor in others)


def _model(factors: Sequence[Levels], cells: Mapping[str, Labels], order: int | None) -> np.ndarray:
    """The linear model of that order, (cells, parameters): an indicator of each term's levels."""
    columns = [np.ones(len(cells))]
    for term in terms_of(factors, order).values():
        columns.append(
            np.array([float(all(cell[n] == label for n, label in term.items())) for cell in cells.values()])
        )
    return np.column_stack(columns)


def _inestimable(model_RP: np.ndarray, functions_PT: np.ndarray) -> np.ndarray:
    """Which functions of the parameters lie outside what the rows can tell, (T,)."""
    projected = np.linalg.pinv(model_RP) @ model_RP @ functions_PT
    return np.abs(projected - functions_PT).max(0) > 1e-8


def _mending(model_CP: np.ndarray, rows: Sequence[int], wanted_CT: np.ndarray) -> list[int]:
    """Cells to put back, one after another that adds to what can be told, until all that is wanted can."""
    rows, mend = list(rows), []
    for cell in [i for i in range(len(model_CP)) if i not in rows]:
        if not _inestimable(model_CP[rows], model_CP.T @ wanted_CT).any():
            break
        if np.linalg.matrix_rank(model_CP[[*rows, cell]]) > np.linalg.matrix_rank(model_CP[rows]):
            rows.append(cell)
            mend.append(cell)
    return mend
