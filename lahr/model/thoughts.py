"""Thoughts in the sequence, after COCONUT (Hao et al. 2024, "Training Large Language Models to Reason in a Continuous
Latent Space", section 3): the input of a thought is not its token's embedding but the last hidden state before it.

    e_i = h_{i−1} where token i is a thought, else the embedding of token i;   h = norm(stack(e)), e_i ↦ h_i

h is taken after the final norm, as in the published code (the last hidden state of GPT-2 there), unscaled. So a thought
can be computed only once all before it is: the tokens up to the first thought go through the stack in one pass, then
each thought with the tokens up to the next one in a pass of its own, the last with the rest. Each token is computed
once; keys and values of earlier passes are kept with their gradients. Thoughts stand where they stand, in other places
and other numbers from sequence to sequence: pass t takes each sequence's own part t, padded to the longest.

Arms of the study, all with the same parameters:

- `pause`: a thought is its token's learned embedding, all in one pass (Goyal et al. 2023, "Think before you speak"; the
  control "pause as thought" of Hao et al.).
- `recycled`: the above.
- `sequential`: the pause token's embedding, in the passes of `recycled`. Under causal attention this is `pause` itself,
  logits and gradients, at the cost of `recycled`: nothing that a token gives depends on when it was computed. A
  difference between the two is rounding, its growth in training, or a fault.
- `blank`: recycled thoughts of the same network that has read nothing but thoughts and the token before each run of
  them. Inputs of the size and kind of hidden states, made in as many passes, which know nothing of the question: the
  control for content that `sequential` cannot be.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lahr.model.cache import Cache
from lahr.model.latent_reasoning import put
from lahr.model.layers import Rotary, Window, masked_attention
from lahr.model.mixture_of_depths import pack, take
from lahr.model_config import Thoughts

_NEVER = 1 << 40
"""Place of what is padding: after every token."""

Stack = Callable[[Tensor, Window], Tensor]
"""Blocks and final norm: (B, K, D) to (B, K, D)."""
Opens = Callable[[Tensor, Tensor], Window]
"""From the places of a pass's tokens and which are real, (B, K) both, to the window that they attend in."""


def think(
    stack: Stack,
    x_BTD: Tensor,
    thought_BT: Tensor,
    rotary: Rotary,
    arm: Thoughts,
    cache: Cache | None = None,
    real_BT: Tensor | None = None,
) -> Tensor:
    """The last hidden states (B, T, D) of embedded tokens of which those are thoughts.

    `rotary` has the angles of all positions. With a `cache` the tokens follow those it holds, where `real_BT` is False
    they are padding, and the cache is extended; a first thought then follows on the last state that it holds. A thought
    with nothing before it keeps its embedding. Raises `ValueError` on a cache for `blank`.
    """
    real_BT = torch.ones_like(thought_BT) if real_BT is None else real_BT
    thought_BT = thought_BT & real_BT
    if arm == "blank":
        if cache is not None:
            raise ValueError("thoughts 'blank' know no cache; run the whole sequences, without one")
        x_BTD = _blank(stack, x_BTD, thought_BT, rotary)
        return stack(x_BTD, Window(Rotary(*(table[: x_BTD.shape[1]] for table in rotary))))
    if cache is None:
        return in_passes(stack, x_BTD, thought_BT, real_BT, Kept(rotary).open, recycle=arm == "recycled")[0]

    def extend(places_BK: Tensor, real_BK: Tensor) -> Window:
        return cache.extend(real_BK, rotary)

    before = cache.state if cache.state is not None else _nothing(x_BTD)
    recycle = arm == "recycled"
    h_BTD, cache.state = in_passes(stack, x_BTD, thought_BT, real_BT, extend, before, recycle=recycle)
    return h_BTD


State = tuple[Tensor, Tensor]
"""The last hidden state of each sequence, (B, D), and whether it has one, (B,)."""


def _nothing(x_BTD: Tensor) -> State:
    return torch.zeros_like(x_BTD[:, 0]), torch.zeros(len(x_BTD), dtype=torch.bool, device=x_BTD.device)


