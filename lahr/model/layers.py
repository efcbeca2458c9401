"""The plain transformer's parts: RMS norm, rotary positions, causal attention, SwiGLU, and the block made of them.

Pre-norm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), gated feed-forward (Shazeer 2020), no biases.
Tensor names carry their shape: B sequences, T tokens, D channels, H heads, E channels of a head.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6
LEAST_QUERIES, MOST_QUERIES = 128, 512
"""Queries that attention computes at once on a CPU: a quarter of the window, within these."""


def parameter(*shape: int, mean: float = 0.0, std: float = 0.0) -> nn.Parameter:
    """A parameter that says how it starts, N(mean, std²); `LAHR` draws it, from (seed, name), once all are named.

    Memory is left unset here, so that building a module takes nothing from any random stream.
    """
    made = nn.Parameter(torch.empty(*shape))
    made.start = (mean, std)  # type: ignore[attr-defined]
    return made


class Linear(nn.Module):
    """x W^T without a bias: (…, d_in) to (…, d_out). Starts at N(0, scale²/d_in); `scale=0` starts at zero."""

    def __init__(self, d_in: int, d_out: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = parameter(d_out, d_in, std=scale * d_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def rms_norm(x: Tensor) -> Tensor:
    """x over the root of the mean square of its last dimension: no parameters."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


class RMSNorm(nn.Module):
    """`rms_norm` times a learned weight for each channel, which starts at one, or at `start`."""

    def __init__(self, width: int, start: float = 1.0) -> None:
        super().__init__()
        self.weight = parameter(width, mean=start)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x) * self.weight


