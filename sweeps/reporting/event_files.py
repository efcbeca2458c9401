"""TensorBoard event files of a sweep: a run a trial, a run a cell, and the whole sweep at the root.

    trials/<cell>/seed<k>   curves by step; the losses also by tokens, FLOPs and seconds; an HParams session
    cells/<cell>            mean, 95 % interval over seeds, and the paired difference from `base`
    .                       the HParams experiment, a custom-scalars layout, the report's figures and its sections

`EventFiles` observes a sweep and writes each trial's run as its records arrive; `write_events` rebuilds everything
from the results. TensorBoard's x-axis is a whole number, so FLOPs are counted in millions and time in milliseconds.
Messages are built by hand where the package's own helpers need TensorFlow.
"""

import math
import re
import shutil
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.text import metadata as text_metadata
from torch.utils.tensorboard import SummaryWriter

from sweeps.analysis.comparisons import cells_in_order
from sweeps.analysis.contrasts import Contrasts
from sweeps.analysis.effects import t_interval
from sweeps.analysis.trajectories import evaluations, paired_difference
from sweeps.reporting import hparams
from sweeps.reporting.literal import text_table

if TYPE_CHECKING:
    from lahr.training.progress import Progress
    from sweeps.engine.design import Trial

TAGS = {
    "val_loss": "loss/validation",
    "val_loss_topk": "loss/validation_topk",
    "train_loss": "loss/train",
    "decayed_val_loss": "loss/decayed",
    "bits_per_byte": "loss/bits_per_byte",
    "document_loss": "loss/documents",
    "accuracy": "accuracy/all",
    "answer_loss": "answer_loss/all",
    "selected": "selected/all",
    "router_gap": "mod/router_gap",
}
BY_COST = ("val_loss", "train_loss")
"""The metrics that are also drawn over tokens, FLOPs and seconds."""
SHEET = "report.png"
"""The figure that is shown first: it has the others on it."""
HPARAM_METRICS = ("val_loss", "bits_per_byte", "tokens_per_second")
MOST_TEXT_COLUMNS = 7
"""Of a table in the text tab, in a window of 1,400 pixels."""
NOT_METRICS = ("step", "tokens", "flops", "seconds", "pairing", "status")
VIEWS = {
    "cells against base": "?x#custom_scalars&regexInput=%5E%28%5C.%7Ccells%2F.%2A%29%24&_smoothingWeight=0",
    "means over seeds": "?runFilter=%5Ecells&tagFilter=cell.*mean&smoothing=0#timeseries",
    "the report": "?x#text&regexInput=%5E%5C.%24",
    "the figures": "?x#images&regexInput=%5E%5C.%24",
}
"""What to append to TensorBoard's address: the runs that a tab is for, chosen, and curves as they are (by default
they are smoothed)."""
MOST_CHOSEN = 40
"""Where there are more runs, all of TensorBoard's tabs but time series and HParams start with none chosen and look
blank; the views choose."""


