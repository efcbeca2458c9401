"""The report of a sweep as files in memory: report.md and its page report.html, verdict.json, effects.csv, figures.

Its order is that of a reader's questions: what is the verdict, how large, what could have been seen, does it show,
what does it cost, can it be trusted, where was it run.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sweeps.analysis.comparisons import divergences, extra_family, second_family, without_extras
from sweeps.analysis.effects import Effects, believed
from sweeps.analysis.power import EXPLORATORY_BLOCKS
from sweeps.reporting import answers, figures, page
from sweeps.reporting.cost import cost
from sweeps.reporting.literal import code, literal, markdown_table
from sweeps.reporting.sanity import sanity
from sweeps.reporting.verdict import document, horizon, interval, p_value, sentences, signed


def render(
    effects: Effects,
    trials: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    info: Mapping[str, Any],
    section: str = "",
    pictures: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """File name → content. Pure: the caller decides where they go.

    `effects` are those of `trials`, the sweep's table; `curves` its progress records by trial id; `info` is what
    `study.report_info` says; `section` with its `pictures` (file name → PNG) is what the study itself has to add.
    """
    trials, _ = believed(trials)  # what is set aside, `effects` names
    options, every, trials = extra_family(trials), trials, without_extras(trials)
    design = effects.design
    second, lost = second_family(trials, design), divergences(every, design)
    title = f"{info['name']}: {horizon(info)}, complete seed blocks: {len(effects.blocks)}"
    files = figures.draw(effects, trials, curves, title, info["equal_at"]) | dict(pictures or {})
    of_answers, picture = answers.section(every, curves, info["labels"], design)
    files |= picture
    files["effects.csv"] = effects.table.to_csv(index=False).encode()
    files["verdict.json"] = document(effects, second, options, lost, every, info)
    alone = [name for name in files if name.endswith(".png") and name not in (pictures or {})]
    parts = [
        _verdict(effects, info),
        _effects(effects),
        _detection(effects),
        section,
        "## Figures\n\n![Effects, interactions, paired learning curves and cost](report.png)\n\n"
        "One colour is one cell everywhere. Thick bars are blocked intervals, thin ones seed-wise, each tick is a "
        "seed. Bars around means of cells leave out what seeds have in common: they are for comparing cells. Alone: "
        + ", ".join(f"[{name}]({name})" for name in alone)
        + ".",
        "## Along the way\n\n![Each effect at every evaluation](along.png)\n\n"
        "The same effects at every evaluation, cells compared at equal shares of their training. The bands are 95 %, "
        "seed-wise and pointwise: each holds for one point by itself, and the verdict is that of the end.",
        of_answers,
        _second(second, effects, lost),
        _options(options, effects, lost),
        cost(trials, effects, info["equal_at"]),
        _rates(info["tuned"]),
        sanity(effects, every, lost, info),
        _environment(info),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return files | {"report.md": text.encode(), "report.html": page.render(text, files)}


def _verdict(effects: Effects, info: Mapping[str, Any]) -> str:
    headline, *rest = [literal(sentence) for sentence in sentences(effects, info)]
    lines = "\n".join(f"- {sentence}" for sentence in rest)
    return f"# {literal(info['name'])}: what the sweep shows\n\n**{headline}**\n\n{lines}".rstrip()


def _effects(effects: Effects) -> str:
    rows = [
        (
            row["term"],
            signed(row["estimate"]),
            interval(row["blocked_low"], row["blocked_high"]),
            interval(row["seedwise_low"], row["seedwise_high"]),
            p_value(row["p_adjusted"]) if effects.max_seeds is None else str(row["settled_at"] or "–"),
            row["verdict"],
        )
        for row in effects.table.to_dict(orient="records")
    ]
    adjusted = "Holm p" if effects.max_seeds is None else "settled after seeds"
    head = ("effect", "nats", "95 % blocked", "95 % seed-wise", adjusted, "verdict")
    return (
        "## Effects\n\n"
        + markdown_table(head, rows)
        + f"\n\n{_meaning(effects)}"
        + (
            "p is the larger of the blocked and the seed-wise one, adjusted over all rows by Holm."
            if effects.max_seeds is None
            else "Tests for an effect spend 0.05 over all looks (O'Brien–Fleming), adjusted over all rows by Holm at "
            "each; tests that it is smaller than the smallest effect of interest spend 0.05 an effect."
        )
    )


def _meaning(effects: Effects) -> str:
    """What an effect is, in this design."""
    design = effects.design
    text = (
        "A factor's effect is the mean of its level minus that of its first (ON minus OFF) over all cells; below 0 "
    )
    text += "is a lower validation loss. "
    if nested := [f.name for f in design.factors if f.within]:
        text += f"{', '.join(nested)}: nested, estimated where what it is nested in is not at its first level. "
    if len(design.factors) > 1 and design.order != 1:
        text += "An interaction of two is half the difference of differences, of three a quarter, and so on. "
    if design.order is not None and design.order < len(design.factors):
        text += (
            f"Interactions of more than {design.order} are taken to be none; without the cells "
            f"{', '.join(map(literal, design.left_out))} the effects are least-squares estimates that rest on it. "
            if design.left_out
            else f"Interactions of more than {design.order} were not asked for, and are in none of these rows. "
        )
    return text


def _detection(effects: Effects) -> str:
    head = "## What this sweep could have detected\n\n"
    if math.isnan(effects.sigma):
        return head + "Nothing can be said: it takes two complete seed blocks to see the noise."
    least, most = effects.table["detectable"].min(), effects.smallest_detectable
    size = f"{most:.3g} nats"
    if most >= 1.01 * least:
        size = f"{least:.3g} to {most:.3g} nats, by how many trials it rests on,"
    text = "Taken as one look: " if effects.looked else ""
    text += (
        f"One trial scatters by σ = {effects.sigma:.4f} nats within its block. With {len(effects.blocks)} complete "
        f"blocks an effect of {size} is found with 80 % probability (at the strictest step of Holm, if its noise is "
        "this σ: one that differs from seed to seed is found less often); a smaller one may well have been missed, "
        "which is no evidence that there is none."
    )
    if effects.smallest_effect is not None:
        text += f" The smallest effect of interest is {effects.smallest_effect:g} nats."
    return head + text


def _second(second: pd.DataFrame, effects: Effects, lost: pd.DataFrame) -> str:
    if second.empty:
        return ""
    rows = [
        (
            row["term"] if row["term"] == "synergy" else f"{row['term']} − base",
            signed(row["estimate"]),
            interval(row["blocked_low"], row["blocked_high"]),
            interval(row["seedwise_low"], row["seedwise_high"]),
            p_value(row["p_adjusted"]),
            str(row["blocks"]),
        )
        for row in second.to_dict(orient="records")
    ]
    head = ("comparison", "nats", "95 % blocked", "95 % seed-wise", "Holm p", "blocks")
    return (
        "## Cells against base\n\n"
        + markdown_table(head, rows)
        + (
            "\n\nA second family, adjusted on its own."
            + " Synergy is full − base − the sum of each factor's own difference."
            * ("synergy" in set(second["term"]))
            + " All blocks that are there enter, and no look is paid for." * bool(effects.max_seeds)
            + (
                " A trial diverged, so what remains is a selected sample and claims nothing."
                if effects.withheld
                else _selected(second, lost)
            )
            + " So few blocks are exploratory and claim nothing." * effects.exploratory
        )
    )


def _selected(rows: pd.DataFrame, lost: pd.DataFrame) -> str:
    """That what is left of cells that diverged is a selected sample."""
    gone = lost.loc[(lost["diverged"] > 0) & lost["cell"].isin(rows[rows.columns[0]]), "cell"]
    return f" {', '.join(gone)} diverged at some seeds: what remains is a selected sample." if len(gone) else ""


def _options(extra: pd.DataFrame, effects: Effects, lost: pd.DataFrame) -> str:
    """The extra cells, each beside those that it is to be compared with; nothing where there are none."""
    if extra.empty:
        return ""
    rows = [
        (
            row["cell"],
            f"{row['loss']:.4f}",
            row["of"],
            signed(row["estimate"]),
            interval(row["low"], row["high"]),
            p_value(row["p_adjusted"]),
            "{tokens_per_second:.2f} ({tokens_per_second_low:.2f} to {tokens_per_second_high:.2f})".format_map(row),
            f"{row['flops']:.3f}",
            str(row["blocks"]),
        )
        for row in extra.to_dict(orient="records")
    ]
    head = (
        "cell",
        "mean loss",
        "beside",
        "difference, nats",
        "95 %",
        "Holm p",
        "tokens/s, ratio (95 %)",
        "FLOPs, ratio",
        "blocks",
    )
    return (
        "## Cells beside the factorial\n\n"
        + markdown_table(head, rows)
        + "\n\nControls and options, each minus the cell that it stands beside, paired by seed; one t over the seeds' "
        "differences, adjusted over these rows by Holm. They enter no effect above."
        + _selected(extra, lost)
        + " No look is paid for." * bool(effects.max_seeds)
        + " So few blocks are exploratory and claim nothing." * bool(extra["blocks"].max() <= EXPLORATORY_BLOCKS)
    )


def _environment(info: Mapping[str, Any]) -> str:
    rows = [(str(key), str(value)) for key, value in info["environment"].items()]
    count = f"{info['planned']} trials planned over {info['seeds']} seeds, preset `{info['preset']}`."
    table = markdown_table(("what", "value"), rows)
    return f"## Environment\n\n{count}\n\n{table}\n\nAgain: {code(info['rerun'])}"


def _rates(tuned: Mapping[str, Any] | None) -> str:
    """What was found of the learning rate, by cell; nothing where it was given."""
    if not tuned:
        return ""
    rates, cells = list(tuned["losses"]), list(next(iter(tuned["losses"].values())))

    def shown(loss: float | None) -> str:
        return "diverged" if loss is None else f"{loss:.4f}"

    rows = []
    for cell in cells:
        of = {rate: tuned["losses"][rate].get(cell) for rate in rates}
        known = {rate: loss for rate, loss in of.items() if loss is not None}
        rows.append((cell, *map(shown, of.values()), min(known, key=lambda r: known[r]) if known else "–"))
    return (
        f"## Learning rate\n\n{float(tuned['lr']):g} for all cells: the lowest mean loss over them, on a seed "
        f"({tuned['seed']}) that is none of the blocks.\n\n" + markdown_table(("cell", *rates, "own best"), rows)
    )
