"""Keys and values kept while decoding, so that each token is computed once.

One store for each place where the network attends: a block, or a layer of one pass of the latent core. A store holds
the tokens that went through that place and no others, so a routed layer keeps routed tokens only. A query sees the
entries up to its own position, whatever was skipped, padded or left early. The first column of every store takes what
is not real, so that nothing has to be picked out before it is written; only what is not real itself sees it.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lahr.model.layers import Rotary, Window

_EMPTY = 1 << 40
"""Position of an unused entry: after every query."""


class KeyValues:
    """The keys (turned by their positions) and values of one place: (B, H, M, E) each, M grows as they come."""

    def __init__(self, k_BTHE: Tensor) -> None:
        """Empty, for entries like `k_BTHE`."""
        B, _, H, E = k_BTHE.shape
        self.k_BHME, self.v_BHME = k_BTHE.new_zeros(B, H, 1, E), k_BTHE.new_zeros(B, H, 1, E)

    def write(self, k_BTHE: Tensor, v_BTHE: Tensor, columns_BT: Tensor, size: int) -> None:
        """Puts entries into columns, of which there are `size` at least from then on."""
        missing = size - self.k_BHME.shape[2]
        if missing > 0:
            more = max(missing, self.k_BHME.shape[2])  # twice as many, so that copying costs a constant a token
            self.k_BHME, self.v_BHME = (F.pad(x, (0, 0, 0, more)) for x in (self.k_BHME, self.v_BHME))
        B, T, H, E = k_BTHE.shape
        index = columns_BT[:, None, :, None].expand(B, H, T, E)
        self.k_BHME.scatter_(2, index, k_BTHE.transpose(1, 2))
        self.v_BHME.scatter_(2, index, v_BTHE.transpose(1, 2))

    def read(self, q_BKHE: Tensor, hidden_BKM: Tensor) -> Tensor:
        """Attention of queries over the first M columns: (B, K, H, E). `hidden` is −∞ where one is not seen, else 0."""
        k_BHME, v_BHME = (x[:, :, : hidden_BKM.shape[2]] for x in (self.k_BHME, self.v_BHME))
        mask = hidden_BKM[:, None].to(q_BKHE.dtype)
        return F.scaled_dot_product_attention(q_BKHE.transpose(1, 2), k_BHME, v_BHME, attn_mask=mask).transpose(
            1, 2
        )


class Chosen:
    """Where a store keeps the tokens that a router let through, each sequence's one behind the other."""

    def __init__(self, positions_BT: Tensor) -> None:
        self.positions_BM = torch.full_like(positions_BT[:, :1], _EMPTY)
        self.lengths_B = torch.zeros_like(positions_BT[:, 0])
        self.size = 1
        """Columns in use."""

    def append(self, positions_BT: Tensor, real_BT: Tensor) -> Tensor:
        """The columns of these."""
        columns_BT = (self.lengths_B[:, None] + real_BT.cumsum(1)) * real_BT
        self.lengths_B = self.lengths_B + real_BT.sum(1)
        self.size = 1 + int(self.lengths_B.max())
        if (missing := self.size - self.positions_BM.shape[1]) > 0:
            more = max(missing, self.positions_BM.shape[1])
            self.positions_BM = F.pad(self.positions_BM, (0, more), value=_EMPTY)
        self.positions_BM.scatter_(1, columns_BT, positions_BT.masked_fill(~real_BT, _EMPTY))
        return columns_BT


