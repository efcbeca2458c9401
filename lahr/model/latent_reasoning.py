"""Latent reasoning: one shared core run R times over the stream, after the recurrent-depth models.

    h_0 = e;  for t = 1 … R:  h ← Ā⊙h + B̄⊙norm(e);  h ← core(h);   y = e + W_o·norm(h_R)

e is the stream where the core stands. 0 < Ā < 1, learned for each channel, damps the recurrence, so that many passes
stay stable (Geiping et al. 2025 for the recurrent depth). W_o starts at zero: at the start the model equals the one
without it. Without plain blocks it is a Universal Transformer (Dehghani et al. 2018).

A token may leave early. With an exit gate λ_t = σ(w·h_t/|h_t| + b) it leaves, at inference, once 1 − Π(1 − λ) is q; the
gate learns from the losses of the passes' own readouts (`exit_loss`). With ACT (Graves 2016) it leaves, in training
too, once Σ λ reaches 1 − ε, and its state is the mean of its states weighted by λ, the last by what is left of 1.
A token that has left is not computed again: its last keys and values serve the deeper passes of the others. With a
capacity, a router picks after the first pass who runs the others, h ← h_1 + g(r)·(h_R − h_1), as in Mixture-of-Depths.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lahr.model.layers import Block, Linear, RMSNorm, Window, parameter
from lahr.model.mixture_of_depths import Routed, Router, Routing, pack, rows_of, take
from lahr.model_config import Halting

BACKPROPAGATED = 8
"""Passes, the last ones, that a gradient goes back through where all tokens run them (Geiping et al. 2025)."""
ACT_EPSILON = 0.01
EXIT_STRIDE = 8
"""The exit gate learns from every eighth token of a window: it needs the head at each pass, which is dear."""
SHARPNESS, LEAST_GAIN = 50.0, 0.005
"""k and γ of the exit gate's target σ(k(γ − gain)): leave when the next pass gains less than γ nats."""


LossesAt = Callable[[Tensor, slice], Tensor]
"""From the stream after the core (B, S, D) at some of the positions to the language model's loss there, (B·S,)."""


