"""The network as a value: its shape, each mechanism on or off, and the options that its literature argues about.

Off is a value: `mod_capacity=1.0`, `latent_iterations=0` and `memory_slots=0` build a plain transformer, and the
settings of a mechanism that is off then decide nothing. `build` puts another model in its place.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from lahr.errors import check
from lahr.plain import Plain, check_plain

Router = Literal["top_k", "threshold", "random"]
Gate = Literal["sigmoid", "raw"]
Halting = Literal["none", "gate", "act"]
MemoryKind = Literal["product_key", "slots", "knn"]
Thoughts = Literal["none", "pause", "sequential", "recycled", "blank"]


@dataclass(frozen=True)
class ModelConfig:
    """The network's shape, and each mechanism on or off."""

    vocab_size: int
    """Entries in the token embedding, which is also the output head."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Blocks in the stack; the latent core is not one of them. 0 with a core is a Universal Transformer (Dehghani et
    al. 2018): one core, `latent_iterations` times."""
    n_heads: int
    """Attention heads; they must divide the width."""
    max_seq_len: int
    """Longest sequence in tokens; also the length of a training window."""
    d_ff: int | None = None
    """Hidden width of the SwiGLU feed-forward; by default ⌊8·d_model/3⌋."""
    mod_capacity: float = 1.0
    """Mixture-of-Depths (Raposo et al. 2024): the share of tokens that every second block processes; 1.0 is off."""
    latent_iterations: int = 0
    """Passes R of the recurrent latent core; 0 is off."""
    memory_slots: int = 0
    """Entries of the memory; 0 is off. Product keys (Lample et al. 2019) need a square number."""
    mod_router: Router = "top_k"
    """Who passes a routed block: the `top_k` of a sequence in training, with a causal predictor beside it; those above
    a `threshold`, the running (1−c) quantile, in training too; or the top k of a `random` router that stays as it
    started, the control."""
    mod_gate: Gate = "sigmoid"
    """What multiplies a routed block's output: the router's score through a sigmoid, or the score itself."""
    mod_balance_loss: float = 0.0
    """Weight of the routers' balance loss (Fedus et al. 2021, "Switch Transformers"); 0 leaves it out."""
    mod_noise: float = 0.0
    """Standard deviation of what is added to the scores when `top_k` picks in training (Shazeer et al. 2017, "Noisy
    Top-k Gating"), in units of the scores' own within each sequence: tokens that a router passes over get a chance to
    show what they are worth. 0 is none; what multiplies a block's output has no noise."""
    mod_z_loss: float = 0.0
    """Weight of the routers' z loss (Zoph et al. 2022, "ST-MoE"); 0 leaves it out."""
    latent_mode: Literal["fixed", "sampled"] = "fixed"
    """Passes in a training step: always R, or drawn for each step from 1 … 2R−1, whose mean is R."""
    latent_core_layers: int = 1
    """Blocks in the core, 1 to 4; a pass runs through all of them."""
    latent_layer: int | None = None
    """The core runs before this block; by default after the last one."""
    latent_halting: Halting = "none"
    """Whether each token may leave before pass R: by an exit `gate` (at inference), or by `act` (Graves 2016)."""
    latent_exit: float = 0.5
    """With the exit gate a token leaves once the probability that it has left by now reaches this."""
    latent_ponder: float = 0.01
    """Weight of ACT's ponder cost, in nats a pass."""
    latent_capacity: float = 1.0
    """Share of the tokens, picked by a router, that run the passes beyond the first; 1.0 is all of them."""
    memory_kind: MemoryKind = "product_key"
    """`product_key`: n² slots found through 2n sub-keys; `slots`: each with a whole key, read before the stack; `knn`:
    keys and values of earlier segments of the same document (Wu et al. 2022), of which the last `memory_slots`."""
    memory_heads: int = 4
    """Independent queries a token into the memory; `knn` uses the heads of its block."""
    memory_top_k: int | None = None
    """Entries read by each of those queries; by default 8, and 32 for `knn`."""
    memory_key_dim: int = 128
    """Width of a query into product keys or slots; even for product keys, whose two halves are searched apart."""
    memory_layer: int | None = None
    """The memory is read before this block, 0 is before all of them; by default in the middle of the stack, for
    `slots` before it. For `knn` it is the block whose attention reads it, never one that could be routed."""
    rope_theta: float = 10_000.0
    """Base of the rotary position frequencies (Su et al. 2021)."""
    qk_norm: bool = False
    """Each head's queries and keys go through an RMS norm with a learned weight for each channel (Henry et al. 2020;
    Dehghani et al. 2023), in every attention of the model."""
    zero_init: bool = False
    """The output projections of attention and feed-forward start at zero, so that every block starts as the identity
    (Fixup, Zhang et al. 2019; ReZero, Bachlechner et al. 2020; Yang et al. 2022); in the latent core the norms after
    them (Goyal et al. 2017)."""
    thoughts: Thoughts = "none"
    """What the input of a thought in the text is, after COCONUT (Hao et al. 2024): `none` and `pause`, its token's
    embedding; `sequential`, the same in the passes that recycling takes; `recycled`, the last hidden state before it;
    `blank`, the one that there would be without the question. Not yet with another mechanism."""
    thought_token: int | None = None
    """The id of the token that is a thought."""
    build: str = ""
    """A model of your own: `package.module:function`, which takes this configuration and returns an nn.Module from
    tokens (B, T) to logits (B, T, V). Empty is LAHR."""
    options: Mapping[str, Plain] = field(default_factory=dict, hash=False)
    """What such a model is to know besides, by name: `--model.options width 3 deep True`. Without `build` it decides
    nothing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))  # a copy, which nobody else can change
        check_plain("model.options", self.options)
        check(
            not self.build or re.fullmatch(r"\w+(\.\w+)*:\w+", self.build) is not None,
            f"model.build is {self.build!r}; it must be of the form package.module:function",
        )
        for name in ("vocab_size", "d_model", "n_heads", "max_seq_len"):
            check(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}; it must be at least 1")
        check(
            self.n_layers >= (0 if self.latent_iterations else 1),
            f"model.n_layers is {self.n_layers}; it must be at least 1, or 0 with a latent core (a Universal "
            "Transformer; give latent_iterations)",
        )
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
        _check_mod(self)
        check(
            self.latent_iterations >= 0,
            f"latent_iterations is {self.latent_iterations}; it must be 0 (off) or more",
        )
        if self.latent_iterations:
            _check_latent(self)
        check(self.memory_slots >= 0, f"memory_slots is {self.memory_slots}; it must be 0 (off) or more")
        if self.memory_slots:
            _check_memory(self)
        if self.thoughts != "none":
            _check_thoughts(self)

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
    def latent_position(self) -> int:
        """The block before which the latent core runs; `n_layers` is after the last."""
        return self.n_layers if self.latent_layer is None else self.latent_layer

    @property
    def memory_position(self) -> int:
        """The block before which the memory is read; for `knn` the block whose attention reads it."""
        if self.memory_layer is not None:
            return self.memory_layer
        middle = self.n_layers // 2
        return {"product_key": middle, "slots": 0, "knn": middle // 2 * 2}[self.memory_kind]

    @property
    def memory_reads(self) -> int:
        """Entries that each query reads."""
        return self.memory_top_k if self.memory_top_k is not None else 32 if self.memory_kind == "knn" else 8

    @property
    def thinks(self) -> bool:
        """Whether thoughts are other than any token: `pause` is a name for a plain model whose text has thoughts."""
        return self.thoughts not in ("none", "pause")

    def on(self, mechanism: str) -> bool:
        """Whether `mod`, `latent` or `memory` is on."""
        return {
            "mod": self.mod_capacity < 1,
            "latent": self.latent_iterations > 0,
            "memory": self.memory_slots > 0,
        }[mechanism]

    def settled(self) -> "ModelConfig":
        """The same model with every setting that decides nothing at its default: those of a mechanism that is off
        (off equals absent), those of another kind of it, and a place or number that is the default's own. A model of
        one's own keeps them all, since nobody knows what its function reads."""
        if self.build:
            return self
        usual = {f.name: f.default for f in fields(self)}
        idle = {
            name
            for name in usual
            if (mechanism := name.partition("_")[0]) in ("mod", "latent", "memory")
            and not self.on(mechanism)
            and not (name in ROUTER_FIELDS and self.latent_iterations and self.latent_capacity < 1)
        }
        idle |= {"latent_exit"} if self.latent_halting != "gate" else set()
        idle |= {"latent_ponder"} if self.latent_halting != "act" else set()
        idle |= {"memory_heads", "memory_key_dim"} if self.memory_kind == "knn" else set()
        idle |= {"thought_token"} if not self.thinks else set()
        settled = replace(self, options={}, **{name: usual[name] for name in idle})  # type: ignore[arg-type]
        for name, resolved in _RESOLVED.items():
            left_out = replace(settled, **{name: None})  # type: ignore[arg-type]
            if getattr(left_out, resolved) == getattr(settled, resolved):
                settled = left_out
        return settled


