"""Mixture-of-Depths (Raposo et al. 2024): a block that only some of the tokens pass through.

    r = x·w,  S = the k = ⌈cT⌉ highest r of a sequence,  y_i = x_i + g(r_i)·Δ(x_S)_i for i in S, else x_i

Δ is the block's whole residual branch over the tokens of S alone, in their order and with their own positions;
g is the sigmoid or the identity. Since the router's score multiplies the branch, the language-model loss trains it.

Top-k compares a token with later ones, so it cannot run token by token. Beside it a predictor learns, from the
detached input, whether a token is among the k (binary cross-entropy); under causal routing a token passes when the
predictor exceeds a stored threshold, the running (1−c) quantile of its own outputs in training. A `threshold` router
needs no predictor: its own score is compared with its own running quantile, in training too. A `random` router is
a top-k router whose weight stays as it started: what it gains, no learned choice is needed for.

A capacity just below 1, of which k = ⌈cT⌉ is T (1 − 1/(2T), say), is the control that gates and skips nothing: every
token passes, under either routing.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lahr.model.layers import Block, Linear, Window, parameter, rms_norm
from lahr.model_config import Gate
from lahr.model_config import Router as Kind

Routing = Literal["topk", "causal"]
MOMENTUM = 0.9
"""Share of a stored threshold that an observation keeps."""
BELOW_ALL = -1e30
"""A threshold that everything exceeds; finite, as what a checkpoint holds has to be."""


def capacity_tokens(capacity: float, length: int) -> int:
    """k = ⌈cT⌉, free of the product's rounding (0.07 · 100 is a little above 7, and 7 is meant)."""
    return min(length, math.ceil(round(capacity * length, 9)))


