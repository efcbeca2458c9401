"""TensorBoard event files of a sweep: a run a trial, a run a cell, and the whole sweep at the root.

    trials/<cell>/seed<k>   curves by step; the losses also by tokens, FLOPs and seconds; an HParams session
    cells/<cell>            mean, 95 % interval over seeds, and the paired difference from `base`
    .                       the HParams experiment, a custom-scalars layout, the report's figures and text

`EventFiles` observes a sweep and writes each trial's run as its records arrive; `write_events` rebuilds everything
from the results. TensorBoard's x-axis is a whole number, so FLOPs are counted in millions and time in milliseconds.
The HParams and layout messages are built by hand: the package's own helpers need TensorFlow, and torch's
`add_hparams` cannot make one session group of a cell's seeds.
"""

import math
import shutil
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy import stats
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from sweeps.analysis.comparisons import cells_in_order
from sweeps.analysis.contrasts import Contrasts
from sweeps.analysis.trajectories import paired_difference

if TYPE_CHECKING:
    from lahr.training.progress import Progress
    from sweeps.engine.design import Trial

LEVELS = ("mod_capacity", "latent_iterations", "memory_slots")
MOST_HPARAMS = 5
"""TensorBoard shows five columns by default."""
TAGS = {
    "val_loss": "loss/validation",
    "val_loss_topk": "loss/validation_topk",
    "train_loss": "loss/train",
    "decayed_val_loss": "loss/decayed",
    "bits_per_byte": "loss/bits_per_byte",
    "router_gap": "mod/router_gap",
}
BY_COST = ("val_loss", "train_loss")
"""The metrics that are also drawn over tokens, FLOPs and seconds."""
HPARAM_METRICS = ("val_loss", "bits_per_byte", "tokens_per_second")
NOT_METRICS = ("step", "tokens", "flops", "seconds", "pairing", "status")
VIEWS = {
    "cells against base": "?x#custom_scalars&regexInput=%5E%28%5C.%7Ccells%2F.%2A%29%24&_smoothingWeight=0",
    "means over seeds": "?runFilter=%5Ecells&tagFilter=cell.*mean&smoothing=0#timeseries",
    "the report": "?x#text",
    "the figures": "?x#images",
}
"""What to append to TensorBoard's address: above 40 runs it unchecks everything, and tabs look blank."""


class EventFiles:
    """The observer that writes each trial's run while the sweep goes on.

    A trial seen for the first time starts its run afresh, since all its records come again after a resume; within
    one sweep a step at or before the last one written is dropped.
    """

    essential = False

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory)
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
            _add(writer, session_start(trial.cell, trial.levels, self._began[trial.id]))

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
        _add(writer, session_end(result.get("status") != "diverged", time.time()))
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
    levels: Sequence[str] = LEVELS,
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
    for row in trials.to_dict(orient="records"):
        shown = {name: row[name] for name in levels if name in row}
        with SummaryWriter(str(trial_folder(directory, row["cell"], row["seed"]))) as writer:
            _add(writer, session_start(row["cell"], shown, now))
            for point in curves.get(row["trial"], pd.DataFrame()).to_dict(orient="records"):
                metrics = {str(k): v for k, v in point.items() if k not in NOT_METRICS}
                at = (point["step"], point["tokens"], point["flops"], point["seconds"])
                _curve_point(writer, now, *at, metrics)
            _add(writer, session_end(row["status"] != "diverged", now + float(row.get("seconds") or 0)))
    cells = cells_in_order([str(cell) for cell in trials["cell"]], design)
    for cell in cells:
        with SummaryWriter(str(directory / "cells" / cell)) as writer:
            _cell_curves(writer, now, cell, trials, curves)
    with SummaryWriter(str(directory)) as writer:
        _add(writer, experiment(trials, levels, now))
        _add(writer, layout())
        for name, content in files.items():
            if name.endswith(".png"):
                _add(writer, image("report/" + name.removesuffix(".png"), content))
        if "report.md" in files:
            lines = files["report.md"].decode().splitlines()
            writer.add_text("report", "\n".join(line for line in lines if not line.startswith("![")), walltime=now)


def trial_folder(directory: Path, cell: str, seed: int) -> Path:
    """Where the run of one trial is."""
    return directory / "trials" / cell / f"seed{seed}"


def tag(metric: str) -> str:
    """A metric's name in TensorBoard; those of a mechanism (`mod/…`) keep theirs."""
    return TAGS.get(metric, metric if "/" in metric else f"training/{metric}")