_RESOLVED = {
    "d_ff": "hidden_dim",
    "latent_layer": "latent_position",
    "memory_top_k": "memory_reads",
    "memory_layer": "memory_position",
}
"""Fields whose None stands for a value that follows from the others, and what has it."""
ROUTER_FIELDS = ("mod_router", "mod_gate", "mod_balance_loss", "mod_z_loss", "mod_noise")
"""Settings of routers; the latent core's router has them too."""


def _check_mod(c: ModelConfig) -> None:
    check(
        0 < c.mod_capacity <= 1,
        f"mod_capacity is {c.mod_capacity}; it must be above 0 and at most 1 (1 turns Mixture-of-Depths off)",
    )
    check(
        c.mod_capacity == 1 or c.n_layers >= 2,
        f"Mixture-of-Depths routes every second block; model.n_layers is {c.n_layers}, give at least 2",
    )
    for name in ("mod_balance_loss", "mod_z_loss", "mod_noise"):
        check(0 <= getattr(c, name) < math.inf, f"{name} is {getattr(c, name)}; it must be 0 (off) or more")
    _check_routes("mod_capacity", c.mod_capacity, c.max_seq_len)


def _check_routes(name: str, capacity: float, length: int) -> None:
    check(
        capacity * length >= 1 - 1e-9,
        f"{name} is {capacity:g}, which is less than one token of {length} (model.max_seq_len); "
        f"give at least {1 / length:.2g}",
    )


