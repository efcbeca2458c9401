"""What a sweep concludes, in sentences for a person and as one JSON document for programs.

A sentence names its horizon and at equal what the cells were compared: an effect after 0.4 M tokens says nothing of
one after 400 M.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sweeps.analysis import power
from sweeps.analysis.effects import UNMEASURED, Effects
from sweeps.analysis.power import EXPLORATORY_BLOCKS
from sweeps.analysis.sequential import FIRST_LOOK


def horizon(info: Mapping[str, Any]) -> str:
    """`after 409,600 training tokens a trial, at equal tokens`."""
    if info["equal_at"] == "flops":
        return f"after {info['flops']:.3g} training FLOPs a trial, at equal FLOPs"
    if info["varied"]:
        return f"after up to {info['horizon']:,.0f} training tokens a trial, which a factor varies"
    tokens = f"after {info['horizon']:,.0f} training tokens a trial"
    if info["equal_at"] == "time":
        return f"in the training time of {info['horizon']:,.0f} tokens of base, at equal exclusive wall-clock"
    return f"{tokens}, at equal tokens"


def sentences(effects: Effects, info: Mapping[str, Any]) -> list[str]:
    """The headline, then one sentence an effect; plain text for the terminal and the report alike."""
    where = horizon(info)
    rows = effects.table.to_dict(orient="records")
    said = [_headline(effects, where)]
    for cell, of in effects.same:
        said.append(
            f"{cell} is {of} to the bit in every seed: what sets them apart never reached the model, or does nothing "
            "there."
        )
    if info["primary"] != info["equal_at"]:
        said.append(
            f"This is a secondary comparison: the one at equal {info['primary']} was declared primary beforehand."
        )
    if not info["declared_beforehand"]:
        said.append(
            f"The smallest effect of interest, {info['smallest_effect']:g} nats, was named after the sweep had begun: "
            "verdicts that rest on it are post hoc."
        )
    if info["codes"]:
        said.append(
            "Trials were made by more than one version of the code, and may differ for that alone: "
            + ", ".join(f"{count} by {code}" for code, count in info["codes"].items())
            + "."
        )
    if looks := [n for n in info.get("earlier", ()) if n > EXPLORATORY_BLOCKS and effects.max_seeds is None]:
        said.append(
            f"Blocks were added after {', '.join(map(str, looks))} had been reported on: p and intervals are those of "
            "one look, and not corrected for the earlier ones (--until decided plans looks)."
        )
    if effects.looked:
        how = (
            f"Blocks were added until every effect was settled, after {effects.looked} seeds of at most "
            f"{effects.max_seeds}"
            if effects.settled
            else f"All {effects.max_seeds} seeds that were allowed did not settle every effect"
            if len(effects.blocks) + len(effects.incomplete) >= (effects.max_seeds or 0)
            else f"Blocks are added until all is settled: {effects.looked} seeds of at most {effects.max_seeds} so far"
        )
        said.append(
            f"{how}. Intervals are repeated ones, valid at every look; an estimate that ended the search is on average "
            "a little too large."
        )
    if effects.blocks:
        said += [_sentence(effects, row, where) for row in rows]
    return said


def document(
    effects: Effects,
    second: pd.DataFrame,
    options: pd.DataFrame,
    diverged: pd.DataFrame,
    trials: pd.DataFrame,
    info: Mapping[str, Any],
) -> bytes:
    """`verdict.json`: strict JSON, `null` where a figure does not exist."""
    content = {
        "name": info["name"],
        "preset": info["preset"],
        "primary_metric": effects.metric,
        "horizon_tokens": info["horizon"],
        "equal_at": info["equal_at"],
        "headline": None if effects.withheld or effects.exploratory else sentences(effects, info)[0],
        "sentences": sentences(effects, info),
        "trials": {"planned": info["planned"], "in_the_table": len(trials)},
        "seeds": info["seeds"],
        "complete_blocks": effects.blocks,
        "incomplete_blocks": effects.incomplete,
        "effects": effects.table.to_dict(orient="records"),
        "smallest_detectable": effects.smallest_detectable,
        "smallest_effect_of_interest": effects.smallest_effect,
        "smallest_effect_declared_beforehand": info["declared_beforehand"],
        "sigma": effects.sigma,
        "max_seeds": effects.max_seeds,
        "primary_comparison": info["primary"],
        "code_versions": info["codes"],
        "set_aside": [*effects.doubtful, *info["damaged"]],
        "learning_rate_chosen": info["tuned"],
        "second_family": second.to_dict(orient="records"),
        "options": options.to_dict(orient="records"),
        "failed": info["failed"],
        "missing": info["missing"],
        "warnings": told(trials),
        "diverged": [{"cell": cell, "seed": seed} for cell, seed in diverged_trials(trials)],
        "divergences_by_cell": diverged.to_dict(orient="records"),
        "checks": effects.checks,
        "environment": info["environment"],
        "rerun": info["rerun"],
    }
    return (json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def diverged_trials(trials: pd.DataFrame) -> list[tuple[str, int]]:
    """(cell, seed) of every diverged trial, corner or not."""
    if "status" not in trials:
        return []
    bad = trials[trials["status"] == "diverged"]
    return [(str(cell), int(seed)) for cell, seed in zip(bad["cell"], bad["seed"], strict=True)]


def told(trials: pd.DataFrame) -> list[dict[str, Any]]:
    """What was wrong with a trial's checkpoints when it went on from them: trial, cell, seed, `said`."""
    if "warnings" not in trials:
        return []
    rows = trials[trials["warnings"].notna()].to_dict(orient="records")
    return [
        {**{k: row[k] for k in ("trial", "cell", "seed")}, "said": str(row["warnings"]).splitlines()}
        for row in rows
    ]