class EventFiles:
    """The observer that writes each trial's run while the sweep goes on.

    A trial seen for the first time starts its run afresh, since all its records come again after a resume; within
    one sweep a step at or before the last one written is dropped.
    """

    essential = False

    def __init__(self, directory: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
        """`cells` are all cells of the sweep with their levels by name."""
        self._directory = Path(directory)
        self._hparams = hparams.columns(cells)
        self._writers: dict[str, SummaryWriter] = {}
        self._last: dict[str, int] = {}
        self._began: dict[str, float] = {}

    def started(self, trial: "Trial") -> None:
        """Opens the trial's run."""
        if trial.id in self._writers:
            return
        folder = trial_folder(self._directory, trial.cell, trial.seed)
        fresh = trial.id not in self._last
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            self._last[trial.id], self._began[trial.id] = -1, time.time()
        writer = self._writers[trial.id] = SummaryWriter(str(folder))
        if fresh:
            _add(writer, hparams.session_start(self._hparams[trial.cell], self._began[trial.id]))

    def progressed(self, trial: "Trial", rows: "Sequence[Progress]") -> None:
        """Writes the records of steps not yet written."""
        writer = self._writers[trial.id]
        for row in rows:
            if row.step > self._last[trial.id]:
                self._last[trial.id] = row.step
                _curve_point(
                    writer, self._began[trial.id], row.step, row.tokens, row.flops, row.seconds, row.metrics
                )
        writer.flush()

    def finished(self, trial: "Trial", result: Mapping[str, Any]) -> None:
        """Ends the trial's session; a diverged one as failed."""
        writer = self._writers[trial.id]
        _add(writer, hparams.session_end(result.get("status") != "diverged", time.time()))
        self._end(trial)

    def failed(self, trial: "Trial", error: str) -> None:
        """Closes the run; what was written stays."""
        if trial.id in self._writers:
            self._end(trial)

    def close(self) -> None:
        """Closes every run that is still open."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _end(self, trial: "Trial") -> None:
        self._writers.pop(trial.id).close()


def write_events(
    directory: Path,
    trials: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    files: Mapping[str, bytes],
    design: Contrasts,
    levels: Sequence[str],
) -> None:
    """Rebuilds all runs below `directory` from the sweep's table, its curves by trial id, and the report's files.

    `levels` are the columns of `trials` that say what a cell is. Runs of other trials in the directory are removed.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for old in (directory / "trials", directory / "cells"):
        shutil.rmtree(old, ignore_errors=True)
    for path in directory.glob("events.out.tfevents.*"):
        path.unlink()
    now = time.time()
    rows = trials.drop_duplicates("cell").to_dict(orient="records")
    columns = hparams.columns({row["cell"]: {name: row[name] for name in levels if name in row} for row in rows})
    for row in trials.to_dict(orient="records"):
        with SummaryWriter(str(trial_folder(directory, row["cell"], row["seed"]))) as writer:
            _add(writer, hparams.session_start(columns[row["cell"]], now))
            for point in curves.get(row["trial"], pd.DataFrame()).to_dict(orient="records"):
                metrics = {str(k): v for k, v in point.items() if k not in NOT_METRICS}
                at = (point["step"], point["tokens"], point["flops"], point["seconds"])
                _curve_point(writer, now, *at, metrics)
            _add(writer, hparams.session_end(row["status"] != "diverged", now + float(row.get("seconds") or 0)))
    cells = cells_in_order([str(cell) for cell in trials["cell"]], design)
    for cell in cells:
        with SummaryWriter(str(directory / "cells" / cell)) as writer:
            _cell_curves(writer, now, cell, trials, curves)
    with SummaryWriter(str(directory)) as writer:
        _add(writer, hparams.experiment(columns, {tag(name): name for name in HPARAM_METRICS}, now))
        _add(writer, layout())
        pictures = sorted((name for name in files if name.endswith(".png")), key=lambda name: name != SHEET)
        for place, name in enumerate(pictures, start=1):
            _add(writer, image(f"figures/{place}_{name.removesuffix('.png')}", files[name]))
        for name, section in _sections(files.get("report.md", b"").decode()).items():
            _add(writer, text(name, section))


def runs(trials: pd.DataFrame) -> int:
    """How many runs `write_events` makes of a sweep's table."""
    return len(trials) + trials["cell"].nunique() + 1


def trial_folder(directory: Path, cell: str, seed: int) -> Path:
    """Where the run of one trial is."""
    return directory / "trials" / cell / f"seed{seed}"


def tag(metric: str) -> str:
    """A metric's name in TensorBoard; those of a mechanism (`mod/…`) keep theirs."""
    return TAGS.get(metric, metric if "/" in metric else f"training/{metric}")


def layout() -> Summary:
    """The custom-scalars tab: each cell's difference from base and its loss, with their intervals.

    TensorBoard scales a chart to the middle 90 % of its figures and leaves out a band whose edge lies beyond, which
    the one of the cell furthest from the others does; only a click, and no link, turns that off.
    """
    message = layout_pb2.Layout()
    for title, prefix in (("By step", "cell"), ("By tokens", "cell_by_tokens")):
        category = message.category.add(title=f"{title} (untick “Ignore outliers” to see every interval)")
        # TensorBoard shows a category's charts from the last to the first.
        for name, quantity in (("Validation loss", "loss"), ("Difference from base", "difference")):
            chart = category.chart.add(title=f"{name}, mean and 95 % over seeds")
            stem = f"{prefix}/{quantity}"
            chart.margin.series.add(value=f"{stem}_mean", lower=f"{stem}_low", upper=f"{stem}_high")
    data = SummaryMetadata.PluginData(plugin_name=layout_metadata.PLUGIN_NAME)
    return _string(
        layout_metadata.CONFIG_SUMMARY_TAG, SummaryMetadata(plugin_data=data), message.SerializeToString()
    )


def text(name: str, markdown: str) -> Summary:
    """Markdown for the text tab."""
    return _string(name, text_metadata.create_summary_metadata("", ""), markdown.encode())


def image(name: str, png: bytes) -> Summary:
    """A PNG as it is; its size stands in the header's first chunk."""
    width, height = struct.unpack(">II", png[16:24])
    picture = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
    return Summary(value=[Summary.Value(tag=name, image=picture)])


def _string(name: str, about: SummaryMetadata, content: bytes) -> Summary:
    tensor = TensorProto(dtype="DT_STRING", string_val=[content], tensor_shape=TensorShapeProto())
    return Summary(value=[Summary.Value(tag=name, metadata=about, tensor=tensor)])


def _sections(report: str) -> dict[str, str]:
    """The report's parts by tag, numbered in their order: `report/1_verdict`, `report/2_effects`, … Figures have a tab
    of their own, and a part that has nothing but them and words about them is left out."""
    parts = [part for part in re.split(r"(?m)^(?=## )", report) if part]
    parts = [part for part in parts if not re.search(r"(?m)^!\[", part) or re.search(r"(?m)^\| ", part)]
    titles = ["verdict"] + [part.partition("\n")[0] for part in parts[1:]]
    return {
        f"report/{place}_{re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')}": re.sub(
            r"(?m)(^\| .*\n)+", _narrow, re.sub(r"(?m)^!\[.*\n", "", part)
        )
        for place, (title, part) in enumerate(zip(titles, parts, strict=False), start=1)
    }


def _narrow(table: re.Match[str]) -> str:
    """A table as it is, or as text where it is wide: TensorBoard would break its numbers apart."""
    wide = table[0].partition("\n")[0].count("|") - 1 > MOST_TEXT_COLUMNS
    return text_table(table[0]) if wide else table[0]


def _add(writer: SummaryWriter, summary: Summary) -> None:
    writer._get_file_writer().add_summary(summary, 0)


def _curve_point(
    writer: SummaryWriter,
    began: float,
    step: int,
    tokens: int,
    flops: float,
    seconds: float,
    metrics: Mapping[str, float],
) -> None:
    """One record; the wall time of a point is that of training alone, so "relative" shows training time."""
    for metric, value in metrics.items():
        if not isinstance(value, (int, float)) or math.isnan(value):
            continue
        points = [(tag(metric), step)]
        if metric in BY_COST:
            name = tag(metric).removeprefix("loss/")
            points += [
                (f"loss_by_tokens/{name}", tokens),
                (f"loss_by_megaflops/{name}", round(flops / 1e6)),
                (f"loss_by_milliseconds/{name}", round(seconds * 1e3)),
            ]
        if metric == "decayed_val_loss":  # of a shorter run that ends further on, and costs what that run does
            points += [
                ("loss_by_tokens/decayed", round(metrics["decayed_tokens"])),
                ("loss_by_megaflops/decayed", round(metrics["decayed_flops"] / 1e6)),
            ]
        for name, x in points:
            writer.add_scalar(name, value, int(x), walltime=began + seconds)


def _cell_curves(
    writer: SummaryWriter, began: float, cell: str, trials: pd.DataFrame, curves: Mapping[str, pd.DataFrame]
) -> None:
    finished = trials[(trials["cell"] == cell) & (trials["status"] != "diverged")]
    losses: dict[Any, pd.Series] = {}
    places: dict[Any, tuple[int, int]] = {}
    for trial, seed in zip(finished["trial"], finished["seed"], strict=True):
        evaluated = evaluations(curves.get(trial), "val_loss")
        losses[seed] = evaluated.set_index("share")["val_loss"]
        places |= dict(
            zip(evaluated["share"], zip(evaluated["step"], evaluated["tokens"], strict=True), strict=True)
        )
    quantities = {"loss": pd.DataFrame(losses)}
    if cell != "base":
        quantities["difference"] = paired_difference(cell, trials, curves)
    for quantity, table in quantities.items():
        for share, name, value in _summaries(table):
            for prefix, x in zip(("cell", "cell_by_tokens"), places[share], strict=True):
                writer.add_scalar(f"{prefix}/{quantity}_{name}", value, int(x), walltime=began)


def _summaries(table: pd.DataFrame) -> Iterator[tuple[Any, str, float]]:
    """(index, mean | low | high, value) of each row over its seeds; no interval for a single seed."""
    for index, row in table.iterrows():
        seen = row.dropna().to_numpy(float)
        if not len(seen):
            continue
        mean, low, high = map(float, t_interval(seen))
        yield index, "mean", mean
        if len(seen) > 1:
            yield index, "low", low
            yield index, "high", high
