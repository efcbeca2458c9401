"""What a trial is: frozen dataclasses for the model, the data and the training.

A configuration is a value: it compares, prints and serialises, and building an invalid one raises `ConfigError`
with what was given, what is allowed and what to do.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lahr.errors import check
from lahr.model_config import ModelConfig
from lahr.plain import Plain, canonical_json, check_plain

Precision = Literal["fp64", "fp32", "bf16"]


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes tokens."""

    corpus: str = "stories"
    """Also just `--data`: `stories` (made here), `tinystories`, a dataset on the Hub by name (`owner/name`,
    `owner/name:configuration`), a file or folder of parquet, JSONL or text, `probe:` and a probe's name, `prosqa`, or
    several with their shares of bytes: `0.7 stories + 0.3 books.txt`."""
    text_column: str = "text"
    """Column of a parquet, JSONL or Hub dataset that holds the text."""
    tokenizer: str = "bpe"
    """`bpe` trains a byte-level one on the training split; another name is taken from the Hub (`gpt2`)."""
    train_tokens: int = 2_000_000
    """Training tokens to prepare at most; a generated corpus makes this many."""
    validation_blocks: int = 128
    """Windows of the validation split that every evaluation reads, always the first and always all."""
    segments: int = 1
    """Windows of a row. 1 reads the text as one stream; more read as many consecutive windows of one document together,
    as the `knn` memory needs, and leave out documents that are shorter."""
    packing: Literal["stream", "documents"] = "stream"
    """What a row is: a part of the text laid end to end, or one document from its beginning, filled up with end-of-text
    that predicts nothing, as questions and probes need."""

    def __post_init__(self) -> None:
        check(bool(self.corpus.strip()), "data.corpus is empty; give a corpus, such as 'stories' or a file")
        check(self.train_tokens >= 1, f"data.train_tokens is {self.train_tokens}; it must be at least 1")
        check(self.validation_blocks >= 1, f"data.validation_blocks is {self.validation_blocks}; give at least 1")
        check(self.segments >= 1, f"data.segments is {self.segments}; it must be at least 1")
        check(
            self.validation_blocks % self.segments == 0,
            f"data.validation_blocks is {self.validation_blocks}, which is no whole number of rows of {self.segments} "
            "windows (data.segments); give a multiple",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, and how often it is looked at."""

    tokens: int
    """Training tokens of a trial; a step reads `batch_size` windows, and the last part of a step is dropped."""
    batch_size: int
    """Windows in one optimiser step, over all workers."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; the memory's values use 10/3 of it."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises linearly."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: a cosine over all that is left, or warm-up–stable–decay (Hägele et al. 2024), the peak until
    the last `decay` of the steps."""
    decay: float = 0.2
    """Share of the steps in which `wsd` decays, as 1 − √x."""
    decayed_points: int = 0
    """Under `wsd`, how many shorter runs are branched off: at evenly spaced horizons a copy decays in time to end
    there and is evaluated, and the run itself goes on. What is reported is what a run of that length would reach that
    has as many warm-up steps."""
    curriculum: float = 0.0
    """Of a corpus with stages: the share of the steps in which all but the last are gone through, one after another.
    0 is the last one from the beginning."""
    first_stage: float = 1.0
    """How many times as long the first stage of a curriculum is as each later one but the last: whoever replaces steps
    by thoughts has to know the steps (Hao et al. 2024: twice as long on GSM8k, 1 on ProsQA)."""
    capacity_warmup: float = 0.0
    """Share of the steps in which the capacity of routed blocks falls from 1 to the model's, in a line: the blocks
    learn what they are for before their router has to choose (docs/probes.md). 0 is none."""
    final_lr: float = 0.0
    """Where the decay ends, as a share of the peak."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices; norms, embeddings and memory values have none."""
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""
    ema: float = 0.0
    """Decay of an exponential average of the weights, which is then what is evaluated, and what a finished trial
    leaves; training itself does not notice. 0 is off; 0.99 averages over some hundred steps."""
    evaluations: int = 8
    """Evaluations in a trial, evenly spaced, the last one at the end."""
    checkpoints: int = 2
    """Checkpoints in a trial, evenly spaced, the last one at the end."""
    log_points: int = 40
    """Progress records in a trial at least; evaluations and checkpoints make one too."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "evaluations", "checkpoints", "log_points"):
            check(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; it must be at least 1")
        check(0 < self.lr < math.inf, f"train.lr is {self.lr}; it must be above 0, such as 1e-3")
        check(0 <= self.warmup <= 1, f"train.warmup is {self.warmup}; it is a share of the steps, 0 to 1")
        check(
            0 <= self.curriculum < 1,
            f"train.curriculum is {self.curriculum}; it is a share of the steps, 0 (none) to below 1",
        )
        check(
            0 < self.first_stage < math.inf,
            f"train.first_stage is {self.first_stage}; it is how many times as long the first stage is, above 0",
        )
        check(
            0 <= self.capacity_warmup <= 1,
            f"train.capacity_warmup is {self.capacity_warmup}; it is a share of the steps, 0 (none) to 1",
        )
        for name in ("curriculum", "capacity_warmup"):
            check(
                getattr(self, name) == 0 or self.decayed_points == 0,
                f"train.{name} is {getattr(self, name)} and train.decayed_points {self.decayed_points}: a shorter run "
                "would be at another place of it, so none can be branched off; leave one out",
            )
        check(0 <= self.final_lr <= 1, f"train.final_lr is {self.final_lr}; it is a share of the peak, 0 to 1")
        check(
            0 < self.decay <= 1, f"train.decay is {self.decay}; it is a share of the steps, above 0 and at most 1"
        )
        check(
            self.schedule == "cosine" or self.warmup + self.decay <= 1,
            f"train.warmup {self.warmup:g} and train.decay {self.decay:g} are more than the whole run; lower one",
        )
        check(self.decayed_points >= 0, f"train.decayed_points is {self.decayed_points}; it must be 0 or more")
        check(
            self.decayed_points == 0 or self.schedule == "wsd",
            "train.decayed_points branches decays off a constant rate, and train.schedule is 'cosine'; "
            "give train.schedule wsd",
        )
        check(0 <= self.weight_decay < math.inf, f"train.weight_decay is {self.weight_decay}; it must be 0 or more")
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, f"train.{name} is {getattr(self, name)}; it must be 0 to below 1")
        check(0 <= self.ema < 1, f"train.ema is {self.ema}; it is a decay, 0 (off) to below 1, such as 0.99")
        check(
            0 < self.clip_norm < math.inf,
            f"train.clip_norm is {self.clip_norm}; it must be above 0 and finite (1e9 clips nothing)",
        )

    def stage(self, step: int, steps: int, stages: int) -> int:
        """The stage, of so many, that step `step` of a run of `steps` reads."""
        staged, first = self.curriculum * steps, self.first_stage
        if step >= staged:
            return stages - 1
        at = step / staged * (first + stages - 2)
        return min(1 + int(at - first), stages - 1) if at >= first else 0

    def warmup_steps(self, steps: int) -> int:
        """Steps in which the rate rises, of a run of `steps`."""
        return min(round(self.warmup * steps), steps - 1)

    def decay_steps(self, steps: int) -> int:
        """Steps in which `wsd` decays, of a run of `steps`: one at least, and none of the warm-up's."""
        return min(max(1, round(self.decay * steps)), steps - self.warmup_steps(steps))


@dataclass(frozen=True)
class TrialConfig:
    """Everything that decides a trial's result, but for the data's content."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    seed: int = 0
    precision: Precision = "fp32"
    """Type of the matrix products; parameters and optimiser state are fp32 (in `fp64`, which is for tests, fp64)."""
    keys: Mapping[str, Plain] = field(default_factory=dict, hash=False)
    """What enters the seed of everything drawn, and nothing else: a factor that is null by construction, to calibrate
    an experiment with. Two trials that differ here alone are the same experiment with other luck."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "keys", dict(self.keys)
        )  # a copy: a value does not change with what it was made from
        check_plain("keys", self.keys)
        check(
            self.steps >= 1,
            f"train.tokens is {self.train.tokens}, fewer than one batch of {self.train.batch_size} x "
            f"{self.model.max_seq_len} = {self.tokens_per_step} tokens; raise it or lower train.batch_size",
        )
        check(0 <= self.seed < 2**64, f"the seed is {self.seed}; it must be 0 to 2**64 - 1")
        check(
            self.train.batch_size % self.data.segments == 0,
            f"train.batch_size is {self.train.batch_size}, which is no whole number of rows of {self.data.segments} "
            "windows (data.segments); give a multiple",
        )
        check(
            not (self.model.memory_slots and self.model.memory_kind == "knn") or self.data.segments >= 2,
            f"memory_kind is 'knn' and data.segments is {self.data.segments}: with one window a row there are no "
            "earlier segments to remember; give data.segments of 2 or more, in every cell",
        )
        # Here and not in TrainConfig: the horizons are whole steps, which the context's length has a part in.
        starts, first = list(self.branches), max(1, self.train.warmup_steps(self.steps))
        check(
            len(starts) == self.train.decayed_points and all(start >= first for start in starts),
            f"train.decayed_points is {self.train.decayed_points}: its decays off {self.steps} steps would begin at "
            f"steps {starts[:3]}, and each needs a start of its own, not before step {first}, where the warm-up "
            "ends; lower it, train.warmup or train.decay, or raise train.tokens",
        )

    @property
    def drawn_seed(self) -> int:
        """What decides every draw of the trial: the seed, or with `keys` 63 bits hashed from both."""
        if not self.keys:
            return self.seed
        digest = hashlib.sha256(canonical_json([self.seed, self.keys]).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimiser step, over all workers."""
        return self.train.batch_size * self.model.max_seq_len

    @property
    def steps(self) -> int:
        """Optimiser steps of the trial."""
        return self.train.tokens // self.tokens_per_step

    @property
    def branches(self) -> dict[int, int]:
        """Start → horizon, in steps, of each shorter run that `train.decayed_points` branches off.

        Horizon j of n is at steps · j / (n + 1); its run leaves the constant rate in time to decay and end there.
        """
        points = self.train.decayed_points
        horizons = (round(self.steps * j / (points + 1)) for j in range(1, points + 1))
        return {horizon - self.train.decay_steps(horizon): horizon for horizon in horizons}

    def identity(self, content_hash: str) -> dict[str, Any]:
        """What decides the result, as plain values: the data by `content_hash` (of tokens and tokenizer), no path."""
        resolved = asdict(replace(self, model=self.model.settled()))
        for name in ("corpus", "text_column", "tokenizer"):
            del resolved["data"][name]
        resolved["data"]["content"] = content_hash
        return resolved

    def fingerprint(self, content_hash: str) -> str:
        """Twelve hex digits that name this configuration on this data.

        Raises `TypeError` on a value with no stable identity (anything that is not a number, text, truth value, None,
        or a plain container).
        """
        return hashlib.sha256(canonical_json(self.identity(content_hash)).encode()).hexdigest()[:12]
