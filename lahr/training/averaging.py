"""An exponential average of the weights, which is evaluated in their place: the noise of single steps is averaged out
(Polyak & Juditsky 1992), and training itself goes on as before.

    m_t = m_{t−1} + (1 − d)/(1 − d^t) · (w_t − m_{t−1})

So w_i, the weights after step i ≤ t, count d^(t−i), and the bias towards the start is corrected as Adam's is (Kingma &
Ba 2015, section 3): the initial weights have no part in it, and m_1 = w_1.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The running average of a model's state with decay `decay`: what is a fraction in it, buffers such as a router's
    threshold too; whole numbers are the latest. Parts where the model is sharded, and equal on all processes."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after `step` optimiser steps, 1 for the first."""
        share = (1 - self.decay) / (1 - self.decay**step)
        for name, value in model.state_dict().items():
            mean = self.tensors[name]
            if value.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `tensors` was."""
        for name, mean in self.tensors.items():
            mean.copy_(tensors[name])

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Inside it the model has the average for its weights; after it its own, to the bit."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            _put(self.tensors, model)
            yield
        finally:
            _put(own, model)


@torch.no_grad()
def _put(tensors: dict[str, Tensor], model: nn.Module) -> None:
    # Asked for anew each time: where a model is sharded, asking has it forget the whole weights that it had gathered.
    for name, value in model.state_dict().items():
        value.copy_(tensors[name])
