"""Messages of TensorBoard's HParams tab: one experiment a sweep, one session group a cell, one session a trial.

Built by hand: the package's own helpers need TensorFlow, and torch's `add_hparams` cannot make one session group of a
cell's seeds. A column holds numbers or text; the seed is none, since the seeds of a group would differ in it.
"""

import math
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

Hparam = str | float
MOST_COLUMNS = 5
"""TensorBoard shows five by default; the first is the cell's name."""


def columns(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Hparam]]:
    """Cell → its hyperparameters: its name and up to four levels, those first that differ between `cells`.

    `cells` has each cell's levels by name: numbers, text, booleans or None (NaN, as a table says it). A column with
    anything but numbers in it is text throughout.
    """
    names = list(dict.fromkeys(name for levels in cells.values() for name in levels))
    values = {name: {cell: _plain(levels.get(name)) for cell, levels in cells.items()} for name in names}
    constant = {name for name in names if len({repr(value) for value in values[name].values()}) == 1}
    kept = sorted(names, key=lambda name: name in constant)[: MOST_COLUMNS - 1]
    shown: dict[str, dict[str, Hparam]] = {cell: {"cell": cell} for cell in cells}
    ends = [name.rpartition(".")[2] for name in kept]
    for name in (name for name in names if name in kept):
        end = name.rpartition(".")[2]  # a field's place is long, and its own name mostly enough
        called = end if ends.count(end) == 1 and end != "cell" else name
        numbers = all(type(value) in (int, float) for value in values[name].values())
        for cell, value in values[name].items():
            shown[cell][called] = float(value) if numbers else _text(value)
    return shown


def session_start(hparams: Mapping[str, Hparam], at: float) -> Summary:
    """A session in the group of its cell; `at` is in seconds of the epoch."""
    info = plugin_data_pb2.SessionStartInfo(group_name=str(hparams["cell"]), start_time_secs=at)
    for name, value in hparams.items():
        _set(info.hparams[name], value)
    return _summary(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info))


def session_end(succeeded: bool, at: float) -> Summary:
    """The end of a session."""
    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=at)
    return _summary(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def experiment(cells: Mapping[str, Mapping[str, Hparam]], metrics: Mapping[str, str], at: float) -> Summary:
    """The experiment: the columns of `columns`, and metrics by tag with the name that is shown."""
    message = api_pb2.Experiment(name="sweep", time_created_secs=at)
    for name in next(iter(cells.values()), {}):
        values = list(dict.fromkeys(hparams[name] for hparams in cells.values()))
        kind = api_pb2.DATA_TYPE_STRING if isinstance(values[0], str) else api_pb2.DATA_TYPE_FLOAT64
        info = message.hparam_infos.add(name=name, type=kind, differs=True)
        for value in values:
            _set(info.domain_discrete.values.add(), value)
    for tag, name in metrics.items():
        message.metric_infos.add(name=api_pb2.MetricName(tag=tag), display_name=name)
    return _summary(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=message))


def _plain(value: Any) -> Any:
    """A level as Python has it; numpy's scalars as theirs, and NaN as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a table may have made 4 into 4.0
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _set(message: Any, value: Hparam) -> None:
    if isinstance(value, str):
        message.string_value = value
    else:
        message.number_value = value


def _summary(name: str, data: plugin_data_pb2.HParamsPluginData) -> Summary:
    about = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=name, metadata=about, tensor=metadata.NULL_TENSOR)])
