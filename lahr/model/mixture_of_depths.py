"""Mixture-of-Depths (Raposo et al. 2024): a block that only some of the tokens pass through.

    r = x·w,  S = the k = ⌈cT⌉ highest r of a sequence,  y_i = x_i + g(r_i)·Δ(x_S)_i for i in S, else x_i

Δ is the block's whole residual branch over the tokens of S alone, in their order and with their own positions;
g is the sigmoid or the identity. Since the router's score multiplies the branch, the language-model loss trains it.

Top-k compares a token with later ones, so it cannot run token by token. Beside it a predictor learns, from the
detached input, whether a token is among the k (binary cross-entropy); under causal routing a token passes when the
predictor exceeds a stored threshold, the running (1−c) quantile of its own outputs in training.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lahr.model.layers import Block, Linear, Rotary, parameter, rms_norm

Routing = Literal["topk", "causal"]
MOMENTUM = 0.9
"""Share of a stored threshold that an observation keeps."""


def capacity_tokens(capacity: float, length: int) -> int:
    """k = ⌈cT⌉, free of the product's rounding (0.07 · 100 is a little above 7, and 7 is meant)."""
    return min(length, math.ceil(round(capacity * length, 9)))


def predictor_width(d_model: int) -> int:
    """Hidden width of the causal predictor."""
    return max(d_model // 4, 8)


def top_k_mask(scores_BT: Tensor, k: int) -> Tensor:
    """True for the k highest scores of each sequence: (B, T) bool."""
    mask_BT = torch.zeros_like(scores_BT, dtype=torch.bool)
    return mask_BT.scatter_(1, scores_BT.topk(k, dim=1).indices, True)


def pack(selected_BT: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Positions of the selected tokens, ascending, in `width` places a sequence, and which places are real.

    Places left over in a sequence hold tokens that were not selected. They come last, so the causal mask over
    places already hides them from the real ones; what they compute must be thrown away.
    """
    places_BK = torch.argsort(~selected_BT, dim=1, stable=True)[:, :width]
    return places_BK, selected_BT.gather(1, places_BK)


class Routed(NamedTuple):
    """What a routed block decided, beside its output. Only `predictor_loss` carries a gradient."""

    predictor_loss: Tensor
    predictor_logits_BT: Tensor
    scores_BT: Tensor
    selected_BT: Tensor
    """The tokens that went through the block under the routing used."""
    top_k_BT: Tensor
    threshold: Tensor

    def metrics(self) -> dict[str, Tensor]:
        """`capacity` realised; `agreement`, the share of tokens where the two routings decide alike; `entropy`,
        the mean over tokens of the entropy of a coin with probability σ(r), in nats."""
        causal_BT = self.predictor_logits_BT > self.threshold
        p_BT = self.scores_BT.sigmoid()
        entropy_BT = F.binary_cross_entropy_with_logits(self.scores_BT, p_BT, reduction="none")
        return {
            "capacity": self.selected_BT.to(p_BT.dtype).mean(),
            "agreement": (causal_BT == self.top_k_BT).to(p_BT.dtype).mean(),
            "entropy": entropy_BT.mean(),
        }


class Router(nn.Module):
    """Scores for top-k routing, and the causal predictor with its stored threshold."""

    threshold: Tensor
    observations: Tensor

    def __init__(self, d_model: int, capacity: float) -> None:
        super().__init__()
        self.capacity = capacity
        self.weight = parameter(1, d_model, std=0.02)
        self.predictor = Predictor(d_model, capacity)
        # Before any observation a token passes when the predictor says more than the base rate.
        self.register_buffer("threshold", torch.tensor(math.log(capacity / (1 - capacity))))
        self.register_buffer("observations", torch.zeros((), dtype=torch.int64))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The scores r and the predictor's logits, both (B, T); the logits do not reach back into x."""
        with torch.autocast(x_BTD.device.type, enabled=False):  # bf16 scores would tie
            scores_BT = F.linear(x_BTD, self.weight).squeeze(-1)
        return scores_BT, self.predictor(x_BTD.detach())

    @torch.no_grad()
    def observe(self, logits_BT: Tensor) -> None:
        """Moves the threshold towards the value that B·⌈cT⌉ of these logits exceed; the first is taken whole."""
        B, T = logits_BT.shape
        passing = B * capacity_tokens(self.capacity, T)
        quantile = logits_BT.flatten().kthvalue(max(B * T - passing, 1)).values.to(self.threshold.dtype)
        moved = MOMENTUM * self.threshold + (1 - MOMENTUM) * quantile
        self.threshold.copy_(torch.where(self.observations == 0, quantile, moved))
        self.observations += 1


class Predictor(nn.Module):
    """Logits (B, T) that a token is among the k highest, from that token alone; starts near the base rate c."""

    def __init__(self, d_model: int, capacity: float) -> None:
        super().__init__()
        width = predictor_width(d_model)
        self.hidden = Linear(d_model, width)
        self.out = Linear(width, 1)
        self.bias = parameter(1, mean=math.log(capacity / (1 - capacity)))

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden_BTM = F.silu(self.hidden(rms_norm(x_BTD)))
        with torch.autocast(x_BTD.device.type, enabled=False):  # a threshold in bf16 steps would miss the capacity
            return self.out(hidden_BTM.to(x_BTD.dtype)).squeeze(-1) + self.bias


class RoutedBlock(Block):
    """A block with a router; the parameters it shares with the plain `Block` keep their names."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        hidden: int,
        out_scale: float,
        capacity: float,
        gate: Literal["sigmoid", "raw"],
    ) -> None:
        super().__init__(d_model, n_heads, hidden, out_scale)
        self.capacity, self.gate = capacity, gate
        self.router = Router(d_model, capacity)

    def forward(self, x_BTD: Tensor, rotary: Rotary, routing: Routing) -> tuple[Tensor, Routed]:  # type: ignore[override]
        """(B, T, D) to (B, T, D), and the record of what was routed."""
        B, T, D = x_BTD.shape
        scores_BT, logits_BT = self.router(x_BTD)
        k = capacity_tokens(self.capacity, T)
        top_k_BT = top_k_mask(scores_BT.detach(), k)
        predictor_loss = F.binary_cross_entropy_with_logits(logits_BT, top_k_BT.to(logits_BT.dtype))
        logits_BT = logits_BT.detach()
        if routing == "topk":
            selected_BT, width = top_k_BT, k
        else:
            selected_BT = logits_BT > self.router.threshold
            width = max(int(selected_BT.sum(1).max()), 1)

        places_BK, real_BK = pack(selected_BT, width)
        # Rows of the flattened batch: whole-row copies are far cheaper on a CPU than an index for each channel.
        rows = (places_BK + T * torch.arange(B, device=x_BTD.device)[:, None]).flatten()
        x_BKD = x_BTD.reshape(B * T, D).index_select(0, rows).view(B, width, D)
        delta_BKD = super().forward(x_BKD, rotary.at(places_BK)) - x_BKD
        r_BK = scores_BT.gather(1, places_BK)
        g_BK = (r_BK.sigmoid() if self.gate == "sigmoid" else r_BK) * real_BK
        y = x_BTD.reshape(B * T, D).index_add(0, rows, (g_BK[..., None] * delta_BKD).view(-1, D))
        record = Routed(predictor_loss, logits_BT, scores_BT.detach(), selected_BT, top_k_BT, self.router.threshold)
        return y.view(B, T, D), record