def _check_latent(c: ModelConfig) -> None:
    check(
        1 <= c.latent_core_layers <= 4,
        f"latent_core_layers is {c.latent_core_layers}; it must be 1 to 4",
    )
    check(
        c.latent_layer is None or 0 <= c.latent_layer <= c.n_layers,
        f"latent_layer is {c.latent_layer}; it must be 0 to {c.n_layers}",
    )
    check(
        0 < c.latent_capacity <= 1,
        f"latent_capacity is {c.latent_capacity}; it must be above 0 and at most 1 (1 routes nothing)",
    )
    check(
        c.latent_capacity == 1 or c.latent_iterations >= 2,
        "latent_capacity routes the passes beyond the first, and latent_iterations is 1; give at least 2",
    )
    _check_routes("latent_capacity", c.latent_capacity, c.max_seq_len)
    check(0 < c.latent_exit <= 1, f"latent_exit is {c.latent_exit}; it is a probability, above 0 and at most 1")
    check(0 <= c.latent_ponder < math.inf, f"latent_ponder is {c.latent_ponder}; it must be 0 or more")
    for name in ("latent_mode", "latent_halting"):
        check(
            c.latent_iterations >= 2 or getattr(c, name) in ("fixed", "none"),
            f"{name} is {getattr(c, name)!r} and latent_iterations is 1, which leaves nothing to draw or to leave out; "
            "give at least 2",
        )
    if c.latent_halting == "none":
        return
    check(
        c.latent_capacity == 1,
        f"latent_halting is {c.latent_halting!r} and latent_capacity is {c.latent_capacity:g}: both decide which "
        "tokens run a pass; leave one out",
    )
    check(
        c.latent_halting != "gate" or c.latent_mode == "sampled",
        "latent_halting is 'gate' and latent_mode is 'fixed', which trains no readout of an earlier pass; "
        "give latent_mode sampled",
    )
    check(
        c.latent_halting != "gate" or c.latent_position == c.n_layers,
        f"latent_halting is 'gate' and latent_layer is {c.latent_layer}: the gate learns from each pass's own loss, "
        "which blocks after the core would hide; leave latent_layer out",
    )
    check(
        c.latent_halting != "act" or c.latent_mode == "fixed",
        "latent_halting is 'act', which draws its passes itself; give latent_mode fixed",
    )


def _check_memory(c: ModelConfig) -> None:
    slots, reads, most = c.memory_slots, c.memory_reads, c.memory_slots
    if c.memory_kind == "product_key":
        most = math.isqrt(slots)
        check(
            most * most == slots,
            f"memory_slots is {slots}; product keys need a square number, such as {most**2} or {(most + 1) ** 2} "
            "(memory_kind slots takes any)",
        )
        check(
            c.memory_key_dim >= 2 and c.memory_key_dim % 2 == 0,
            f"memory_key_dim is {c.memory_key_dim}; it must be even and at least 2",
        )
    check(1 <= reads <= most, f"memory_top_k is {reads}; with {slots} slots it must be 1 to {most}")
    check(c.memory_heads >= 1, f"memory_heads is {c.memory_heads}; it must be at least 1")
    check(c.memory_key_dim >= 1, f"memory_key_dim is {c.memory_key_dim}; it must be at least 1")
    last = c.n_layers - (c.memory_kind == "knn")
    layer = c.memory_layer
    check(layer is None or 0 <= layer <= last, f"memory_layer is {layer}; it must be 0 to {last}")
    if c.memory_kind == "knn":
        check(c.n_layers >= 1, "memory_kind is 'knn', which a block of the stack reads; model.n_layers is 0")
        check(
            c.memory_position % 2 == 0,
            f"memory_layer is {layer}, which Mixture-of-Depths routes where it is on; knn takes an even one",
        )


def _check_thoughts(c: ModelConfig) -> None:
    given, vocabulary = c.thought_token, c.vocab_size
    check(
        not c.thinks or given is not None,
        f"thoughts is {c.thoughts!r} and thought_token is not given; give the id of the token that is a thought",
    )
    check(
        given is None or 0 <= given < vocabulary,
        f"thought_token is {given}; it must be an id of the vocabulary, 0 to {vocabulary - 1}",
    )
    for mechanism, off in (
        ("mod", "mod_capacity 1"),
        ("latent", "latent_iterations 0"),
        ("memory", "memory_slots 0"),
    ):
        check(
            not c.thinks or not c.on(mechanism),
            f"thoughts is {c.thoughts!r} and {mechanism} is on; passes over thoughts are not made for it yet: "
            f"give {off}, or thoughts pause",
        )
