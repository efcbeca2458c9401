"""A model of one's own in LAHR's place: found by its name, built from common draws, counted, and called as LAHR is.

`ModelConfig.build` names a function, `package.module:function`. It takes the `ModelConfig` and returns an `nn.Module`
from token ids (B, T), int64, to logits (B, T, V), or to an object that has them as `.logits`, as models of the
transformers library do. It builds on the CPU and draws with torch (see `draws`). What it needs beyond the shape it
reads from `ModelConfig.options`.

What such a model costs is counted and not derived: `torch.utils.flop_counter` over one forward and one backward pass of
a window of max_seq_len tokens, matrix products alone. It counts attention's whole square, where LAHR's own formula
takes the useful half: compare the two kinds with that in mind.
"""

import importlib
import json
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lahr.errors import ConfigError, check
from lahr.model.draws import shared_draws
from lahr.model.head import mean_of
from lahr.model.lahr import LAHR, Output
from lahr.model.mixture_of_depths import Routing
from lahr.model_config import ModelConfig

_NO_TARGET = -1
"""What every target below 0 is made, as torch passes over one number only."""


def build_model(config: ModelConfig, seed: int) -> "LAHR | Own":
    """The network that `config` describes, its weights drawn from `seed`; no random state is touched.

    `ConfigError` where a model of one's own cannot be built.
    """
    return Own(_built(config, seed), config) if config.build else LAHR(config, seed)


class Own(nn.Module):
    """A module from tokens to logits, with LAHR's calls. Its parameters are named `inner.<its own name>`.

    A parameter that has two names, such as a head tied to the embedding, is in the state dict by its first name.
    """

    def __init__(self, inner: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.inner, self.config = inner, config
        self._check_state()
        self.register_state_dict_post_hook(_leave_out_second_names)
        self.register_load_state_dict_pre_hook(_put_back_second_names)

    @overload
    def forward(
        self, tokens_BT: Tensor, targets_BT: None = None, routing: Routing | None = None, *,
        passes: int | None = None, capacity: float | None = None, segments: int = 1,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor, routing: Routing | None = None, *,
        passes: int | None = None, capacity: float | None = None, segments: int = 1,
    ) -> Output: ...  # fmt: skip
    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        routing: Routing | None = None,
        *,
        passes: int | None = None,
        capacity: float | None = None,
        segments: int = 1,
    ) -> Tensor | Output:
        """Logits (B, T, V), or with targets the `Output`: the mean cross-entropy in nats, at least in fp32.

        There is nothing to route, to pass or to remember here: the other arguments are LAHR's, and change nothing.
        Raises `ConfigError` on what are no logits.
        """
        logits_BTV = self._logits(self.inner(tokens_BT), (*tokens_BT.shape, self.config.vocab_size))
        if targets_BT is None:
            return logits_BTV
        wide = torch.promote_types(logits_BTV.dtype, torch.float32)
        losses_BT = F.cross_entropy(
            logits_BTV.flatten(0, 1).to(wide),
            targets_BT.clamp(min=_NO_TARGET).flatten(),
            ignore_index=_NO_TARGET,
            reduction="none",
        ).view_as(targets_BT)
        loss = mean_of(losses_BT, targets_BT)
        right_BT = logits_BTV.argmax(-1) == targets_BT
        return Output(loss, loss, {}, loss.new_zeros(()), losses_BT=losses_BT.detach(), right_BT=right_BT)

    def _logits(self, given: Any, shape: tuple[int, ...]) -> Tensor:
        logits = given if isinstance(given, Tensor) else getattr(given, "logits", None)
        called, wanted = f"the module of model.build {self.config.build}", f"logits (B, T, V), here {shape}"
        if not isinstance(logits, Tensor):
            raise ConfigError(f"{called} gives no tensor and nothing that has .logits; it must give {wanted}")
        check(
            tuple(logits.shape) == shape and logits.is_floating_point(),
            f"{called} gives {logits.dtype} of shape {tuple(logits.shape)}; it must give {wanted}, of a floating type",
        )
        return logits

    def second_names(self) -> dict[str, str]:
        """Every further name of a parameter or buffer, to its first one."""
        first: dict[int, str] = {}
        named = chain(self.named_parameters(remove_duplicate=False), self.named_buffers(remove_duplicate=False))
        return {name: first[id(t)] for name, t in named if first.setdefault(id(t), name) != name}

    def _check_state(self) -> None:
        """`ConfigError` for a state that no checkpoint can hold."""
        build, owner = self.config.build, dict[int, str]()
        again = self.second_names()
        for name, value in self.state_dict().items():
            check(
                isinstance(value, Tensor),
                f"the module of model.build {build} keeps {name}, which is no tensor, in its state; leave it out",
            )
            if name in again:
                continue
            other = owner.setdefault(value.untyped_storage()._cdata, name)  # which a tensor without values has, too
            check(
                other == name,
                f"in the module of model.build {build}, {other} and {name} share memory and are not one parameter; tie "
                "whole parameters, or give each its own",
            )


