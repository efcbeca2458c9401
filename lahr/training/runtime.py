"""How a trial is executed, decided once for a whole sweep by the driver, and what this machine can do."""

import ctypes
import os
import resource
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from lahr.config import Precision, TrialConfig
from lahr.errors import ConfigError, check
from lahr.training.compilation import unable

Sharding = Literal["replicate", "shard"]
_LOGITS_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Room for one forward pass, as what its logits with their gradient would take: they are never held whole, and what a
model of a usual shape does hold for its backward pass is as much."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT_TENSOR, _KEPT_FREE, _PAD = (256 << 20, 32 << 20), 1 << 30, 64 << 20
"""A step allocates and frees the same tensors over and over: glibc takes those of up to 256 MiB (some versions allow
32) out of its heap and keeps up to 1 GiB free at the heap's end. By default it may give their pages back each time, and
the next ones fault them all in again: 7 to 10 % of a step in bf16 (docs/notebook.md)."""


@dataclass(frozen=True)
class Runtime:
    """Where and how wide a trial runs. It stands in `design.json`, so that a later start runs the same."""

    device: Literal["cpu", "cuda"] = "cpu"
    workers: int = 1
    """Processes of one trial (data parallel)."""
    threads: int = 1
    """Threads of each of them."""
    micro_batch: int = 0
    """Windows in one forward pass of one worker; 0 takes the worker's whole share of the batch."""
    sharding: Sharding = "replicate"
    """What each worker holds: a whole copy of weights and optimiser, or a part ("shard", FSDP2), for models that one
    cannot hold. The same mathematics, in other bits."""

    trials_per_gpu: int = 1
    """Trials that share one GPU, each with a process of its own."""
    compile: Literal["on", "off"] = "off"
    """Whether blocks, core and memory are compiled (`compilation.py`): the same mathematics, in other bits."""

    def __post_init__(self) -> None:
        check(
            self.trials_per_gpu == 1 or (self.device == "cuda" and self.workers == 1 and self.trials_per_gpu > 1),
            f"trials_per_gpu is {self.trials_per_gpu} on {self.device} with {self.workers} workers a trial; "
            "trials share a GPU on cuda, where each has one worker",
        )
        check(self.workers >= 1, f"workers is {self.workers}; it must be at least 1")
        # torch takes any number, and a machine without room for so many threads goes down with everything on it.
        check(1 <= self.threads <= 1024, f"threads is {self.threads}; it must be 1 to 1024, the cores at most")
        check(self.micro_batch >= 0, f"micro_batch is {self.micro_batch}; it must be 0 or more")
        # Refused, not ignored: a single worker would hold everything, and whoever asks for this has no room for it.
        check(
            self.sharding == "replicate" or self.workers >= 2,
            f"sharding is {self.sharding!r} with {self.workers} worker, which has nobody to share the model with; "
            "give --workers 2 or more, or --sharding replicate",
        )

    def worker_resources(self) -> dict[str, float]:
        """CPUs and GPUs that have to be free for one worker of a trial."""
        return {"CPU": self.threads, **({"GPU": 1 / self.trials_per_gpu} if self.device == "cuda" else {})}

    def differences(self, other: "Runtime") -> dict[str, tuple[object, object]]:
        """Field → this one's value and the other's, where they differ: then the same trial ends in other bits."""
        ours, theirs = asdict(self), asdict(other)
        return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


