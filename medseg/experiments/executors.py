"""Where jobs run: on this machine, some at a time and each on a device of its own, or as SLURM jobs."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.experiments.job import Job
from medseg.experiments.trial import Trial
from medseg.machine.hardware import usable_cores


@dataclass(frozen=True)
class Handle:
    """A job that was handed to an executor.

    Attributes:
        running: Whether it has begun and not ended.
        done: Whether it has ended, well or badly.
        failure: Why it failed, once it has ended.
        stop: Ends it, or takes it back if it has not begun.
    """

    running: Callable[[], bool]
    done: Callable[[], bool]
    failure: Callable[[], str | None]
    stop: Callable[[], None]


class LocalExecutor:
    """Runs jobs on this machine.

    Args:
        jobs: How many at a time; None takes one per device, else one.
        devices: CUDA devices by number, dealt out to the jobs; empty leaves the choice to the config.

    Raises:
        UsageError: The number is below 1.
    """

    def __init__(self, jobs: int | None = None, devices: Sequence[str] = ()) -> None:
        self.jobs = jobs if jobs is not None else max(1, len(devices))
        if self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, got {self.jobs}", "Choose 1 or more")
        self._slots: queue.Queue[Mapping[str, str]] = queue.Queue()
        for slot in environments(self.jobs, devices):
            self._slots.put(slot)
        self._threads = ThreadPoolExecutor(self.jobs)

    def submit(self, job: Job) -> Handle:
        """Queue a job; it takes the first slot that is free."""
        trial = Trial(job)

        def in_a_slot() -> str | None:
            slot = self._slots.get()
            try:
                trial.environment.update(slot)
                return trial()
            finally:
                self._slots.put(slot)

        future = self._threads.submit(in_a_slot)

        def stop() -> None:
            if not future.cancel():
                trial.stop()

        return Handle(future.running, future.done, future.result, stop)


def environments(jobs: int, devices: Sequence[str]) -> list[dict[str, str]]:
    """The variables of each of the jobs that run side by side: its device, its share of the cores.

    Example:
        >>> [slot["CUDA_VISIBLE_DEVICES"] for slot in environments(3, ["0", "1"])]
        ['0', '1', '0']
    """
    shared = jobs > 1 and "OMP_NUM_THREADS" not in os.environ
    threads = {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))} if shared else {}
    return [
        {**threads, **({"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} if devices else {})}
        for index in range(jobs)
    ]


class ClusterExecutor:
    """Hands jobs to SLURM through submitit.

    Args:
        folder: Where submitit keeps its files; it must be visible on every node, as must data, store and output.
        partition: Partition of the cluster.
        options: Further parameters of submitit's ``AutoExecutor``, such as ``timeout_min``, ``gpus_per_node``,
            ``cpus_per_task``, ``mem_gb`` or ``slurm_account``.
        cluster: ``slurm``, or ``local`` to try a sweep out in processes of this machine.

    Raises:
        UsageError: submitit is not installed, there is no such cluster here, or it does not know an option.
    """

    def __init__(
        self, folder: Path, partition: str = "", options: Mapping[str, Any] | None = None, *, cluster: str = "slurm"
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise UsageError("submitit is not installed", "Install it: pip install 'medseg[cluster]'") from None
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(
                name="medseg", **({"slurm_partition": partition} if partition else {}), **(options or {})
            )
        except (RuntimeError, NameError, TypeError, AssertionError, ValueError) as error:  # what submitit raises
            raise UsageError(f"submitit refuses ({' '.join(str(error).split())})", "Correct --slurm") from None

    def submit(self, job: Job) -> Handle:
        """Submit a job."""
        submitted = self._executor.submit(Trial(job))

        def failure() -> str | None:
            fault = submitted.exception()
            if fault is not None:  # its trial never came back: the node, the time limit, the scheduler
                return f"ended as {submitted.state} ({' '.join(str(fault).split())[:200]})"
            answer: str | None = submitted.result()
            return answer

        def running() -> bool:
            return submitted.state.upper().startswith("RUNNING") and not submitted.done()

        return Handle(running, submitted.done, failure, submitted.cancel)


Executor = LocalExecutor | ClusterExecutor
"""Takes jobs and does them in its own time."""
