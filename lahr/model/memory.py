"""Memories: product keys, whole slots, and the keys and values of earlier segments.

**Product keys** (Lample et al. 2019) with a gated output (Memory Layers at Scale, Berges et al. 2024):

    q = norm(norm(x) W_q) in h heads;   the k best slots of n² by q·key;   m = Σ softmax(q·key/τ)_i v_i
    out = W_o(m ⊙ silu(norm(x) W_g)),   added to the residual stream

A slot's key is a pair of sub-keys, one from each of two sets of n, so the k best of the n² sums are among the k × k
sums of the best sub-keys of either half: n² slots for the search cost of 2n. Queries are normalised by their own
root mean square, never over the batch, so a sequence reads the same in any batch. W_o starts at zero. **Slots** are
the same with a whole key each, all of them searched: the published code's memory, of 128.

**kNN** (Memorizing Transformers, Wu et al. 2022) adds no layer: in one block each head's attention becomes
y + g(m − y), where m attends to the k best of the keys of earlier segments of the same document, which carry no
gradient, and g is learned for each head. Queries and keys are compared without positions and normalised, since they
come from other segments; with `qk_norm` what is normalised has been through that norm and its weights already. Their g
is a sigmoid; ours is a tanh, which starts at 0: the model starts as the one without.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lahr.model.layers import Linear, RMSNorm, Window, parameter, rms_norm


class Memory(nn.Module):
    """Reads `slots` learned values: (B, T, D) to what is added to the stream, (B, T, D), and the read's record."""

    def __init__(
        self,
        d_model: int,
        slots: int,
        heads: int,
        top_k: int,
        key_dim: int,
        kind: Literal["product_key", "slots"] = "product_key",
    ) -> None:
        super().__init__()
        self.slots, self.heads, self.top_k, self.n = slots, heads, top_k, math.isqrt(slots)
        half = key_dim // 2
        self.norm = RMSNorm(d_model)
        self.query = Linear(d_model, heads * key_dim)
        self.query_norm = RMSNorm(key_dim)
        self.kind = kind
        self.keys = (
            parameter(heads, 2, self.n, half, std=half**-0.5)
            if kind == "product_key"
            else parameter(heads, slots, key_dim, std=key_dim**-0.5)
        )
        self.log_temperature = parameter(heads)
        self.values = parameter(slots, d_model, std=d_model**-0.5)
        self.gate = Linear(d_model, d_model)
        self.out = Linear(d_model, d_model, scale=0.0)

    def search(self, q_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """The `top_k` best slots for each query, and their scores q·key: two (B, T, H, top_k)."""
        B, T, H, K = q_BTHK.shape
        if self.kind == "slots":
            scores = torch.bmm(q_BTHK.reshape(B * T, H, K).transpose(0, 1), self.keys.transpose(1, 2))
            top, slots = scores.to(self.keys.dtype).topk(self.top_k, dim=-1)
        else:
            slots, top = self._product(q_BTHK)
        return tuple(t.transpose(0, 1).reshape(B, T, H, -1) for t in (slots, top))  # type: ignore[return-value]

    def _product(self, q_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """The best slots and their scores, (H, B·T, top_k) each."""
        B, T, H, K = q_BTHK.shape
        k = self.top_k
        # One batched product for each head and half: (2H, BT, K/2) x (2H, K/2, n).
        q = q_BTHK.reshape(B * T, 2 * H, K // 2).transpose(0, 1)
        scores = torch.bmm(q, self.keys.view(2 * H, self.n, K // 2).transpose(1, 2)).view(H, 2, B * T, self.n)
        best, which = scores.to(self.keys.dtype).topk(k, dim=-1)
        sums = (best[:, 0, :, :, None] + best[:, 1, :, None, :]).flatten(-2)
        slots = (which[:, 0, :, :, None] * self.n + which[:, 1, :, None, :]).flatten(-2)
        top, at = sums.topk(k, dim=-1)
        return slots.gather(-1, at), top

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What to add to the stream (B, T, D), the slots read and their weights, both (B, T, H, top_k)."""
        B, T, D = x_BTD.shape
        x_BTD = self.norm(x_BTD)
        q_BTHK = self.query_norm(self.query(x_BTD).view(B, T, self.heads, -1))
        slots, scores = self.search(q_BTHK)
        weights = (scores * torch.exp(-self.log_temperature)[:, None]).softmax(-1)
        read = F.embedding_bag(
            slots.reshape(B * T, -1), self.values, per_sample_weights=weights.reshape(B * T, -1), mode="sum"
        )
        return self.out(read.view(B, T, D) * F.silu(self.gate(x_BTD))), slots, weights.detach()


class EarlierSegments(nn.Module):
    """The kNN memory of one block: how much each head takes from the `slots` tokens before its segment."""

    def __init__(self, n_heads: int, slots: int, top_k: int) -> None:
        super().__init__()
        self.slots, self.top_k = slots, top_k
        self.gate = parameter(n_heads)

    def window(self, window: Window, segments: int) -> "Segmented":
        """`window` with this memory in its attention; its sequences are rows of so many consecutive segments."""
        return Segmented(window.rotary, window.real_BT, inner=window, memory=self, segments=segments)

    def read(self, q_STHE: Tensor, k_STHE: Tensor, v_STHE: Tensor, s: int) -> tuple[Tensor, Tensor]:
        """What segment s of one row (S segments of T tokens) reads of the earlier ones: (T, H, E), and the mean
        distance in tokens of what is read, (T, H)."""
        T, _, E = q_STHE.shape[1:]
        first = max(0, s * T - self.slots)
        k_HME, v_HME = (x_STHE[:s].flatten(0, 1)[first:].transpose(0, 1) for x_STHE in (k_STHE, v_STHE))
        scores_HTM = torch.bmm(q_STHE[s].transpose(0, 1), k_HME.transpose(1, 2)) * E**-0.5
        best_HTK, which_HTK = scores_HTM.topk(min(self.top_k, k_HME.shape[1]), dim=-1)
        weights_HTK = best_HTK.to(q_STHE.dtype).softmax(-1)
        chosen_HTKE = torch.stack([v_ME[which_TK] for v_ME, which_TK in zip(v_HME, which_HTK, strict=True)])
        read_HTE = (weights_HTK[..., None] * chosen_HTKE).sum(2)
        own_T1 = torch.arange(s * T, (s + 1) * T, device=which_HTK.device)[:, None]
        distance_HT = (weights_HTK * (own_T1 - first - which_HTK)).sum(-1).detach()
        return read_HTE.transpose(0, 1), distance_HT.transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class Segmented(Window):
    """A batch whose sequences are consecutive segments of documents, S to a row: (rows · S, T)."""

    inner: Window
    memory: EarlierSegments
    segments: int
    distances: list[Tensor] = field(default_factory=list)
    """Mean distance of what each segment but a first read: filled by `attend`."""

    def attend(self, qk_BT2HE: Tensor, v_BTHE: Tensor) -> Tensor:
        """See `Window.attend`: a row's first segment has nothing to remember, nor has text without segments."""
        y_BTHE = self.inner.attend(qk_BT2HE, v_BTHE)
        if self.segments == 1:
            return y_BTHE
        gate_H1 = self.memory.gate.tanh().to(y_BTHE.dtype)[:, None]
        shape = (-1, self.segments, *v_BTHE.shape[1:])
        q_BTHE, k_BTHE = rms_norm(qk_BT2HE).unbind(2)
        rows = []
        for y_STHE, q_STHE, k_STHE, v_STHE in zip(
            *(x.reshape(shape) for x in (y_BTHE, q_BTHE, k_BTHE.detach(), v_BTHE.detach())), strict=True
        ):
            mixed = [y_STHE[0]]
            for s in range(1, self.segments):
                read_THE, distance_TH = self.memory.read(q_STHE, k_STHE, v_STHE, s)
                mixed.append(y_STHE[s] + gate_H1 * (read_THE.to(y_STHE.dtype) - y_STHE[s]))
                self.distances.append(distance_TH.mean())
            rows.append(torch.stack(mixed))
        return torch.stack(rows).view(y_BTHE.shape)

    def metrics(self) -> dict[str, Tensor]:
        """`memory/gate`, the mean size of the heads' gates, and `memory/distance`, in tokens, of what is read."""
        distance = torch.stack(self.distances).mean() if self.distances else self.memory.gate.new_tensor(math.nan)
        return {"memory/gate": self.memory.gate.tanh().abs().mean(), "memory/distance": distance}


USE_METRICS = ("memory/slots_used", "memory/kl_uniform", "memory/slots_50", "memory/slots_90", "memory/slots_99")


def use(slots: Tensor, weights: Tensor, n_slots: int) -> Tensor:
    """The weight each slot was read with, summed over tokens and heads: (n_slots,), in float64 so that sums of
    many batches stay exact enough."""
    mass = torch.zeros(n_slots, dtype=torch.float64, device=weights.device)
    return mass.index_add_(0, slots.flatten(), weights.flatten().double())


def use_metrics(mass: Tensor) -> dict[str, float]:
    """How the memory is used, from the summed weight of each slot (n_slots,), over as many tokens as were added up.

    `slots_used`: the share of slots read at all; `kl_uniform`: the divergence of use from uniform, in nats;
    `slots_50`, `slots_90`, `slots_99`: the smallest share of slots that covers this part of the weight.
    All are NaN where the weights are, as in a model that has diverged. Raises `ValueError` when nothing was read.
    """
    total = float(mass.sum())
    if math.isnan(total):
        return dict.fromkeys(USE_METRICS, math.nan)
    if not total > 0:
        raise ValueError(f"the memory's use sums to {total}; add up `Output.memory_use` over evaluation batches")
    share = mass.double() / total
    covered = share.sort(descending=True).values.cumsum(0)
    metrics = {
        "memory/slots_used": float((mass > 0).double().mean()),
        "memory/kl_uniform": float(torch.special.xlogy(share, share * mass.numel()).sum()),
    }
    for percent in (50, 90, 99):
        # The tolerance is the rounding of the running sum: a uniform memory must need exactly its share of slots.
        needed = int((covered < percent / 100 - 1e-12 * mass.numel()).sum()) + 1
        metrics[f"memory/slots_{percent}"] = needed / mass.numel()
    return metrics
