"""LAHR from top to bottom: embedding, blocks (every second one Mixture-of-Depths), memory, latent core, tied head.

Each mechanism is a module that is there or is not: a cell without it holds none of its parameters, and what cells
share starts bit-equal, since every parameter is drawn from (seed, its name).
"""

import hashlib
from dataclasses import dataclass, field
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lahr.model.cache import Cache
from lahr.model.head import cross_entropy, mean_cross_entropy, mean_of
from lahr.model.latent_reasoning import LatentReasoning, LossesAt, Reasoned
from lahr.model.layers import Block, RMSNorm, Rotary, Window, parameter, rotary_table
from lahr.model.memory import EarlierSegments, Memory, Segmented, use
from lahr.model.mixture_of_depths import Routed, RoutedBlock, Router, Routing
from lahr.model.thoughts import think
from lahr.model_config import ModelConfig


@dataclass(frozen=True)
class Output:
    """What one batch gave. Every metric is a scalar that averages over equal batches, without a gradient."""

    loss: Tensor
    """What is minimised: the language-model loss and the mechanisms' own."""
    lm_loss: Tensor
    """Mean cross-entropy of what is to be predicted, in nats; a part of `loss`, with its gradient."""
    metrics: dict[str, Tensor]
    passes: Tensor
    """Passes of the latent core that were run for a token, on average; 0 without one."""
    causal_scores_LBT: Tensor | None = None
    """What each router's threshold is compared with, for `LAHR.observe`; None without a router."""
    selected_BT: Tensor | None = None
    """The share of the routers that each token passed; None without a router."""
    losses_BT: Tensor | None = None
    """Each token's loss, 0 without a target; None while gradients are kept."""
    right_BT: Tensor | None = None
    """Whether its target is the likeliest token; None likewise."""
    memory_use: Tensor | None = None
    """Summed weight of each memory slot, (n_slots,), to add up for `memory.use_metrics`; None in training mode."""


@dataclass
class _Seen:
    """What the parts of one forward pass did, beside the stream."""

    routed: list[Routed] = field(default_factory=list)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    reasoned: Reasoned | None = None
    memory_use: Tensor | None = None


