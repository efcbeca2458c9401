"""What a trial is: frozen dataclasses for the model, the data and the training, and the presets that fill them.

A configuration is a value: it compares, prints and serialises, and building an invalid one raises `ConfigError`
with what was given, what is allowed and what to do. Off is a value too: `mod_capacity=1.0`, `latent_iterations=0`
and `memory_slots=0` build a plain transformer.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Precision = Literal["fp64", "fp32", "bf16"]


class ConfigError(ValueError):
    """A setting that cannot be used. The message is one line for a person: given, allowed, what to do."""


def check(holds: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `holds`."""
    if not holds:
        raise ConfigError(message)


def nearest(given: str, allowed: list[str]) -> str:
    """`" (did you mean 'x'?)"` for the allowed name closest to `given`, or nothing where none is close."""
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


@dataclass(frozen=True)
class ModelConfig:
    """The network's shape, and each mechanism on or off."""

    vocab_size: int
    """Entries in the token embedding, which is also the output head."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Blocks in the stack; the latent core is not one of them."""
    n_heads: int
    """Attention heads; they must divide the width."""
    max_seq_len: int
    """Longest sequence in tokens; also the length of a training window."""
    d_ff: int | None = None
    """Hidden width of the SwiGLU feed-forward; by default ⌊8·d_model/3⌋."""
    mod_capacity: float = 1.0
    """Mixture-of-Depths (Raposo et al. 2024): the share of tokens that every second block processes; 1.0 is off."""
    latent_iterations: int = 0
    """Passes of the recurrent latent core after the stack; 0 is off."""
    memory_slots: int = 0
    """Entries of the product-key memory (Lample et al. 2019): a square number n², searched as 2n sub-keys; 0 is off."""
    mod_gate: Literal["sigmoid", "raw"] = "sigmoid"
    """What multiplies a routed block's output: the router's score through a sigmoid, or the score itself."""
    memory_heads: int = 4
    """Independent queries into the memory a token."""
    memory_top_k: int = 8
    """Entries read by each of those queries."""
    memory_key_dim: int = 128
    """Width of a query: two halves, one for each set of sub-keys; even."""
    memory_layer: int | None = None
    """The memory is read before this block; by default the middle of the stack, 0 is before all of it."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies (Su et al. 2021)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "max_seq_len"):
            check(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}; it must be at least 1")
        check(
            self.d_model % self.n_heads == 0,
            f"model.n_heads is {self.n_heads}, which does not divide model.d_model {self.d_model}; "
            f"choose one of {[h for h in range(1, min(self.d_model, 64) + 1) if self.d_model % h == 0]}",
        )
        check(self.head_dim % 2 == 0, f"a head is {self.head_dim} wide; rotary positions need an even width")
        check(
            0 < self.rope_theta < math.inf, f"model.rope_theta is {self.rope_theta}; it must be above 0 and finite"
        )
        check(self.d_ff is None or self.d_ff >= 1, f"model.d_ff is {self.d_ff}; it must be at least 1")
        check(
            0 < self.mod_capacity <= 1,
            f"mod_capacity is {self.mod_capacity}; it must be above 0 and at most 1 (1 turns Mixture-of-Depths off)",
        )
        check(
            self.mod_capacity == 1 or self.n_layers >= 2,
            "Mixture-of-Depths routes every second block; model.n_layers is 1, give at least 2",
        )
        check(
            self.latent_iterations >= 0,
            f"latent_iterations is {self.latent_iterations}; it must be 0 (off) or more",
        )
        check(self.memory_slots >= 0, f"memory_slots is {self.memory_slots}; it must be 0 (off) or a square number")
        root = math.isqrt(max(self.memory_slots, 0))
        check(
            root * root == self.memory_slots,
            f"memory_slots is {self.memory_slots}; product keys need a square number, "
            f"such as {max(root, 1) ** 2} or {(root + 1) ** 2}",
        )
        if self.memory_slots:
            check(
                1 <= self.memory_top_k <= root,
                f"memory_top_k is {self.memory_top_k}; with {self.memory_slots} slots it must be 1 to {root}",
            )
            check(self.memory_heads >= 1, f"memory_heads is {self.memory_heads}; it must be at least 1")
            check(
                self.memory_key_dim >= 2 and self.memory_key_dim % 2 == 0,
                f"memory_key_dim is {self.memory_key_dim}; it must be even and at least 2",
            )
            layer = self.memory_layer
            check(
                layer is None or 0 <= layer <= self.n_layers,
                f"memory_layer is {layer}; it must be 0 to {self.n_layers}",
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward's hidden layer."""
        return self.d_ff if self.d_ff is not None else 8 * self.d_model // 3

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """Indices of the Mixture-of-Depths blocks: 1, 3, 5, …; empty when it is off."""
        return tuple(range(1, self.n_layers, 2)) if self.mod_capacity < 1 else ()

    @property
    def memory_position(self) -> int:
        """The block before which the memory is read."""
        return self.n_layers // 2 if self.memory_layer is None else self.memory_layer


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes tokens."""

    corpus: str = "stories"
    """Also just `--data`: `stories` (made here), `tinystories`, a dataset on the Hub by name, or a file or folder of
    parquet, JSONL or text."""
    text_column: str = "text"
    """Column of a parquet, JSONL or Hub dataset that holds the text."""
    tokenizer: str = "bpe"
    """`bpe` trains a byte-level one on the training split; another name is taken from the Hub (`gpt2`)."""
    train_tokens: int = 2_000_000
    """Training tokens to prepare at most; a generated corpus makes this many."""
    validation_blocks: int = 128
    """Windows of the validation split that every evaluation reads, always the first and always all."""

    def __post_init__(self) -> None:
        check(bool(self.corpus.strip()), "data.corpus is empty; give a corpus, such as 'stories' or a file")
        check(self.train_tokens >= 1, f"data.train_tokens is {self.train_tokens}; it must be at least 1")
        check(self.validation_blocks >= 1, f"data.validation_blocks is {self.validation_blocks}; give at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, and how often it is looked at."""

    tokens: int
    """Training tokens of a trial; a step reads `batch_size` windows, and the last part of a step is dropped."""
    batch_size: int
    """Windows in one optimiser step, over all workers."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; the memory's values use 10/3 of it."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises linearly."""
    final_lr: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices; norms, embeddings and memory values have none."""
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""
    evaluations: int = 8
    """Evaluations in a trial, evenly spaced, the last one at the end."""
    checkpoints: int = 2
    """Checkpoints in a trial, evenly spaced, the last one at the end."""
    log_points: int = 40
    """Progress records in a trial at least; evaluations and checkpoints make one too."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "evaluations", "checkpoints", "log_points"):
            check(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; it must be at least 1")
        check(0 < self.lr < math.inf, f"train.lr is {self.lr}; it must be above 0, such as 1e-3")
        check(0 <= self.warmup <= 1, f"train.warmup is {self.warmup}; it is a share of the steps, 0 to 1")
        check(0 <= self.final_lr <= 1, f"train.final_lr is {self.final_lr}; it is a share of the peak, 0 to 1")
        check(0 <= self.weight_decay < math.inf, f"train.weight_decay is {self.weight_decay}; it must be 0 or more")
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, f"train.{name} is {getattr(self, name)}; it must be 0 to below 1")
        check(
            0 < self.clip_norm < math.inf,
            f"train.clip_norm is {self.clip_norm}; it must be above 0 and finite (1e9 clips nothing)",
        )