def in_passes(
    stack: Stack,
    x_BTD: Tensor,
    thought_BT: Tensor,
    real_BT: Tensor,
    opens: Opens,
    before: State | None = None,
    *,
    recycle: bool,
) -> tuple[Tensor, State]:
    """Runs each thought, with the tokens up to the next one, in a pass of its own: the states (B, T, D), and the last
    of each sequence. What it gives at padding means nothing."""
    state_BD, known_B = _nothing(x_BTD) if before is None else before
    pass_BT = thought_BT.cumsum(1)
    counts_BN = pass_BT.new_zeros(len(x_BTD), int(pass_BT.max()) + 1).scatter_add_(1, pass_BT, real_BT.long())
    widths = counts_BN.amax(0).tolist()
    parts: list[Tensor] = []
    for t, width in enumerate(widths):
        if not width:  # every sequence begins with a thought
            continue
        places_BK, real_BK = pack(real_BT & (pass_BT == t), width)
        e_BKD = take(x_BTD, places_BK)
        if t and recycle:
            first_BD = torch.where(known_B[:, None], state_BD, e_BKD[:, 0])
            e_BKD = torch.cat((first_BD[:, None], e_BKD[:, 1:]), 1)
        parts.append(stack(e_BKD, opens(places_BK, real_BK)))
        any_B = counts_BN[:, t] > 0
        last_BD = take(parts[-1], (counts_BN[:, t, None] - 1).clamp(min=0))[:, 0]
        state_BD, known_B = torch.where(any_B[:, None], last_BD, state_BD), known_B | any_B

    starts_N = torch.tensor([0, *widths[:-1]], device=x_BTD.device).cumsum(0)
    earlier_BN = counts_BN.cumsum(1) - counts_BN
    rank_BT = real_BT.cumsum(1) - 1 - earlier_BN.gather(1, pass_BT)
    columns_BT = (starts_N[pass_BT] + rank_BT).clamp(min=0)
    return take(torch.cat(parts, 1), columns_BT), (state_BD, known_B)


class Kept:
    """Keys and values of the passes of one forward computation, with their gradients, for each place where the network
    attends."""

    def __init__(self, rotary: Rotary) -> None:
        self.rotary, self.stores = rotary, dict[str, tuple[Tensor, Tensor]]()
        self.places_BM: Tensor | None = None

    def open(self, places_BK: Tensor, real_BK: Tensor) -> "Pass":
        """The window of the next pass, of the tokens at those places."""
        own_BK = places_BK.masked_fill(~real_BK, _NEVER)
        visible_BKM = None
        if self.places_BM is not None:
            own_BK = torch.cat((self.places_BM, own_BK), 1)
            visible_BKM = own_BK[:, None] <= places_BK[..., None]
        self.places_BM = own_BK
        return Pass(self.rotary.at(places_BK), real_BK, visible_BKM=visible_BKM, stores=self.stores)


@dataclass(frozen=True, kw_only=True)
class Pass(Window):
    """The tokens of one pass, which see one another and those of earlier passes, each up to its own place."""

    visible_BKM: Tensor | None
    """Which of the keys so far each token sees; None in the first pass, whose order is causal already."""
    stores: dict[str, tuple[Tensor, Tensor]]
    name: str = field(default="")

    def site(self, name: str) -> "Pass":
        """See `Window.site`."""
        return replace(self, name=f"{self.name}/{name}")

    def attend(self, qk_BK2HE: Tensor, v_BKHE: Tensor) -> Tensor:
        """See `Window.attend`; the keys of earlier passes are there too."""
        q_BKHE, k_BKHE = self.rotary.rotate(qk_BK2HE).unbind(2)
        if self.visible_BKM is None:
            self.stores[self.name] = (k_BKHE, v_BKHE)
            return super().attend(qk_BK2HE, v_BKHE)
        old_k_BMHE, old_v_BMHE = self.stores[self.name]
        k_BMHE, v_BMHE = torch.cat((old_k_BMHE, k_BKHE), 1), torch.cat((old_v_BMHE, v_BKHE), 1)
        self.stores[self.name] = (k_BMHE, v_BMHE)
        return masked_attention(q_BKHE, k_BMHE, v_BMHE, self.visible_BKM)


def _blank(stack: Stack, x_BTD: Tensor, thought_BT: Tensor, rotary: Rotary) -> Tensor:
    """The embeddings with those of thoughts replaced by what they would recycle without the question."""
    some_BT = thought_BT | F.pad(thought_BT[:, 1:], (0, 1))
    places_BK, real_BK = pack(some_BT, int(some_BT.sum(1).max()))
    if not places_BK.shape[1]:
        return x_BTD
    kept = Kept(rotary)

    def opens(these_BJ: Tensor, real_BJ: Tensor) -> Window:
        return kept.open(places_BK.gather(1, these_BJ), real_BJ)

    thinks_BK = thought_BT.gather(1, places_BK) & real_BK
    e_BKD = take(x_BTD, places_BK)
    h_BKD, _ = in_passes(stack, e_BKD, thinks_BK, real_BK, opens, recycle=True)
    # Token i of these takes the state of token i − 1, as it did in the passes; the very first has none before it.
    recycled_BKD = torch.cat((e_BKD[:, :1], h_BKD[:, :-1]), 1)
    return put(x_BTD, places_BK, torch.where(thinks_BK[..., None], recycled_BKD, e_BKD))
