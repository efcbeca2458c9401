"""Models that are not LAHR, as a user would write them, and some that cannot be used."""

import json
from dataclasses import replace

import torch
from torch import Tensor, nn

from lahr.model_config import ModelConfig


class Plain(nn.Module):
    """Words mixed with the mean of those before them, in plain torch. Options: `dropout`, `tied`, `extra`, a layer of
    another shape before all others, and `unused`, a parameter that nothing reads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, options = config.d_model, {"dropout": 0.0, "tied": False, "extra": 0, "unused": False, **config.options}
        if options["extra"]:
            self.extra = nn.Sequential(nn.Linear(d, options["extra"]), nn.Linear(options["extra"], d, bias=False))
        self.words = nn.Embedding(config.vocab_size, d)
        self.places = nn.Parameter(0.02 * torch.randn(config.max_seq_len, d))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 3 * d), nn.GELU(), nn.Dropout(options["dropout"]), nn.Linear(3 * d, d))
            for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.xavier_uniform_(self.layers[0][0].weight)
        nn.init.orthogonal_(self.layers[0][3].weight)
        if options["tied"]:
            self.head.weight = self.words.weight
        if options["unused"]:
            self.unused = nn.Parameter(torch.rand(3))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.words(tokens_BT) + self.places[: tokens_BT.shape[1]]
        if hasattr(self, "extra"):
            x_BTD = x_BTD + self.extra(x_BTD)
        for layer in self.layers:
            before_BTD = x_BTD.cumsum(1) / torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)[:, None]
            x_BTD = x_BTD + layer(before_BTD)
        return self.head(self.norm(x_BTD))


def plain(config: ModelConfig) -> nn.Module:
    return Plain(config)


def llama(config: ModelConfig) -> nn.Module:
    """A Llama of the transformers library, its head tied to its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.hidden_dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            max_position_embeddings=config.max_seq_len,
            attention_dropout=config.options.get("dropout", 0.0),
            tie_word_embeddings=True,
            use_cache=False,
        )
    )


class Asks(Plain):
    """Looks at what it computes, as a mixture of experts does, which nothing can that has no values."""

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return super().forward(tokens_BT) if bool((tokens_BT >= 0).all()) else super().forward(tokens_BT * 0)


def asks(config: ModelConfig) -> nn.Module:
    return Asks(config)


def raises(config: ModelConfig) -> nn.Module:
    raise KeyError("depth")


def returns_a_number(config: ModelConfig) -> int:
    return 3


class Wrong(Plain):
    def forward(self, tokens_BT: Tensor) -> object:  # type: ignore[override]
        logits_BTV = super().forward(tokens_BT)
        return {
            "shape": logits_BTV[:, -1],
            "type": logits_BTV.argmax(-1, keepdim=True).expand_as(logits_BTV),
            "nothing": (logits_BTV,),
        }[self.how]  # fmt: skip


def wrong(config: ModelConfig) -> nn.Module:
    model = Wrong(config)
    model.how = config.options["how"]
    return model


class Fails(Plain):
    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.head(self.words(tokens_BT)[..., :-1])


def fails(config: ModelConfig) -> nn.Module:
    return Fails(config)


def frozen(config: ModelConfig) -> nn.Module:
    return Plain(config).requires_grad_(False)


def shares(config: ModelConfig) -> nn.Module:
    """A parameter that is a part of another one."""
    model = Plain(config)
    model.part = nn.Parameter(model.places.data[:1])
    return model


def costs_nothing(config: ModelConfig) -> nn.Module:
    """The next word by the last one alone, looked up."""
    return nn.Embedding(config.vocab_size, config.vocab_size)


NOT_A_FUNCTION = 3


def reads(config: ModelConfig) -> nn.Module:
    """A plain one, which reads the option `width` in the way that `how` says."""
    options = config.options
    ways = {
        "[]": lambda: options["width"],
        "get": lambda: options.get("width", 1),
        "in": lambda: "width" in options,
        "for": lambda: list(options),
        "items": lambda: dict(options.items()),
        "**": lambda: {**options},
        "replace": lambda: replace(config, n_layers=1),
        "json": lambda: json.dumps(options),
    }
    ways[str(options["how"])]()
    return nn.Sequential(
        nn.Embedding(config.vocab_size, config.d_model), nn.Linear(config.d_model, config.vocab_size)
    )
