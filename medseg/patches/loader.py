"""A DataLoader that resumes in the middle of an epoch and says which case broke a worker."""

from __future__ import annotations

import atexit
import signal
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medseg.errors import DataError, MedsegError
from medseg.machine.hardware import usable_cores
from medseg.machine.threads import share_cores, within
from medseg.patches.cutting import NO_CASE, Cases, TrainingCrops, WholeVolumes
from medseg.patches.loading import AHEAD

STALLED_S = 600.0
"""Seconds without a batch after which a file system is taken for dead."""

LOOK_EVERY_S = 10.0
"""Whether the workers live: where the signal of a death is lost, torch looks only when its time is out."""

_ended_at_exit: weakref.WeakSet[Any] = weakref.WeakSet()
"""Worker processes that are sure to end with this one."""


class EpochOrder(DistributedSampler[Any]):
    """The numbers of an epoch's batches; begins in the middle of the one epoch that was interrupted.

    Lightning says by `set_epoch` which epoch it is; in a loop that says nothing each pass is the next one.

    A `DistributedSampler` only so that Lightning leaves it in place: the ranks' shares are the schedule's business.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(range(steps), num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]  # needs a length
        self.steps = steps
        self.interrupted: tuple[int, int] | None = None
        self._begun = False

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass is."""
        super().set_epoch(epoch)
        self._begun = False

    def begin(self) -> int:
        """Begin a pass over an epoch that has not been: the first of its batches."""
        self.epoch += self._begun  # here and not in `__iter__`, which torch calls twice a pass where there are workers
        self._begun = True
        return self.first

    @property
    def first(self) -> int:
        """Batches of the current epoch that were seen before an interruption."""
        if self.interrupted is None or self.interrupted[0] != self.epoch:
            return 0
        return self.interrupted[1] if self.interrupted[1] < self.steps else 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.steps + self.first, (self.epoch + 1) * self.steps))

    def __len__(self) -> int:
        return self.steps


class RankShare(DistributedSampler[Any]):
    """Every case on exactly one rank: none is repeated to make the shares equal.

    A rank without a case gets `NO_CASE`: Lightning leaves out the whole validation of a rank without a batch, and the
    others would wait for its part of the sums for ever.

    Args:
        sizes: Of the cases: the largest are dealt first, each to the rank that has least to do.
        rank: This one.
        ranks: Of how many.
    """

    def __init__(self, sizes: Sequence[int], *, rank: int, ranks: int) -> None:
        super().__init__(sizes, num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]  # as above
        shares: list[list[int]] = [[] for _ in range(ranks)]
        for case in sorted(range(len(sizes)), key=lambda case: -sizes[case]):
            min(shares, key=lambda share: sum(sizes[other] for other in share)).append(case)
        self.share = sorted(shares[rank]) or [NO_CASE]

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)

    def __len__(self) -> int:
        return len(self.share)


