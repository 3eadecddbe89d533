"""One driver's time: start Ray and the servers, have Ray Tune run the trials, test the best, leave nothing behind."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from raytuner.definition import AUTO
from raytuner.engine.conductor import GOING_AWAY, LOST_ATTEMPTS, NOT_ITS_FAULT, Conductor
from raytuner.engine.guard import Guard
from raytuner.engine.mps import PROGRAM
from raytuner.engine.nodes import HEAD, autoscaler
from raytuner.engine.requests import Request, is_stop, take_requests
from raytuner.engine.serverclient import ServerSpec, ensure_server
from raytuner.engine.snapshot import search_path
from raytuner.errors import LaunchError
from raytuner.journal import Folder, Tested
from raytuner.plan import Machine, Node, Plan
from raytuner.storage import Mirror
from raytuner.training.trial import TrialSpec

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory, Tuner

__all__ = ["Engine", "Interrupt", "connect", "own_machine"]

ADAPTERS = {
    "ray_function": "raytuner.engine.raycode:adapt_function",
    "ray_class": "raytuner.engine.raycode:adapt_class",
}
STOPPED = "stopped by `raytuner stop`"
TICK_SECONDS = 0.1
SLOTS_SECONDS = 3.0
"""How often the cluster is looked at."""
LEAVE_SECONDS = 3.0
"""How long before a node goes away its trials must have ended, to be of use elsewhere."""
PATIENCE_SECONDS = 3600.0
"""How long trials may take to leave a node that goes away some time."""
SERVER_LINGER_SECONDS = 3600.0
SERVER_END_SECONDS = 10.0


@dataclass
class Interrupt:
    """Why the driver is to end, once a signal asked for it. A second Ctrl-C ends the process at once.

    As a context it takes SIGINT and SIGTERM, where this is the main thread, and gives them back.
    """

    reason: str | None = None
    _before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *raised: object) -> None:
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, before or signal.SIG_DFL)  # None: not from Python

    @contextlib.contextmanager
    def in_front(self) -> Iterator[None]:
        """Keep our handler of SIGTERM while Ray comes up, which would put one there that leaves the process at once."""
        install = signal.signal

        def all_but_sigterm(number: int, handler: Any) -> Any:
            return signal.getsignal(number) if number == signal.SIGTERM else install(number, handler)

        signal.signal = all_but_sigterm  # type: ignore[assignment]  # which is what it stands in for
        try:
            yield
        finally:
            signal.signal = install

    def _on_signal(self, number: int, frame: object) -> None:
        if self.reason is not None:
            os._exit(130)  # the journal holds all that happened, and every process of ours ends with this one
        os.write(2, b"\nstopping: running trials write a checkpoint (Ctrl-C again ends it at once)\n")
        self.reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


@dataclass
class Engine:
    """Runs a conductor's trials on Ray Tune: on the Ray that this process is connected to, else on one of its own."""

    plan: Plan
    folder: Folder
    conductor: Conductor
    interrupt: Interrupt
    mirror: Mirror | None = None
    """Keeps the object store alike where the experiment lies in one."""
    _guard: Guard | None = None
    """Of the Ray that was started here, if it was."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "server"))
    _server: Future[subprocess.Popen[bytes] | None] | None = None
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds that parts of the start took."""

    # -- starting -------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Start this node's process server, and import what is needed later, while Ray comes up."""
        self._server_spec = self._describe_server()
        if self.plan.experiment.resources.mps and shutil.which(PROGRAM) is None:
            self.conductor.warnings.append(f"resources.mps: this node has no {PROGRAM}, and does without")
        if self._isolation == "process":
            self._server = self._pool.submit(
                ensure_server, self._server_spec, watch=[os.getpid()], linger=SERVER_LINGER_SECONDS
            )

    @property
    def _isolation(self) -> str:
        kind = self.plan.code["train"].kind
        return "actor" if kind == "ray_class" else self.plan.experiment.isolation

    def _describe_server(self) -> ServerSpec:
        experiment = self.plan.experiment
        threads = str(max(1, int(self.plan.needs[0].cpu)))
        return ServerSpec(
            key=secrets.token_hex(8),
            root=str(self.folder.code if self.folder.code.is_dir() else self.plan.import_root),
            train=experiment.train,
            test=experiment.test,
            adapter=ADAPTERS.get(self.plan.code["train"].kind),
            sys_path=tuple(search_path(self.plan.import_root, self.folder.code)),
            env={
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "OPENBLAS_NUM_THREADS": threads,
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a look for devices that leaves the process fit to fork
                "RAYTUNER_INSIDE": "1",
                **experiment.env,
            },
            preload=self._preload(),
            mps=experiment.resources.mps,
            devices=any(needs.gpu for needs in self.plan.needs),
            log=str(self.folder.path / "server.log"),
        )

    def _preload(self) -> tuple[str, ...]:
        """What every trial imports, if only to join the others, or to be held to its share of a GPU."""
        resources = self.plan.experiment.resources
        several = max(needs.workers for needs in self.plan.needs) > 1
        shares = resources.gpu == AUTO or any(0 < needs.gpu < 1 for needs in self.plan.needs)
        torch = ("torch",) if shares and importlib.util.find_spec("torch") is not None else ()
        return ("torch.distributed",) if several else torch

    def _start_ray(self) -> None:
        quiet_ray()
        import ray

        importing = threading.Thread(target=_import_tune, name="import-tune", daemon=True)
        importing.start()
        try:
            if not ray.is_initialized():
                self._guard = Guard()
                machine = self.plan.machine
                with self.interrupt.in_front(), self._guard.starting():
                    ray.init(
                        address="local",
                        num_cpus=machine.cpus,
                        num_gpus=machine.gpus,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise LaunchError(f"Ray could not be started on this machine: {error}") from error
        finally:
            importing.join()  # two threads that import modules which import each other see half of them

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until the budget is used up, the search has no more, or something stops it. Then test the best."""
        began = time.monotonic()
        self._start_ray()
        if self._server is not None:
            self._server.result()  # raises what kept it from starting
        self.timings["ray_init"] = time.monotonic() - began
        self._look_for_interruptions()
        if spent := self.conductor.used_up():
            self.conductor.stop(spent)
        import ray

        from raytuner.engine.control import ControlServer
        from raytuner.engine.job import SlotJob

        self._control = ControlServer(ray.util.get_node_ip_address())
        self._stops_sent: set[str | None] = set()
        self._last_tick = self._last_slots = 0.0
        try:
            self._job = SlotJob(
                server=self._server_spec,
                control=self._control.address,
                isolation=self._isolation,
                step_timeout=self.plan.experiment.step_timeout,
                storage=self.plan.storage if self.mirror is not None else None,
                folder=str(self.folder.path),
            )
            if not self.conductor.finished:
                self._fit()
            self._test()
        finally:
            self._control.close()

    def _fit(self) -> None:
        from ray import tune

        from raytuner.engine.bridges import SchedulerBridge, SearchBridge, SlotTrainable

        self._count_slots()
        scratch = tempfile.mkdtemp(prefix="raytuner-tune-")
        try:
            scheduler = SchedulerBridge(self.conductor, self._tick, own_ray=self._guard is not None)
            search = SearchBridge(self.conductor, scheduler, job=self._job.dumps(), resources=self._bundles)
            tuner = tune.Tuner(
                SlotTrainable,
                tune_config=tune.TuneConfig(
                    search_alg=search,
                    scheduler=scheduler,
                    reuse_actors=True,
                    num_samples=-1,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=scratch,
                    verbose=0,
                    callbacks=None,  # with any, Ray Tune imports MLflow and all the trackers that it knows
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
            # Not earlier: until here the processors are busy with what the first trial waits for.
            threading.Thread(target=self.conductor.search.warm_up, name="import-search", daemon=True).start()
            self._run_tuner(tuner)
            self.conductor.account(last=True)
            if not self.conductor.proposals.asking:
                self.conductor.proposals.settled()  # it may have failed over the last result
        finally:
            self.conductor.proposals.close()
            shutil.rmtree(scratch, ignore_errors=True)

    def _run_tuner(self, tuner: Tuner) -> None:
        try:
            tuner.fit()
        except Exception:
            if self.conductor.unwritable is not None:
                raise self.conductor.unwritable from None
            raise

    def _bundles(self, spec: TrialSpec) -> PlacementGroupFactory:
        """What Ray is asked for: a bundle for each process of the trial."""
        from ray.tune import PlacementGroupFactory

        resources = self.plan.experiment.resources
        bundle = {"CPU": spec.cpus, **({"GPU": spec.gpu} if spec.gpu else {})}
        if resources.accelerator is not None:
            bundle[f"accelerator_type:{resources.accelerator}"] = 0.001
        labels = {"bundle_label_selector": [resources.labels] * spec.world_size} if resources.labels else {}
        return PlacementGroupFactory([bundle] * spec.world_size, strategy=resources.placement.upper(), **labels)

    def _count_slots(self) -> None:
        self.conductor.books.resize(cluster())

    def _tick(self) -> None:
        """Called in every round of Ray Tune's loop."""
        now = time.monotonic()
        if now - self._last_tick < TICK_SECONDS:
            return
        self._last_tick = now
        conductor = self.conductor
        conductor.account()
        if spent := conductor.used_up():
            conductor.stop(spent)
        self._look_for_interruptions()
        for request in take_requests(self.folder):
            self._carry_out(request)
        if conductor.stopping is None:
            conductor.proposals.check()
        elif None not in self._stops_sent:
            self._stops_sent.add(None)
            self._control.stop(None, conductor.stopping)
        if now - self._last_slots > SLOTS_SECONDS:
            self._last_slots = now
            with contextlib.suppress(LaunchError):  # a cluster that shrank may grow again
                self._count_slots()
            for node, deadline in draining().items():
                by = time.time() + PATIENCE_SECONDS if deadline is None else deadline - LEAVE_SECONDS
                for attempt in conductor.leave(node):
                    self._control.stop(attempt, GOING_AWAY, by)

    def _look_for_interruptions(self) -> None:
        if self.interrupt.reason is not None:
            self.conductor.stop(self.interrupt.reason, "interrupted")
        elif self.mirror is not None and self.mirror.lost:
            self.conductor.stop("another driver has taken the experiment over", "interrupted")

    def _carry_out(self, request: Request) -> None:
        match request:
            case {"stop": None}:
                self.conductor.stop(STOPPED, "interrupted")
            case {"stop": str(trial)} if not self.conductor.stop_trial(trial, STOPPED):
                self._control.stop(trial, STOPPED)
            case {"enqueue": dict(config)}:
                self.conductor.try_asked(config)

    # -- the final check --------------------------------------------------------------------------------------------

    def _test(self) -> None:
        conductor, experiment = self.conductor, self.plan.experiment
        best = conductor.state.best
        if experiment.test is None or best is None or conductor.stop_status != "finished":
            return
        step = best.value_step
        if any(t.trial == best.id and t.step == step and t.error is None for t in conductor.state.tests):
            return
        from raytuner.engine.testrun import run_test_on_cluster

        checkpoint = best.best_checkpoint
        if checkpoint is None:
            message = f"trial {best.id} kept no checkpoint of its best step {step}; pass its state to trial.steps()"
            conductor.record(
                Tested(trial=best.id, step=step, error={"kind": "checkpoint", "message": message, "traceback": ""})
            )
            return
        spec = conductor.spec_for_test(best, checkpoint.path)
        left = LOST_ATTEMPTS
        while True:
            result = run_test_on_cluster(
                self._job,
                spec,
                resources=self._bundles(spec).bundles[0],
                labels=experiment.resources.labels,
                keep_waiting=self._keep_testing,
            )
            if result is None:
                return  # a resume tests it
            left -= 1
            if left < 0 or result["error"] is None or result["error"]["kind"] not in NOT_ITS_FAULT:
                conductor.record(Tested(trial=best.id, step=step, **result))
                return
            conductor.warnings.append(f"{result['error']['message']}; it starts again")

    def _keep_testing(self) -> bool:
        self._look_for_interruptions()
        # No trial starts any more: what else is asked for is the next driver's.
        for request in take_requests(self.folder, is_stop):
            self._carry_out(request)
        return self.conductor.stop_status == "finished"

    # -- ending -----------------------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """End the server and, if it was started here, Ray."""
        server = self._server.result() if self._server is not None and self._server.exception() is None else None
        if server is not None:
            server.terminate()
        if self._guard is not None:
            import ray

            ray.shutdown()
            self._guard.close()
        if server is not None:
            try:
                server.wait(SERVER_END_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()  # and the system kills its trials
                server.wait()
            self._server_spec.socket.unlink(missing_ok=True)
        if hasattr(self, "_server_spec"):
            self._server_spec.socket.with_suffix(".lock").unlink(missing_ok=True)
            shutil.rmtree(self._server_spec.socket.with_suffix(".mps"), ignore_errors=True)


def connect(address: str | None) -> Machine | None:
    """What the Ray that this process is (or, with an address, is to be) connected to has; None without one."""
    if address is not None:
        quiet_ray()
        import ray

        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise LaunchError(f"Ray at {address} could not be reached: {error}") from error
    ray_module = sys.modules.get("ray")
    if ray_module is None or not ray_module.is_initialized():
        return None
    return cluster()


def own_machine(machine: Machine) -> Machine:
    """This machine as a Ray that is started here will know it: with its accelerators and labels."""
    quiet_ray()
    try:
        from ray._private.resource_and_label_spec import ResourceAndLabelSpec

        found = ResourceAndLabelSpec(num_cpus=machine.cpus, num_gpus=machine.gpus).resolve(is_head=True)
        node = _node(found.to_resource_dict(), found.labels)
    except Exception:  # not of Ray's public interface: without it, only Ray itself can tell
        return machine
    return replace(machine, nodes=(node,))


def cluster() -> Machine:
    """The nodes of the Ray that this process is connected to, without those that are going away, and those to come."""
    import ray

    gone = draining()
    there = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in gone]
    nodes = tuple(_node(node["Resources"], node.get("Labels") or {}) for node in there)
    workers = [node["Resources"] for node in there if HEAD not in node["Resources"]]
    growth = autoscaler()
    later = tuple(_node(resources, labels) for resources, labels in growth.left(workers)) if growth is not None else ()
    return Machine(
        int(sum(node.cpus for node in nodes)),
        int(sum(node.gpus for node in nodes)),
        nodes,
        later,
        elastic=growth is not None and not growth.kinds,
    )


def draining() -> dict[str, float | None]:
    """The nodes that are going away, as Ray names them, and when (seconds since the epoch), where that is known."""
    import ray

    try:
        client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        found = client.get_draining_nodes(timeout=2)
    except Exception:  # not of Ray's public interface: without it, a node that goes away is a node that is lost
        return {}
    return {node: deadline / 1000 if deadline else None for node, deadline in found.items()}


def _node(there: Mapping[str, float], labels: Mapping[str, str]) -> Node:
    prefix = "accelerator_type:"
    accelerators = frozenset(name.removeprefix(prefix) for name in there if name.startswith(prefix))
    return Node(there.get("CPU", 0.0), there.get("GPU", 0.0), accelerators, labels)


def _import_tune() -> None:
    import raytuner.engine.bridges  # noqa: F401 - for its imports, early


def quiet_ray() -> None:
    """Keep Ray and Ray Tune from telling what a user can do nothing about. Must come before Ray is imported."""
    os.environ.update(
        {
            "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table of the configuration even when silent
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
            "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
            "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
            "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
            "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": "1000000000",
        }
    )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name in ("ray", "ray.tune", "ray.air", "ray.train", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"ray\..*")