@dataclass(frozen=True)
class TrialConfig:
    """Everything that decides a trial's result, but for the data's content."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    seed: int = 0
    precision: Precision = "fp32"
    """Type of the matrix products; parameters and optimiser state are fp32 (in `fp64`, which is for tests, fp64)."""

    def __post_init__(self) -> None:
        check(
            self.steps >= 1,
            f"train.tokens is {self.train.tokens}, fewer than one batch of {self.train.batch_size} x "
            f"{self.model.max_seq_len} = {self.tokens_per_step} tokens; raise it or lower train.batch_size",
        )
        check(self.seed >= 0, f"the seed is {self.seed}; it must be 0 or more")

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimiser step, over all workers."""
        return self.train.batch_size * self.model.max_seq_len

    @property
    def steps(self) -> int:
        """Optimiser steps of the trial."""
        return self.train.tokens // self.tokens_per_step

    def identity(self, content_hash: str) -> dict[str, Any]:
        """What decides the result, as plain values: the data by `content_hash` (of tokens and tokenizer), no path."""
        resolved = asdict(self)
        for name in ("corpus", "text_column", "tokenizer"):
            del resolved["data"][name]
        resolved["data"]["content"] = content_hash
        return resolved

    def fingerprint(self, content_hash: str) -> str:
        """Twelve hex digits that name this configuration on this data.

        Raises `TypeError` on a value with no stable identity (anything that is not a number, text, truth value, None,
        or a plain container).
        """
        return hashlib.sha256(canonical_json(self.identity(content_hash)).encode()).hexdigest()[:12]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces. Raises `TypeError` or `ValueError` on what has no stable identity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def from_dict(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """The dataclass `cls` from plain values, nested ones too; `ConfigError` names an unknown or ill-typed field."""
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    filled = {}
    for name, value in values.items():
        label = f"{where}{name}"
        check(name in known, f"unknown field {label!r}{nearest(name, known)}; allowed: {', '.join(known)}")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            check(isinstance(value, Mapping), f"{label} is {value!r}; it must be a mapping of fields")
            value = from_dict(typing.cast(type, hint), value, f"{label}.")
        else:
            check(_is_a(value, hint), f"{label} is {value!r}; it must be {_say(hint)}")
            value = float(value) if hint is float else value
        filled[name] = value
    given = {*filled, *(f.name for f in fields(cls) if f.default is not dataclasses.MISSING)}
    missing = [name for name in known if name not in given]
    check(not missing, f"missing {', '.join(where + name for name in missing)}")
    return cls(**filled)


def _is_a(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _say(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_say(option) for option in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(hint, str(hint))


@dataclass(frozen=True)
class Preset:
    """A size to run at: configurations with every mechanism off, and the levels that turn each one on."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    on: Mapping[str, float | int] = field(
        default_factory=lambda: {"mod_capacity": 0.125, "latent_iterations": 4, "memory_slots": 4096}
    )


PRESETS: dict[str, Preset] = {
    "smoke": Preset(
        ModelConfig(vocab_size=512, d_model=64, n_layers=2, n_heads=2, max_seq_len=128, memory_key_dim=64),
        DataConfig(train_tokens=200_000, validation_blocks=32),
        TrainConfig(tokens=61_440, batch_size=8, lr=5e-3, evaluations=4, checkpoints=2, log_points=10),
        {"mod_capacity": 0.125, "latent_iterations": 2, "memory_slots": 256},
    ),
    "quick": Preset(
        ModelConfig(vocab_size=1024, d_model=128, n_layers=4, n_heads=4, max_seq_len=256),
        DataConfig(train_tokens=2_000_000, validation_blocks=48),
        # What fits 40 trials into 15 minutes on two cores without bf16, and the small steps that make the most of it.
        TrainConfig(tokens=102_400, batch_size=2, lr=6e-3, warmup=0.2, evaluations=4),
    ),
    "small": Preset(
        ModelConfig(vocab_size=4096, d_model=384, n_layers=10, n_heads=6, max_seq_len=512),
        DataConfig(train_tokens=400_000_000, validation_blocks=512),
        TrainConfig(tokens=400_000_000, batch_size=64, lr=1e-3, warmup=0.02, evaluations=40, checkpoints=20),
    ),
    "paper": Preset(
        # The published memory has 128 slots; product keys need a square, and 12² = 144 is the one above it.
        ModelConfig(vocab_size=50_257, d_model=256, n_layers=8, n_heads=8, max_seq_len=512, memory_layer=0),
        DataConfig(corpus="tinystories", tokenizer="gpt2", train_tokens=500_000_000, validation_blocks=512),
        TrainConfig(tokens=163_840_000, batch_size=32, lr=3e-4, final_lr=0.1, evaluations=40, checkpoints=20),
        {"mod_capacity": 0.125, "latent_iterations": 4, "memory_slots": 144},
    ),
    "base": Preset(
        ModelConfig(vocab_size=50_257, d_model=768, n_layers=12, n_heads=12, max_seq_len=1024),
        DataConfig(corpus="tinystories", tokenizer="gpt2", train_tokens=2_500_000_000, validation_blocks=512),
        TrainConfig(tokens=2_500_000_000, batch_size=256, lr=6e-4, warmup=0.02, evaluations=50, checkpoints=50),
        {"mod_capacity": 0.125, "latent_iterations": 4, "memory_slots": 65_536},
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name; an unknown one is a `ConfigError` that names the nearest."""
    allowed = ", ".join(PRESETS)
    check(name in PRESETS, f"unknown preset {name!r}{nearest(name, list(PRESETS))}; allowed: {allowed}")
    return PRESETS[name]


def with_levels(config: ModelConfig, levels: Mapping[str, float | int]) -> ModelConfig:
    """`config` with those fields set, type-checked; an unknown field is a `ConfigError`."""
    names = [f.name for f in fields(ModelConfig)]
    for name in levels:
        check(name in names, f"unknown model field {name!r}{nearest(name, names)}")
    return replace(config, **levels)  # type: ignore[arg-type]
