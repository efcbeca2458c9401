"""Common draws for models whose code we do not know: two variants of one start alike wherever they can.

LAHR draws each parameter from (seed, its name). Another model's code draws as it likes, from one stream, where a layer
more shifts everything that comes after it. So while such a model is built, every draw has a stream of its own, made of
the seed, the shape that is drawn, and how many draws of that shape there were before. A module of other shapes then
shifts nothing; one of the same shapes shifts those draws that come after it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_OF_A_TENSOR = {
    "normal_", "uniform_", "log_normal_", "exponential_", "cauchy_", "geometric_", "random_", "bernoulli_",
    "kaiming_uniform_", "rand_like", "randn_like", "randint_like", "normal", "bernoulli", "multinomial", "poisson",
}  # fmt: skip
"""Functions that draw in the shape of the tensor that they are given. Those of `torch.nn.init` end in one of them."""
_OF_A_SIZE = {"rand", "randn", "randint", "randperm", "normal"}
"""Functions that draw in a shape that they are told."""


@contextmanager
def shared_draws(seed: int) -> Iterator[None]:
    """What torch draws inside, on a CPU and without a generator of its own, depends on `seed` and on shapes alone.

    The random state is put back at the end. What numpy or `random` draw is not touched.
    """
    with torch.random.fork_rng(devices=[]), _Keyed(seed):
        torch.default_generator.manual_seed(_hashed(seed, "anything else"))
        yield


class _Keyed(TorchFunctionMode):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.drawn: Counter[tuple[int, ...]] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is None and (shape := _shape_drawn(func, args, kwargs)) is not None:
            torch.default_generator.manual_seed(_hashed(self.seed, shape, self.drawn[shape]))
            self.drawn[shape] += 1
        return func(*args, **kwargs)


def _shape_drawn(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """The shape that a call draws; None where it draws nothing."""
    name = getattr(func, "__name__", "")
    given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
    if name in _OF_A_TENSOR and given is not None:
        return tuple(given.shape)
    if name in _OF_A_SIZE:
        asked = {key: value for key, value in kwargs.items() if key not in ("out", "pin_memory")}
        return tuple(func(*args, **{**asked, "device": "meta"}).shape)  # which draws nothing
    return None


def _hashed(*what: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big") >> 1
