"""What a trial does at which step, and what it draws there: worked out from its configuration, before it begins."""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace

from lahr.config import TrialConfig
from lahr.model.flops import training_flops_per_token
from lahr.model.mixture_of_depths import capacity_tokens


@dataclass(frozen=True)
class Milestones:
    """The steps after which something happens, each worked out from how often it is asked for."""

    evaluate: frozenset[int]
    checkpoint: frozenset[int]
    record: frozenset[int]


def milestones(config: TrialConfig) -> Milestones:
    """Evenly spaced steps, the last of each being the trial's last."""

    def spaced(count: int) -> frozenset[int]:
        times = min(count, config.steps)
        return frozenset(-(-config.steps * i // times) for i in range(1, times + 1))

    evaluations, saves = spaced(config.train.evaluations), spaced(config.train.checkpoints)
    records = spaced(config.train.log_points) | evaluations | saves | config.branches.keys()
    return Milestones(evaluations, saves, records)


def sampled_passes(config: TrialConfig, step: int) -> int | None:
    """Passes of the latent core in step `step` (from 0): uniform on 1 … 2R−1, whose mean is R, from (seed, step), so
    the same on every rank and after a resume. None where passes are not sampled."""
    most = 2 * config.model.latent_iterations - 1
    if most < 1 or config.model.latent_mode != "sampled" or config.model.build:
        return None
    return 1 + _drawn(config, "passes", step) % most


def capacity(config: TrialConfig, step: int) -> float | None:
    """Capacity of the routed blocks in step `step` (from 0) where it is not the model's own: in a line from 1 to that
    in `train.capacity_warmup` of the steps."""
    c, falling = config.model.mod_capacity, config.train.capacity_warmup * config.steps
    return c + (1 - c) * (1 - step / falling) if c < 1 and step < falling and not config.model.build else None


def planned_flops(config: TrialConfig) -> float:
    """Training FLOPs of the whole trial, by the closed form, every token running all passes."""
    model, segments = config.model, config.data.segments
    falling = math.ceil(config.train.capacity_warmup * config.steps) if model.mod_capacity < 1 else 0
    # What a step costs depends on how many tokens are picked, and at 1 nothing is routed: far fewer costs than steps.
    steps, of = Counter[tuple[int, bool]](), dict[tuple[int, bool], float]()
    for step in range(falling):
        if (c := capacity(config, step)) is not None:
            key = capacity_tokens(c, model.max_seq_len), c == 1
            steps[key] += 1
            of[key] = c
    total = (config.steps - steps.total()) * training_flops_per_token(model, segments=segments)
    for key, count in steps.items():
        total += count * training_flops_per_token(replace(model, mod_capacity=of[key]), segments=segments)
    return total * config.tokens_per_step


def random_seed(config: TrialConfig, step: int, rank: int) -> int:
    """Where torch's random state starts in step `step` (from 0): what a model draws in training, such as a dropout,
    follows from (seed, step, rank). So a resume needs no random state, and ranks do not draw alike."""
    return _drawn(config, "draws", step, rank) >> 1


def _drawn(config: TrialConfig, *what: object) -> int:
    """64 bits that follow from the seed and from `what` they are for."""
    digest = hashlib.sha256("/".join(map(str, (config.drawn_seed, *what))).encode()).digest()
    return int.from_bytes(digest[:8], "big")