def session_start(cell: str, levels: Mapping[str, Any], at: float) -> Summary:
    """An HParams session in the group of its cell, with the cell's name and levels."""
    info = plugin_data_pb2.SessionStartInfo(group_name=cell, start_time_secs=at)
    for name, value in _hparams(cell, levels).items():
        if isinstance(value, str):
            info.hparams[name].string_value = value
        else:
            info.hparams[name].number_value = value
    return _hparam_summary(
        metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info)
    )


def session_end(succeeded: bool, at: float) -> Summary:
    """The end of an HParams session."""
    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=at)
    return _hparam_summary(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def experiment(trials: pd.DataFrame, levels: Sequence[str], at: float) -> Summary:
    """The HParams experiment: which columns to show, and which metrics."""
    rows = trials.drop_duplicates("cell").to_dict(orient="records")
    cells = [_hparams(row["cell"], {name: row[name] for name in levels if name in row}) for row in rows]
    message = api_pb2.Experiment(name="sweep", time_created_secs=at)
    for name in cells[0] if cells else ():
        values = list(dict.fromkeys(cell[name] for cell in cells))
        kind = api_pb2.DATA_TYPE_STRING if isinstance(values[0], str) else api_pb2.DATA_TYPE_FLOAT64
        info = message.hparam_infos.add(name=name, type=kind, differs=True)
        for value in values:
            member = info.domain_discrete.values.add()
            if isinstance(value, str):
                member.string_value = value
            else:
                member.number_value = value
    for metric in HPARAM_METRICS:
        message.metric_infos.add(name=api_pb2.MetricName(tag=tag(metric)), display_name=metric)
    return _hparam_summary(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=message))


def layout() -> Summary:
    """The custom-scalars tab: each cell's difference from base and its loss, with their intervals."""
    message = layout_pb2.Layout()
    for title, prefix in (("By step", "cell"), ("By tokens", "cell_by_tokens")):
        category = message.category.add(title=title)
        for name, quantity in (("Difference from base", "difference"), ("Validation loss", "loss")):
            chart = category.chart.add(title=f"{name}, mean and 95 % over seeds")
            stem = f"{prefix}/{quantity}"
            chart.margin.series.add(value=f"{stem}_mean", lower=f"{stem}_low", upper=f"{stem}_high")
    data = SummaryMetadata.PluginData(plugin_name=layout_metadata.PLUGIN_NAME)
    tensor = TensorProto(
        dtype="DT_STRING", string_val=[message.SerializeToString()], tensor_shape=TensorShapeProto()
    )
    value = Summary.Value(
        tag=layout_metadata.CONFIG_SUMMARY_TAG, metadata=SummaryMetadata(plugin_data=data), tensor=tensor
    )
    return Summary(value=[value])


def image(name: str, png: bytes) -> Summary:
    """A PNG as it is; its size stands in the header's first chunk."""
    width, height = struct.unpack(">II", png[16:24])
    picture = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
    return Summary(value=[Summary.Value(tag=name, image=picture)])


def _hparams(cell: str, levels: Mapping[str, Any]) -> dict[str, str | float]:
    shown: dict[str, str | float] = {"cell": cell}
    shown |= {name: float(value) for name, value in list(levels.items())[: MOST_HPARAMS - 1]}
    return shown


def _hparam_summary(name: str, data: plugin_data_pb2.HParamsPluginData) -> Summary:
    about = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=name, metadata=about, tensor=metadata.NULL_TENSOR)])


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
    steps: dict[Any, Any] = {}
    for trial, seed in zip(finished["trial"], finished["seed"], strict=True):
        if trial in curves and "val_loss" in curves[trial]:
            evaluated = curves[trial].dropna(subset=["val_loss"]).drop_duplicates("tokens", keep="last")
            losses[seed] = evaluated.set_index("tokens")["val_loss"]
            steps |= dict(zip(evaluated["tokens"], evaluated["step"], strict=True))
    quantities = {"loss": pd.DataFrame(losses)}
    if cell != "base":
        quantities["difference"] = paired_difference(cell, trials, curves)
    for quantity, table in quantities.items():
        for tokens, name, value in _summaries(table):
            for prefix, x in (("cell", steps[tokens]), ("cell_by_tokens", tokens)):
                writer.add_scalar(f"{prefix}/{quantity}_{name}", value, int(x), walltime=began)


def _summaries(table: pd.DataFrame) -> Iterator[tuple[Any, str, float]]:
    """(tokens, mean | low | high, value) of each row over its seeds; no interval for a single seed."""
    for tokens, row in table.iterrows():
        seen = row.dropna().to_numpy(float)
        if not len(seen):
            continue
        yield tokens, "mean", seen.mean()
        if len(seen) > 1:
            half = stats.t.isf(0.025, len(seen) - 1) * seen.std(ddof=1) / math.sqrt(len(seen))
            yield tokens, "low", seen.mean() - half
            yield tokens, "high", seen.mean() + half