class Core(Block):
    """A block with a norm after each branch too, so that a pass adds the same amount whatever its weights.

    With `zero_init` these norms' weights start at zero, as those of a residual branch's last norm in Goyal et al. 2017,
    and the projections before them do not: a norm of zeros would multiply their gradient by 1/√ε.
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
        super().__init__(d_model, n_heads, hidden, out_scale, qk_norm=qk_norm)
        start = 0.0 if zero_init else 1.0
        self.attention_out_norm = RMSNorm(d_model, start)
        self.feed_forward_out_norm = RMSNorm(d_model, start)

    def forward(self, x_BTD: Tensor, window: Window) -> Tensor:
        x_BTD = x_BTD + self.attention_out_norm(self.attention(self.attention_norm(x_BTD), window))
        return x_BTD + self.feed_forward_out_norm(self.feed_forward(self.feed_forward_norm(x_BTD)))


class Exit(nn.Module):
    """Logits (…) of leaving now, w·h/|h| + b from states h (…, D). Starts undecided for the gate, at 1 for ACT (Graves
    2016).

    Of the state's direction, since its length is about √D: the gate's gradient would then be several times that of all
    the rest, and clipping by the whole norm would hold everything else back (0.18 nats at `quick`; docs/notebook.md).
    """

    def __init__(self, d_model: int, bias: float) -> None:
        super().__init__()
        self.weight = parameter(1, d_model)
        self.bias = parameter(1, mean=bias)

    def forward(self, h: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):  # a probability in bf16 steps would leave in jumps
            return F.linear(F.normalize(h, dim=-1), self.weight).squeeze(-1) + self.bias


class Reasoned(NamedTuple):
    """What the core did, beside its output."""

    passes: Tensor
    """Passes run for a token, on average."""
    exits_R: Tensor | None = None
    """Share of the tokens that left after each pass, where tokens may leave."""
    routed: Routed | None = None
    loss: Tensor | None = None
    """The exit gate's own, or ACT's ponder cost N + what is left of 1, a mean over tokens; with its gradient."""


class LatentReasoning(nn.Module):
    """R passes of one core over the stream: (B, T, D) to (B, T, D)."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        hidden: int,
        out_scale: float,
        iterations: int,
        layers: int = 1,
        halting: Halting = "none",
        leaves_at: float = 0.5,
        router: Router | None = None,
        **options: bool,
    ) -> None:
        """`options` are those of the core's blocks."""
        super().__init__()
        self.iterations, self.halting, self.leaves_at = iterations, halting, leaves_at
        self.core = nn.ModuleList(Core(d_model, n_heads, hidden, out_scale, **options) for _ in range(layers))
        self.input_norm = RMSNorm(d_model)
        self.decay_logit = parameter(d_model)  # Ā = σ(this): one half at the start, and B̄ = 1 − Ā
        self.injection = parameter(d_model, mean=0.5)
        self.readout_norm = RMSNorm(d_model)
        self.readout = Linear(d_model, d_model, scale=0.0)
        self.exit = Exit(d_model, 1.0 if halting == "act" else 0.0) if halting != "none" else None
        self.router = router

    def step(self, h_BTD: Tensor, injected_BTD: Tensor, window: Window) -> Tensor:
        """One pass: the state h and the injected B̄⊙norm(e) give the next state."""
        h_BTD = self.decay_logit.sigmoid() * h_BTD + injected_BTD
        for i, layer in enumerate(self.core):
            h_BTD = layer(h_BTD, window.site(f"layer{i}"))
        return h_BTD

    def read(self, e: Tensor, h: Tensor) -> Tensor:
        """y of a state: what the stream is after the core, both (…, D)."""
        return e + self.readout(self.readout_norm(h))

    def forward(
        self,
        e_BTD: Tensor,
        window: Window,
        routing: Routing,
        passes: int | None = None,
        losses_at: LossesAt | None = None,
    ) -> tuple[Tensor, Reasoned]:
        """The stream after the core, and what it did. `passes` is R unless it is given, for a sampled step; the exit
        gate learns where `losses_at` is given."""
        passes = self.iterations if passes is None else passes
        injected_BTD = self.injection * self.input_norm(e_BTD)
        if self.halting == "act" or (self.halting == "gate" and not self.training):
            h_BTD, reasoned = self._leaving(e_BTD, injected_BTD, window, passes)
        elif self.router is not None:
            h_BTD, reasoned = self._routed(e_BTD, injected_BTD, window, passes, routing)
        else:
            h_BTD, states = e_BTD, []
            for t in range(1, passes + 1):
                # Earlier passes than the last eight take no part in the gradient (Geiping et al. 2025).
                with torch.set_grad_enabled(torch.is_grad_enabled() and t > passes - BACKPROPAGATED):
                    h_BTD = self.step(h_BTD, injected_BTD, window.site(f"pass{t}"))
                states.append(h_BTD)
            loss = self._exit_loss(e_BTD, states, losses_at) if losses_at is not None and self.exit else None
            reasoned = Reasoned(h_BTD.new_tensor(float(passes)), loss=loss)
        return self.read(e_BTD, h_BTD), reasoned

    def _routed(
        self, e_BTD: Tensor, injected_BTD: Tensor, window: Window, passes: int, routing: Routing
    ) -> tuple[Tensor, Reasoned]:
        """One pass for all, the others for the tokens that the router picks, which see one another alone."""
        assert self.router is not None
        first_BTD = self.step(e_BTD, injected_BTD, window.site("pass1"))
        routed = self.router(first_BTD, routing, window.real_BT)
        first_BKD, injected_BKD = (take(x, routed.places_BK) for x in (first_BTD, injected_BTD))
        chosen, h_BKD = window.at(routed.places_BK, routed.real_BK), first_BKD
        for t in range(2, passes + 1):
            h_BKD = self.step(h_BKD, injected_BKD, chosen.site(f"pass{t}"))
        share = routed.selected_BT.to(first_BTD.dtype).mean()
        return routed.add(first_BTD, h_BKD - first_BKD), Reasoned(1 + (passes - 1) * share, routed=routed)

    def _leaving(self, e_BTD: Tensor, injected_BTD: Tensor, window: Window, passes: int) -> tuple[Tensor, Reasoned]:
        """Passes for the tokens that have not left yet, each of which decides by itself."""
        assert self.exit is not None
        T = e_BTD.shape[1]
        act = self.halting == "act"
        real_BT = window.real_BT if window.real_BT is not None else torch.ones_like(e_BTD[..., 0], dtype=torch.bool)
        inside_BT, tokens = real_BT, real_BT.sum().to(e_BTD.dtype).clamp(min=1)
        left_BT = torch.zeros_like(e_BTD[..., 0])  # the probability of having left; under ACT the sum of λ
        ponder_BT = torch.zeros_like(left_BT)
        h_BTD, mean_BTD, exits, run = e_BTD, torch.zeros_like(e_BTD), [], tokens * 0
        latest: dict[str, tuple[Tensor, Tensor]] = {}
        for t in range(1, passes + 1):
            here = window.site(f"pass{t}")
            if not inside_BT.any():  # the deeper passes of later tokens still find the last keys of these
                for layer, keys in latest.items():
                    here.site(layer).keep(*keys)
                exits.append(tokens * 0)
                continue
            run = run + inside_BT.sum()
            # All tokens at first, in their own places, so that every layer has a key of each.
            width = T if t == 1 else int(inside_BT.sum(1).max())
            places_BK, real_BK = pack(inside_BT if t > 1 else torch.ones_like(inside_BT), width)
            rotary = window.at(places_BK, real_BK).rotary
            inside = Inside(rotary, real_BK, whole=here, places_BK=places_BK, latest=latest)
            before_BKD = take(h_BTD, places_BK)
            after_BKD = self.step(before_BKD, take(injected_BTD, places_BK), inside)
            after_BKD = torch.where(real_BK[..., None], after_BKD, before_BKD)
            h_BTD = put(h_BTD, places_BK, after_BKD)

            p_BT = put(left_BT, places_BK, self.exit(after_BKD).sigmoid())
            now_BT = left_BT + (p_BT if act else (1 - left_BT) * p_BT)
            leaves_BT = inside_BT & ((now_BT >= (1 - ACT_EPSILON if act else self.leaves_at)) | (t == passes))
            if act:
                weight_BT = torch.where(leaves_BT, 1 - left_BT, p_BT) * inside_BT
                mean_BTD = mean_BTD + weight_BT[..., None] * h_BTD
                ponder_BT = torch.where(leaves_BT, t + 1 - left_BT, ponder_BT)
            left_BT = torch.where(inside_BT, now_BT, left_BT)
            exits.append(leaves_BT.sum() / tokens)
            inside_BT = inside_BT & ~leaves_BT
        ponder = ponder_BT.sum() / tokens if act else None
        reasoned = Reasoned(run / tokens, torch.stack(exits).detach(), loss=ponder)
        return mean_BTD if act else h_BTD, reasoned

    def _exit_loss(self, e_BTD: Tensor, states_BTD: list[Tensor], losses_at: LossesAt) -> Tensor:
        """`exit_loss` over every eighth token."""
        some = slice(min(EXIT_STRIDE, e_BTD.shape[1]) - 1, None, EXIT_STRIDE)
        states, e = [h_BTD.detach()[:, some] for h_BTD in states_BTD], e_BTD.detach()[:, some]
        with torch.no_grad():  # a step of one pass compares nothing
            losses = tuple(losses_at(self.read(e, h), some) for h in states if len(states) > 1)
        return self.exit_loss(tuple(h.flatten(0, 1) for h in states), losses)

    def exit_loss(self, states: tuple[Tensor, ...], losses: tuple[Tensor, ...]) -> Tensor:
        """The gate's binary cross-entropy towards σ(k(γ − (L_t − L_{t+1}))), over t < R and the tokens given.

        `states` (N, D) and `losses` (N,), in nats, after each pass, both without a gradient: this trains the gate
        and nothing else. A step of one pass says nothing of the next, and gives 0.
        """
        assert self.exit is not None
        logits = [self.exit(h.detach()) for h in states]
        if len(states) == 1:
            return logits[0].sum() * 0.0  # so that the gate has a gradient in every step, as DDP expects
        gains = torch.stack([before - after for before, after in pairwise(losses)]).detach()
        targets = torch.sigmoid(SHARPNESS * (LEAST_GAIN - gains))
        return F.binary_cross_entropy_with_logits(torch.stack(logits[:-1]), targets)