class Rotary(NamedTuple):
    """Cosines and sines of each position's angles, (T, E); (B, K, E) once gathered for chosen tokens.

    Twice E/2 of each, the sines negative at first: what `rotate` multiplies a head and its swapped halves with.
    """

    cos: Tensor
    sin: Tensor

    def at(self, indices: Tensor) -> "Rotary":
        """The rows of those positions: `indices` of any shape S give (S, E/2)."""
        return Rotary(self.cos[indices], self.sin[indices])

    def rotate(self, x_BTHE: Tensor) -> Tensor:
        """Turns each pair (channel i, channel i + E/2) by its position's angle; any number of head dimensions."""
        shape = (*self.cos.shape[:-1], *(1,) * (x_BTHE.dim() - 3), self.cos.shape[-1])
        cos, sin = self.cos.view(shape).to(x_BTHE.dtype), self.sin.view(shape).to(x_BTHE.dtype)
        return x_BTHE * cos + x_BTHE.roll(x_BTHE.shape[-1] // 2, -1) * sin


def rotary_table(length: int, head_dim: int, theta: float) -> Rotary:
    """The angles t·theta^(−2i/E) of positions t = 0 … length−1, i = 0 … E/2−1, as two (length, E) tables."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    cos, sin = torch.cat((angles.cos(),) * 2, 1), torch.cat((-angles.sin(), angles.sin()), 1)
    return Rotary(cos.to(torch.get_default_dtype()), sin.to(torch.get_default_dtype()))


def attention_span(length: int) -> float:
    """Mean number of keys that `causal_attention` multiplies a query with on a CPU, masked ones included."""
    return sum((end - start) * end for start, end in _query_slices(length)) / length


def _query_slices(length: int) -> list[tuple[int, int]]:
    size = min(max(-(-length // 4), LEAST_QUERIES), MOST_QUERIES)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def causal_attention(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> Tensor:
    """softmax(q k^T/√E) v, query i over the keys 0 … i: three (B, H, T, E) to one.

    On a CPU the queries go in slices, each against the keys up to its end, so that most of the masked half is never
    computed; forward and backward take a third of the time of torch's CPU kernel (10 against 28 ms in bf16 for
    8 × 4 heads of 256 × 32), whose backward pass is slow for narrow heads. Elsewhere torch's kernel is taken.
    """
    if q_BHTE.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True)
    B, H, T, E = q_BHTE.shape
    q, k, v = (x.reshape(B * H, T, E) for x in (q_BHTE, k_BHTE, v_BHTE))
    slices = []
    for start, end in _query_slices(T):
        mask = torch.full((end - start, end), -torch.inf, dtype=q.dtype).triu_(start + 1)
        scores = torch.baddbmm(mask, q[:, start:end], k[:, :end].transpose(1, 2), alpha=E**-0.5)
        slices.append(torch.bmm(scores.softmax(-1), v[:, :end]))
    return torch.cat(slices, 1).view(B, H, T, E)


def masked_attention(q_BKHE: Tensor, k_BMHE: Tensor, v_BMHE: Tensor, visible_BKM: Tensor) -> Tensor:
    """softmax(q k^T/√E) v over the keys that each query sees: (B, K, H, E). A query that sees none gets some mean of
    values, finite, which its caller throws away."""
    q_BHKE, k_BHME, v_BHME = (x.transpose(1, 2) for x in (q_BKHE, k_BMHE, v_BMHE))
    scores_BHKM = q_BHKE @ k_BHME.transpose(2, 3) * q_BHKE.shape[-1] ** -0.5
    scores_BHKM = scores_BHKM.masked_fill(~visible_BKM[:, None], torch.finfo(scores_BHKM.dtype).min)
    return (scores_BHKM.softmax(-1) @ v_BHME).transpose(1, 2)


@dataclass(frozen=True)
class Window:
    """The tokens that a layer is given: the angles of their positions, and how they attend to one another.

    This one is a whole window, in order, causal. `cache.Chunk` is the one whose tokens follow cached ones.
    """

    rotary: Rotary
    real_BT: Tensor | None = None
    """False where a token is padding; None where none is."""

    def at(self, places_BK: Tensor, real_BK: Tensor) -> "Window":
        """The tokens at those places, ascending; those that are not `real` come last and are thrown away later."""
        return Window(self.rotary.at(places_BK), real_BK)

    def site(self, name: str) -> Self:
        """The same tokens at one place of the network, for what remembers keys there."""
        return self

    def attend(self, qk_BT2HE: Tensor, v_BTHE: Tensor) -> Tensor:
        """Causal attention of queries and keys that are not yet turned by their positions: (B, T, H, E)."""
        q_BTHE, k_BTHE = self.rotary.rotate(qk_BT2HE).unbind(2)
        y_BHTE = causal_attention(q_BTHE.transpose(1, 2), k_BTHE.transpose(1, 2), v_BTHE.transpose(1, 2))
        return y_BHTE.transpose(1, 2)

    def keep(self, k_BTHE: Tensor, v_BTHE: Tensor) -> None:
        """Remembers keys and values for later tokens: a whole window has none."""

    def read(self, q_BKHE: Tensor, places_BK: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
        """Attention of the tokens at `places` over the keys of all tokens up to them: (B, K, H, E)."""
        visible_BKT = torch.arange(k_BTHE.shape[1], device=places_BK.device) <= places_BK[..., None]
        return masked_attention(q_BKHE, k_BTHE, v_BTHE, visible_BKT)


class Attention(nn.Module):
    """Causal multi-head attention, (B, T, D) to (B, T, D); token i sees the tokens 0 … i of the given order.

    With `qk_norm` each head's queries and keys go through an RMS norm, with a learned weight for each channel that the
    heads share, before they are turned by their positions (Henry et al. 2020; Dehghani et al. 2023, "Scaling Vision
    Transformers to 22 Billion Parameters"): the scores cannot grow without bound.
    """

    def __init__(self, d_model: int, n_heads: int, out_scale: float, qk_norm: bool = False) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = Linear(d_model, 3 * d_model)
        self.out = Linear(d_model, d_model, out_scale)
        self.query_norm = RMSNorm(d_model // n_heads) if qk_norm else None
        self.key_norm = RMSNorm(d_model // n_heads) if qk_norm else None

    def forward(self, x_BTD: Tensor, window: Window) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BT3HE = self.qkv(x_BTD).view(B, T, 3, self.n_heads, D // self.n_heads)
        qk_BT2HE = qkv_BT3HE[:, :, :2]
        if self.query_norm is not None and self.key_norm is not None:
            weights_21E = torch.stack((self.query_norm.weight, self.key_norm.weight))[:, None]
            # In fp32 at least where products are in bf16, and back, so that what attends sees one type.
            qk_BT2HE = (rms_norm(qk_BT2HE.to(weights_21E.dtype)) * weights_21E).to(qk_BT2HE.dtype)
        return self.out(window.attend(qk_BT2HE, qkv_BT3HE[:, :, 2]).reshape(B, T, D))


class FeedForward(nn.Module):
    """SwiGLU: W_down(silu(x W_gate) ⊙ x W_up), the two products of x in one matrix."""

    def __init__(self, d_model: int, hidden: int, out_scale: float) -> None:
        super().__init__()
        self.gate_up = Linear(d_model, 2 * hidden)
        self.down = Linear(hidden, d_model, out_scale)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTD).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then that + feed_forward(norm(that)): (B, T, D) to (B, T, D).

    `out_scale` shrinks the start of both projections into the residual stream, by 1/√(2·layers) in a stack. With
    `zero_init` they start at zero, and the block as the identity (Fixup, Zhang et al. 2019; ReZero, Bachlechner et al.
    2020; a practice with μP, Yang et al. 2022).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        hidden: int,
        out_scale: float,
        *,
        qk_norm: bool = False,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        out_scale = 0.0 if zero_init else out_scale
        self.attention_norm = RMSNorm(d_model)
        self.attention = Attention(d_model, n_heads, out_scale, qk_norm)
        self.feed_forward_norm = RMSNorm(d_model)
        self.feed_forward = FeedForward(d_model, hidden, out_scale)

    def forward(self, x_BTD: Tensor, window: Window) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), window)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
