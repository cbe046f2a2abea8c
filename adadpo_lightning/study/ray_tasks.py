"""The jobs of a study as tasks of Ray, on this machine or on a cluster whose nodes share its files and its packages."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from adadpo_lightning.errors import UserError
from adadpo_lightning.runs.lock import wait_for_lock
from adadpo_lightning.study.processes import Processes

if TYPE_CHECKING:
    from adadpo_lightning.study.grid import StudyConfig

DEFAULTS = {"num_cpus": 1, "max_retries": 3}
# A command that outlived its worker saves a checkpoint and ends; its successor waits for that.
GRACE = 600.0


def import_ray() -> Any:
    """The module.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("ray", "needs the package ray", "pip install 'adadpo-lightning[ray]'") from error
    return ray


class RayTasks:
    """Runs each command in a process of a Ray task, with the output and the result where they would be without Ray.

    Ray starts a task again whose worker or node died, three times unless ``max_retries`` says otherwise, and its job
    resumes.

    Args:
        options: Options of ``ray.remote`` for each task, over `DEFAULTS`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.stopped = False
        self._ray = import_ray()
        self._task = self._ray.remote(**{**DEFAULTS, **options})(run_here)
        self._running: set[Any] = set()
        self._lock = threading.Lock()

    def run(
        self, command: Sequence[str], output: IO[Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> int | None:
        """Run a command to its end.

        Args:
            command: Program and arguments.
            output: Open file for its output and errors; the task opens it by its name.
            environment: Not used: Ray gives each of its workers its threads and devices.

        Returns:
            Exit status; 1 if Ray could not run it, with Ray's reason in `output`; None if `stop` was called before it
            started.
        """
        name = None if output is None else str(Path(output.name).resolve())
        with self._lock:
            if self.stopped:
                return None
            task = self._task.remote(list(command), name, str(Path.cwd()))
            self._running.add(task)
        try:
            status: int | None = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            if name is not None and not self.stopped:
                with Path(name).open("a", encoding="utf-8") as log:
                    log.write(f"\nerror: ray: {type(error).__name__}: {' '.join(str(error).split())}\n")
            return 1
        finally:
            with self._lock:
                self._running.discard(task)
        return status

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Cancel all running tasks, whose commands save and end; by SIGKILL, kill their workers."""
        with self._lock:
            self.stopped = True
            for task in self._running:
                self._ray.cancel(task, force=number == signal.SIGKILL)
            return len(self._running)


def run_here(command: Sequence[str], output: str | None, directory: str) -> int | None:
    """What a task does: run the command as a process of this node.

    Args:
        command: Program and arguments.
        output: File for its output and errors.
        directory: Working directory.

    Returns:
        Its exit status.
    """
    os.chdir(directory)
    name = os.devnull if output is None else output
    if output is not None:
        wait_for_lock(Path(output).parent, GRACE)
    environment = {"TOKENIZERS_PARALLELISM": "false", **os.environ}
    processes = Processes()
    # `stop` interrupts this thread; the other one waits until the command has ended.
    with open(name, "w", encoding="utf-8") as log, ThreadPoolExecutor(1) as pool:
        running = pool.submit(processes.run, command, log, environment)
        try:
            return running.result()
        except KeyboardInterrupt:
            processes.stop()
            raise


@contextmanager
def ray_tasks(study: StudyConfig, address: str, options: Mapping[str, Any]) -> Iterator[tuple[RayTasks, int]]:
    """Start Ray on this machine or join a cluster, for the time of a study.

    Args:
        study: The study.
        address: ``local``, ``auto`` or the address of a cluster, as in ``ray.init``.
        options: Options of ``ray.remote`` for each job, such as ``num_cpus`` and ``num_gpus``.

    Yields:
        What runs the jobs, and how many of them the cluster can run side by side.

    Raises:
        UserError: If Ray is missing or cannot be reached, does not know an option, or no node can run a job.
    """
    ray = import_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone unless the user wants it
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            "ray", f"{address}: {error}", "start a cluster with `ray start --head`, or take local"
        ) from error
    try:
        most = side_by_side(ray.nodes(), options)
        if study.task == "preference" and "num_gpus" not in options and ray.cluster_resources().get("GPU"):
            raise UserError(
                "ray_options.num_gpus",
                "the cluster has GPUs, of which a job sees none unless it asks for them",
                "give the number for each job; 0 trains on CPUs",
            )
        try:
            tasks = RayTasks(options)
        except (ValueError, TypeError) as error:
            raise UserError("ray_options", str(error), "see the options of ray.remote") from error
        yield tasks, most
    finally:
        ray.shutdown()


def side_by_side(nodes: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> int:
    """Number of jobs that fit onto the nodes at one time; a job runs on one node.

    Args:
        nodes: As ``ray.nodes()`` describes them.
        options: Options of each job.

    Raises:
        UserError: If no node can run a job, for which Ray would wait forever.

    Example:
        >>> side_by_side([{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}}], {"num_gpus": 2})
        2
    """
    given = {**DEFAULTS, **options}
    wanted = {"CPU": given["num_cpus"], "GPU": given.get("num_gpus", 0), **given.get("resources", {})}
    wanted = {name: amount for name, amount in wanted.items() if amount}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    most = sum(min((int(node.get(name, 0) / amount) for name, amount in wanted.items()), default=1) for node in alive)
    if not most:
        have = [{name: node.get(name, 0) for name in wanted} for node in alive]
        raise UserError("ray_options", f"no node can run a job with {wanted}; the nodes have {have}", "ask for less")
    return most
