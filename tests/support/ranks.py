"""Processes of one training that are forked here, since ten seconds of imports apiece are longer than the training."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.multiprocessing as mp

WARNS = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
"""From Python 3.12 on, of threads that a forked process does not have; here none of them holds a lock."""


def run_ranks(work: Callable[..., None], number: int, *given: object) -> None:
    """Run ``work(rank, *given)`` in as many processes, told of each other as the nodes of a cluster are.

    Where autograd has threads of a GPU, which no fork survives, they are spawned; then `work` must be a module's own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn" if torch.cuda.is_available() else "fork")
    processes = [context.Process(target=_rank, args=(rank, number, port, work, given)) for rank in range(number)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout=300)
        assert [process.exitcode for process in processes] == [0] * number
    finally:
        for process in processes:
            process.kill()


def _rank(rank: int, number: int, port: int, work: Callable[..., None], given: tuple[object, ...]) -> None:
    warnings.simplefilter("default")  # a warning is an error for pytest, and not for a process of its own
    torch.set_num_threads(1)  # a pool of OpenMP's threads is not forked with its process
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update(address, NODE_RANK=str(rank), LOCAL_RANK="0", RANK=str(rank), WORLD_SIZE=str(number))
    work(rank, *given)
