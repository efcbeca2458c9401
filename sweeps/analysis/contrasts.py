"""What is estimated, as weights over cells: from factors with two or more levels, crossed or nested, to effects.

A level's mean is over all cells that have it, the levels of every other factor weighing the same; levels of a nested
factor share the weight of the level they stand under. A main effect is a level's mean minus that of its factor's first
level; an interaction is half the difference of differences, and so on: with two levels twice the coefficient of a ±1
regression, ON minus OFF. A nested factor's effect is taken where its parent is not at its first level.

Cells may be left out if effects are wanted up to some order only (a fractional factorial; Box & Hunter 1961): then the
weights are the least-squares ones of the model of that order, and an effect that they cannot give is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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
    order: int | None = None
    """The most factors of an interaction; those of more are taken to be none."""
    left_out: tuple[str, ...] = ()
    """Cells of the factorial that there are none of."""

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

    def mean_at(self, chosen: Labels) -> np.ndarray:
        """Weights (C,) of the mean over cells at those levels, factor → label, the others' levels weighing the same and
        only where the chosen factors are varied; all 0 where there is no such cell."""
        by_name = {factor.name: factor for factor in self.factors}
        levels = {name: (by_name[name].labels.index(label),) for name, label in chosen.items()}
        return _Table.of(self.factors, self.labels).means(levels)[0]

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
    return _crossed(tuple(factors), order, tuple(without))


@cache
def _crossed(factors: tuple[Levels, ...], order: int | None, without: tuple[str, ...]) -> Contrasts:
    every = grid(factors)
    for cell in without:
        check(cell in every, f"there is no cell {cell!r} to leave out; cells are {', '.join(every)}")
    kept = [cell for cell in every if cell not in without]
    check(kept != [], "every cell is left out; leave some in")
    wanted = terms_of(factors, order)
    table = _Table.of(factors, every)
    wanted_CT = np.column_stack([_effect(table, factors, term) for term in wanted.values()])
    if kept == list(every):
        return Contrasts(factors, tuple(every), tuple(wanted), wanted_CT, order)
    model_CP = _model(factors, every, order)
    rows = [place for place, cell in enumerate(every) if cell not in without]
    lost = _inestimable(model_CP[rows], model_CP.T @ wanted_CT)
    if lost.any():
        mend = _mending(model_CP, rows, wanted_CT)
        names = [term for term, is_lost in zip(wanted, lost, strict=True) if is_lost]
        main = _inestimable(_model(factors, every, 1)[rows], _model(factors, every, 1).T @ wanted_CT)
        advice = "" if order == 1 or main.any() else ", or ask for interactions of a lower order (--order 1: none)"
        check(
            False,
            f"without the cells {', '.join(without)} these effects cannot be estimated: {', '.join(names)}; put back "
            f"the trials of {', '.join(list(every)[i] for i in mend)}{advice}",
        )
    weights = np.linalg.pinv(model_CP[rows].T) @ model_CP.T @ wanted_CT
    weights = np.where(np.abs(weights) < 1e-12, 0.0, weights)
    return Contrasts(factors, tuple(kept), tuple(wanted), weights, order, tuple(without))


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


@dataclass(frozen=True, eq=False)
class _Table:
    """All cells as numbers."""

    place: dict[str, int]
    """Factor → its column."""
    code_CF: np.ndarray
    """Which level each factor has; 0 is the first."""
    active_CF: np.ndarray
    """Whether it is varied there."""
    share_C: np.ndarray
    """What a cell weighs beside others at the same levels of some factors that are varied in all of them."""

    @staticmethod
    def of(factors: Sequence[Levels], cells: Mapping[str, Labels]) -> "_Table":
        code = np.array([[f.labels.index(cell[f.name]) for f in factors] for cell in cells.values()])
        active = np.array([[_active(f, factors, cell) for f in factors] for cell in cells.values()])
        share = np.where(active, [1 / len(f.labels) for f in factors], 1.0).prod(1)
        return _Table({f.name: i for i, f in enumerate(factors)}, code, active, share)

    def means(self, chosen: Mapping[str, tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
        """Weights (C,) that are, within each combination of those levels, those of its mean; and each cell's levels."""
        columns = [self.place[name] for name in chosen]
        code, weights = self.code_CF[:, columns], self.share_C.copy()
        inside = self.active_CF[:, columns].all(1)
        for i, levels in enumerate(chosen.values()):
            inside &= np.isin(code[:, i], levels)
        weights[~inside] = 0.0
        _, group = np.unique(code, axis=0, return_inverse=True)
        sums = np.bincount(group.ravel(), weights)
        return weights / np.where(sums > 0, sums, 1.0)[group.ravel()], code


def _effect(table: _Table, factors: Sequence[Levels], term: Labels) -> np.ndarray:
    """Weights of a term over all cells: signs of its corners times the mean over everything else."""
    by_name = {factor.name: factor for factor in factors}
    weights, code = table.means({name: (0, by_name[name].labels.index(label)) for name, label in term.items()})
    return weights * np.where(code > 0, 1.0, -1.0).prod(1) * 2.0 ** (1 - len(term))


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
