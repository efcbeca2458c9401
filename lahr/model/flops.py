"""What one token costs and how many parameters a model holds, in closed form: plain arithmetic.

A product with an (a × b) matrix costs 2ab. Forward only; training is three times that. Two conventions:
`useful` counts what the equations need, so causal attention is half the square (2Td a token in a dense block), and
the memory's weighted sums and the latent recurrence are in; `counter` counts what `torch.utils.flop_counter` sees
of this code on a CPU: matrix products only, and attention over the keys that are really multiplied, which is the
whole square (4Td) for windows of one query slice and nears the half for long ones.

A model of one's own has no closed form: `own.cost` counts it, in the counter's convention, and the three functions of
a configuration here say what it found.

Thoughts in the sequence (`thoughts.py`) cost what other tokens do, however many passes they take: each is computed
once. Not counted are the padding of a batch whose thoughts stand in unlike places, that attention multiplies with the
keys so far where the counter's convention has the square, and that `blank` computes thoughts twice.

Executed passes are counted, not nominal ones: a sampled step is counted with its own passes, and where tokens leave
early with the mean that ran (`Output.passes`). A router is counted at its capacity.
"""

import math
from typing import Literal

from lahr.model.latent_reasoning import BACKPROPAGATED, EXIT_STRIDE
from lahr.model.layers import attention_span
from lahr.model.mixture_of_depths import capacity_tokens, predictor_width
from lahr.model.own import cost
from lahr.model_config import ModelConfig

Convention = Literal["useful", "counter"]


def flops_per_token(
    config: ModelConfig, convention: Convention = "useful", *, passes: float | None = None, segments: int = 1
) -> dict[str, float]:
    """Forward FLOPs a token by part, in windows of `max_seq_len` tokens; the model's cost is their sum.

    Parts: `head`, `dense_blocks`, `routed_blocks`, `routers` (with their causal predictors), `latent`, `memory`;
    a part that the model has not is 0. `passes` of the latent core are R unless given; `segments` is the number of
    windows in a row, for the `knn` memory. A model of one's own has one part, `own`.
    """
    if config.build:
        return {"own": cost(config).forward}
    c, d, T = config, config.d_model, config.max_seq_len
    useful = convention == "useful"
    routed, routers = 0.0, 0.0
    block = _block_over(c, T, useful)
    n_routed = len(c.routed_layers)
    if n_routed:
        k = capacity_tokens(c.mod_capacity, T)
        routed, routers = n_routed * k / T * _block_over(c, k, useful), float(n_routed * _router(c))
    latent, latent_router = _latent(c, useful, c.latent_iterations if passes is None else passes)
    return {
        "head": float(2 * d * c.vocab_size),
        "dense_blocks": float((c.n_layers - n_routed) * block),
        "routed_blocks": routed,
        "routers": routers + latent_router,
        "latent": latent,
        "memory": _memory(c, useful, segments),
    }


def training_flops_per_token(config: ModelConfig, *, passes: float | None = None, segments: int = 1) -> float:
    """FLOPs of a token's forward and backward passes in the useful convention: three times the forward ones, but
    for passes that no gradient goes back through and for what the exit gate learns from, which run forward only.
    Of a model of one's own what torch's counter finds, attention's whole square included."""
    if config.build:
        return cost(config).training
    forward = sum(flops_per_token(config, passes=passes, segments=segments).values())
    run = config.latent_iterations if passes is None else passes
    few = config.latent_halting == "act" or config.latent_capacity < 1  # a gradient goes through all of them
    learnt = run if few else min(run, BACKPROPAGATED)
    backward = 2 * sum(flops_per_token(config, passes=learnt, segments=segments).values())
    return forward + backward + exit_readouts(config, passes)


def exit_readouts(config: ModelConfig, passes: float | None = None) -> float:
    """FLOPs a training token of the exit gate and of the readouts and heads that its targets take."""
    if not config.latent_iterations or config.latent_halting != "gate":
        return 0.0
    d, passes = config.d_model, config.latent_iterations if passes is None else passes
    a_pass = 2 * d * d + 2 * d * config.vocab_size  # the readout and the head
    return passes / EXIT_STRIDE * (a_pass * (passes > 1) + 2 * d)


