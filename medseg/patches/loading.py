"""How the processes of one machine read: how many workers, how far ahead, and whether volumes stay in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning_utilities.core.rank_zero import rank_zero_info

from medseg.machine.hardware import SHARED_MEMORY, free_memory, shared_memory_bytes, usable_cores
from medseg.patches.shared import CAN_SHARE

MEMORY_SHARE = 0.4
"""Of the free memory, for decoded volumes; the network and everyone else need the rest."""

SHARED_SHARE = 0.4
"""Of the free shared memory, for batches of training, and as much again for volumes to validate."""

MOST_WORKERS = 4
MOST_WORKERS_OF_A_GPU = 8
"""Its patches are 40 a second, of which a worker reads 10 to 20 of 128^3 voxels."""

AHEAD = 4


@dataclass(frozen=True)
class Sizes:
    """What is read, in bytes.

    Attributes:
        decoded: Of all volumes.
        batch: Of one training batch as it leaves a worker.
        volume: Of the largest volume to validate.
    """

    decoded: int
    batch: int = 0
    volume: int = 0


@dataclass(frozen=True)
class Loading:
    """How one process reads.

    Attributes:
        workers: Processes that read training batches, 0 for none but this one.
        in_memory: Whether decoded volumes are kept.
        ahead: Batches that each worker has ready.
        volume_workers: Processes that read volumes to validate, each one ahead.
    """

    workers: int
    in_memory: bool
    ahead: int = AHEAD
    volume_workers: int = 0


def decide(workers: int | None, cache: str, sizes: Sizes, *, neighbours: int = 1) -> Loading:
    """How a process reads that shares its machine with others of the same training.

    Where shared memory, through which workers hand over what they have read, is too small for that, as the 64 MiB of a
    container are, they read less far ahead, or this process reads by itself: a worker that fills it is killed.

    Args:
        workers: As the user asks, or None.
        cache: ``auto``, ``memory`` or ``disk``.
        sizes: What is read.
        neighbours: Processes of this training on this machine, this one among them.
    """
    gpu = torch.cuda.is_available()
    free = (free_memory() or 0) * MEMORY_SHARE / neighbours

    def fits(workers: int) -> bool:
        return sizes.decoded * (1 / neighbours if CAN_SHARE else max(workers, 1)) <= free

    if workers is None:
        most = MOST_WORKERS_OF_A_GPU if gpu else MOST_WORKERS
        alone = not gpu and cache != "disk" and (cache == "memory" or fits(1))
        workers = 0 if alone else max(1, min(most, usable_cores() // neighbours - 1))
    in_memory = cache == "memory" or (cache == "auto" and fits(workers))
    room = shared_memory_bytes()
    batches = AHEAD * workers + 1 if room is None else int(room * SHARED_SHARE / neighbours / max(1, sizes.batch))
    volumes = 3 if room is None else int(room * SHARED_SHARE / neighbours / max(1, sizes.volume))
    fitting = min(workers, max(0, batches - 1))  # one more is in use
    ahead = min(AHEAD, (batches - 1) // fitting) if fitting else AHEAD
    if (fitting, ahead) != (workers, AHEAD) and workers:
        _tell(room or 0, sizes.batch, fitting, ahead)
    return Loading(fitting, in_memory, ahead, 0 if in_memory else min(workers, 2, max(0, volumes - 1)))


def _tell(room: int, batch: int, workers: int, ahead: int) -> None:
    done = "the training process reads its batches itself, which is slower"
    if workers:
        done = f"{workers} worker{'s read' if workers > 1 else ' reads'} {ahead} batch{'es' if ahead > 1 else ''} ahead"
    rank_zero_info(
        f"{SHARED_MEMORY} has room for {room / 2**20:.0f} MiB and a batch takes {batch / 2**20:.0f}: {done}. "
        "Give a container more with --shm-size 16g or --ipc host"
    )