def plain(value: Any) -> Any:
    """Numbers, text, lists and mappings that strict JSON can hold; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def interval(low: float, high: float) -> str:
    """`−0.0315 to +0.0802`, or a dash where there is none."""
    return "–" if math.isnan(low) or math.isnan(high) else f"{signed(low)} to {signed(high)}"


def signed(value: float) -> str:
    """Four decimals with their sign, a true minus; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def p_value(p: float) -> str:
    """Three decimals; below them `< 0.001`."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _headline(effects: Effects, where: str) -> str:
    blocks = len(effects.blocks)
    if effects.withheld:
        lost = ", ".join(f"{cell} at seed {seed}" for cell, seed in effects.diverged)
        return (
            f"Headline withheld {where}: {lost} diverged. What remains ({blocks} complete seed "
            f"block{'s' if blocks != 1 else ''}) is a selected sample, and its estimates claim nothing."
        )
    if not blocks:
        return f"No verdict {where}: no seed block is complete yet; run again to finish one."
    if effects.exploratory and effects.max_seeds and blocks > EXPLORATORY_BLOCKS:
        return f"No look has been taken yet {where}: the first is planned after {FIRST_LOOK} complete seed blocks."
    if effects.exploratory:
        detectable = f" (they would detect {effects.smallest_detectable:.3g} nats)" if blocks > 1 else ""
        return (
            f"Exploratory {where}: {blocks} complete seed block{'s' if blocks > 1 else ''} can claim "
            f"nothing{detectable}; --seeds 5 sees large effects, 8 support a claim."
        )
    groups: dict[str, list[str]] = {}
    for term, verdict in zip(effects.table["term"], effects.table["verdict"], strict=True):
        groups.setdefault(verdict, []).append(term)
    order = sorted(
        groups, key=lambda verdict: (not verdict.startswith("helps"), not verdict.startswith("hurts"), verdict)
    )
    listed = "; ".join(f"{verdict}: {', '.join(groups[verdict])}" for verdict in order)
    looked = f" of at most {effects.max_seeds}" if effects.max_seeds else ""
    return f"Verdict {where}, from {blocks} seed blocks{looked}: {listed}."


def _sentence(effects: Effects, row: Mapping[Any, Any], where: str) -> str:
    term, verdict = row["term"], row["verdict"]
    joint = (
        " is " if verdict in ("undecided", UNMEASURED) else " " if verdict.startswith(("helps", "hurts")) else ": "
    )
    text = f"{term}{joint}{verdict}, {signed(row['estimate'])} nats {where}"
    if not math.isnan(row["p"]):
        found = f"Holm p {p_value(row['p_adjusted'])}" if effects.max_seeds is None else _settled(row)
        if verdict.endswith(f"{effects.smallest_effect:g}" if effects.smallest_effect else "\n"):
            found += f"; 90 % within {interval(row['bound_low'], row['bound_high'])}"
        text += (
            f" (95 %{', repeated' if effects.looked else ''}: "
            f"{interval(row['seedwise_low'], row['seedwise_high'])} seed-wise, "
            f"{interval(row['blocked_low'], row['blocked_high'])} blocked; {found})"
        )
    text += "."
    if _excludes_zero(row, "blocked") != _excludes_zero(row, "seedwise"):
        text += " The two intervals disagree about 0; the rule goes by the larger p of the two."
    if effects.withheld or effects.exploratory:
        return text
    if ":" in term and verdict.startswith(("helps", "hurts")):
        amount = "lower" if row["estimate"] < 0 else "higher"
        text += (
            f" With both the loss is {amount} than their separate effects add up to."
            if term.count(":") == 1
            else " How some of them act together depends on the others."
        )
    if verdict == "undecided":
        if effects.smallest_effect is None:
            text += f" With 90 % confidence it lies within {interval(row['bound_low'], row['bound_high'])}."
        elif effects.max_seeds is None:
            norm = float(effects.design.norms_T[effects.design.terms.index(term)])
            needed = power.blocks_needed(effects.smallest_effect, effects.sigma, norm, len(effects.table))
            blocks = f"{needed:,}" if needed else "more than a million"
            text += f" {blocks} seed blocks would find {effects.smallest_effect:g} nats with 80 % probability."
    return text


def _settled(row: Mapping[Any, Any]) -> str:
    return f"settled after {row['settled_at']} seeds" if row.get("settled_at") else "not settled"


def _excludes_zero(row: Mapping[Any, Any], name: str) -> bool:
    return row[f"{name}_low"] > 0 or row[f"{name}_high"] < 0