def has_bf16(device: str) -> bool:
    """Whether `device` multiplies bf16 matrices in hardware; in software they are slower than fp32."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_precision(device: str) -> Precision:
    """bf16 where the hardware has it, else fp32."""
    return "bf16" if has_bf16(device) else "fp32"


def choose_micro_batch(config: TrialConfig, device: str, workers: int) -> int:
    """The most windows of a worker's share that `_LOGITS_BYTES` has room for, out of its divisors; whole rows."""
    batch, segments = config.train.batch_size, config.data.segments
    rows = f" in rows of {segments} windows (data.segments)" if segments > 1 else ""
    check(
        batch % (workers * segments) == 0,
        f"train.batch_size is {batch}, which {workers} workers cannot share evenly{rows}; "
        f"give a multiple of {workers * segments} or change the workers",
    )
    blocks = config.data.validation_blocks
    check(
        blocks >= workers * segments,
        f"data.validation_blocks is {blocks}, and each of {workers} workers evaluates one at least{rows}; "
        "give more blocks",
    )
    share = batch // workers
    window_bytes = config.model.max_seq_len * config.model.vocab_size * 4 * 3
    whole = range(segments, share + 1, segments)
    fitting = [n for n in whole if share % n == 0 and n * window_bytes <= _LOGITS_BYTES[device]]
    return max(fitting, default=segments)


def require(config: TrialConfig, runtime: Runtime) -> None:
    """Raises `ConfigError` if this machine cannot run what was decided for the sweep, or the batch's split is none."""
    segments = config.data.segments
    check(
        runtime.micro_batch % segments == 0,
        f"micro_batch is {runtime.micro_batch}, which is no whole number of rows of {segments} windows "
        "(data.segments); give a multiple, or 0",
    )
    share = config.train.batch_size // runtime.workers
    check(
        runtime.micro_batch == 0 or share % runtime.micro_batch == 0,
        f"micro_batch is {runtime.micro_batch}, which does not divide a worker's {share} windows, and unequal parts "
        "would not weigh the same; give a divisor, or 0",
    )
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "this sweep was decided to run on CUDA and this worker has no GPU; run it where there is one"
        )
    if config.precision == "bf16" and not has_bf16(runtime.device):
        raise ConfigError(
            f"this sweep was decided to run in bf16, and this worker's {runtime.device} has none in hardware; "
            "run it on such machines, or start a new sweep with --precision fp32"
        )
    if runtime.compile == "on" and (why := unable(runtime.device)):
        raise ConfigError(
            f"this sweep was decided to be compiled, and this worker cannot: {why}; install a compiler (Debian: g++ "
            "and python3-dev), or start a new sweep with --compile off"
        )


def prepare_process(device: str, threads: int) -> None:
    """Sets this process up for trials: threads, the same bits each time, memory that is kept between tensors."""
    torch.set_num_threads(threads)
    same_bits_each_time(device)
    # The others only with the first: alone they would have every tensor mapped anew.
    if any(_allocator("mallopt", _M_MMAP_THRESHOLD, size) for size in _KEPT_TENSOR):
        _allocator("mallopt", _M_TRIM_THRESHOLD, _KEPT_FREE)
        _allocator("mallopt", _M_TOP_PAD, _PAD)


def same_bits_each_time(device: str) -> None:
    """From here on in this process, has a GPU add up in one order, so that the same trial ends in the same bits.

    Without it gradients of embeddings, of gathered tokens and of attention are sums in whatever order the GPU's threads
    come to: two runs of one trial part by 1e-3 nats, which is noise in a paired difference.
    """
    if device == "cuda":
        # Read when cuBLAS is first used: workspaces of a fixed size, or products may split their sums differently.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def give_back_memory() -> None:
    """Gives what is free back to the machine."""
    _allocator("malloc_trim", 0)


def _allocator(name: str, *values: int) -> int:
    """What glibc's allocator answers; 0 where there is none."""
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return function(*values) if function is not None else 0


def reset_peak_memory(device: str) -> None:
    """Starts a new measurement of the peak, for this trial alone (on Linux; elsewhere it is the process's)."""
    give_back_memory()  # what an earlier trial left is not this one's
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            return  # a sandbox may forbid it; the figure is then the process's peak, never too small


def peak_memory_mib(device: str) -> float:
    """Peak memory since `reset_peak_memory`: the GPU's allocations, or the process's resident set."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