def put(x_BTD: Tensor, places_BK: Tensor, new_BKD: Tensor) -> Tensor:
    """x with the tokens at those places replaced."""
    B, T = x_BTD.shape[:2]
    flat = x_BTD.reshape(B * T, -1).index_copy(0, rows_of(places_BK, T), new_BKD.reshape(places_BK.numel(), -1))
    return flat.view(x_BTD.shape)


@dataclass(frozen=True, kw_only=True)
class Inside(Window):
    """The tokens that have not left; they see one another's keys of this pass and the last keys of those that left."""

    whole: Window
    """All tokens, left or not."""
    places_BK: Tensor
    latest: dict[str, tuple[Tensor, Tensor]]
    """Each layer's latest keys and values of all tokens, (B, T, H, E)."""
    layer: str = ""

    def site(self, name: str) -> "Inside":
        """See `Window.site`."""
        return replace(self, layer=name, whole=self.whole.site(name))

    def attend(self, qk_BK2HE: Tensor, v_BKHE: Tensor) -> Tensor:
        """See `Window.attend`."""
        q_BKHE, k_BKHE = self.rotary.rotate(qk_BK2HE).unbind(2)
        k_BTHE, v_BTHE = k_BKHE, v_BKHE
        if self.layer in self.latest:  # after the first pass, which all tokens run
            keep = ~self.real_BT[..., None, None]  # type: ignore[index]
            k_BTHE, v_BTHE = (
                put(old, self.places_BK, torch.where(keep, _at(old, self.places_BK), new))
                for old, new in zip(self.latest[self.layer], (k_BKHE, v_BKHE), strict=True)
            )
        self.latest[self.layer] = (k_BTHE, v_BTHE)
        return self.whole.read(q_BKHE, self.places_BK, k_BTHE, v_BTHE)


def _at(x_BTHE: Tensor, places_BK: Tensor) -> Tensor:
    B, _, H, E = x_BTHE.shape
    return take(x_BTHE.flatten(2), places_BK).view(B, -1, H, E)
