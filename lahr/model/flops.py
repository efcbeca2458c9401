"""What one token costs and how many parameters a model holds, in closed form: plain arithmetic.

A product with an (a × b) matrix costs 2ab. Forward only; training is three times that. Two conventions:
`useful` counts what the equations need, so causal attention is half the square (2Td a token in a dense block), and
the memory's weighted sums and the latent recurrence are in; `counter` counts what `torch.utils.flop_counter` sees
of this code on a CPU: matrix products only, and attention over the keys that are really multiplied, which is the
whole square (4Td) for windows of one query slice and nears the half for long ones.
"""

import math
from typing import Literal

from lahr.model.layers import attention_span
from lahr.model.mixture_of_depths import capacity_tokens, predictor_width
from lahr.model_config import ModelConfig

Convention = Literal["useful", "counter"]


def flops_per_token(config: ModelConfig, convention: Convention = "useful") -> dict[str, float]:
    """Forward FLOPs a token by part, in windows of `max_seq_len` tokens; the model's cost is their sum.

    Parts: `head`, `dense_blocks`, `routed_blocks`, `routers` (with their causal predictors), `latent`, `memory`;
    a part that the model has not is 0.
    """
    c, d, T = config, config.d_model, config.max_seq_len
    useful = convention == "useful"

    def block_over(length: int) -> float:
        return 2 * _block_matrices(c) + 4 * d * (length / 2 if useful else attention_span(length))

    k = capacity_tokens(c.mod_capacity, T)
    block, routed = block_over(T), k / T * block_over(k)
    predictor = 2 * predictor_width(d) * (d + 1)
    n_routed = len(c.routed_layers)
    latent, memory = 0.0, 0.0
    if c.latent_iterations:
        latent = c.latent_iterations * (block + (4 * d if useful else 0)) + 2 * d * d
    if c.memory_slots:
        h, dk, n, top = c.memory_heads, c.memory_key_dim, math.isqrt(c.memory_slots), c.memory_reads
        memory = 2 * d * h * dk + 2 * h * n * dk + 4 * d * d + (h * top**2 + 2 * h * top * d if useful else 0)
    return {
        "head": float(2 * d * c.vocab_size),
        "dense_blocks": float((c.n_layers - n_routed) * block),
        "routed_blocks": n_routed * routed,
        "routers": float(n_routed * (2 * d + predictor)),
        "latent": float(latent),
        "memory": float(memory),
    }


def training_flops_per_token(config: ModelConfig) -> float:
    """FLOPs of a token's forward and backward passes in the useful convention: three times the forward ones."""
    return 3 * sum(flops_per_token(config).values())


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, and their `total`. The head is the embedding and is counted once.

    Parts: `embedding`, `blocks`, `routers`, `latent`, `memory`, `norm`; a part that the model has not is 0.
    """
    c, d = config, config.d_model
    block = _block_matrices(c) + 2 * d
    router = d + predictor_width(d) * (d + 1) + 1
    parts = {
        "embedding": c.vocab_size * d,
        "blocks": c.n_layers * block,
        "routers": len(c.routed_layers) * router,
        "latent": 0,
        "memory": 0,
        "norm": d,
    }
    if c.latent_iterations:
        parts["latent"] = block + 2 * d + d * d + 4 * d  # core, its outer norms, readout; two norms, Ā and B̄
    if c.memory_slots:
        h, dk, n = c.memory_heads, c.memory_key_dim, math.isqrt(c.memory_slots)
        parts["memory"] = d * h * dk + h * n * dk + c.memory_slots * d + 2 * d * d + d + dk + h
    return {**parts, "total": sum(parts.values())}


def _block_matrices(config: ModelConfig) -> int:
    """N_b = 4d² + 3·d·d_ff: the entries of a block's matrices."""
    return 4 * config.d_model**2 + 3 * config.d_model * config.hidden_dim
