"""What calibration shows: in figures, and as a picture of every interval beside its truth."""

import io

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from sweeps.analysis.calibration import Judged
from sweeps.analysis.power import ALPHA
from sweeps.reporting.figures import GREY, THICK, THIN
from sweeps.reporting.literal import markdown_table
from sweeps.reporting.verdict import interval, p_value, signed


def render(judged: Judged) -> tuple[str, bytes]:
    """Markdown, and the PNG that it names."""
    nulls, found = judged.nulls, judged.found
    inside = {
        name: (found[f"{name}_low"] <= found["truth"]) & (found["truth"] <= found[f"{name}_high"])
        for name in ("blocked", "seedwise")
    }
    false = {name: int((nulls[f"p_{name}"] < ALPHA).sum()) for name in ("blocked", "seedwise")}
    # What one run in two hundred, or in fifty, of a calibrated instrument would miss.
    most = int(stats.binom.ppf(0.995, len(nulls), ALPHA))
    least = int(stats.binom.ppf(0.02, len(found), 1 - ALPHA))
    families = nulls.groupby("sweep")["p_adjusted"].min() < ALPHA
    rows = [
        ("null effects", str(len(nulls)), ""),
        ("with an unadjusted p < .05, blocked", str(false["blocked"]), f"{ALPHA * len(nulls):.1f} expected"),
        ("with an unadjusted p < .05, seed-wise", str(false["seedwise"]), f"{ALPHA * len(nulls):.1f} expected"),
        (
            "with an unadjusted p < .05, the rule's (the larger)",
            str(int((nulls["p"] < ALPHA).sum())),
            f"at most {most}",
        ),
        ("sweeps with a null effect found by the rule (Holm)", f"{int(families.sum())} of {len(families)}", ""),
        (
            "sweeps whose blocked interval has the truth of the known effect",
            f"{int(inside['blocked'].sum())} of {len(found)}",
            f"at least {least} of {len(found)}",
        ),
        (
            "sweeps whose seed-wise interval has it",
            f"{int(inside['seedwise'].sum())} of {len(found)}",
            f"at least {least} of {len(found)}",
        ),
        (
            "sweeps that found the known effect (Holm p < .05)",
            f"{int((found['p_adjusted'] < ALPHA).sum())} of {len(found)}",
            "",
        ),
        (
            "familywise error over relabelled null trials, blocked",
            f"{100 * judged.familywise['blocked']:.1f} %",
            "",
        ),
        (
            "familywise error over relabelled null trials, seed-wise",
            f"{100 * judged.familywise['seedwise']:.1f} %",
            "",
        ),
        (
            "familywise error over relabelled null trials, the rule",
            f"{100 * judged.familywise['both']:.1f} %",
            "at most 6 %",
        ),
    ]
    each = [
        (
            str(row["sweep"]),
            signed(row["estimate"]),
            interval(row["blocked_low"], row["blocked_high"]),
            interval(row["seedwise_low"], row["seedwise_high"]),
            p_value(row["p_adjusted"]),
        )
        for row in found.to_dict(orient="records")
    ]
    text = (
        "## Calibration on real training runs\n\n"
        f"The known effect ({judged.known}) is {signed(judged.truth)} ± {judged.truth_error:.4f} nats (standard error) "
        f"over {judged.truth_seeds} seeds that no sweep has; σ is {judged.sigma:.4f} nats; {judged.pool} null trials "
        "were relabelled.\n\n"
        + (
            f"**Left out**, with the rest of their blocks: {'; '.join(judged.left_out)}.\n\n"
            * bool(judged.left_out)
        )
        + markdown_table(("what", "found", "goal"), rows)
        + "\n\n![Every interval of every sweep beside its truth](calibration.png)\n\n"
        + "The known effect, sweep by sweep:\n\n"
        + markdown_table(("sweep", "nats", "95 % blocked", "95 % seed-wise", "Holm p"), each)
        + "\n"
    )
    return text, _picture(judged)


def _picture(judged: Judged) -> bytes:
    """A column a term, a line a sweep: both intervals around the truth, those that miss it in red."""
    terms = list(dict.fromkeys(judged.effects["term"]))
    figure = Figure(figsize=(2.1 * len(terms), 4.2), layout="constrained")
    for axes, term in zip(figure.subplots(1, len(terms), sharey=True), terms, strict=True):
        rows = judged.effects[judged.effects["term"] == term]
        for row in rows.to_dict(orient="records"):
            for name, width, colour in (("blocked", 6, THICK), ("seedwise", 1.4, THIN)):
                low, high = row[f"{name}_low"], row[f"{name}_high"]
                missed = not low <= row["truth"] <= high
                axes.hlines(
                    row["sweep"],
                    low,
                    high,
                    color="#D55E00" if missed else colour,
                    linewidth=width,
                    alpha=0.6 if width > 2 else 1,
                )
            axes.plot(row["estimate"], row["sweep"], "o", color="white", markeredgecolor="black", markersize=4)
        axes.axvline(rows["truth"].iloc[0], color=GREY, linewidth=1)
        axes.set_title(term, loc="left", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    figure.axes[0].set_ylabel("sweep")
    figure.supxlabel("effect, nats; the line is the truth, and what misses it is red", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()
