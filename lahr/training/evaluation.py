"""Validation loss: the same windows every time, all of them, under causal routing; top-k beside it at the end.

Where the text has answers, their losses and accuracies are told apart by label. An answer is right where each of its
tokens is the likeliest one, given the answer's true tokens before it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lahr.data import Windows
from lahr.data.documents import FIRST, UNCOUNTED, Label
from lahr.model import LAHR, Own
from lahr.model.memory import use_metrics
from lahr.model.mixture_of_depths import Routing


@torch.no_grad()
def evaluate(
    model: LAHR | Own,
    windows: Windows,
    *,
    micro_batch: int,
    autocast: torch.autocast,
    bytes_per_token: float,
    with_topk: bool,
    segments: int = 1,
    labels: Sequence[Label] = (),
    alive: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`val_loss` in nats a token (causal routing, mean over all windows), `bits_per_byte` and the mechanisms' metrics.

    `document_loss` is that of documents that lie whole in their row and whose floor is known. With answers there are
    `answer_loss` and `accuracy`, and of each label and each kind of them `answer_loss/NAME` and `accuracy/NAME`; with
    routers also `selected/NAME`, the share of them that the tokens from which such answers are predicted pass.

    `with_topk` adds `val_loss_topk` and `router_gap` (causal minus top-k) where something is routed. Every rank
    evaluates its share of the windows, in as many forward passes as every other, and gets the whole mean. With
    `segments` the windows are rows of so many, which stay whole: `micro_batch` is a multiple, and there is a row for
    each rank. `alive` is called after every forward pass.
    """
    was_training = model.training
    model.eval()
    try:
        metrics = _mean_over_windows(model, windows, micro_batch, autocast, "causal", segments, labels, alive)
        if with_topk:
            routed = any(name.startswith("mod/") for name in metrics)
            topk = (
                _mean_over_windows(model, windows, micro_batch, autocast, "topk", segments, labels, alive)
                if routed
                else metrics
            )
            metrics["val_loss_topk"] = topk["val_loss"]
            metrics["router_gap"] = metrics["val_loss"] - topk["val_loss"]
    finally:
        model.train(was_training)
    metrics["bits_per_byte"] = metrics["val_loss"] / math.log(2) / bytes_per_token
    return metrics


@dataclass
class _Sums:
    """What is added up over the batches of one evaluation, as vectors in float64."""

    device: torch.device
    vectors: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        value = value.to(self.device, torch.float64)
        self.vectors[name] = self.vectors[name] + value if name in self.vectors else value

    def of_all_ranks(self) -> dict[str, Tensor]:
        if dist.is_initialized() and dist.get_world_size() > 1:
            for vector in self.vectors.values():
                dist.all_reduce(vector)
        return self.vectors


def _mean_over_windows(
    model: nn.Module,
    windows: Windows,
    micro_batch: int,
    autocast: torch.autocast,
    routing: Routing,
    segments: int,
    labels: Sequence[Label],
    alive: Callable[[], None],
) -> dict[str, float]:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    sums = _Sums(device)
    rows_RS = torch.arange(len(windows.inputs_NT)).view(-1, segments)
    share = rows_RS[rank::world].flatten()
    # Where the model is sharded a forward pass takes all ranks, so each makes as many as the first, which has the most
    # windows; one that has run out repeats a row, and counts it for nothing.
    for start in range(0, rows_RS[::world].numel(), micro_batch):
        rows = share[start : start + micro_batch]
        weight, rows = len(rows), rows if len(rows) else rows_RS[0]
        targets_BT = windows.targets_NT[rows].to(device)
        with autocast:
            output = model(windows.inputs_NT[rows].to(device), targets_BT, routing=routing, segments=segments)
        alive()
        for name, value in output.metrics.items():
            # Weighted by windows, so that a last smaller batch counts for what it holds.
            sums.add(f"metric {name}", value.double() * weight)
        counts = weight > 0
        sums.add("losses", _pair(output.losses_BT, targets_BT >= 0) * counts)
        sums.add("whole", _pair(output.losses_BT, windows.whole_NT[rows].to(device) & (targets_BT >= 0)) * counts)
        if windows.labels_NT is not None:
            labels_BT = windows.labels_NT[rows].to(device)
            sums.add("labels", _by_label(output.losses_BT, output.right_BT, labels_BT, segments) * counts)
            if output.selected_BT is not None:
                sums.add("selected", _selected(output.selected_BT, labels_BT) * counts)
        if output.memory_use is not None:
            sums.add("memory", output.memory_use.double() * counts)
    total = sums.of_all_ranks()
    metrics = {"val_loss": _ratio(total["losses"])}
    metrics |= {
        name.removeprefix("metric "): value.item() / len(windows.inputs_NT)
        for name, value in total.items()
        if name.startswith("metric ")
    }
    if total["whole"][1] > 0:
        metrics["document_loss"] = _ratio(total["whole"])
    if "labels" in total:
        metrics |= _of_answers(total["labels"].cpu(), labels, total.get("selected"))
    if "memory" in total:
        metrics.update(use_metrics(total["memory"]))
    return metrics