def predictor_width(d_model: int) -> int:
    """Hidden width of the causal predictor."""
    return max(d_model // 4, 8)


def top_k_places(scores_BT: Tensor, k: int) -> Tensor:
    """Places of the k highest scores of each sequence, ascending: (B, k)."""
    return scores_BT.topk(k, dim=1).indices.sort(dim=1).values


def pack(selected_BT: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Positions of the selected tokens, ascending, in `width` places a sequence, and which places are real.

    Places left over in a sequence hold tokens that were not selected. They come last, so the causal mask over
    places already hides them from the real ones; what they compute must be thrown away.
    """
    places_BK = torch.argsort(~selected_BT, dim=1, stable=True)[:, :width]
    return places_BK, selected_BT.gather(1, places_BK)


def rows_of(places_BK: Tensor, length: int) -> Tensor:
    """Rows of the flattened batch, (B·K,): whole-row copies are far cheaper on a CPU than an index a channel."""
    return (places_BK + length * torch.arange(len(places_BK), device=places_BK.device)[:, None]).flatten()


def take(x_BTD: Tensor, places_BK: Tensor) -> Tensor:
    """The tokens at those places: (B, K, D)."""
    B, T, D = x_BTD.shape
    return x_BTD.reshape(B * T, D).index_select(0, rows_of(places_BK, T)).view(B, -1, D)


class Routed(NamedTuple):
    """What a router decided. The gates and the losses carry gradients, the rest does not."""

    selected_BT: Tensor
    """The tokens that pass under the routing used."""
    places_BK: Tensor
    """Their places, ascending, packed to the most that a sequence has."""
    real_BK: Tensor
    gate_BK: Tensor
    """What multiplies their branch; 0 where a place is not real."""
    losses: dict[str, Tensor]
    """`predictor`, `balance`, `z`: those that this router has, unweighted, each a mean over tokens."""
    scores_BT: Tensor
    causal_BT: Tensor
    """What causal routing compares with the threshold: the predictor's logits, or a `threshold` router's scores."""
    top_k_BT: Tensor
    threshold: Tensor

    def add(self, x_BTD: Tensor, delta_BKD: Tensor) -> Tensor:
        """x, plus the gated branch of the tokens that pass; the others stay as they are, to the bit."""
        B, T, D = x_BTD.shape
        gated = (self.gate_BK[..., None] * delta_BKD).view(-1, D)
        return x_BTD.reshape(B * T, D).index_add(0, rows_of(self.places_BK, T), gated).view(B, T, D)

    def metrics(self) -> dict[str, Tensor]:
        """`capacity` realised; `agreement`, the share of tokens where the two routings decide alike; `entropy`,
        the mean over tokens of the entropy of a coin with probability σ(r), in nats."""
        p_BT = self.scores_BT.sigmoid()
        entropy_BT = F.binary_cross_entropy_with_logits(self.scores_BT, p_BT, reduction="none")
        return {
            "capacity": self.selected_BT.to(p_BT.dtype).mean(),
            "agreement": ((self.causal_BT > self.threshold) == self.top_k_BT).to(p_BT.dtype).mean(),
            "entropy": entropy_BT.mean(),
        }


class Router(nn.Module):
    """Decides which tokens pass, with what weight, and learns to decide it causally."""

    threshold: Tensor
    observations: Tensor

    def __init__(
        self, d_model: int, capacity: float, kind: Kind, gate: Gate, balance: bool, z: bool, noise: float = 0.0
    ) -> None:
        super().__init__()
        self.noise = noise
        self.capacity, self.kind, self.gate, self.balance, self.z = capacity, kind, gate, balance, z
        self.weight = parameter(1, d_model, std=0.02)
        self.weight.requires_grad_(kind != "random")
        self.predictor = Predictor(d_model, capacity) if kind != "threshold" else None
        # Before any observation a token passes when the predictor says more than the base rate, and under
        # `threshold` when its score is positive, as half of them are.
        start = math.log(capacity / (1 - capacity)) if kind != "threshold" else 0.0
        self.register_buffer("threshold", torch.tensor(start))
        self.register_buffer("observations", torch.zeros((), dtype=torch.int64))

    def forward(
        self, x_BTD: Tensor, routing: Routing, real_BT: Tensor | None = None, capacity: float | None = None
    ) -> Routed:
        """Routes the tokens x (B, T, D); those that are not `real` never pass under causal routing. `capacity` is that
        of top-k, by default its own."""
        with torch.autocast(x_BTD.device.type, enabled=False):  # bf16 scores would tie
            scores_BT = F.linear(x_BTD, self.weight).squeeze(-1)
        k = capacity_tokens(self.capacity if capacity is None else capacity, x_BTD.shape[1])
        picked_BT = scores_BT.detach()
        if self.noise and self.training:
            spread_B1 = picked_BT.std(1, keepdim=True, correction=0)
            picked_BT = picked_BT + self.noise * spread_B1 * torch.randn_like(picked_BT)
        top_BK = top_k_places(picked_BT, k)
        top_k_BT = torch.zeros_like(scores_BT, dtype=torch.bool).scatter_(1, top_BK, True)
        losses = self._score_losses(scores_BT)
        if self.predictor is None:
            causal_BT = scores_BT
        else:
            causal_BT = self.predictor(x_BTD.detach())
            losses["predictor"] = F.binary_cross_entropy_with_logits(causal_BT, top_k_BT.to(causal_BT.dtype))
        causal_BT = causal_BT.detach()
        if routing == "topk":
            selected_BT, places_BK = top_k_BT, top_BK
            real_BK = torch.ones_like(places_BK, dtype=torch.bool)
        else:
            selected_BT = causal_BT > self.threshold
            if real_BT is not None:
                selected_BT = selected_BT & real_BT
            places_BK, real_BK = pack(selected_BT, max(int(selected_BT.sum(1).max()), 1))
        r_BK = scores_BT.gather(1, places_BK)
        gate_BK = (r_BK.sigmoid() if self.gate == "sigmoid" else r_BK) * real_BK
        return Routed(
            selected_BT,
            places_BK,
            real_BK,
            gate_BK,
            losses,
            scores_BT.detach(),
            causal_BT,
            top_k_BT,
            self.threshold,
        )

    def _score_losses(self, scores_BT: Tensor) -> dict[str, Tensor]:
        """The router as a softmax over two experts, the block at logit r and the skip at 0.

        Balance (Fedus et al. 2021, eq. 4): Σ over experts of share chosen × mean probability, here over the share
        each expert should get, c and 1 − c, so that it is least at the capacity and equals theirs at c = ½. z (Zoph
        et al. 2022, eq. 5): the squared log-partition of the same softmax with its logits centred, ±r/2. Both are
        taken for each sequence, so they are the same however a batch is split.
        """
        losses, c = {}, self.capacity
        if self.balance:
            chosen_B = (scores_BT.detach() > 0).to(scores_BT.dtype).mean(1)
            p_B = scores_BT.sigmoid().mean(1)
            losses["balance"] = (chosen_B * p_B / c + (1 - chosen_B) * (1 - p_B) / (1 - c)).mean()
        if self.z:
            losses["z"] = (F.softplus(scores_BT) - scores_BT / 2).square().mean()
        return losses

    @torch.no_grad()
    def observe(self, causal_BT: Tensor, capacity: float | None = None) -> None:
        """Moves the threshold towards the value that B·⌈cT⌉ of these exceed; the first is taken whole. Where that is
        all of them it is below whatever may come, which has no part in a mean: the next is taken whole again. c is
        `capacity`, by default the router's own."""
        B, T = causal_BT.shape
        passing = B * capacity_tokens(self.capacity if capacity is None else capacity, T)
        if passing == B * T:
            self.threshold.fill_(BELOW_ALL)
        else:
            quantile = causal_BT.flatten().kthvalue(B * T - passing).values.to(self.threshold.dtype)
            moved = MOMENTUM * self.threshold + (1 - MOMENTUM) * quantile
            begins = (self.observations == 0) | (self.threshold <= BELOW_ALL)
            self.threshold.copy_(torch.where(begins, quantile, moved))
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
        self, d_model: int, n_heads: int, hidden: int, out_scale: float, router: Router, **options: bool
    ) -> None:
        super().__init__(d_model, n_heads, hidden, out_scale, **options)
        self.router = router

    def forward(  # type: ignore[override]
        self, x_BTD: Tensor, window: Window, routing: Routing, capacity: float | None = None
    ) -> tuple[Tensor, Routed]:
        """(B, T, D) to (B, T, D), and what was routed."""
        routed = self.router(x_BTD, routing, window.real_BT, capacity)
        x_BKD = take(x_BTD, routed.places_BK)
        delta_BKD = super().forward(x_BKD, window.at(routed.places_BK, routed.real_BK)) - x_BKD
        return routed.add(x_BTD, delta_BKD), routed
