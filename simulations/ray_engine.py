"""Flower's Ray engine: started with patience, a lost worker replaced, and its faults in one line.

Flower's own backend is extended for the time of one run. What is used here of Flower and Ray beyond what they publish
is in this file alone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from ray._private import services
from ray.exceptions import RayActorError

from fedllm.silo.process import cores

log = logging.getLogger("fedllm")
START_SECONDS = 60.0
"""Seconds that Ray has to start on an idle machine."""
MOST_START_SECONDS = 600.0
LOOK_SECONDS = 2.0
"""Seconds between two looks at Ray's processes."""
END_SECONDS = 5.0
"""Seconds that a dead Ray has to end."""
CORE = ("raylet", "gcs_server")
"""Processes without which no worker can run."""


class EngineFault(ValueError):
    """The engine could not start, or died; one line."""


def start_seconds(load: float, processors: int) -> float:
    """Return the seconds that Ray has to start: more in proportion where more processes want to run than can.

    Args:
        load: mean number of processes that run or wait to run.
        processors: CPU cores of this process.
    """
    return min(MOST_START_SECONDS, START_SECONDS * max(1.0, load / processors))


def run_on_ray(
    server_app: ServerApp, client_app: ClientApp, nodes: int, config: Any, stop: threading.Event
) -> None:
    """Run both apps on Flower's Ray engine.

    Args:
        nodes: number of nodes.
        config: Flower's configuration of the engine.
        stop: set where the engine has failed, so that the server app does not wait for replies.

    Raises:
        EngineFault: Ray could not start, or one of its own processes died.
    """
    faults: list[str] = []

    def fail(reason: object) -> None:
        if not faults:
            text = " ".join(str(reason).split())
            faults.append(text[:300] or type(reason).__name__)
        stop.set()

    ended = threading.Event()
    try:
        with _in_place_of_flowers(fail, ended):
            run_simulation(
                server_app=server_app,
                client_app=client_app,
                num_supernodes=nodes,
                backend_config=config,
            )
    except Exception as error:
        if not faults:
            raise
        log.debug("the Ray engine failed", exc_info=error)
    finally:
        ended.set()
    if faults:
        raise EngineFault(
            f"Expected Flower's Ray engine to run, got a failure: {faults[0]} "
            "(simulation.engine=in-process needs no engine)"
        )


@contextmanager
def _in_place_of_flowers(fail: Any, ended: threading.Event) -> Iterator[None]:
    """Have Flower use a backend that reports its faults to ``fail`` until ``ended`` is set."""

    class Backend(_SteadyBackend):
        def __init__(self, backend_config: Any) -> None:
            self.fail, self.ended = fail, ended
            super().__init__(backend_config)

    flowers = raybackend.RayBackend
    raybackend.RayBackend = Backend  # type: ignore[misc]
    loud = logging.getLogger("flwr").level
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it prints each fault as a traceback
    try:
        yield
    finally:
        raybackend.RayBackend = flowers  # type: ignore[misc]
        logging.getLogger("flwr").setLevel(loud)


class _SteadyBackend(raybackend.RayBackend):
    """Flower's backend that waits for Ray by the machine's load, and gives the task of a lost worker to a new one."""

    fail: Any
    ended: threading.Event

    def __init__(self, backend_config: Any) -> None:
        self.lock, self.dead = threading.Lock(), threading.Event()
        try:
            super().__init__(backend_config)
        except Exception as error:
            self.fail(error)
            raise
        threading.Thread(target=self._watch, daemon=True).start()

    def init_ray(self, backend_config: Any) -> None:
        """Start Ray."""
        with _patient(start_seconds(os.getloadavg()[0], cores())):
            super().init_ray(backend_config)

    def build(self, app_fn: Any) -> None:
        """Start the workers."""
        try:
            super().build(app_fn)
        except Exception as error:
            self.fail(error)
            raise
        assert self.pool is not None
        self.pool.fetch_result_and_return_actor_to_pool = self._fetch  # type: ignore[method-assign]

    def _fetch(self, future: Any) -> tuple[Message, Context]:
        """Wait for a worker's answer as long as Ray lives; Flower would wait for ever."""
        assert self.pool is not None
        while not ray.wait([future], timeout=LOOK_SECONDS)[0]:
            if self.dead.is_set():
                raise EngineFault("the engine has ended")
        _, reply, context = ray.get(future)
        self.pool.add_actor_back_to_pool(future)
        return reply, context

    def terminate(self) -> None:
        """End Ray; where it is dead, do not wait for its answer."""
        if not self.dead.is_set():
            super().terminate()
            return
        ending = threading.Thread(target=ray.shutdown, daemon=True)
        ending.start()
        ending.join(END_SECONDS)

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Let a worker answer; where it is lost, once more by another.

        A silo's ledger and its replies make that safe: a release that was recorded is not counted less, and with
        seeded noise it is the same release.
        """
        try:
            return super().process_message(message, context)
        except RayActorError as error:
            log.warning("a worker process was lost; its task is given to a new one")
            self._replace(getattr(error, "actor_id", None))
            return super().process_message(message, context)

    def _replace(self, lost: str | None) -> None:
        pool = self.pool
        if pool is None:
            return
        with self.lock:
            workers: list[Any] = list(pool.pool)
            kept = [worker for worker in workers if worker._actor_id.hex() != lost]
            new = len(workers) - len(kept)
            pool.pool[:] = [*kept, *(pool.create_actor_fn() for _ in range(new))]

    def _watch(self) -> None:
        """Report a death of one of Ray's own processes."""
        while not self.ended.wait(LOOK_SECONDS):
            node = ray._private.worker._global_node
            ended: list[Any] = [] if node is None else node.dead_processes()
            lost = [kind for kind, _ in ended if kind in CORE]
            if lost and not self.ended.is_set():
                self.dead.set()
                self.fail(f"its process {lost[0]} ended")
                return


@contextmanager
def _patient(seconds: float) -> Iterator[None]:
    """Give Ray's node this time to register, where Ray itself gives it 30 seconds."""
    rays = services.get_node

    def get_node(*words: Any, **options: Any) -> Any:
        end = time.monotonic() + seconds
        while True:
            try:
                return rays(*words, **options)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.2)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = rays
