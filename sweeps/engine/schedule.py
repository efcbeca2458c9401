"""Pending trials through Ray Tune: the only file of the package that imports Ray.

Each Tune trial is a launch, a Ray Train run that carries several of the design's trials in turn. Tune decides when
and where a launch runs; each start of a sweep is a new Tuner over what is pending, so a design can grow between
starts, and what a killed start left half-done is found in the trials' own checkpoints.
"""

import contextlib
import logging
import math
import os
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.engine import surroundings  # isort: skip  (it is read by Ray when that is imported)

import ray
from ray import tune
from ray.exceptions import NodeDiedError, TaskUnschedulableError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.stopper import Stopper
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lahr import distributed, patience
from lahr.distributed import Launch
from lahr.errors import check
from lahr.files import Folder
from lahr.machine import Demands, processor
from lahr.training.runtime import Runtime
from sweeps.engine.addresses import no_ray, refuse_a_dead_one
from sweeps.engine.design import Trial
from sweeps.engine.machines import Cluster, gpus_of, launches
from sweeps.engine.relay import Observer, Outcome, Relay
from sweeps.engine.results import Results

_log = logging.getLogger(__name__)
Fit = Callable[[Launch, str, str, list[Any]], None]
"""Runs a launch to its end: it, a name, a folder for Ray's own state, callbacks that hear its reports."""
_EXAMINED_S = 60.0
_LOOK_S, _SILENT_S = 5.0, 60.0
_FIRST_MACHINE_S = 1800.0
"""How long a cluster is given to start the first machine that holds a trial: clouds take minutes."""
_UNHEARD_S = 180.0
"""How long a placement group may hold a machine's resources before its workers have said that it is theirs."""
_RESERVED = ".reserved.json"
_PACKAGES = Path(distributed.__file__).parent, Path(__file__).parents[1]
_DRIVER_DEATHS = 20


