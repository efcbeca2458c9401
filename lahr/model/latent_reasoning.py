"""Latent reasoning: one shared block run R times over the stack's output, after the recurrent-depth models.

    h_0 = e;  for t = 1 … R:  h ← Ā⊙h + B̄⊙norm(e);  h ← core(h);   y = e + W_o·norm(h_R)

e is the stack's output. 0 < Ā < 1, learned for each channel, damps the recurrence, so that many passes stay stable
(Geiping et al. 2025 for the recurrent depth). W_o starts at zero: at the start the model equals the one without.
"""

from torch import Tensor, nn

from lahr.model.layers import Block, Linear, RMSNorm, Rotary, parameter


class Core(Block):
    """A block with a norm after each branch too, so that a pass adds the same amount whatever its weights."""

    def __init__(self, d_model: int, n_heads: int, hidden: int, out_scale: float) -> None:
        super().__init__(d_model, n_heads, hidden, out_scale)
        self.attention_out_norm = RMSNorm(d_model)
        self.feed_forward_out_norm = RMSNorm(d_model)

    def forward(self, x_BTD: Tensor, rotary: Rotary) -> Tensor:
        x_BTD = x_BTD + self.attention_out_norm(self.attention(self.attention_norm(x_BTD), rotary))
        return x_BTD + self.feed_forward_out_norm(self.feed_forward(self.feed_forward_norm(x_BTD)))


class LatentReasoning(nn.Module):
    """R passes of one core over the stack's output: (B, T, D) to (B, T, D)."""

    def __init__(self, d_model: int, n_heads: int, hidden: int, out_scale: float, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.core = Core(d_model, n_heads, hidden, out_scale)
        self.input_norm = RMSNorm(d_model)
        self.decay_logit = parameter(d_model)  # Ā = σ(this): one half at the start, and B̄ = 1 − Ā
        self.injection = parameter(d_model, mean=0.5)
        self.readout_norm = RMSNorm(d_model)
        self.readout = Linear(d_model, d_model, scale=0.0)

    def step(self, h_BTD: Tensor, injected_BTD: Tensor, rotary: Rotary) -> Tensor:
        """One pass: the state h and the injected B̄⊙norm(e) give the next state."""
        return self.core(self.decay_logit.sigmoid() * h_BTD + injected_BTD, rotary)

    def forward(self, e_BTD: Tensor, rotary: Rotary) -> Tensor:
        injected_BTD = self.injection * self.input_norm(e_BTD)
        h_BTD = e_BTD
        for _ in range(self.iterations):
            h_BTD = self.step(h_BTD, injected_BTD, rotary)
        return e_BTD + self.readout(self.readout_norm(h_BTD))