class CaseLoader(DataLoader[Any]):
    """Iterates over batches; failures of a case surface here, in the main process, as what they were.

    Attributes:
        delivered: Batches of this epoch that were handed over.
        waited_s: Seconds that this process has waited for batches, or read them itself, since the loader was made.
        prepared: What is done with batches on their way, a batch ahead; None for nothing.

    Raises:
        DataError: While iterating, when a case cannot be read or a worker died over it.
    """

    delivered = 0
    waited_s = 0.0
    prepared: Callable[[Iterator[Any]], Iterator[Any]] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises its private iterator
        self.delivered = self.sampler.begin() if isinstance(self.sampler, EpochOrder) else 0
        batches = super().__iter__()
        for process in getattr(batches, "_workers", ()):
            if process not in _ended_at_exit:  # those that stay alive between epochs come again
                _ended_at_exit.add(process)
                atexit.register(process.kill)  # torch would ask it to end, which it does not hear, and wait for ever
        if isinstance(self.sampler, EpochOrder):
            self.sampler.interrupted = None
        arriving: Iterator[Any] = iter(partial(self._next, batches), None)
        for item in self.prepared(arriving) if self.prepared else arriving:
            if isinstance(item, MedsegError):
                raise item
            self.delivered += 1
            yield item

    def _next(self, batches: Iterator[Any]) -> Any:
        asked = time.perf_counter()
        try:
            while True:
                try:
                    return next(batches, None)
                except RuntimeError as error:
                    if "DataLoader worker" in str(error):
                        raise self._lost(batches, str(error).splitlines()[0]) from error
                    if "timed out" not in str(error):
                        raise
                    if time.perf_counter() - asked >= STALLED_S:
                        raise _stalled(self.dataset) from error  # type: ignore[arg-type]  # ours
        finally:
            self.waited_s += time.perf_counter() - asked

    def _lost(self, batches: Iterator[Any], cause: str) -> DataError:
        """Name the cases that the dead workers were at; torch tells no more than their process numbers."""
        cases: Cases = self.dataset.cases  # type: ignore[attr-defined]  # our datasets have them
        at = [] if cases.reading is None else cases.reading.tolist()
        dead = [not worker.is_alive() for worker in getattr(batches, "_workers", [])]
        names = [cases.ids[number] for number, gone in zip(at, dead, strict=False) if gone and number >= 0]
        return DataError(
            cases.store,
            f"lost a loader worker{' over ' if names else ''}{', '.join(names)} ({cause})",
            "If memory ran out, lower data.workers or set data.cache to disk; data.workers 0 shows the cause",
        )

    def state_dict(self) -> dict[str, int]:
        """Which batch of which epoch comes next."""
        epoch = self.sampler.epoch if isinstance(self.sampler, EpochOrder) else 0
        return {"epoch": epoch, "batch": self.delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken, once the sampler is set to that epoch."""
        if isinstance(self.sampler, EpochOrder):
            self.sampler.interrupted = (state["epoch"], state["batch"])
            self.delivered = state["batch"]


class _InTime(Dataset[Any]):
    """A dataset that is read in this process, where no worker can be given up that reads from a dead disk."""

    def __init__(self, dataset: TrainingCrops | WholeVolumes) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # whoever copies or unpickles asks before there is one
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        try:
            return within(STALLED_S, partial(self.dataset.__getitem__, number))
        except TimeoutError:
            return _stalled(self.dataset)


def _stalled(dataset: TrainingCrops | WholeVolumes) -> DataError:
    problem = f"gave no batch in {STALLED_S:.0f} seconds: its file system does not answer"
    return DataError(dataset.cases.store, problem, "Look at that disk or its network, then go on with --ckpt_path last")


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(worker: int) -> None:
    """One core, for its siblings have the others; and no signals.

    Ctrl-C and SLURM reach every process; the training wants its batches until the step is done and kept.
    """
    share_cores(usable_cores())
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def case_loader(
    dataset: TrainingCrops | WholeVolumes,
    sampler: DistributedSampler[Any],
    *,
    workers: int,
    ahead: int = AHEAD,
    pinned: bool = True,
) -> CaseLoader:
    """A loader of ready-made batches: no collation, spawned workers that stay alive between epochs.

    Args:
        dataset: What is read.
        sampler: In what order.
        workers: Processes that read.
        ahead: Batches that each of them has ready.
        pinned: Copy batches to pinned memory, from which a GPU takes them while it computes.
    """
    if workers > 0:
        dataset.cases.reading = torch.full((workers,), -1).share_memory_()  # type: ignore[no-untyped-call]
    return CaseLoader(
        dataset if workers > 0 else _InTime(dataset),
        batch_size=None,
        collate_fn=_as_it_is,  # torch's own would make tensors of the host's arrays
        sampler=sampler,
        num_workers=workers,
        pin_memory=pinned and torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_begin_worker,
        timeout=LOOK_EVERY_S if workers > 0 else 0,
        prefetch_factor=ahead if workers > 0 else None,
        # fork would copy the threads' locks of torch and blosc2 in whatever state they are
        multiprocessing_context="spawn" if workers > 0 else None,
    )
