"""Text from a model, a token at a time: caches of keys and values, batches of unequal prompts, sampling.

Prompts are padded on the left, so that every sequence ends at the same place; padding enters no cache and is seen by
nobody. A model's next token is drawn from softmax(logits/τ) over the `top_k` likeliest, of those the fewest that hold
`top_p` of the probability (Holtzman et al. 2020), by adding Gumbel noise and taking the largest. The noise is drawn
from (seed, sequence), so models given the same seed draw alike, and a sequence draws the same in any batch.

A model of one's own knows neither caches nor padding: it reads each sequence anew for every token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lahr.model.cache import Cache
from lahr.model.lahr import LAHR
from lahr.model.layers import Linear
from lahr.model.own import Own


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn."""

    temperature: float = 1.0
    """τ; 0 takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest; None is all of them."""
    top_p: float = 1.0
    """Only the likeliest whose probabilities reach this together; 1 is all of them."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `ValueError` on a setting that nothing can be drawn with."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it is a share of the probability, above 0 and at most 1")

    def kept(self, logits_BV: Tensor) -> Tensor:
        """The logits over the temperature, −∞ where a token cannot be drawn: (B, V)."""
        # From the largest down, so that a tiny temperature overflows to −∞ and never to a draw of nothing.
        scaled_BV = (logits_BV - logits_BV.amax(1, keepdim=True)) / (self.temperature or 1.0)
        k = min(self.top_k or scaled_BV.shape[1], scaled_BV.shape[1])
        if k < scaled_BV.shape[1]:
            least_B1 = scaled_BV.topk(k, dim=1).values[:, -1:]
            scaled_BV = scaled_BV.masked_fill(scaled_BV < least_B1, -torch.inf)
        if self.top_p < 1:
            sorted_BV, order_BV = scaled_BV.sort(dim=1, descending=True)
            before_BV = sorted_BV.softmax(1).cumsum(1) - sorted_BV.softmax(1)
            dropped_BV = torch.zeros_like(scaled_BV, dtype=torch.bool).scatter(1, order_BV, before_BV >= self.top_p)
            scaled_BV = scaled_BV.masked_fill(dropped_BV, -torch.inf)
        return scaled_BV

    def draw(self, logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A token for each sequence, (B,), its noise from its own generator."""
        scaled_BV = self.kept(logits_BV.float())
        if self.temperature == 0:
            return scaled_BV.argmax(1)
        uniform_BV = torch.stack([torch.rand(scaled_BV.shape[1], generator=g) for g in generators])
        return (scaled_BV - (-uniform_BV.to(scaled_BV.device).clamp(min=1e-20).log()).log()).argmax(1)


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The prompts as (B, T) tokens, padded with 0 on the left, and which tokens are real."""
    longest = max(len(p) for p in prompts)
    tokens_BT = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    real_BT = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts])
    return tokens_BT, real_BT


def lay_out(model: LAHR) -> None:
    """Lays the weights of products out by columns: for the few rows of a step a CPU reads them up to 1.4 times as fast.

    The same values under the same names, for a model that is not trained further.
    """
    for module in model.modules():
        if isinstance(module, Linear) or module is model.embedding:  # which is the head, too
            module.weight.data = module.weight.data.t().contiguous().t()


class _Cached:
    """Logits (B, V) after the tokens (B, T) that follow those of the calls before."""

    def __init__(self, model: LAHR) -> None:
        self.model, self.cache = model, Cache()

    def __call__(self, tokens_BT: Tensor, real_BT: Tensor) -> Tensor:
        return self.model(tokens_BT, cache=self.cache, real_BT=real_BT)[:, -1]


class _Whole:
    """The same from a model that has no caches: each sequence from its beginning, and alone, so without padding."""

    def __init__(self, model: Own) -> None:
        self.model = model
        self.sequences: list[Tensor] = []

    def __call__(self, tokens_BT: Tensor, real_BT: Tensor) -> Tensor:
        self.sequences = self.sequences or [tokens_BT.new_empty(0)] * len(tokens_BT)
        new = [tokens[real] for tokens, real in zip(tokens_BT, real_BT, strict=True)]
        self.sequences = [torch.cat(pair) for pair in zip(self.sequences, new, strict=True)]
        return torch.stack([self.model(sequence[None])[0, -1] for sequence in self.sequences])


@torch.inference_mode()
def generate(
    model: LAHR | Own,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: int | None = None,
) -> Iterator[list[int | None]]:
    """Yields the next token of each sequence, `max_new_tokens` times or until all have ended; None for one that has.

    A sequence ends with the token `stop`, which is yielded. `model` must be in evaluation mode. Raises `ValueError`
    on an empty prompt, on a token that the model has not, and where prompt and new tokens exceed `max_seq_len`.
    """
    sampling = sampling or Sampling()
    longest, room = max((len(p) for p in prompts), default=0), model.config.max_seq_len
    if not all(len(p) for p in prompts) or not prompts:
        raise ValueError("a prompt is empty; give each at least one token, such as the end-of-text token")
    if not all(0 <= token < model.config.vocab_size for p in prompts for token in p):
        raise ValueError(
            f"a prompt has a token that the model has not; tokens are 0 to {model.config.vocab_size - 1}"
        )
    if longest + max_new_tokens - 1 > room:  # the last token is drawn and not read
        raise ValueError(
            f"the longest prompt has {longest} tokens and {max_new_tokens} new ones were asked for; this model takes "
            f"{room} (max_seq_len): shorten the prompt"
            + (f" or ask for at most {room - longest + 1}" if longest <= room else "")
        )
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed((sampling.seed << 20) + row) for row in range(len(prompts))]
    tokens_BT, real_BT = (x.to(device) for x in left_padded(prompts))
    read = _Whole(model) if isinstance(model, Own) else _Cached(model)
    for _ in range(max_new_tokens):
        next_B = sampling.draw(read(tokens_BT, real_BT), generators)
        going_B = real_BT[:, -1]
        yield [int(token) if going else None for token, going in zip(next_B, going_B, strict=True)]
        if stop is not None:
            going_B = going_B & (next_B != stop)
        if not going_B.any():
            return
        tokens_BT, real_BT = next_B[:, None], going_B[:, None]