def _pair(losses_BT: Tensor, where_BT: Tensor) -> Tensor:
    """Sum and number of the losses there, (2,)."""
    return torch.stack((losses_BT.double().masked_fill(~where_BT, 0).sum(), where_BT.sum().double()))


def _ratio(pair: Tensor) -> float:
    return float(pair[0] / pair[1]) if pair[1] > 0 else math.nan


def _by_label(losses_BT: Tensor, right_BT: Tensor, labels_BT: Tensor, segments: int) -> Tensor:
    """Of each label the sum of losses, tokens, right answers, answers: (4, 127). Parts of answers that were cut off at
    their beginning are left out."""
    labels_N, length = labels_BT.flatten().long(), segments * labels_BT.shape[1]
    of_N, first_N = labels_N % FIRST, labels_N >= FIRST
    inside_N = (of_N > 0) & (of_N < UNCOUNTED)
    # A token goes with the last first token before it in its row, whose windows may share an answer.
    number_N = first_N.cumsum(0)
    row_first_N = (number_N - first_N.long()).view(-1, length)[:, :1].expand(-1, length).flatten()
    inside_N &= number_N > row_first_N
    result = torch.zeros(4, UNCOUNTED, dtype=torch.float64, device=labels_BT.device)
    losses_N = losses_BT.flatten().double()
    result[0].index_add_(0, of_N[inside_N], losses_N[inside_N])
    result[1] += torch.bincount(of_N[inside_N], minlength=UNCOUNTED)
    wrong = torch.zeros(int(number_N.max()) + 1 if len(number_N) else 1, dtype=torch.bool, device=labels_BT.device)
    wrong[number_N[inside_N & ~right_BT.flatten()]] = True
    firsts_N = first_N & inside_N
    result[3] += torch.bincount(of_N[firsts_N], minlength=UNCOUNTED)
    result[2] += torch.bincount(of_N[firsts_N & ~wrong[number_N]], minlength=UNCOUNTED)
    return result


def _selected(selected_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Of each label the summed shares of routers that its tokens passed, and the tokens: (2, 127)."""
    of_N = (labels_BT.flatten().long() % FIRST).clamp(max=UNCOUNTED)
    result = torch.zeros(2, UNCOUNTED + 1, dtype=torch.float64, device=labels_BT.device)
    result[0].index_add_(0, of_N, selected_BT.flatten().double())
    result[1] += torch.bincount(of_N, minlength=UNCOUNTED + 1)
    return result[:, :UNCOUNTED]


def _of_answers(sums: Tensor, labels: Sequence[Label], selected: Tensor | None) -> dict[str, float]:
    """What is said of each label, of each kind that has groups, and of all answers."""
    names: dict[str, list[int]] = {"": []}
    for number, label in enumerate(labels, 1):
        kind, slash, _ = label.name.partition("/")
        for name in ("", kind, *([label.name] if slash else [])):
            names.setdefault(name, []).append(number)
    metrics = {}
    for name, numbers in names.items():
        loss, tokens, right, answers = sums[:, numbers].sum(1).tolist()
        if answers > 0:
            ending = f"/{name}" if name else ""
            metrics[f"answer_loss{ending}"] = loss / tokens
            metrics[f"accuracy{ending}"] = right / answers
            if selected is not None:
                metrics[f"selected{ending}"] = _ratio(selected[:, numbers].sum(1))
    return metrics
