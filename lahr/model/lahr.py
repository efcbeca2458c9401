"""LAHR from top to bottom: embedding, blocks (every second one Mixture-of-Depths), memory, latent core, tied head.

Each mechanism is a module that is there or is not: a cell without it holds none of its parameters, and what cells
share starts bit-equal, since every parameter is drawn from (seed, its name).
"""

import hashlib
from dataclasses import dataclass
from typing import cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lahr.model.latent_reasoning import LatentReasoning
from lahr.model.layers import Block, RMSNorm, Rotary, parameter, rotary_table
from lahr.model.memory import Memory, use
from lahr.model.mixture_of_depths import Routed, RoutedBlock, Routing
from lahr.model_config import ModelConfig


@dataclass(frozen=True)
class Output:
    """What one batch gave. Every metric is a scalar that averages over equal batches, without a gradient."""

    loss: Tensor
    """What is minimised: the language-model loss and the routers' prediction losses."""
    lm_loss: Tensor
    """Mean cross-entropy of the next token, in nats; a part of `loss`, with its gradient."""
    metrics: dict[str, Tensor]
    predictor_logits_LBT: Tensor | None = None
    """Causal predictors' outputs in the routed layers, for `LAHR.observe`; None without Mixture-of-Depths."""
    memory_use: Tensor | None = None
    """Summed weight of each memory slot, (n_slots,), to add up for `memory.use_metrics`; None in training mode."""


class LAHR(nn.Module):
    """The network. `seed` and a parameter's name decide where that parameter starts; no random state is touched."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = c = config
        block = (c.d_model, c.n_heads, c.hidden_dim, (2 * c.n_layers) ** -0.5)
        self.embedding = nn.Embedding(c.vocab_size, c.d_model, _weight=torch.empty(c.vocab_size, c.d_model))
        # As wide as a linear layer's start. At 0.02 the tied head is so flat that a short run spends itself on the
        # unigram: 0.8 nats worse after 0.33 M tokens of `quick` (docs/notebook.md).
        self.embedding.weight = parameter(c.vocab_size, c.d_model, std=c.d_model**-0.5)
        self.blocks = nn.ModuleList(
            RoutedBlock(*block, c.mod_capacity, c.mod_gate) if i in c.routed_layers else Block(*block)
            for i in range(c.n_layers)
        )
        self.memory = (
            Memory(c.d_model, c.memory_slots, c.memory_heads, c.memory_reads, c.memory_key_dim)
            if c.memory_slots
            else None
        )
        self.latent = LatentReasoning(*block, c.latent_iterations) if c.latent_iterations else None
        self.norm = RMSNorm(c.d_model)
        rotary = rotary_table(c.max_seq_len, c.head_dim, c.rope_theta)
        self.register_buffer("cos", rotary.cos, persistent=False)
        self.register_buffer("sin", rotary.sin, persistent=False)
        _initialise(self, seed)

    @overload
    def forward(
        self, tokens_BT: Tensor, targets_BT: None = None, routing: Routing | None = None, *, segments: int = 1
    ) -> Tensor: ...
    @overload
    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor, routing: Routing | None = None, *, segments: int = 1
    ) -> Output: ...
    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        routing: Routing | None = None,
        *,
        segments: int = 1,
    ) -> Tensor | Output:
        """Logits (B, T, V), or with targets the `Output`.

        `routing` is by default "topk" in training mode and "causal" in evaluation mode. Forward changes no state.
        Raises `ValueError` on tokens that are not (B, T ≤ max_seq_len) integers, and on an unknown routing.
        """
        self._check(tokens_BT, targets_BT, routing)
        routing = routing or ("topk" if self.training else "causal")
        T = tokens_BT.shape[1]
        rotary = Rotary(self.cos[:T], self.sin[:T])
        routed: list[Routed] = []
        memory_use = None

        x_BTD = self.embedding(tokens_BT)
        for i in range(len(self.blocks) + 1):
            if self.memory is not None and i == self.config.memory_position:
                read_BTD, slots, weights = self.memory(x_BTD)
                x_BTD = x_BTD + read_BTD
                memory_use = None if self.training else use(slots, weights, self.config.memory_slots)
            if i in self.config.routed_layers:
                x_BTD, record = self.blocks[i](x_BTD, rotary, routing)
                routed.append(record)
            elif i < len(self.blocks):
                x_BTD = self.blocks[i](x_BTD, rotary)
        if self.latent is not None:
            x_BTD = self.latent(x_BTD, rotary)
        logits_BTV = F.linear(self.norm(x_BTD), self.embedding.weight)
        if targets_BT is None:
            return logits_BTV

        wide = torch.promote_types(logits_BTV.dtype, torch.float32)
        lm_loss = F.cross_entropy(logits_BTV.flatten(0, 1).to(wide), targets_BT.flatten())
        loss, logits_LBT = lm_loss, None
        if routed:
            loss = lm_loss + torch.stack([r.predictor_loss for r in routed]).sum()
            logits_LBT = torch.stack([r.predictor_logits_BT for r in routed])
        return Output(loss, lm_loss, self._metrics(routed), logits_LBT, memory_use)

    def observe(self, predictor_logits_LBT: Tensor) -> None:
        """Moves the stored causal thresholds by one observation of the whole batch's predictor logits.

        Called after an optimiser step with the logits of all ranks, (routed layers, B, T), in any order of B.
        """
        for i, logits_BT in zip(self.config.routed_layers, predictor_logits_LBT, strict=True):
            cast(RoutedBlock, self.blocks[i]).router.observe(logits_BT)

    @torch.no_grad()
    def _metrics(self, routed: list[Routed]) -> dict[str, Tensor]:
        metrics = {}
        if self.config.latent_iterations:
            metrics["latent/passes"] = self.cos.new_tensor(float(self.config.latent_iterations))
        if routed:
            metrics["mod/predictor_loss"] = torch.stack([r.predictor_loss for r in routed]).mean()
        if routed and not self.training:
            layers = [r.metrics() for r in routed]
            for i, layer in zip(self.config.routed_layers, layers, strict=True):
                metrics[f"mod/capacity_layer{i}"] = layer["capacity"]
            metrics["mod/agreement"] = torch.stack([layer["agreement"] for layer in layers]).mean()
            metrics["mod/router_entropy"] = torch.stack([layer["entropy"] for layer in layers]).mean()
        return metrics

    def _check(self, tokens_BT: Tensor, targets_BT: Tensor | None, routing: str | None) -> None:
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
