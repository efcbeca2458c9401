"""How long a step takes here: a few real steps, timed. An estimate for plans, and what equal time comes from."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from lahr.config import TrialConfig
from lahr.model import build_model
from lahr.training.averaging import Average
from lahr.training.optimizer import build_optimizer
from lahr.training.runtime import Runtime, give_back_memory, prepare_process


def seconds_per_trial(config: TrialConfig, runtime: Runtime, steps: int = 2) -> float:
    """Seconds that the trial's training and evaluations would take on this machine, from the best of `steps` steps.

    Evaluation is counted as a third of a training step's work for the same tokens. The steps and evaluations of runs
    that `train.decayed_points` branches off are counted too.
    """
    threads = torch.get_num_threads()
    step, windows = _stepper(config, runtime)
    step()  # the first one also pays for allocation
    best = min(step() for _ in range(steps))
    torch.set_num_threads(threads)
    seconds_per_token = best / (windows * config.model.max_seq_len)
    del step
    give_back_memory()  # this process may be a driver, which trains nothing
    branched = sum(horizon - start for start, horizon in config.branches.items())
    trained = (config.steps + branched) * config.tokens_per_step
    evaluations = config.train.evaluations + config.train.decayed_points
    evaluated = evaluations * config.data.validation_blocks * config.model.max_seq_len
    return seconds_per_token * (trained + evaluated / 3) / runtime.workers


def seconds_per_step(configs: Sequence[TrialConfig], runtime: Runtime, rounds: int = 7) -> list[float]:
    """Seconds of a training step of each configuration, the median of `rounds` that go through all of them in turn.

    What else runs on the machine then counts too: it should be nothing.
    """
    threads = torch.get_num_threads()
    steppers = [_stepper(config, runtime) for config in configs]
    for step, _ in steppers:
        step()
    times = [[step() for step, _ in steppers] for _ in range(rounds)]
    torch.set_num_threads(threads)
    per_window = [
        statistics.median(of) / windows for of, (_, windows) in zip(zip(*times, strict=True), steppers, strict=True)
    ]
    del steppers
    give_back_memory()
    each = zip(per_window, configs, strict=True)
    return [seconds * config.train.batch_size / runtime.workers for seconds, config in each]


def _stepper(config: TrialConfig, runtime: Runtime) -> tuple[Callable[[], float], int]:
    """What runs one training step on random tokens and says how long it took, and the windows in it: on a GPU as many
    as it trains on at once, on a CPU about four (whole rows)."""
    prepare_process(runtime.device, runtime.threads)
    segments = config.data.segments
    windows = min(max(4 // segments, 1) * segments, config.train.batch_size)
    if runtime.device == "cuda":  # which a few windows would leave idle
        windows = runtime.micro_batch or config.train.batch_size // runtime.workers
    model = build_model(config.model, seed=0).to(runtime.device)
    optimizer = build_optimizer(model, config.train)
    average = Average(model, config.train.ema) if config.train.ema else None
    tokens_BT = torch.randint(config.model.vocab_size, (windows, config.model.max_seq_len), device=runtime.device)

    def step() -> float:
        started = time.perf_counter()
        with torch.autocast(runtime.device, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(tokens_BT, tokens_BT, segments=segments).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(model, 2)
        loss.item()  # waits for the device
        return time.perf_counter() - started

    return step, windows