class LAHR(nn.Module):
    """The network. `seed` and a parameter's name decide where that parameter starts; no random state is touched."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = c = config
        # Branches start smaller the more of them there are (Radford et al. 2019): the stream starts at the same size.
        block = (c.d_model, c.n_heads, c.hidden_dim, (2 * max(c.n_layers, 1)) ** -0.5)
        options = {"qk_norm": c.qk_norm, "zero_init": c.zero_init}
        self.embedding = nn.Embedding(c.vocab_size, c.d_model, _weight=torch.empty(c.vocab_size, c.d_model))
        # As wide as a linear layer's start. At 0.02 the tied head is so flat that a short run spends itself on the
        # unigram: 0.8 nats worse after 0.33 M tokens of `quick` (docs/notebook.md).
        self.embedding.weight = parameter(c.vocab_size, c.d_model, std=c.d_model**-0.5)

        def router(capacity: float) -> Router:
            losses = (c.mod_balance_loss > 0, c.mod_z_loss > 0)
            return Router(c.d_model, capacity, c.mod_router, c.mod_gate, *losses, c.mod_noise)

        self.blocks = nn.ModuleList(
            RoutedBlock(*block, router(c.mod_capacity), **options)
            if i in c.routed_layers
            else Block(*block, **options)
            for i in range(c.n_layers)
        )
        self.memory: Memory | EarlierSegments | None = None
        if c.memory_slots and c.memory_kind == "knn":
            self.memory = EarlierSegments(c.n_heads, c.memory_slots, c.memory_reads)
        elif c.memory_slots:
            sizes = (c.memory_slots, c.memory_heads, c.memory_reads, c.memory_key_dim)
            self.memory = Memory(c.d_model, *sizes, "slots" if c.memory_kind == "slots" else "product_key")
        self.latent: LatentReasoning | None = None
        if c.latent_iterations:
            self.latent = LatentReasoning(
                *block,
                c.latent_iterations,
                c.latent_core_layers,
                c.latent_halting,
                c.latent_exit,
                router(c.latent_capacity) if c.latent_capacity < 1 else None,
                **options,
            )
        self.norm = RMSNorm(c.d_model)
        rotary = rotary_table(c.max_seq_len, c.head_dim, c.rope_theta)
        self.register_buffer("cos", rotary.cos, persistent=False)
        self.register_buffer("sin", rotary.sin, persistent=False)
        _initialise(self, seed)

    @property
    def routers(self) -> list[tuple[str, Router]]:
        """Every router with the name of what it routes: the blocks', `layer1`, …, then the latent core's, `latent`."""
        found = [(f"layer{i}", b.router) for i, b in enumerate(self.blocks) if isinstance(b, RoutedBlock)]
        latent = self.latent.router if self.latent is not None else None
        return found + ([("latent", latent)] if latent is not None else [])

    @overload
    def forward(
        self, tokens_BT: Tensor, targets_BT: None = None, routing: Routing | None = None, *,
        passes: int | None = None, capacity: float | None = None, segments: int = 1, cache: Cache | None = None,
        real_BT: Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor, routing: Routing | None = None, *,
        passes: int | None = None, capacity: float | None = None, segments: int = 1,
    ) -> Output: ...  # fmt: skip
    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        routing: Routing | None = None,
        *,
        passes: int | None = None,
        capacity: float | None = None,
        segments: int = 1,
        cache: Cache | None = None,
        real_BT: Tensor | None = None,
    ) -> Tensor | Output:
        """Logits (B, T, V), or with targets the `Output`.

        A target below 0 is none. `routing` is by default "causal" in evaluation mode and for `threshold` routers, else
        "topk". `passes` of the latent core, by default R, and `capacity` of the routed blocks' top-k, by default the
        configuration's. `segments` says that the sequences are rows of so many
        consecutive segments of one document. With a `cache` the tokens follow those it holds, where `real_BT` is False
        they are padding, and the cache is extended; nothing else that a forward pass touches changes. Raises
        `ValueError` on tokens that are not (B, T ≤ max_seq_len) integers, on an unknown routing, and where the parts do
        not go together.
        """
        self._check(tokens_BT, targets_BT, routing, passes, segments, cache, real_BT)
        if routing is None:
            routing = "topk" if self.training and self.config.mod_router != "threshold" else "causal"
        rotary, T = Rotary(self.cos, self.sin), tokens_BT.shape[1]
        seen = _Seen()

        losses_at: LossesAt | None = None
        if targets_BT is not None and self.training:  # what the exit gate learns from

            def losses_at(y_BSD: Tensor, some: slice) -> Tensor:
                return cross_entropy(self.norm(y_BSD), self.embedding.weight, targets_BT[:, some])[0]

        def stack(x_BTD: Tensor, window: Window) -> Tensor:
            return self.norm(self._stack(x_BTD, window, seen, routing, passes, capacity, segments, losses_at))

        x_BTD = self.embedding(tokens_BT)
        if self.config.thinks:
            assert self.config.thought_token is not None
            thought_BT = tokens_BT == self.config.thought_token
            x_BTD = think(stack, x_BTD, thought_BT, rotary, self.config.thoughts, cache, real_BT)
        elif cache is not None:
            real_BT = real_BT if real_BT is not None else torch.ones_like(tokens_BT, dtype=torch.bool)
            x_BTD = stack(x_BTD, cache.extend(real_BT, rotary))
        else:
            x_BTD = stack(x_BTD, Window(Rotary(self.cos[:T], self.sin[:T])))
        if targets_BT is None:
            return F.linear(x_BTD, self.embedding.weight)

        losses_BT, right_BT = None, None
        if torch.is_grad_enabled():
            lm_loss = mean_cross_entropy(x_BTD, self.embedding.weight, targets_BT)
        else:
            each = cross_entropy(x_BTD, self.embedding.weight, targets_BT)
            losses_BT, right_BT = (of_tokens.view_as(targets_BT) for of_tokens in each)
            lm_loss = mean_of(losses_BT, targets_BT)
        loss = lm_loss
        routed, reasoned, metrics = seen.routed, seen.reasoned, seen.metrics
        if reasoned is not None:
            if reasoned.loss is not None:
                weight = self.config.latent_ponder if self.config.latent_halting == "act" else 1.0
                loss = loss + weight * reasoned.loss
            routed += [reasoned.routed] if reasoned.routed is not None else []
        for name, weight in (
            ("predictor", 1.0),
            ("balance", self.config.mod_balance_loss),
            ("z", self.config.mod_z_loss),
        ):
            own = [r.losses[name] for r in routed if name in r.losses]
            if own:
                loss = loss + weight * torch.stack(own).sum()
                metrics[f"mod/{name}_loss"] = torch.stack(own).mean().detach()
        return Output(
            loss,
            lm_loss,
            metrics | self._metrics(routed, reasoned),
            reasoned.passes.detach() if reasoned is not None else self.cos.new_zeros(()),
            torch.stack([r.causal_BT for r in routed]) if routed else None,
            torch.stack([r.selected_BT for r in routed]).float().mean(0) if routed else None,
            losses_BT,
            right_BT,
            seen.memory_use,
        )

    def _stack(
        self,
        x_BTD: Tensor,
        window: Window,
        seen: _Seen,
        routing: Routing,
        passes: int | None,
        capacity: float | None,
        segments: int,
        losses_at: LossesAt | None,
    ) -> Tensor:
        """The stream after blocks, memory and latent core; `seen` takes what they did."""
        for i in range(len(self.blocks) + 1):
            here = window.site(f"block{i}")
            if i == self.config.memory_position:
                if isinstance(self.memory, Memory):
                    read_BTD, slots, weights = self.memory(x_BTD)
                    x_BTD = x_BTD + read_BTD
                    seen.memory_use = None if self.training else use(slots, weights, self.config.memory_slots)
                elif self.memory is not None:
                    here = self.memory.window(here, segments)
            if self.latent is not None and i == self.config.latent_position:
                x_BTD, seen.reasoned = self.latent(x_BTD, window.site("latent"), routing, passes, losses_at)
            if i == len(self.blocks):
                break
            block = self.blocks[i]
            if isinstance(block, RoutedBlock):
                x_BTD, record = block(x_BTD, here, routing, capacity)
                seen.routed.append(record)
            else:
                x_BTD = block(x_BTD, here)
            if isinstance(here, Segmented) and not self.training:
                seen.metrics |= here.metrics()
        return x_BTD

    def observe(self, causal_scores_LBT: Tensor, capacity: float | None = None) -> None:
        """Moves the routers' thresholds by one observation of the whole batch's scores.

        Called after an optimiser step with what all ranks' outputs hold, (routers, B, T), in any order of B, and the
        capacity that the routed blocks had in it, if that was not their own.
        """
        for (name, router), scores_BT in zip(self.routers, causal_scores_LBT, strict=True):
            router.observe(scores_BT, None if name == "latent" else capacity)

    @torch.no_grad()
    def _metrics(self, routed: list[Routed], reasoned: Reasoned | None) -> dict[str, Tensor]:
        metrics = {}
        if reasoned is not None:
            metrics["latent/passes"] = reasoned.passes.detach()
        if reasoned is not None and reasoned.exits_R is not None and not self.training:
            metrics |= {f"latent/exit_{t}": share for t, share in enumerate(reasoned.exits_R, 1)}
        if routed and not self.training:
            layers = [r.metrics() for r in routed]
            for (name, _), layer in zip(self.routers, layers, strict=True):
                metrics[f"mod/capacity_{name}"] = layer["capacity"]
            metrics["mod/agreement"] = torch.stack([layer["agreement"] for layer in layers]).mean()
            metrics["mod/router_entropy"] = torch.stack([layer["entropy"] for layer in layers]).mean()
        return metrics

    def _check(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None,
        routing: str | None,
        passes: int | None,
        segments: int,
        cache: Cache | None,
        real_BT: Tensor | None,
    ) -> None:
        if tokens_BT.dim() != 2 or tokens_BT.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"tokens are {tokens_BT.dtype} of shape {tuple(tokens_BT.shape)}; "
                "give int64 or int32 of shape (B, T)"
            )
        if not 1 <= tokens_BT.shape[1] <= self.config.max_seq_len:
            raise ValueError(
                f"the sequence has {tokens_BT.shape[1]} tokens; this model takes 1 to {self.config.max_seq_len} "
                "(max_seq_len)"
            )
        if passes is not None and (passes < 1 or self.latent is None):
            raise ValueError(f"passes is {passes}; it is at least 1, and only for a model with a latent core")
        if segments < 1 or len(tokens_BT) % segments:
            raise ValueError(f"{len(tokens_BT)} sequences are no whole number of rows of {segments} segments")
        if cache is None and real_BT is not None:
            raise ValueError("real_BT marks padding while decoding; give it with a cache")
        if cache is not None and (self.training or routing == "topk" or targets_BT is not None or segments > 1):
            raise ValueError("a cache is for decoding: in evaluation mode, under causal routing, without targets")
        if targets_BT is not None and (targets_BT.shape != tokens_BT.shape or targets_BT.dtype != torch.int64):
            raise ValueError(
                f"targets are {targets_BT.dtype} of shape {tuple(targets_BT.shape)}; "
                f"give int64 of the tokens' shape {tuple(tokens_BT.shape)}"
            )
        if routing not in (None, "topk", "causal"):
            raise ValueError(f"routing is {routing!r}; it is 'topk' or 'causal'")


@torch.no_grad()
def _initialise(model: LAHR, seed: int) -> None:
    """Draws every parameter from a generator of its own, seeded by (seed, name): N(mean, std²) as declared."""
    for name, p in model.named_parameters():
        mean, std = p.start  # type: ignore[attr-defined]
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        if std > 0:
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float32) * std)
        else:
            p.zero_()
        p.add_(mean)
