"""The training loop: one generator that trains and yields `Progress`. Whoever drives it decides what to do with it.

It is the same loop for one process and for many: where `torch.distributed` is initialised, every rank runs it, with a
copy of the model or a part of it (`parallel.py`), and all go on from the checkpoint that rank 0 chooses.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from lahr.config import TrialConfig
from lahr.data import Batches, TokenData
from lahr.errors import check
from lahr.files import Folder
from lahr.model import LAHR, build_model
from lahr.model.flops import training_flops_per_token
from lahr.training import checkpoints, parallel
from lahr.training.averaging import Average
from lahr.training.checkpoints import AVERAGE, WEIGHTS, Checkpoint
from lahr.training.compilation import as_written, compile_parts
from lahr.training.evaluation import evaluate
from lahr.training.optimizer import (
    build_optimizer,
    empty_optimizer_tensors,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from lahr.training.plan import capacity, milestones, random_seed, sampled_passes
from lahr.training.progress import Progress
from lahr.training.runtime import Runtime, peak_memory_mib, prepare_process, require, reset_peak_memory
from lahr.training.watch import Watch

_EVALUATED_AT_ONCE = 2
"""Windows in a batch of an evaluation, for each that trains at once: without a gradient nothing is kept for it."""


def train(
    config: TrialConfig,
    data: TokenData,
    runtime: Runtime,
    checkpoint_folder: Folder | None = None,
    warn: list[str] | None = None,
    watch: Watch | None = None,
) -> Iterator[Progress]:
    """Trains one trial to its end, yielding a record at every milestone.

    With a `checkpoint_folder` it goes on from the newest checkpoint that holds; the records up to there are yielded
    again first, so no curve has a hole. What was wrong with newer checkpoints is added to `warn`. A loss that is
    not finite ends the run with a record whose status is `diverged`. `watch` looks on, and may ask for a checkpoint
    at any step. Raises `ConfigError` if this machine lacks what `runtime` and the precision ask for.
    """
    require(config, runtime)
    run = _Run(config, data, runtime, watch or Watch())
    records: list[Progress] = []
    if checkpoint_folder is not None:
        fingerprint = config.fingerprint(data.content_hash)
        restored, problems = run.newest(checkpoint_folder, fingerprint)
        if restored is not None:
            records = [Progress.from_json(record) for record in restored.meta["records"]]
            if restored.has_ended:  # of which the weights alone are kept
                run.step = restored.step
            else:
                run.load(restored)
        if warn is not None and problems:
            warn += [*problems, f"it goes on from step {run.step}" if run.step else "it starts over"]
    run.watch.begins(run.model)
    try:
        yield from _train(run, records, checkpoint_folder, fingerprint if checkpoint_folder is not None else "")
    finally:
        run.watch.ends()


def _train(run: "_Run", records: list[Progress], folder: Folder | None, fingerprint: str) -> Iterator[Progress]:
    """The records so far, then those of the steps that are left."""
    run.watch.resumed(run.step)
    yield from records
    if records and records[-1].status != "running":
        return

    def save(interval: dict[str, Any]) -> None:
        if folder is not None:
            said = [record.to_json() for record in records]
            run.save(folder, {"fingerprint": fingerprint, "records": said, "interval": interval})

    for record in run.steps(records[-1] if records else None, save):
        records.append(record)
        if run.asked or run.step in run.milestones.checkpoint or record.status != "running":
            save({})
        yield record


class _Run:
    """The moving parts of one trial: weights, optimiser, position."""

    def __init__(self, config: TrialConfig, data: TokenData, runtime: Runtime, watch: Watch) -> None:
        prepare_process(runtime.device, runtime.threads)
        self.config, self.runtime, self.watch = config, runtime, watch
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = torch.device(runtime.device)
        dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.model = build_model(config.model, config.drawn_seed).to(dtype)
        if runtime.compile == "on":
            compile_parts(self.model, config.train.capacity_warmup > 0)
        self.parallel = parallel.spread(self.model, self.device, runtime.sharding)
        self.optimizer = build_optimizer(self.model, config.train)
        self.average = Average(self.model, config.train.ema) if config.train.ema else None
        check(
            data.stages > 1 or config.train.curriculum == 0,
            f"train.curriculum is {config.train.curriculum:g}, and {data.description} has no stages; leave it out",
        )
        self.batches = Batches(
            data.train,
            config.train.batch_size,
            config.drawn_seed,
            data.stages,
            lambda step: config.train.stage(step, config.steps, data.stages),
        )
        data = replace(data, n_validation=config.data.validation_blocks)  # whoever opened it may have read others
        self.validation, self.labels = data.windows, data.labels
        self.bytes_per_token = data.bytes_per_token
        self.milestones = milestones(config)
        self.passes: list[torch.Tensor] = []
        """Of the latent core, in each step since the last record."""
        self.step = 0
        self.interval: dict[str, Any] = {}
        """What a checkpoint between two records said of the steps since the first of them; empty at a record."""
        self.asked = False
        """Whether the watch asked for a checkpoint after the last step."""
        self.pairing = ""
        self.horizon = config.steps
        """Steps of the run whose schedule is followed: this one's, or those of a branch while it decays."""

    def autocast(self) -> torch.autocast:
        """The precision of matrix products inside it."""
        wanted = self.config.precision == "bf16"
        return torch.autocast(self.runtime.device, dtype=torch.bfloat16, enabled=wanted)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a later start needs, but for the position, which is the step: what is drawn follows from it."""
        weights = {WEIGHTS + name: value for name, value in self.model.state_dict().items()}
        averaged = self.average.tensors if self.average else {}
        means = {AVERAGE + name: value for name, value in averaged.items()}
        return {**weights, **means, **optimizer_tensors(self.optimizer)}

    def save(self, folder: Folder, meta: dict[str, Any]) -> None:
        """A checkpoint of this step: the whole by rank 0, or each rank's part by itself."""
        checkpoint = Checkpoint(self.step, self.tensors(), meta)
        if self.runtime.sharding == "shard":
            checkpoints.save_sharded(folder, checkpoint, self.watch.saving)
        else:
            parallel.from_first(lambda: checkpoints.save(folder, checkpoint, self.watch.saving))

    def newest(self, folder: Folder, fingerprint: str) -> tuple[Checkpoint | None, list[str]]:
        """The newest good checkpoint by rank 0's judgement, on every rank: the others may not see the same disk."""
        if self.runtime.sharding == "shard":
            room = {**self.tensors(), **empty_optimizer_tensors(self.optimizer)}
            return checkpoints.newest_sharded(folder, fingerprint, room)
        return parallel.from_first(lambda: checkpoints.newest(folder, fingerprint))

    def load(self, checkpoint: Checkpoint) -> None:
        """Goes to where `checkpoint` was taken."""
        tensors = checkpoint.tensors
        self.model.load_state_dict(checkpoints.below(WEIGHTS, tensors))
        if self.average:
            self.average.load(checkpoints.below(AVERAGE, tensors))
        load_optimizer_tensors(self.optimizer, tensors)
        self.step = checkpoint.step
        self.interval = checkpoint.meta.get("interval", {})

    def steps(self, last: Progress | None, save: Callable[[dict[str, Any]], None]) -> Iterator[Progress]:
        """Steps to the end, a record at each milestone; `last` is the record to go on from.

        `save` is called between records where the watch asks for it, with what has to be kept of the steps since the
        last one, so that a resume from there makes the same record of them.
        """
        if self.runtime.compile == "on" and self.step < self.config.steps:
            self._compile()
        reset_peak_memory(self.runtime.device)
        seconds, flops, since = (last.seconds, last.flops, last.step) if last else (0.0, 0.0, 0)
        begun = self.interval or {
            "loss": 0.0,
            "passes": [],
            "seconds": 0.0,
            "pairing": last.pairing if last else "",
        }
        self.pairing, carried = begun["pairing"], begun["seconds"]
        losses = torch.tensor(begun["loss"], dtype=torch.float64, device=self.device)
        self.passes = [torch.tensor(p, dtype=torch.float64, device=self.device) for p in begun["passes"]]
        while self.step < self.config.steps:
            started = time.perf_counter() - carried
            carried = 0.0
            grad_norm = torch.zeros(())
            while True:
                loss, grad_norm = self._step()
                losses += loss
                looked = time.perf_counter()
                self.asked = self.watch.stepped()
                started += time.perf_counter() - looked  # what the watch does is no part of a step
                if self.step in self.milestones.record:
                    break
                if self.asked:
                    save(self._interval(losses, time.perf_counter() - started))
            mean_loss = self._mean_over_ranks(losses) / (self.step - since)
            took = time.perf_counter() - started  # reading the loss has waited for the device
            seconds += took
            flops += self._executed_flops()
            metrics = {
                "train_loss": mean_loss,
                "lr": self._rate(self.step - 1),
                "grad_norm": float(grad_norm),
                "tokens_per_second": (self.step - since) * self.config.tokens_per_step / took,
            }
            diverged = not math.isfinite(mean_loss)
            final = diverged or self.step == self.config.steps
            if not diverged and self.step in self.milestones.evaluate:
                metrics.update(self._evaluate(final))
                diverged = not math.isfinite(metrics["val_loss"])
            if not diverged and self.step in self.config.branches:
                metrics.update(self._decayed(self.config.branches[self.step], flops))
            if final or diverged:
                metrics["peak_memory_mib"] = peak_memory_mib(self.runtime.device)
            yield Progress(
                step=self.step,
                tokens=self.step * self.config.tokens_per_step,
                flops=flops,
                seconds=seconds,
                metrics=metrics,
                pairing=self.pairing,
                status="diverged" if diverged else "finished" if final else "running",
            )
            if diverged:
                return
            losses.zero_()
            since = self.step

    def _compile(self) -> None:
        """Compiles what is to be compiled, so that no step that is timed does: a step whose gradient is thrown away, of
        the most passes that one can draw, since those before the last eight run in another way."""
        sampled = sampled_passes(self.config, 0) is not None
        self._gradient(2 * self.config.model.latent_iterations - 1 if sampled else None, None)
        self.optimizer.zero_grad()
        self.watch.alive()

    def _interval(self, losses: torch.Tensor, took: float) -> dict[str, Any]:
        """What a resume in the middle of an interval has to know of its steps so far."""
        passes = torch.stack(self.passes)
        if self.world > 1:
            dist.all_reduce(passes)
        return {
            "loss": self._mean_over_ranks(losses),
            "passes": (passes / self.world).tolist(),
            "seconds": took,
            "pairing": self.pairing,
        }

    def _executed_flops(self) -> float:
        """Training FLOPs since the last record, each step with the passes that it ran."""
        passes = torch.stack(self.passes)
        self.passes.clear()
        if self.world > 1:
            dist.all_reduce(passes)
        # Rounded, since a mean over parts and ranks of a whole number may miss it by a bit.
        mean = [round(p, 9) for p in (passes / self.world).tolist()]
        segments, first = self.config.data.segments, self.step - len(mean)
        each = 0.0
        for step, p in enumerate(mean, first):
            c = capacity(self.config, step)
            model = self.config.model if c is None else replace(self.config.model, mod_capacity=c)
            each += training_flops_per_token(model, passes=p, segments=segments)
        return self.config.tokens_per_step * each

    def _decayed(self, horizon: int, flops: float) -> dict[str, float]:
        """What a run of `horizon` steps would reach: decays from here to there, is evaluated, and comes back.

        The path is the shorter run's own, since up to here both rates are the constant one. Nothing of it stays but
        these figures (a loss that is not finite is NaN); a copy of the state is held meanwhile, in the device's memory.
        """
        here = Checkpoint(self.step, {name: value.clone() for name, value in self.tensors().items()}, {})
        pairing = self.pairing
        self.horizon = horizon
        while self.step < horizon:
            self._step()
            self.watch.alive()
        loss = self._evaluate(False)["val_loss"]
        own = self._executed_flops()  # of the steps up to here, so before the step goes back
        self.horizon = self.config.steps
        self.load(here)
        self.pairing = pairing
        return {
            "decayed_val_loss": loss if math.isfinite(loss) else math.nan,
            "decayed_tokens": float(horizon * self.config.tokens_per_step),
            "decayed_flops": flops + own,
        }

    def _rate(self, step: int) -> float:
        return learning_rate(self.config.train, step, self.horizon)

    def _step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimiser step: this rank's mean loss, and the norm of the whole gradient."""
        ids = self.batches.block_ids(self.step)
        self.pairing = hashlib.sha256(self.pairing.encode() + ids.tobytes()).hexdigest()[:16]
        set_learning_rate(self.optimizer, self._rate(self.step))
        torch.manual_seed(random_seed(self.config, self.step, self.rank))
        falling = capacity(self.config, self.step)
        loss, passes, causal_scores = self._gradient(sampled_passes(self.config, self.step), falling)
        grad_norm = parallel.whole(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if causal_scores:
            assert isinstance(self.model, LAHR)
            self.model.observe(self._from_all_ranks(torch.cat(causal_scores, dim=1)), falling)
        self.passes.append(passes)
        self.step += 1
        if self.average:
            self.average.update(self.model, self.step)
        return loss, grad_norm

    def _gradient(
        self, of_passes: int | None, of_capacity: float | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Forward and backward passes over this rank's share of the step's batch.

        Its mean loss, the passes that a token ran on average, and the routers' scores, (routers, B, T) each.
        """
        inputs_BT, targets_BT = self.batches.batch(self.step, self.rank, self.world)
        micro = self.runtime.micro_batch or len(inputs_BT)
        parts = list(zip(inputs_BT.split(micro), targets_BT.split(micro), strict=True))
        predicted = None if self.batches.rows.all_count else max(self.batches.predicted(self.step), 1)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        causal_scores, passes = [], torch.zeros((), dtype=torch.float64, device=self.device)
        for i, (part_inputs_BT, part_targets_BT) in enumerate(parts):
            parallel.average_after(self.parallel, last=i == len(parts) - 1)
            with self.autocast():
                output = self.parallel(
                    part_inputs_BT.to(self.device),
                    part_targets_BT.to(self.device),
                    passes=of_passes,
                    capacity=of_capacity,
                    segments=self.config.data.segments,
                )
            # Of equal parts the mean of means is the mean; of parts that predict less or more it is so with weights.
            has = int((part_targets_BT >= 0).sum()) if predicted is not None else 0
            weight = has * len(parts) * self.world / predicted if predicted is not None else 1.0
            whole = output.loss if weight == 1 else output.loss + (weight - 1) * output.lm_loss
            (whole / len(parts)).backward()
            loss += weight * output.lm_loss.detach() / len(parts)
            passes += output.passes / len(parts)
            if output.causal_scores_LBT is not None:
                causal_scores.append(output.causal_scores_LBT)
        return loss, passes, causal_scores

    def _from_all_ranks(self, logits_LBT: torch.Tensor) -> torch.Tensor:
        """The logits of the whole batch: a quantile of parts is not the part of a quantile."""
        if self.world == 1:
            return logits_LBT
        gathered = [torch.empty_like(logits_LBT) for _ in range(self.world)]
        dist.all_gather(gathered, logits_LBT.contiguous())
        return torch.cat(gathered, dim=1)

    def _mean_over_ranks(self, value: torch.Tensor) -> float:
        if self.world > 1:
            value = value / self.world
            dist.all_reduce(value)
        return value.item()

    def _evaluate(self, final: bool) -> dict[str, float]:
        nothing = contextlib.nullcontext()
        with (
            as_written() if self.runtime.compile == "on" else nothing,
            self.average.in_place_of(self.model) if self.average else nothing,
        ):
            return evaluate(
                self.model,
                self.validation,
                micro_batch=_EVALUATED_AT_ONCE * (self.runtime.micro_batch or self.config.train.batch_size),
                autocast=self.autocast(),
                bytes_per_token=self.bytes_per_token,
                with_topk=final,
                segments=self.config.data.segments,
                labels=self.labels,
                alive=self.watch.alive,
            )