def _block_over(c: ModelConfig, length: int, useful: bool) -> float:
    """A block's cost for one of `length` tokens that see one another."""
    keys = length / 2 if useful else attention_span(length)
    return 2 * _block_matrices(c) + 4 * c.d_model * keys


def _router(c: ModelConfig) -> float:
    d = c.d_model
    return 2 * d + (0 if c.mod_router == "threshold" else 2 * predictor_width(d) * (d + 1))


def _latent(c: ModelConfig, useful: bool, passes: float) -> tuple[float, float]:
    """The core's cost and its router's."""
    if not c.latent_iterations:
        return 0.0, 0.0
    d, T = c.d_model, c.max_seq_len
    recurrence, readout = (4.0 * d if useful else 0.0), 2.0 * d * d
    a_pass = c.latent_core_layers * _block_over(c, T, useful) + recurrence
    if c.latent_halting == "act":  # whose passes read all keys, masked
        masked = 0.0 if useful else c.latent_core_layers * 4 * d * (T - attention_span(T))
        return passes * (a_pass + masked + 2 * d) + readout, 0.0
    if c.latent_capacity == 1:
        return passes * a_pass + readout, 0.0
    k = capacity_tokens(c.latent_capacity, T)
    a_short_pass = k / T * (c.latent_core_layers * _block_over(c, k, useful) + recurrence)
    return a_pass + (passes - 1) * a_short_pass + readout, _router(c)


def _memory(c: ModelConfig, useful: bool, segments: int) -> float:
    if not c.memory_slots:
        return 0.0
    d, T, h, dk, top = c.d_model, c.max_seq_len, c.memory_heads, c.memory_key_dim, c.memory_reads
    if c.memory_kind == "knn":
        held = [min(s * T, c.memory_slots) for s in range(1, segments)]
        read = sum(2 * d * m + (2 * d * min(top, m) if useful else 0) for m in held)
        return read / segments
    ends = 2 * d * h * dk + 4 * d * d + (2 * h * top * d if useful else 0)
    if c.memory_kind == "slots":
        return ends + 2 * h * c.memory_slots * dk
    return ends + 2 * h * math.isqrt(c.memory_slots) * dk + (h * top**2 if useful else 0)


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, and their `total`. The head is the embedding and is counted once.

    Parts: `embedding`, `blocks`, `routers`, `latent`, `memory`, `norm`; a part that the model has not is 0. Of a model
    of one's own `embedding`, the weights of every `nn.Embedding`, and `rest`.
    """
    if config.build:
        of_own = cost(config)
        rest = of_own.parameters - of_own.embedding
        return {"embedding": of_own.embedding, "rest": rest, "total": of_own.parameters}
    c, d = config, config.d_model
    block = _block_matrices(c) + 2 * d + (2 * c.head_dim if c.qk_norm else 0)
    router = d + (0 if c.mod_router == "threshold" else predictor_width(d) * (d + 1) + 1)
    n_routers = len(c.routed_layers)
    parts = {"embedding": c.vocab_size * d, "blocks": c.n_layers * block, "latent": 0, "memory": 0, "norm": d}
    if c.latent_iterations:
        # The core's blocks with their outer norms; the readout; two norms, Ā and B̄; the exit.
        parts["latent"] = c.latent_core_layers * (block + 2 * d) + d * d + 4 * d
        parts["latent"] += d + 1 if c.latent_halting != "none" else 0
        n_routers += c.latent_capacity < 1
    if c.memory_slots and c.memory_kind == "knn":
        parts["memory"] = c.n_heads
    elif c.memory_slots:
        h, dk = c.memory_heads, c.memory_key_dim
        keys = h * dk * (c.memory_slots if c.memory_kind == "slots" else math.isqrt(c.memory_slots))
        parts["memory"] = d * h * dk + keys + c.memory_slots * d + 2 * d * d + d + dk + h
    parts["routers"] = n_routers * router
    return {**parts, "total": sum(parts.values())}


def _block_matrices(config: ModelConfig) -> int:
    """N_b = 4d² + 3·d·d_ff: the entries of a block's matrices."""
    return 4 * config.d_model**2 + 3 * config.d_model * config.hidden_dim


def fields_read(config: ModelConfig) -> frozenset[str] | None:
    """What a model of one's own looks at in its configuration, such as `options.width`; None of LAHR, whose settings
    that decide nothing `ModelConfig.settled` knows."""
    return cost(config).reads if config.build else None