@dataclass(frozen=True, kw_only=True)
class Chunk(Window):
    """Tokens that follow cached ones: what they compute goes into the stores, and they attend to what is there.

    All tokens go through most places, in order: there the token at position p is in column p + 1.
    """

    positions_BT: Tensor
    size: int
    """Columns of a store of all tokens, with these."""
    stores: dict[str, KeyValues]
    chosen: dict[str, Chosen]
    hidden_BTM: Tensor
    """Where all tokens are: −∞ for the columns that these do not see."""
    name: str = ""
    routed: bool = field(default=False)
    """Whether these are a part of the tokens, that which a router let through."""

    def at(self, places_BK: Tensor, real_BK: Tensor) -> "Chunk":
        """See `Window.at`."""
        positions_BK = self.positions_BT.gather(1, places_BK)
        rotary = Rotary(*(_rows(table, places_BK) for table in self.rotary))
        return replace(self, rotary=rotary, real_BT=real_BK, positions_BT=positions_BK, routed=True)

    def site(self, name: str) -> "Chunk":
        """These tokens at the place `name`; names nest."""
        return replace(self, name=f"{self.name}/{name}" if self.name else name)

    def attend(self, qk_BT2HE: Tensor, v_BTHE: Tensor) -> Tensor:
        """See `Window.attend`; keys of earlier chunks are there too."""
        q_BTHE, k_BTHE = self.rotary.rotate(qk_BT2HE).unbind(2)
        self.keep(k_BTHE, v_BTHE)
        hidden_BTM = self.hidden_BTM
        if self.routed:
            chosen = self.chosen[self.name]
            hidden_BTM = _hidden(chosen.positions_BM[:, : chosen.size], self.positions_BT, self.real_BT)
        return self.stores[self.name].read(q_BTHE, hidden_BTM)

    def read(self, q_BKHE: Tensor, places_BK: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
        """See `Window.read`; the keys of all tokens go into the store."""
        self.keep(k_BTHE, v_BTHE)
        return self.stores[self.name].read(q_BKHE, _rows(self.hidden_BTM, places_BK))

    def keep(self, k_BTHE: Tensor, v_BTHE: Tensor) -> None:
        """See `Window.keep`."""
        assert self.real_BT is not None
        columns_BT, size = (self.positions_BT + 1) * self.real_BT, self.size
        if self.routed:
            chosen = self.chosen.setdefault(self.name, Chosen(self.positions_BT))
            columns_BT, size = chosen.append(self.positions_BT, self.real_BT), chosen.size
        self.stores.setdefault(self.name, KeyValues(k_BTHE)).write(k_BTHE, v_BTHE, columns_BT, size)


def _hidden(positions_BM: Tensor, own_BK: Tensor, real_BK: Tensor | None) -> Tensor:
    """−∞ for the columns that a query does not see: later ones, and the first, which is for what is not real."""
    assert real_BK is not None
    seen_BKM = (positions_BM[:, None] <= own_BK[..., None]) & real_BK[..., None]
    seen_BKM[..., 0] = ~real_BK
    return torch.zeros(seen_BKM.shape, device=own_BK.device).masked_fill_(~seen_BKM, -torch.inf)


def _rows(table_BTE: Tensor, places_BK: Tensor) -> Tensor:
    return table_BTE.gather(1, places_BK[..., None].expand(*places_BK.shape, table_BTE.shape[-1]))


class Cache:
    """What a model remembers of the tokens it was given: a store for each place, and each sequence's length."""

    def __init__(self) -> None:
        self.stores: dict[str, KeyValues] = {}
        self.chosen: dict[str, Chosen] = {}
        self.lengths_B: Tensor | None = None
        self.state: tuple[Tensor, Tensor] | None = None
        """Each sequence's last hidden state (B, D) and whether it has one (B,), where thoughts recycle it."""

    def extend(self, real_BT: Tensor, table: Rotary) -> Chunk:
        """The chunk of the next tokens, (B, T) of which those are real; `table` has the angles of all positions.

        Raises `ValueError` where a sequence grows longer than the table.
        """
        before_B = (
            self.lengths_B if self.lengths_B is not None else torch.zeros_like(real_BT[:, 0], dtype=torch.int64)
        )
        positions_BT = (before_B[:, None] + real_BT.cumsum(1) - 1).clamp(min=0)
        self.lengths_B = before_B + real_BT.sum(1)
        longest = int(self.lengths_B.max())
        if longest > len(table.cos):
            raise ValueError(
                f"a sequence grows to {longest} tokens; this model takes {len(table.cos)} (max_seq_len)"
            )
        columns_1M = torch.arange(-1, longest, device=real_BT.device)[None]
        return Chunk(
            table.at(positions_BT),
            real_BT,
            positions_BT=positions_BT,
            size=longest + 1,
            stores=self.stores,
            chosen=self.chosen,
            hidden_BTM=_hidden(columns_1M, positions_BT, real_BT),
        )