@contextmanager
def connected(address: str | None, hang_after: float = 600.0, builds: Iterable[str] = ()) -> Iterator[Cluster]:
    """Connects to the Ray at `address` (or `RAY_ADDRESS`), else starts one on this machine for the block.

    A worker that answers nothing for `hang_after` seconds (a minute at least) is replaced. `builds` are the functions
    that make models of one's own, `package.module:function`: their code goes to other machines with this one's.
    """
    settings = {**surroundings.OF_WORKERS, "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(max(60.0, hang_after))}
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    outer = dict(os.environ)
    refuse_a_dead_one(address)
    if address == "local":
        # Nobody here asks the dashboard, ten processes that take two seconds to start.
        quiet |= {"include_dashboard": False, "object_store_memory": 256 << 20}
        # A Ray of our own hands its environment down, and then its first processes need not be started twice. Nobody
        # preempts this machine.
        os.environ |= {**settings, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    else:
        quiet |= {
            "runtime_env": surroundings.everywhere(settings, *_PACKAGES, *surroundings.sources(builds, _PACKAGES))
        }
    try:
        context: Any = ray.init(address=address, **quiet)
        # A page of Ray's own text for each process that dies: what has to be known of it, we say in a line.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    except Exception as error:  # whatever Ray raises where it cannot be had: half a dozen types
        _disconnect(outer)
        raise no_ray(address, error) from error
    # Helpers of Ray look up their cluster by this, and another Ray may be visible on this machine.
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
    try:
        yield machines_now(grows=address != "local")
    finally:
        _disconnect(outer)


def _disconnect(outer: Mapping[str, str]) -> None:
    try:
        started = surroundings.processes()  # none of a cluster's: those are not below this process
        ray.shutdown()
        surroundings.end(started)
    finally:
        surroundings.restore(outer)


def machines_now(grows: bool) -> Cluster:
    """The machines that are up at this moment."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    head: Mapping[str, float] = next((has for has in alive if "node:__internal_head__" in has), {})
    machines = tuple({name: has.get(name, 0.0) for name in ("CPU", "GPU")} for has in alive)
    return Cluster(machines, grows, head.get("memory", math.inf), "".join(gpus_of(has) for has in alive))


def examine(demands: Demands) -> str:
    """Asks every machine of the cluster whether it can take part; what they are, for the report.

    `ConfigError` names those that cannot, and why. One that leaves meanwhile is not counted, also where only the task
    has noticed so far: Ray takes half a minute to believe it of a machine that it lists.
    """
    look = ray.remote(max_retries=0)(_look_at_this_machine)
    asked = {
        look.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(demands): node
        for node in ray.nodes()
        if node["Alive"]
    }
    names = {ref: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for ref, node in asked.items()}
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_EXAMINED_S)
    said = dict.fromkeys(silent, f"did not answer within {_EXAMINED_S:.0f} s")
    kinds: Counter[str] = Counter()
    left = []
    for ref in answered:
        try:
            why, kind = ray.get(ref)
            if why:
                said[ref] = why
            else:
                kinds[kind + gpus_of(asked[ref]["Resources"])] += 1
        except (NodeDiedError, TaskUnschedulableError):
            left.append(names[ref])
        except Exception as error:  # of Ray, of the machine's environment, or of what it has installed
            why = str(error).strip() or type(error).__name__
            said[ref] = f"cannot run this project: {why.splitlines()[-1]}"
    there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    left += [names[ref] for ref in said if asked[ref]["NodeID"] not in there]
    problems = [f"{names[ref]} {why}" for ref, why in said.items() if asked[ref]["NodeID"] in there]
    for name in left:
        _log.warning("%s has left the cluster; going on without it", name)
    check(not problems, "; ".join(problems))
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items())


def _look_at_this_machine(demands: Demands) -> tuple[str | None, str]:
    with patience.limited(_EXAMINED_S / 2):
        return demands.unmet(), processor()


def run(
    pending: Sequence[Trial],
    observers: Sequence[Observer],
    *,
    results: Results,
    launch: Launch,
    cluster: Cluster,
    seconds: Mapping[str, float],
    concurrency: int | None = None,
    fit: Fit = distributed.fit,
) -> Outcome:
    """Runs the pending trials to their ends, as many at a time as fit, handing every record to the observers.

    Needs `connected()`. `launch` is what all launches have in common, `seconds` a trial's estimated length by cell,
    `fit` what runs a launch.
    A trial that keeps failing, or hangs, is reported as failed and does not stop the
    others. Ctrl-C ends it early with `interrupted` set, storage that is away or a machine that does not fit with
    `stopped`; what was done is kept.
    """
    relay = Relay({trial.id: trial for trial in pending}, observers)
    if cluster.grows:
        give_back_earlier(results.folder)
    runtime = launch.runtime
    lanes = cluster.lanes(runtime, concurrency)
    # Ray's own state is never read again: it stays on this machine, whatever happens to the results' storage.
    with tempfile.TemporaryDirectory(prefix="lahr-ray-", ignore_cleanup_errors=True) as storage:
        for _ in range(2):  # a second round only for a trial whose last report was lost with its launch
            waiting = [trial for trial in pending if not relay.ended(trial.id)]
            if not waiting or relay.over:
                break
            start = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
            carried = [
                replace(launch, trials={t.id: t.config for t in group}, start=start).to_dict()
                for group in launches(waiting, lanes, seconds)
            ]
            generator = BasicVariantGenerator(max_concurrent=lanes)
            ears = _Ears(relay, [list(c["trials"]) for c in carried], generator, cluster, runtime, concurrency)
            try:
                _tune(carried, ears, generator, start, storage, fit)
            finally:
                ears.let_go()
    if not relay.over:
        relay.give_up_the_rest()
    return relay.outcome


def give_back_earlier(results: Folder) -> None:
    """Gives back what earlier starts of this sweep left reserved in this Ray, and notes this one for the next.

    Ray 2.60 frees a dead driver's placement groups, but for one that was asked for while its processes died. It would
    hold a machine for good; and where that is lost too, Ray asks for it anew without a pause, and for nothing else.
    """
    head = next((node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]), "")
    known: dict[str, Any] = {"head": head, "jobs": []}
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = results.read_json(_RESERVED)
    earlier = known["jobs"] if known["head"] == head else []  # another Ray counts its jobs anew
    for group, about in placement_group_table().items():
        if about["state"] != "REMOVED" and group.endswith(tuple(earlier)):
            _remove(group)
    results.write_json(_RESERVED, {"head": head, "jobs": [*earlier, ray.get_runtime_context().get_job_id()]})


def _remove(group: str) -> None:
    with contextlib.suppress(Exception):  # gone already
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))


def _tune(
    carried: list[dict[str, Any]],
    ears: "_Ears",
    generator: BasicVariantGenerator,
    start: str,
    storage: str,
    fit: Fit,
) -> None:
    trainable = tune.with_resources(
        tune.with_parameters(_launch, carried=carried, storage=storage, start=start, fit=fit),
        # The trial's own process only waits: no CPU, or two trials on two CPUs would wait for each other for ever.
        {"node:__internal_head__": 0.001},
    )
    tune.Tuner(
        trainable,
        param_space={"launch": tune.grid_search(list(range(len(carried))))},
        tune_config=tune.TuneConfig(search_alg=generator, reuse_actors=False),
        run_config=tune.RunConfig(
            name=f"tune-{start}",
            storage_path=storage,
            verbose=0,
            callbacks=[ears],
            stop=_WhenOver(ears.relay),
            # The process of a launch only waits, so that it dies is never a trial's fault: those count their own.
            failure_config=tune.FailureConfig(max_failures=_DRIVER_DEATHS),
        ),
    ).fit()


def _launch(config: dict[str, Any], carried: list[dict[str, Any]], storage: str, start: str, fit: Fit) -> None:
    """One Tune trial: Ray Train over the trials it carries."""
    index = config["launch"]
    launch = Launch.from_dict(carried[index])
    fit(launch, f"train-{start}-{index}", storage, [TuneReportCallback()])


class _WhenOver(Stopper):
    """Ends all launches once the relay has heard what ends a sweep."""

    def __init__(self, relay: Relay | None) -> None:
        self._relay = relay

    def __reduce__(self) -> Any:
        return _WhenOver, (None,)  # Tune pickles it into its own state; this one lives in the driver alone

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._relay is not None and self._relay.outcome.stopped is not None


class _Ears(tune.Callback):
    """Tune's callback: hands reports to the relay, and looks after what Tune and Train leave undone."""

    def __init__(
        self,
        relay: Relay,
        carried: list[list[str]],
        generator: BasicVariantGenerator,
        cluster: Cluster,
        runtime: Runtime,
        concurrency: int | None,
    ) -> None:
        self.relay, self._carried = relay, carried
        self._generator, self._cluster = generator, cluster
        self._runtime, self._concurrency = runtime, concurrency
        self._groups: dict[int, str] = {}
        """Launch → the placement group of its workers, as they have said."""
        self._unheard: dict[str, float] = {}
        """Placement group that nobody has spoken of → when it was first seen."""
        self._signals: dict[int, Any] | None = None
        self._heard = self._looked = self._began = time.monotonic()
        self._held = cluster.fitting(runtime) >= 1
        """Whether the cluster has held a trial yet."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks into its own state; this one lives in the driver alone

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        self._heard = time.monotonic()
        for row in result.get("rows", ()):
            if row.get("group"):
                self._groups[trial.config["launch"]] = row["group"]
            self.relay.take(row)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._free(trial.config["launch"])
        _log.warning(
            "the process that led a launch died on %s; another leads it on", trial.node_ip or "its machine"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._free(trial.config["launch"])
        error = Path(trial.error_file or os.devnull)
        lines = error.read_text().split("\n") if error.exists() else []
        reason = ["its launch failed", *(line.strip() for line in lines if line.strip())][-1]
        for name in self._carried[trial.config["launch"]]:
            if not self.relay.ended(name) and not self.relay.over:
                self.relay.take({"trial": name, "failed": f"Ray gave up its launch: {reason}"})

    def _free(self, launch: int) -> None:
        """Gives back what a launch's workers had reserved: the helper that Ray has for it is not started
        (`lahr.distributed`), and the launch's next attempt would wait for ever."""
        group = self._groups.pop(launch, None)
        if group is not None:
            _remove(group)

    def _free_unheard(self) -> None:
        """Gives back what no workers hold: a launch that died while it started has told nobody of its group."""
        now, job = time.monotonic(), ray.get_runtime_context().get_job_id()
        holding = {
            group
            for group, about in placement_group_table().items()
            if group.endswith(job)
            and about["state"] in ("CREATED", "RESCHEDULING")
            and not any("node:__internal_head__" in bundle for bundle in about["bundles"].values())  # Tune's own
        }
        self._unheard = {group: self._unheard.get(group, now) for group in holding - set(self._groups.values())}
        for group, since in self._unheard.items():
            if now - since > _UNHEARD_S:
                _log.warning("giving back what a launch that died had reserved")
                _remove(group)

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Puts itself in front of Tune's handler for Ctrl-C, which ends a run well but tells nobody why it ended; now
        and then looks at the cluster."""
        inner = signal.getsignal(signal.SIGINT)
        if self._signals is None and threading.current_thread() is threading.main_thread() and callable(inner):

            def stop(number: int, frame: Any) -> None:
                self.relay.outcome.interrupted = True
                inner(number, frame)

            self._signals = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            self._free_unheard()
            if self._cluster.grows:
                self._look()

    def _look(self) -> None:
        """Follows machines that join and leave; says so where none is left, or nobody has reported for long."""
        cluster = machines_now(grows=True)
        fitting = cluster.fitting(self._runtime)
        self._generator.max_concurrent = max(cluster.at_once(self._runtime, self._concurrency), 1)
        self._held |= fitting >= 1
        if not self._held and time.monotonic() - self._began > _FIRST_MACHINE_S:
            self.relay.take(
                {
                    "refused": f"{cluster.wanting(self._runtime)}; none joined that holds one, "
                    f"in {_FIRST_MACHINE_S / 60:.0f} minutes. The same command carries on once there is one"
                }
            )
        silent = time.monotonic() - self._heard
        if silent > _SILENT_S:
            self._heard = time.monotonic()
            why = f"{cluster.wanting(self._runtime)}; waiting for machines" if fitting < 1 else "still waiting"
            _log.warning("no trial has reported for %.0f s: %s", silent, why)

    def let_go(self) -> None:
        """Gives the signals back to whoever had them, and what the launches still hold."""
        for launch in list(self._groups):
            self._free(launch)
        for number, handler in (self._signals or {}).items():
            signal.signal(number, handler if number == signal.SIGTERM else signal.default_int_handler)
        self._signals = None
