"""A plain transformer with the choices that `sweeps/ablation.py` compares: what a model of one's own looks like.

It knows nothing of this project but the configuration that it is given: `options` has the study's levels.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from lahr.model_config import ModelConfig

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"gelu": F.gelu, "silu": F.silu, "relu2": lambda x: F.relu(x).square()}


CHOICES = {"activation": tuple(ACTIVATIONS), "norm": ("before", "after"), "head": ("tied", "own")}


def transformer(config: ModelConfig) -> nn.Module:
    """The model. Options: `activation` (gelu, silu, or relu2: So et al. 2021), `norm` (`before` a branch or `after` the
    sum: Xiong et al. 2020), `head` (`tied` to the embedding: Press & Wolf 2017, or its `own`).

    `ValueError` for any other value, which would silently be one of these.
    """
    for name, allowed in CHOICES.items():
        if config.options.get(name) not in allowed:
            raise ValueError(
                f"the option {name} is {config.options.get(name)!r}; it is one of {', '.join(allowed)}"
            )
    return Transformer(config)


class Block(nn.Module):
    """Causal attention and a feed-forward, each added to the stream, with its norm before or after."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, self.heads = config.d_model, config.n_heads
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d)])
        self.activation = ACTIVATIONS[str(config.options["activation"])]
        self.before = config.options["norm"] == "before"

    def attend(self, x_BTD: Tensor) -> Tensor:
        """Causal attention over all heads."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, dim=-1)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def feed(self, x_BTD: Tensor) -> Tensor:
        """The feed-forward."""
        return self.down(self.activation(self.up(x_BTD)))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        for branch, norm in zip((self.attend, self.feed), self.norms, strict=True):
            x_BTD = x_BTD + branch(norm(x_BTD)) if self.before else norm(x_BTD + branch(x_BTD))
        return x_BTD


class Transformer(nn.Module):
    """Embeddings of tokens and positions, blocks, a last norm, a head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.max_seq_len, config.d_model)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=config.d_model**-0.5)
        self.blocks = nn.Sequential(*[Block(config) for _ in range(config.n_layers)])
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=config.d_model**-0.5)  # as a tied one starts; only this one has decay
        if config.options["head"] == "tied":
            self.head.weight = self.tokens.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Token ids (B, T) to logits (B, T, V)."""
        x_BTD = self.tokens(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]]
        return self.head(self.norm(self.blocks(x_BTD)))