def _leave_out_second_names(model: Own, state: dict[str, Tensor], prefix: str, _: object) -> None:
    for name in model.second_names():
        state.pop(prefix + name, None)


def _put_back_second_names(model: Own, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for name, first in model.second_names().items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])


def _built(config: ModelConfig, seed: int) -> nn.Module:
    """What the function returns; `ConfigError` in one line where there is none, or where it is no model."""
    place, _, name = config.build.partition(":")
    try:
        module = importlib.import_module(place)
    except Exception as error:  # whatever its own code raises
        raise ConfigError(
            f"model.build {config.build}: the module {place} cannot be imported ({_said(error)}); mend it, or put it "
            "where Python finds it"
        ) from error
    function = getattr(module, name, None)
    check(callable(function), f"model.build {config.build}: the module {place} has no function {name}")
    try:
        with shared_draws(seed):
            made = function(config)  # type: ignore[misc]
    except Exception as error:
        raise ConfigError(f"model.build {config.build}: the function raised {_said(error)}") from error
    check(
        isinstance(made, nn.Module),
        f"model.build {config.build}: the function returned a {type(made).__name__}; it must be an nn.Module from "
        "tokens to logits",
    )
    check(
        any(p.requires_grad for p in made.parameters()),
        f"model.build {config.build}: the module has no parameter to train; give it one that requires a gradient",
    )
    return made


def _said(error: Exception) -> str:
    """The error, and where in the code it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    file = frame.filename.replace("\\", "/").rpartition("/")[2]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({file}, line {frame.lineno})"


@dataclass(frozen=True)
class Cost:
    """What a model of one's own costs, as counted."""

    forward: float
    """FLOPs a token of a forward pass."""
    training: float
    """FLOPs a token of a forward and a backward pass."""
    parameters: int
    embedding: int
    """Those of the parameters that are weights of an `nn.Embedding`, one that is tied to a head among them."""
    reads: frozenset[str]
    """Fields of the configuration that its code looked at meanwhile: `d_model`, `options.width`."""


_COUNTED: dict[str, Cost] = {}
"""By configuration, as text: `True` is another option than 1, and equal to it."""


def cost(config: ModelConfig) -> Cost:
    """What `config`'s own model costs, counted once in a process; `ConfigError` where it cannot be built or trained."""
    key = json.dumps(asdict(config), sort_keys=True)
    if key not in _COUNTED:
        try:  # without memory or time, if the model's code allows it
            _COUNTED[key] = _count(config, "meta")
        except Exception:
            _COUNTED[key] = _count(config, "cpu")
    return _COUNTED[key]


def _count(config: ModelConfig, device: str) -> Cost:
    watched, reads = _watched(config)
    with torch.device(device):
        model = Own(_built(watched, seed=0), config).train()
        tokens_1T = torch.arange(config.max_seq_len).remainder(config.vocab_size)[None]
    try:
        # Of attention's kernels the counter does not know a CPU's own.
        with shared_draws(0), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss = model(tokens_1T, tokens_1T).loss
            forward = counter.get_total_flops()
            loss.backward()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"model.build {config.build}: a forward and backward pass over {config.max_seq_len} tokens raised "
            f"{_said(error)}"
        ) from error
    check(
        forward > 0,
        f"model.build {config.build}: torch's counter sees no matrix product in a forward pass, so the model's cost is "
        "not known; write its products as those of torch",
    )
    embeddings = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    return Cost(
        forward / config.max_seq_len,
        counter.get_total_flops() / config.max_seq_len,
        sum(p.numel() for p in model.parameters()),
        sum(embeddings.values()),
        frozenset(reads),
    )


def _watched(config: ModelConfig) -> tuple[ModelConfig, set[str]]:
    """The same configuration, and a set that gets the name of each field that is read of it."""
    seen: set[str] = set()
    names = {field.name for field in fields(ModelConfig)}

    class Watched(ModelConfig):
        def __getattribute__(self, name: str) -> Any:
            seen.update({name} & names)
            return super().__getattribute__(name)

    class Options(dict[str, Any]):
        get, keys, items, values = Mapping.get, Mapping.keys, Mapping.items, Mapping.values  # type: ignore[assignment]

        def __getitem__(self, name: str) -> Any:
            seen.add(f"options.{name}")
            return super().__getitem__(name)

        def __contains__(self, name: object) -> bool:
            seen.add(f"options.{name}")
            return super().__contains__(name)

        def __iter__(self) -> Iterator[str]:  # who goes through all of them reads all of them
            seen.update(f"options.{name}" for name in super().__iter__())
            return super().__iter__()

    made = object.__new__(Watched)
    made.__dict__.update(config.__dict__, options=Options(config.options))
    return made, seen
