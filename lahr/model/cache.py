"""Keys and values kept while decoding, so that each token is computed once.

One store for each place where the network attends: a block, or a layer of one pass of the latent core. A store holds
the tokens that went through that place and no others, so a routed layer keeps routed tokens only. Every entry carries
its position: a query sees the entries up to its own, whatever was skipped, padded or left early.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lahr.model.layers import Rotary, Window, masked_attention

_EMPTY = 1 << 40
"""Position of an unused entry: after every query."""


class KeyValues:
    """The keys (turned by their positions) and values of one place: (B, M, H, E) each, M grows as they come."""

    def __init__(self, k_BTHE: Tensor) -> None:
        """Empty, for entries like `k_BTHE`."""
        B, _, H, E = k_BTHE.shape
        self.k_BMHE, self.v_BMHE = k_BTHE.new_zeros(B, 1, H, E), k_BTHE.new_zeros(B, 1, H, E)
        self.positions_BM = torch.full((B, 1), _EMPTY, device=k_BTHE.device)
        self.lengths_B = torch.zeros(B, dtype=torch.int64, device=k_BTHE.device)

    def append(self, k_BTHE: Tensor, v_BTHE: Tensor, positions_BT: Tensor, real_BT: Tensor) -> None:
        """Adds the entries that are real, each sequence's behind its own."""
        rows, columns = real_BT.nonzero(as_tuple=True)
        places = (self.lengths_B[:, None] + real_BT.cumsum(1) - 1)[rows, columns]
        self.lengths_B = self.lengths_B + real_BT.sum(1)
        self._grow(int(self.lengths_B.max()))
        self.k_BMHE[rows, places] = k_BTHE[rows, columns]
        self.v_BMHE[rows, places] = v_BTHE[rows, columns]
        self.positions_BM[rows, places] = positions_BT[rows, columns]

    def _grow(self, needed: int) -> None:
        missing = needed - self.k_BMHE.shape[1]
        if missing > 0:
            more = max(missing, self.k_BMHE.shape[1])  # twice as many, so that copying costs a constant a token
            self.k_BMHE, self.v_BMHE = (
                torch.cat((x, x.new_zeros(x.shape[0], more, *x.shape[2:])), 1) for x in (self.k_BMHE, self.v_BMHE)
            )
            empty = self.positions_BM.new_full((self.positions_BM.shape[0], more), _EMPTY)
            self.positions_BM = torch.cat((self.positions_BM, empty), 1)

    def read(self, q_BKHE: Tensor, positions_BK: Tensor) -> Tensor:
        """Attention of queries over the entries up to their positions: (B, K, H, E)."""
        longest = max(int(self.lengths_B.max()), 1)
        visible_BKM = self.positions_BM[:, None, :longest] <= positions_BK[..., None]
        return masked_attention(q_BKHE, self.k_BMHE[:, :longest], self.v_BMHE[:, :longest], visible_BKM)


@dataclass(frozen=True, kw_only=True)
class Chunk(Window):
    """Tokens that follow cached ones: what they compute goes into the stores, and they attend to what is there."""

    positions_BT: Tensor
    stores: dict[str, KeyValues]
    name: str = ""

    def at(self, places_BK: Tensor, real_BK: Tensor) -> "Chunk":
        """See `Window.at`."""
        chosen = self.positions_BT.gather(1, places_BK)
        rotary = Rotary(*(_rows(table, places_BK) for table in self.rotary))
        return replace(self, rotary=rotary, real_BT=real_BK, positions_BT=chosen)

    def site(self, name: str) -> "Chunk":
        """These tokens at the place `name`; names nest."""
        return replace(self, name=f"{self.name}/{name}" if self.name else name)

    def attend(self, qk_BT2HE: Tensor, v_BTHE: Tensor) -> Tensor:
        """See `Window.attend`; keys of earlier chunks are there too."""
        q_BTHE, k_BTHE = self.rotary.rotate(qk_BT2HE).unbind(2)
        self.keep(k_BTHE, v_BTHE)
        return self.stores[self.name].read(q_BTHE, self.positions_BT)

    def read(self, q_BKHE: Tensor, places_BK: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
        """See `Window.read`; the keys of all tokens go into the store."""
        self.keep(k_BTHE, v_BTHE)
        return self.stores[self.name].read(q_BKHE, self.positions_BT.gather(1, places_BK))

    def keep(self, k_BTHE: Tensor, v_BTHE: Tensor) -> None:
        """See `Window.keep`."""
        store = self.stores.setdefault(self.name, KeyValues(k_BTHE))
        store.append(k_BTHE, v_BTHE, self.positions_BT, self.real_BT)  # type: ignore[arg-type]


def _rows(table_BTE: Tensor, places_BK: Tensor) -> Tensor:
    return table_BTE.gather(1, places_BK[..., None].expand(*places_BK.shape, table_BTE.shape[-1]))


class Cache:
    """What a model remembers of the tokens it was given: a store for each place, and each sequence's length."""

    def __init__(self) -> None:
        self.stores: dict[str, KeyValues] = {}
        self.lengths_B: Tensor | None = None

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
        return Chunk(table.at(positions_BT), real_BT, positions_BT=positions_BT, stores=self.stores)
