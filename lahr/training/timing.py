"""How long a step takes here: a few real steps, timed. An estimate for plans, not a benchmark."""

import time

import torch

from lahr.config import TrialConfig
from lahr.model import build_model
from lahr.training.averaging import Average
from lahr.training.optimizer import build_optimizer
from lahr.training.runtime import Runtime, give_back_memory, prepare_process


def seconds_per_trial(config: TrialConfig, runtime: Runtime, steps: int = 2) -> float:
    """Seconds that the trial's training and evaluations would take on this machine, from the best of `steps` steps.

    Timed on random tokens, a GPU with as many windows as it trains on at once, a CPU with about four (whole rows), and
    scaled to the whole batch and to all workers; evaluation is counted as a third of a training step's work for the
    same tokens. The steps and evaluations of the runs that `train.decayed_points` branches off are counted too.
    """
    threads = torch.get_num_threads()
    prepare_process(runtime.device, runtime.threads)
    segments = config.data.segments
    windows = min(max(4 // segments, 1) * segments, config.train.batch_size)
    if runtime.device == "cuda":  # which a few windows would leave idle
        windows = runtime.micro_batch or config.train.batch_size // runtime.workers
    model = build_model(config.model, seed=0).to(runtime.device)
    optimizer = build_optimizer(model, config.train)
    average = Average(model, config.train.ema) if config.train.ema else None
    tokens_BT = torch.randint(config.model.vocab_size, (windows, config.model.max_seq_len), device=runtime.device)
    best = float("inf")
    for _ in range(1 + steps):  # the first one also pays for allocation
        started = time.perf_counter()
        with torch.autocast(runtime.device, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(tokens_BT, tokens_BT, segments=segments).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(model, 2)
        loss.item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    torch.set_num_threads(threads)
    seconds_per_token = best / tokens_BT.numel()
    del model, optimizer, loss
    give_back_memory()  # this process may be a driver, which trains nothing
    branched = sum(horizon - start for start, horizon in config.branches.items())
    trained = (config.steps + branched) * config.tokens_per_step
    evaluations = config.train.evaluations + config.train.decayed_points
    evaluated = evaluations * config.data.validation_blocks * config.model.max_seq_len
    return seconds_per_token * (trained + evaluated / 3) / runtime.workers
