"""A product-key memory (Lample et al. 2019) with a gated output (Memory Layers at Scale, Berges et al. 2024).

    q = norm(norm(x) W_q) in h heads;   the k best slots of n² by q·key;   m = Σ softmax(q·key/τ)_i v_i
    out = W_o(m ⊙ silu(norm(x) W_g)),   added to the residual stream

A slot's key is a pair of sub-keys, one from each of two sets of n, so the k best of the n² sums are among the k × k
sums of the best sub-keys of either half: n² slots for the search cost of 2n. Queries are normalised by their own
root mean square, never over the batch, so a sequence reads the same in any batch. W_o starts at zero.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lahr.model.layers import Linear, RMSNorm, parameter


class Memory(nn.Module):
    """Reads `slots` learned values: (B, T, D) to what is added to the stream, (B, T, D), and the read's record."""

    def __init__(self, d_model: int, slots: int, heads: int, top_k: int, key_dim: int) -> None:
        super().__init__()
        self.slots, self.heads, self.top_k, self.n = slots, heads, top_k, math.isqrt(slots)
        half = key_dim // 2
        self.norm = RMSNorm(d_model)
        self.query = Linear(d_model, heads * key_dim)
        self.query_norm = RMSNorm(key_dim)
        self.keys = parameter(heads, 2, self.n, half, std=half**-0.5)
        self.log_temperature = parameter(heads)
        self.values = parameter(slots, d_model, std=d_model**-0.5)
        self.gate = Linear(d_model, d_model)
        self.out = Linear(d_model, d_model, scale=0.0)

    def search(self, q_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """The `top_k` best slots for each query, and their scores q·key: two (B, T, H, top_k)."""
        B, T, H, K = q_BTHK.shape
        k = self.top_k
        # One batched product for each head and half: (2H, BT, K/2) x (2H, K/2, n).
        q = q_BTHK.reshape(B * T, 2 * H, K // 2).transpose(0, 1)
        scores = torch.bmm(q, self.keys.view(2 * H, self.n, K // 2).transpose(1, 2)).view(H, 2, B * T, self.n)
        best, which = scores.to(self.keys.dtype).topk(k, dim=-1)
        sums = (best[:, 0, :, :, None] + best[:, 1, :, None, :]).flatten(-2)
        slots = (which[:, 0, :, :, None] * self.n + which[:, 1, :, None, :]).flatten(-2)
        top, at = sums.topk(k, dim=-1)
        slots = slots.gather(-1, at)
        return tuple(t.transpose(0, 1).reshape(B, T, H, k) for t in (slots, top))  # type: ignore[return-value]

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
